//! A lease is granted only while no conflicting open exists; from then on such opens wait until it goes.

use crate::helper::guard::breaks;
use crate::shared::processes;
use crate::stats::Reason;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use elision_sys::file::{self, ProcPath};
use elision_sys::raw::{Errno, Result};
use elision_sys::task;

/// Descriptors that no guard may take: stopping the program takes some.
const SPARE: u64 = 32;

static ROOM: AtomicI32 = AtomicI32::new(i32::MAX);

pub(crate) fn keep_spare_descriptors(limit: u64) {
    ROOM.store(i32::try_from(limit.saturating_sub(SPARE)).unwrap_or(i32::MAX), Relaxed);
}

pub(super) fn refused(error: Errno) -> Reason {
    match error {
        Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOLCK) => Reason::Limit,
        _ => Reason::LeaseRefused,
    }
}

pub(super) fn take(fd: i32, lease: i32) -> core::result::Result<(), Reason> {
    set(fd, lease).map_err(|errno| match errno {
        Errno(libc::EMFILE) => Reason::Limit,
        _ if lease == libc::F_WRLCK => Reason::NotSole,
        errno => refused(errno),
    })
}

#[cfg(test)]
pub(crate) fn take_read_lease(fd: i32) -> Result<()> {
    set(fd, libc::F_RDLCK)
}

/// May a guard take this descriptor?
pub(super) fn has_room(fd: i32) -> bool {
    fd < ROOM.load(Relaxed)
}

fn set(fd: i32, lease: i32) -> Result<()> {
    if !has_room(fd) {
        return Err(Errno(libc::EMFILE));
    }
    if lease == libc::F_RDLCK {
        // Set before the lease, so that no break goes unnamed. If that fails, the signal is SIGIO.
        let _ = file::set_lease_signal(fd, breaks::NAMED_BREAK);
    }
    file::set_lease(fd, lease)
}

/// `though_wanted`: also while it is being broken.
pub(super) fn still_holds(fd: i32, lease: i32, though_wanted: bool) -> bool {
    file::lease(fd) == Ok(lease) || though_wanted && shows_lock(task::pid(), fd, &[b"LEASE"], false)
}

/// `otherwise`: the answer if /proc cannot be read.
pub(super) fn shows_lock(pid: i32, fd: i32, kinds: &[&[u8]], otherwise: bool) -> bool {
    let mut text = [0u8; 4096];
    let Ok(info) = processes::open(&ProcPath::new(pid, "fdinfo", Some(fd)), 0) else { return otherwise };
    let filled = file::read(info, &mut text);
    file::close(info);
    let Ok(text) = filled.map(|n| text.get(..n).unwrap_or(&[])) else { return otherwise };
    kinds.iter().any(|kind| text.windows(kind.len()).any(|w| w == *kind)) || text.len() == 4096 && otherwise
}
