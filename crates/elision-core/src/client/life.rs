//! The life of an unmodified program: its start, exec, fork, a change of its credentials, its end.
//!
//! Most functions are `unsafe`: said at the wrong moment, they leave deferred pages without a guard.
#![allow(unsafe_code)] // The callers' promises are passed on; the environment is read as libc keeps it.

use crate::client::fork;
use crate::client::{fault, launch, leave};
use crate::settings;
use crate::shared::hot::HOT;
use crate::shared::{control, report, verbose};
use crate::stats;
use crate::transfer::PAGE;
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::*;
use elision_sys::task;

unsafe extern "C" {
    /// glibc's: the last part of the name by which the program was called.
    static program_invocation_short_name: *const c_char;
    /// libc's list of C strings, ended by null.
    static environ: *const *const c_char;
}

/// The smallest transfer that is worth offering (`ELISION_MIN_BYTES`), in bytes; `usize::MAX` when deferral is off.
#[inline(always)]
pub fn min_bytes() -> usize {
    HOT.min_bytes.load(Relaxed)
}

/// How often the program's threads were stopped so far.
#[inline(always)]
pub fn pauses() -> u32 {
    HOT.pauses.load(Acquire)
}

/// A variable of the environment that is not empty. std's function would copy it, and so call the program's malloc before the
/// program has begun.
fn variable(name: &str) -> Option<&'static [u8]> {
    // SAFETY: only the drop-in's constructor asks, while no other thread can change the list.
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

/// Sets the library up as the environment says.
///
/// # Safety
/// Call it once, from the drop-in's constructor, in the main thread, while there is no other.
pub unsafe fn start() {
    // SAFETY: libc has set it to a C string before any constructor of a library that needs libc.
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
            verbose::say_not_understood("ELISION_MIN_BYTES", value, "4 MiB it is");
        }
        least
    });
    if let Some(path) = variable("ELISION_STATS") {
        report::set_stats_path(path);
        stats::count_exactly(true);
    }
    let verbose = variable("ELISION_VERBOSE").is_some_and(|value| settings::switch(value) != Some(false));
    verbose::set_verbose(verbose);
    if task::on_valgrind() {
        return stop("Valgrind");
    }
    fork::register();
    HOT.min_bytes.store(least.unwrap_or(settings::DEFAULT_MIN_BYTES).max(PAGE), Release);
}

/// Stops deferral for good, because of what the program uses.
pub fn stop(why: &str) {
    HOT.min_bytes.store(usize::MAX, SeqCst);
    verbose::say_stopped(why);
    report::report_stop(why);
}

/// For tests: from now on a fault of the helper ends the program, with a line to its stderr. (By std's hook for panics.)
pub fn watch_faults() {
    fault::watch();
}

/// Is there a helper? Without one there is no guard.
pub fn at_work() -> bool {
    control::alive()
}

/// Was there ever a helper, in this process or in one that it was forked from? If not, deferral has made or divided no mapping.
pub fn ever_at_work() -> bool {
    control::ever_started()
}

/// Before this thread opens a file for writing: replaces a helper that was killed, if anything depends on it. The open
/// would wait for an answer that nobody gives. Two loads otherwise.
#[inline]
pub fn look_after() {
    launch::look_after();
}

/// The program is about to end by itself: statistics are written, and the helper ends.
///
/// # Safety
/// It must be so: no guard is left for what is deferred.
pub unsafe fn finish() {
    leave::finish();
}

/// Before a change of credentials, which the helper must not outlive: it gives all pages memory of their own and ends. The next
/// transfer starts another. `true`: call [`after_credentials`] when the change is done.
pub fn before_credentials() -> bool {
    leave::retire()
}

/// See [`before_credentials`].
///
/// # Safety
/// Call it only after that returned `true`, and once.
pub unsafe fn after_credentials() {
    leave::retired();
}

/// Before exec: statistics are written, and the helper ends; what is deferred stays so. `true`: call [`after_exec`]
/// if this is still the program.
///
/// # Safety
/// An exec must be next: until it fails no guard is left for what is deferred.
pub unsafe fn before_exec() -> bool {
    leave::leave()
}

/// See [`before_exec`]. `errno` stays what it is.
///
/// # Safety
/// Call it only after that returned `true`, and once.
pub unsafe fn after_exec() {
    leave::retired();
}

/// Before a fork that runs no pthread_atfork handlers (`_Fork`, clone); then one of [`after_fork_parent`] and
/// [`after_fork_child`].
///
/// # Safety
/// A fork by this thread must be next.
pub unsafe fn before_fork() {
    fork::before_fork();
}

/// After such a fork, in the parent.
///
/// # Safety
/// Call it after [`before_fork`], in the same thread.
pub unsafe fn after_fork_parent() {
    fork::after_fork_parent();
}

/// After such a fork, in the child.
///
/// # Safety
/// Call it only there: the guards that the process has count as its parent's from then on.
pub unsafe fn after_fork_child() {
    fork::after_fork_child();
}

/// After any fork, in the parent, once handlers have run: the child's number, or a negative one if there is no child. `errno`
/// stays what it is.
///
/// # Safety
/// It must be the result of this thread's last fork: for a child that is taken not to exist no guard is kept.
pub unsafe fn forked(child: i32) {
    fork::forked(child);
}
