//! Raw system calls.
//!
//! rustix makes a call where it has a typed function for it alone, [`syscall`] the rest, past libc: the helper has none, and the
//! drop-in has libc's names.
#![allow(unsafe_code)] // Entering the kernel.

use rustix::fd::BorrowedFd;

// rustix's raw backend keeps an errno in 16 bits; libc's, in 32, is of no use here.
const _: () = assert!(size_of::<rustix::io::Errno>() == 2);

/// A positive errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Errno(errno.raw_os_error())
    }
}

pub type Result<T> = core::result::Result<T, Errno>;

/// # Safety
/// The arguments suit the call: valid pointers, and no effect on memory that Rust owns.
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> Result<usize> {
    // SAFETY: the caller's promise.
    let returned = unsafe { crate::arch::syscall(number, args) };
    if (-4095..0).contains(&returned) { Err(Errno(-returned as i32)) } else { Ok(returned as usize) }
}

/// A descriptor for rustix, which may panic on an impossible one: EBADF here.
#[inline]
pub(crate) fn borrow<'a>(fd: i32) -> Result<BorrowedFd<'a>> {
    if fd < 0 && fd != libc::AT_FDCWD {
        return Err(Errno(libc::EBADF));
    }
    // SAFETY: only the kernel gets the number; EBADF if not open.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
