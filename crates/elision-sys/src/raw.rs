//! System calls as the kernel defines them: numbers in, a value or an errno out.
//!
//! Where rustix has a typed function that makes the same single call, that is used; [`syscall`] makes the others. Both enter the
//! kernel directly: the helper runs without libc and without thread-local storage, and in the drop-in libc's names are our own.
#![allow(unsafe_code)] // Entering the kernel.

use rustix::fd::BorrowedFd;

// Of rustix's two backends, the one that makes raw system calls keeps an errno in 16 bits; libc's, in 32, is of no use here.
const _: () = assert!(size_of::<rustix::io::Errno>() == 2);

/// An errno value, positive, as in `libc::ENOENT`.
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

/// What a system call gives.
pub type Result<T> = core::result::Result<T, Errno>;

/// Enters the kernel with up to six arguments.
///
/// # Safety
/// The arguments must be what system call `number` demands: pointers valid for what the kernel reads and
/// writes through them, and no effect on memory that Rust believes it owns.
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> Result<usize> {
    // SAFETY: the caller's promise.
    let returned = unsafe { crate::arch::syscall(number, args) };
    if (-4095..0).contains(&returned) { Err(Errno(-returned as i32)) } else { Ok(returned as usize) }
}

/// A descriptor for rustix, whose checks may panic on one that cannot be: here that is an error, as it is in the kernel.
#[inline]
pub(crate) fn borrow<'a>(fd: i32) -> Result<BorrowedFd<'a>> {
    if fd < 0 && fd != libc::AT_FDCWD {
        return Err(Errno(libc::EBADF));
    }
    // SAFETY: the number goes to the kernel and nowhere else; of one that is not open the kernel says EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
