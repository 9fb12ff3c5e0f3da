//! Leases.

use super::descriptor::fcntl;
use super::status::{Stat, TMPFS, filesystem, stat};
use crate::raw::{Errno, Result};

/// Sets a lease, but on no [`nameless`] file.
pub fn set_lease(fd: i32, lease: i32) -> Result<()> {
    if lease != libc::F_UNLCK && nameless(filesystem(fd)?, &stat(fd)?) {
        return Err(Errno(libc::EAGAIN));
    }
    set_lease_of_named(fd, lease)
}

/// Is it a nameless file of tmpfs? The kernel does not count memfd_create's description as a writer: it would grant a lease that
/// writes do not break.
pub fn nameless(filesystem: i64, stat: &Stat) -> bool {
    filesystem == TMPFS && stat.links == 0
}

/// The same for a file that is not nameless.
pub fn set_lease_of_named(fd: i32, lease: i32) -> Result<()> {
    fcntl(fd, libc::F_SETLEASE, lease as usize).map(drop)
}

/// The kernel announces a lease's break by this real-time signal, with the descriptor that took the lease; by SIGIO if it cannot
/// queue that.
pub fn set_lease_signal(fd: i32, signal: i32) -> Result<()> {
    fcntl(fd, linux_raw_sys::general::F_SETSIG as i32, signal as usize).map(drop)
}

/// The lease held, or what a break must leave of it.
pub fn lease(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETLEASE, 0)
}
