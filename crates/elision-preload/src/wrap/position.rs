//! lseek and fstat tell where the next large block should start. fstat gives the size, and costs an lseek here. lseek is too
//! frequent to ask for the size: the last file's is remembered.
#![allow(unsafe_code)] // The program's pointers.

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use libc::{c_int, off_t};

use crate::abi::interpose::interpose;
use crate::abi::kernel;
use crate::state::heap::page_offset;
use crate::state::stop::active;

/// A descriptor (−1: none) and its file's size (0: not regular). Racing threads only misplace a block.
static LAST: AtomicI32 = AtomicI32::new(-1);
static SIZE: AtomicU64 = AtomicU64::new(0);

#[inline]
pub(crate) fn forget(fd: c_int) {
    if LAST.load(Ordering::Relaxed) == fd {
        LAST.store(-1, Ordering::Relaxed);
    }
}

fn remember(fd: c_int, status: Option<libc::stat>) -> u64 {
    let size = match status {
        Some(status) if status.st_mode & libc::S_IFMT == libc::S_IFREG => status.st_size as u64,
        _ => 0,
    };
    SIZE.store(size, Ordering::Relaxed);
    LAST.store(fd, Ordering::Relaxed);
    size
}

fn hint(position: u64, size: u64) {
    if position < size {
        page_offset::hint_file(position, size - position);
    }
}

fn sought(fd: c_int, position: off_t) -> off_t {
    if let Ok(position) = u64::try_from(position) {
        let size = if LAST.load(Ordering::Relaxed) == fd {
            SIZE.load(Ordering::Relaxed)
        } else {
            remember(fd, kernel::status(fd))
        };
        hint(position, size);
    }
    position
}

fn measured(fd: c_int, status: *const libc::stat, result: c_int) -> c_int {
    if result == 0 {
        // SAFETY: the kernel has just filled it.
        let size = remember(fd, Some(unsafe { *status }));
        if size >= elision_core::client::life::min_bytes() as u64
            && let Some(position) = kernel::position(fd)
        {
            hint(position, size);
        }
    }
    result
}

interpose! {
    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t, until kernel(libc::SYS_lseek);
        // SAFETY: the program's call.
        if active() => sought(fd, unsafe { lseek::real(fd, offset, whence) });

    fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t, until kernel(libc::SYS_lseek);
        // SAFETY: as above.
        if active() => sought(fd, unsafe { lseek64::real(fd, offset, whence) });

    fn fstat(fd: c_int, status: *mut libc::stat) -> c_int, until kernel(libc::SYS_fstat);
        // SAFETY: as above.
        if active() => measured(fd, status, unsafe { fstat::real(fd, status) });

    fn fstat64(fd: c_int, status: *mut libc::stat) -> c_int, until kernel(libc::SYS_fstat);
        // SAFETY: as above.
        if active() => measured(fd, status, unsafe { fstat64::real(fd, status) });

    fn __fxstat(version: c_int, fd: c_int, status: *mut libc::stat) -> c_int,
        until kernel(libc::SYS_fstat, fd, status);
        // SAFETY: as above.
        if active() => measured(fd, status, unsafe { __fxstat::real(version, fd, status) });

    fn __fxstat64(version: c_int, fd: c_int, status: *mut libc::stat) -> c_int,
        until kernel(libc::SYS_fstat, fd, status);
        // SAFETY: as above.
        if active() => measured(fd, status, unsafe { __fxstat64::real(version, fd, status) });
}
