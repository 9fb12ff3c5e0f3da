//! `ELISION_VERBOSE=1`: one line when active, one for each new reason to decline, one when it is over. To stderr, and
//! only then.

use crate::sidecar::launch;
use crate::stats::{COUNTERS, Reason};
use crate::sys::file::{decimal, write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

static VERBOSE: AtomicBool = AtomicBool::new(false);
static SAID: AtomicU32 = AtomicU32::new(0);

/// Switches the lines on.
pub(crate) fn set_verbose(on: bool) {
    VERBOSE.store(on, Relaxed);
}

/// Counts a transfer that is done the traditional way; with ELISION_VERBOSE, says so once for each reason.
pub(crate) fn decline(reason: Reason, len: usize) {
    COUNTERS.decline(reason);
    if VERBOSE.load(Relaxed) && SAID.fetch_or(1 << reason as u32, Relaxed) & (1 << reason as u32) == 0 {
        let mut digits = [0; 20];
        say(&[
            b"declined a transfer of ",
            decimal(len as u64, &mut digits),
            b" bytes: ",
            reason.name().as_bytes(),
        ]);
    }
}

/// Confirms that the drop-in is there.
pub(crate) fn say_active(least: usize) {
    if VERBOSE.load(Relaxed) {
        let mut digits = [0; 20];
        say(&[b"active for transfers of ", decimal(least as u64, &mut digits), b" bytes and more"]);
    }
}

/// Says that deferral is over in this process.
pub(crate) fn say_stopped(why: &str) {
    if VERBOSE.load(Relaxed) {
        say(&[b"nothing is deferred from here on: the program uses ", why.as_bytes()]);
    }
}

/// Why there is no sidecar to ask.
pub(crate) fn unavailable() -> Reason {
    if launch::possible() { Reason::Sidecar } else { Reason::Unavailable }
}

fn say(parts: &[&[u8]]) {
    // One write, so that lines of several processes do not mix.
    let mut line = [0u8; 160];
    let mut at = 0;
    let all = [&b"elision: "[..]].into_iter().chain(parts.iter().copied()).chain([&b"\n"[..]]);
    for byte in all.flatten() {
        if let Some(slot) = line.get_mut(at) {
            *slot = *byte;
            at += 1;
        }
    }
    let _ = write(2, line.get(..at).unwrap_or(&[]));
}
