//! Programs that watch files: the sidecar opens what it guards, and closes it, and what is deferred is never read. They
//! would be told so, and of the end of a writer only when the sidecar has let his description go. One that has to permit
//! every open would wait for its own answer, since the read that needs it is its own.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use libc::{c_char, c_int, c_uint};

use crate::abi::interpose::interpose;
use crate::state::stop::{stopped, stopping};

/// What a program uses that deferral ends with.
pub(crate) const WATCH: &str = "a watch on what is opened and read";

/// Would inotify with this mask tell of the sidecar?
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
