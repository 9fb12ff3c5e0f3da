//! inotify and fanotify: the helper opens and closes what it guards, deferred reads never happen, and the close of a written
//! file is told only when the helper releases its description. A program that permits every open would wait for itself: it
//! is its own read that has the helper open.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use libc::{c_char, c_int, c_uint};

use crate::abi::interpose::interpose;
use crate::state::stop::{stopped, stopping};

/// The reason to stop.
pub(crate) const WATCH: &str = "a watch on what is opened and read";

/// Would inotify with this mask show the helper?
pub(crate) fn tells(mask: u32) -> bool {
    mask & (libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE) != 0
}

interpose! {
    /// See inotify_add_watch(2).
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int,
        until kernel(libc::SYS_inotify_add_watch);
        if tells(mask) && !stopped() => stopping(WATCH, || {
            // SAFETY: the program's call.
            unsafe { inotify_add_watch::real(fd, path, mask) }
        });

    /// See fanotify_init(2).
    fn fanotify_init(flags: c_uint, event_flags: c_uint) -> c_int, until kernel(libc::SYS_fanotify_init);
        if !stopped() => stopping(WATCH, || {
            // SAFETY: the program's call.
            unsafe { fanotify_init::real(flags, event_flags) }
        });
}
