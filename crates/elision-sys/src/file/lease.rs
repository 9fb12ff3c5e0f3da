//! Leases.

use super::descriptor::fcntl;
use super::status::{Stat, TMPFS, filesystem, stat};
use crate::raw::{Errno, Result};

/// Takes (`F_RDLCK`, `F_WRLCK`) or gives up (`F_UNLCK`) a lease. Refused as well for files that are [`nameless`].
pub fn set_lease(fd: i32, lease: i32) -> Result<()> {
    if lease != libc::F_UNLCK && nameless(filesystem(fd)?, &stat(fd)?) {
        return Err(Errno(libc::EAGAIN));
    }
    set_lease_of_named(fd, lease)
}

/// Is it a file of tmpfs that has no name? memfd_create makes descriptions that can write and that the kernel does not
/// count as open for writing, so it would grant a lease that they never break.
pub fn nameless(filesystem: i64, stat: &Stat) -> bool {
    filesystem == TMPFS && stat.links == 0
}

/// The same for a file that is known to have a name, or not to be on tmpfs.
pub fn set_lease_of_named(fd: i32, lease: i32) -> Result<()> {
    fcntl(fd, libc::F_SETLEASE, lease as usize).map(drop)
}

/// Has the breaking of a lease on this description announced by that real-time signal, which names the descriptor that the
/// lease was taken with; and by SIGIO only if it cannot be queued.
pub fn set_lease_signal(fd: i32, signal: i32) -> Result<()> {
    fcntl(fd, linux_raw_sys::general::F_SETSIG as i32, signal as usize).map(drop)
}

/// The lease that is held, or, while it is being broken, the one it has to become.
pub fn lease(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETLEASE, 0)
}
