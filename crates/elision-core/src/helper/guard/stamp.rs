//! What outlives a guard: the file's ctime when the guard went. Tracked extents hold while it has not moved.

use crate::helper::files::{File, Stamp};
use elision_sys::file;

/// Takes it, where every change shows (Linux 6.13): asking makes the kernel mark the next change with a new time.
pub(crate) fn take(known: &File) -> Option<Stamp> {
    file::ctime(known.source.fd).ok().filter(|&(_, nanoseconds)| {
        // (Whole seconds are all that some ext file systems keep.)
        nanoseconds != 0 && known.fs.is_some_and(|fs| fs.times_tell)
    })
}
