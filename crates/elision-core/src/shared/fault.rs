//! Mistakes of ours that show: a panic of the helper or of its parent, or the helper's death of a signal that nobody has sent.
//!
//! They lose nothing, since another helper comes (see [`crate::supervisor`]). In the project's tests, and in debug builds of the drop-in,
//! they are said, and end the program, so that they do not pass unseen.

use crate::shared::control::PROGRAM;
use crate::shared::processes;
use crate::shared::verbose::write_line;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::file::{ProcPath, decimal};
use elision_sys::task;

pub(crate) const FAILED: &[u8] = b"the helper has failed: ";

static WATCHED: AtomicBool = AtomicBool::new(false);

/// From now on mistakes end the program.
pub(crate) fn watch() {
    WATCHED.store(true, Release);
}

/// Do mistakes end the program?
pub(crate) fn watched() -> bool {
    WATCHED.load(Acquire)
}

/// In the supervisor: the helper was killed by this signal.
pub(crate) fn helper_died(signal: i32) {
    // All others are blocked, but for those that the kernel has for what a process does itself.
    if signal != libc::SIGKILL && watched() {
        tell(&[FAILED, b"signal ", decimal(signal as u64, &mut [0; 20])]);
    }
}

/// Says so where the program's errors go, and ends the program.
pub(crate) fn tell(parts: &[&[u8]]) {
    let program = PROGRAM.load(Acquire);
    if let Ok(errors) = processes::open(&ProcPath::new(program, "fd", Some(2)), libc::O_WRONLY) {
        write_line(errors, parts);
    }
    let _ = task::send_signal(program, libc::SIGABRT);
}
