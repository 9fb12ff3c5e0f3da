//! A system call past libc, and `errno`.
#![allow(unsafe_code)] // The caller's arguments, and errno's location.

use elision_sys::raw;

/// A system call; missing arguments are zero.
///
/// # Safety
/// As for [`raw::syscall`].
#[inline]
pub unsafe fn raw_call(number: libc::c_long, arguments: &[usize]) -> raw::Result<usize> {
    let mut six = [0; 6];
    for (place, argument) in six.iter_mut().zip(arguments) {
        *place = *argument;
    }
    // SAFETY: the caller's promise.
    unsafe { raw::syscall(number, six) }
}

/// libc's result: the value, or −1 and `errno`, which success leaves alone.
#[inline]
pub fn answer(result: raw::Result<usize>) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(errno) => {
            set_errno(errno.0);
            -1
        }
    }
}

pub fn set_errno(errno: i32) {
    // SAFETY: valid in every thread that libc started.
    unsafe { *libc::__errno_location() = errno }
}

pub fn errno() -> i32 {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() }
}
