//! The file's ctime when its guard went: tracked extents hold while it has not moved.

use crate::helper::files::{File, Stamp};
use elision_sys::file;

/// Asking for the ctime makes the next change get a new one (Linux 6.13).
pub(crate) fn take(known: &File) -> Option<Stamp> {
    file::ctime(known.source.fd).ok().filter(|&(_, nanoseconds)| {
        // Some ext file systems keep whole seconds only.
        nanoseconds != 0 && known.fs.is_some_and(|fs| fs.times_tell)
    })
}
