//! Faults of the library: a panic of helper or supervisor, or an unexplained death of the helper.
//!
//! Another helper recovers (see [`crate::supervisor`]). In tests, and in debug builds of the drop-in, a fault is reported and
//! ends the program.

use crate::shared::control::PROGRAM;
use crate::shared::processes;
use crate::shared::verbose::write_line;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::file::{ProcPath, decimal};
use elision_sys::task;

pub(crate) const FAILED: &[u8] = b"the helper has failed: ";

static WATCHED: AtomicBool = AtomicBool::new(false);

pub(crate) fn watch() {
    WATCHED.store(true, Release);
}

pub(crate) fn watched() -> bool {
    WATCHED.load(Acquire)
}

pub(crate) fn helper_died(signal: i32) {
    // The helper blocks all other signals but those of its own faults.
    if signal != libc::SIGKILL && watched() {
        tell(&[FAILED, b"signal ", decimal(signal as u64, &mut [0; 20])]);
    }
}

pub(crate) fn tell(parts: &[&[u8]]) {
    let program = PROGRAM.load(Acquire);
    if let Ok(errors) = processes::open(&ProcPath::new(program, "fd", Some(2)), libc::O_WRONLY) {
        write_line(errors, parts);
    }
    let _ = task::send_signal(program, libc::SIGABRT);
}
