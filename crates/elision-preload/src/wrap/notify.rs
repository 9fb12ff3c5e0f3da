//! inotify and fanotify would show the helper's opens, and miss deferred reads. A program that permits opens would wait for
//! itself: its own read makes the helper open.
#![allow(unsafe_code)] // The program's pointers.

use libc::{c_char, c_int, c_uint};

use crate::abi::interpose::interpose;
use crate::state::stop::{stopped, stopping};

pub(crate) const WATCH: &str = "a watch on what is opened and read";

pub(crate) fn tells(mask: u32) -> bool {
    mask & (libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE) != 0
}

interpose! {
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int,
        until kernel(libc::SYS_inotify_add_watch);
        if tells(mask) && !stopped() => stopping(WATCH, || {
            // SAFETY: the program's call.
            unsafe { inotify_add_watch::real(fd, path, mask) }
        });

    fn fanotify_init(flags: c_uint, event_flags: c_uint) -> c_int, until kernel(libc::SYS_fanotify_init);
        if !stopped() => stopping(WATCH, || {
            // SAFETY: as above.
            unsafe { fanotify_init::real(flags, event_flags) }
        });
}
