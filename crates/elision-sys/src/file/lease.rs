//! Leases.

use super::descriptor::fcntl;
use crate::raw::Result;

/// Sets a lease.
pub fn set_lease(fd: i32, lease: i32) -> Result<()> {
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
