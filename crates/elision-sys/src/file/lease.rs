//! Leases.

use super::descriptor::fcntl;
use super::status::{Stat, TMPFS, filesystem, stat};
use crate::raw::{Errno, Result};

/// Sets a lease (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`), but on no [`nameless`] file.
pub fn set_lease(fd: i32, lease: i32) -> Result<()> {
    if lease != libc::F_UNLCK && nameless(filesystem(fd)?, &stat(fd)?) {
        return Err(Errno(libc::EAGAIN));
    }
    set_lease_of_named(fd, lease)
}

/// Is it a tmpfs file without a name? The kernel does not count memfd_create's description as open for writing, so it would grant
/// a lease that a write does not break.
pub fn nameless(filesystem: i64, stat: &Stat) -> bool {
    filesystem == TMPFS && stat.links == 0
}

/// The same for a file that has a name, or is not on tmpfs.
pub fn set_lease_of_named(fd: i32, lease: i32) -> Result<()> {
    fcntl(fd, libc::F_SETLEASE, lease as usize).map(drop)
}

/// Has the kernel announce the break of a lease with that real-time signal, which names the descriptor that took the lease; with
/// SIGIO if it cannot be queued.
pub fn set_lease_signal(fd: i32, signal: i32) -> Result<()> {
    fcntl(fd, linux_raw_sys::general::F_SETSIG as i32, signal as usize).map(drop)
}

/// The lease held, or what a lease under break must become.
pub fn lease(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETLEASE, 0)
}
