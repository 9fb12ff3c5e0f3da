//! How this process ends, and the signals that would end it.
#![allow(unsafe_code)] // Dispositions and masks have no safe wrapper.

use std::ffi::c_int;
use std::mem::zeroed;
use std::process::{exit, id};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::start::is_ignored;

/// How this process is to end.
pub enum Ending {
    /// By exiting with this status.
    Code(u8),
    /// By this signal.
    Signal(c_int),
}

/// The signals that a user ends a command with, but for those that are ignored.
pub fn signals() -> impl Iterator<Item = c_int> {
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]
        .into_iter()
        .filter(|&signal| !is_ignored(signal))
}

static NOTED: AtomicUsize = AtomicUsize::new(0);

/// From now on these signals are noted, and interrupt `poll`.
pub fn note_signals() {
    for signal in signals() {
        // (It fails for signals that cannot be handled.)
        let _ = signal_hook::flag::register_usize(signal, &NOTED, signal as usize);
    }
}

/// The last signal that was noted.
pub fn noted() -> Option<c_int> {
    Some(NOTED.load(SeqCst) as c_int).filter(|&signal| signal != 0)
}

/// Ends this process by `signal`, as the program ended, and without a core file of its own.
pub fn die_by(signal: c_int) -> ! {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // A core_pattern that is a pipe does not heed the limit.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // SAFETY: integers, and pointers to locals.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::kill(id() as libc::pid_t, signal);
    }
    // The first process of a container survives its own signals.
    exit(128 + signal)
}
