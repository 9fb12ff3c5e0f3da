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
    write_line(2, parts);
}

/// Writes a line of ours in one go, so that those of several processes do not mix. What is too long is cut.
pub(crate) fn write_line(fd: i32, parts: &[&[u8]]) {
    const MOST: usize = 255;
    let mut line = [b'\n'; MOST + 1];
    let all = [&b"elision: "[..]].into_iter().chain(parts.iter().copied()).flatten();
    let len = line.iter_mut().take(MOST).zip(all).map(|(slot, byte)| *slot = *byte).count();
    let _ = write(fd, line.get(..=len).unwrap_or(&[]));
}
