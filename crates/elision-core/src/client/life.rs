//! The life of an unmodified program: start, exec, fork, change of credentials, end.
//!
//! Most functions are `unsafe`: a call at the wrong moment leaves deferred pages without a guard.
#![allow(unsafe_code)] // The callers' promises are passed on; the environment is read as libc keeps it.

use crate::client::fork;
use crate::client::{fault, launch, leave};
use crate::settings;
use crate::shared::hot::HOT;
use crate::shared::{control, pending, report, sharing, verbose};
use crate::stats;
use crate::transfer::PAGE;
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::*;
use elision_sys::task;

unsafe extern "C" {
    static program_invocation_short_name: *const c_char;
    static environ: *const *const c_char;
}

/// `ELISION_MIN_BYTES`; `usize::MAX` when deferral is off.
#[inline(always)]
pub fn min_bytes() -> usize {
    HOT.min_bytes.load(Relaxed)
}

#[inline(always)]
pub fn pauses() -> u32 {
    HOT.pauses.load(Acquire)
}

/// A non-empty variable. std's function would call the program's malloc too early.
fn variable(name: &str) -> Option<&'static [u8]> {
    // SAFETY: only the drop-in's constructor asks, in the only thread.
    unsafe {
        let mut next = environ;
        while let Some(entry) = next.as_ref().filter(|entry| !entry.is_null()) {
            let entry = CStr::from_ptr(*entry).to_bytes();
            if let Some(value) = entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
            {
                return Some(value).filter(|value| !value.is_empty());
            }
            next = next.add(1);
        }
    }
    None
}

/// Sets the library up from the environment.
///
/// # Safety
/// Call it once, from the drop-in's constructor, in the only thread.
pub unsafe fn start() {
    // SAFETY: libc sets it to a C string before the constructors of its users run.
    if let Some(name) = unsafe { program_invocation_short_name.as_ref() } {
        // SAFETY: as above.
        verbose::set_program(unsafe { CStr::from_ptr(name) }.to_bytes());
    }
    if let Some(value) = variable("ELISION") {
        let on = settings::switch(value);
        if on.is_none() {
            verbose::say_not_understood("ELISION", value, "taken for off");
        }
        if on != Some(true) {
            return;
        }
    }
    let least = variable("ELISION_MIN_BYTES").and_then(|value| {
        let least = settings::bytes(value);
        if least.is_none() {
            verbose::say_not_understood("ELISION_MIN_BYTES", value, "4 MB it is");
        }
        least
    });
    if let Some(value) = variable("ELISION_TRUNCATE") {
        let later = value.eq_ignore_ascii_case(b"later");
        if !later && !value.eq_ignore_ascii_case(b"now") {
            verbose::say_not_understood("ELISION_TRUNCATE", value, "taken for now");
        }
        pending::allow(later);
    }
    if let Some(value) = variable("ELISION_SHARE") {
        let on = settings::switch(value);
        if on.is_none() {
            verbose::say_not_understood("ELISION_SHARE", value, "taken for off");
        }
        sharing::allow(on == Some(true));
    }
    if let Some(path) = variable("ELISION_STATS") {
        report::set_stats_path(path);
        stats::count_exactly(true);
        if variable("ELISION_REPORT").is_some() {
            report::tell_of_pages();
        }
    }
    let verbose = variable("ELISION_VERBOSE").is_some_and(|value| settings::switch(value) != Some(false));
    verbose::set_verbose(verbose);
    if task::on_valgrind() {
        return stop("Valgrind");
    }
    fork::register();
    HOT.min_bytes.store(least.unwrap_or(settings::DEFAULT_MIN_BYTES).max(PAGE), Release);
}

pub fn stop(why: &str) {
    HOT.min_bytes.store(usize::MAX, SeqCst);
    verbose::say_stopped(why);
    report::report_stop(why);
}

pub fn watch_faults() {
    fault::watch();
}

pub fn at_work() -> bool {
    control::alive()
}

/// Was there ever a helper, here or in a forerunner by fork? If not, deferral has made or split no mapping.
pub fn ever_at_work() -> bool {
    control::ever_started()
}

/// Before an open for writing, which would wait for a killed helper's answer: replaces it.
#[inline]
pub fn look_after() {
    launch::look_after();
}

/// Statistics are written, and the helper ends.
///
/// # Safety
/// The program is about to end: no guard is left.
pub unsafe fn finish() {
    leave::finish();
}

/// The helper materialises all pages and ends. `true`: call [`after_credentials`] after the change.
pub fn before_credentials() -> bool {
    leave::retire()
}

/// # Safety
/// Call it once, after [`before_credentials`] returned `true`.
pub unsafe fn after_credentials() {
    leave::retired();
}

/// Statistics are written, and the helper ends; what is deferred stays so. `true`: call [`after_exec`] if exec fails.
///
/// # Safety
/// An exec must be next: until it fails no guard is left.
pub unsafe fn before_exec() -> bool {
    leave::leave()
}

/// Leaves `errno` alone.
///
/// # Safety
/// Call it once, after [`before_exec`] returned `true`.
pub unsafe fn after_exec() {
    leave::retired();
}

/// Before a fork without pthread_atfork handlers (`_Fork`, clone).
///
/// # Safety
/// A fork by this thread must be next.
pub unsafe fn before_fork() {
    fork::before_fork();
}

/// # Safety
/// Call it after [`before_fork`], in the same thread of the parent.
pub unsafe fn after_fork_parent() {
    fork::after_fork_parent();
}

/// # Safety
/// Call it only in the child: this process's guards then count as its parent's.
pub unsafe fn after_fork_child() {
    fork::after_fork_child();
}

/// After any fork, in the parent: the child's pid, or a negative number. Leaves `errno` alone.
///
/// # Safety
/// It must be the result of this thread's last fork: without a child its guards go.
pub unsafe fn forked(child: i32) {
    fork::forked(child);
}
