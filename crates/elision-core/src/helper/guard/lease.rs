//! What both kinds of lease have in common.
//!
//! A lease is granted only when nobody has the file open in a conflicting way, and from then on the kernel makes everybody who wants to (open
//! for writing, truncate; for a write lease any open at all) wait until the lease goes.

use crate::helper::guard::breaks;
use crate::shared::processes;
use crate::stats::Reason;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use elision_sys::file::{self, ProcPath};
use elision_sys::raw::{Errno, Result};
use elision_sys::task;

/// Descriptors that no guard may take: to stop the program, threads have to be listed, and without that whoever waits for a lease would wait
/// for as long as the kernel does.
const SPARE: u64 = 32;

/// Guards have descriptors below this one.
static ROOM: AtomicI32 = AtomicI32::new(i32::MAX);

/// So many descriptors may be open.
pub(crate) fn keep_spare_descriptors(limit: u64) {
    ROOM.store(i32::try_from(limit.saturating_sub(SPARE)).unwrap_or(i32::MAX), Relaxed);
}

/// Why a lease could not be had.
pub(super) fn refused(error: Errno) -> Reason {
    match error {
        Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOLCK) => Reason::Limit,
        _ => Reason::LeaseRefused,
    }
}

/// Takes a lease on a description of a file that the client has found fit for one.
pub(super) fn take(fd: i32, lease: i32) -> core::result::Result<(), Reason> {
    set(fd, lease).map_err(|errno| match errno {
        Errno(libc::EMFILE) => Reason::Limit,
        _ if lease == libc::F_WRLCK => Reason::NotSole,
        errno => refused(errno),
    })
}

/// Takes a read lease on a description of the helper's own that is known to be of an allowed file.
#[cfg(test)]
pub(crate) fn take_read_lease(fd: i32) -> Result<()> {
    set(fd, libc::F_RDLCK)
}

/// Sets a lease, if there is a descriptor to spare after this one.
fn set(fd: i32, lease: i32) -> Result<()> {
    if fd >= ROOM.load(Relaxed) {
        return Err(Errno(libc::EMFILE));
    }
    if lease == libc::F_RDLCK {
        // Its break is announced by name. Before the lease: there is no moment at which it could be broken in silence. If the signal cannot be
        // set, it is SIGIO.
        let _ = file::set_lease_signal(fd, breaks::NAMED_BREAK);
    }
    file::set_lease_of_named(fd, lease)
}

/// Is this lease on the description? `though_wanted`: also if it is being broken.
pub(super) fn still_holds(fd: i32, lease: i32, though_wanted: bool) -> bool {
    file::lease(fd) == Ok(lease) || though_wanted && shows_lock(task::pid(), fd, &[b"LEASE"], false)
}

/// Does /proc show locks of these kinds with a descriptor of a process? `otherwise`: that cannot be read.
pub(super) fn shows_lock(pid: i32, fd: i32, kinds: &[&[u8]], otherwise: bool) -> bool {
    // A text that does not fit has more locks than anybody needs.
    let mut text = [0u8; 4096];
    let Ok(info) = processes::open(&ProcPath::new(pid, "fdinfo", Some(fd)), 0) else { return otherwise };
    let filled = file::read(info, &mut text);
    file::close(info);
    let Ok(text) = filled.map(|n| text.get(..n).unwrap_or(&[])) else { return otherwise };
    kinds.iter().any(|kind| text.windows(kind.len()).any(|w| w == *kind)) || text.len() == 4096 && otherwise
}
