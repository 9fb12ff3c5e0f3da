//! lseek, fstat, fseek and ftell tell which file, and which part of it, the next large block is for.
#![allow(unsafe_code)] // The program's pointers.

use libc::{FILE, c_int, c_long, off_t};

use crate::abi::interpose::interpose;
use crate::state::heap::expected;
use crate::state::stop::active;
use crate::wrap::stdio;

fn noting<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    expected::used(fd);
    call()
}

fn seeking_descriptor(fd: c_int, whence: c_int, seek: impl FnOnce() -> off_t) -> off_t {
    let position = seek();
    match u64::try_from(position) {
        Ok(position) if whence == libc::SEEK_SET => expected::sought(fd, position),
        _ => expected::used(fd),
    }
    position
}

/// Safety: the program's FILE.
unsafe fn noting_stream(file: *mut FILE, position: impl FnOnce() -> off_t) {
    // SAFETY: the caller's promise.
    if stdio::visible() && !file.is_null() && unsafe { stdio::led_through_here(file) } {
        let position = u64::try_from(position()).ok();
        // SAFETY: as above.
        expected::used_at(unsafe { stdio::descriptor(file) }, position);
    }
}

/// Safety: as above.
unsafe fn seeking(file: *mut FILE, offset: off_t, whence: c_int, seek: impl FnOnce() -> c_int) -> c_int {
    let result = seek();
    if result == 0 {
        // SAFETY: as above.
        unsafe {
            noting_stream(file, || if whence == libc::SEEK_SET { offset } else { ftello::real(file) });
        }
    }
    result
}

/// Safety: as above.
unsafe fn telling(file: *mut FILE, tell: impl FnOnce() -> off_t) -> off_t {
    let position = tell();
    // SAFETY: as above.
    unsafe { noting_stream(file, || position) };
    position
}

interpose! {
    fn fseek(file: *mut FILE, offset: c_long, whence: c_int) -> c_int, until lookup(-1);
        // SAFETY: the program's call.
        if active() => unsafe { seeking(file, offset, whence, || fseek::real(file, offset, whence)) };

    fn fseeko(file: *mut FILE, offset: off_t, whence: c_int) -> c_int, until lookup(-1);
        // SAFETY: as above.
        if active() => unsafe { seeking(file, offset, whence, || fseeko::real(file, offset, whence)) };

    fn fseeko64(file: *mut FILE, offset: off_t, whence: c_int) -> c_int, until lookup(-1);
        // SAFETY: as above.
        if active() => unsafe { seeking(file, offset, whence, || fseeko64::real(file, offset, whence)) };

    fn rewind(file: *mut FILE) -> (), until lookup(Default::default());
        if active() => {
            // SAFETY: as above.
            unsafe {
                rewind::real(file);
                noting_stream(file, || 0);
            }
        };

    fn ftell(file: *mut FILE) -> c_long, until lookup(-1);
        // SAFETY: as above.
        if active() => unsafe { telling(file, || ftell::real(file)) };

    fn ftello(file: *mut FILE) -> off_t, until lookup(-1);
        // SAFETY: as above.
        if active() => unsafe { telling(file, || ftello::real(file)) };

    fn ftello64(file: *mut FILE) -> off_t, until lookup(-1);
        // SAFETY: as above.
        if active() => unsafe { telling(file, || ftello64::real(file)) };

    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t, until kernel(libc::SYS_lseek);
        // SAFETY: the program's call.
        if active() => seeking_descriptor(fd, whence, || unsafe { lseek::real(fd, offset, whence) });

    fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t, until kernel(libc::SYS_lseek);
        // SAFETY: as above.
        if active() => seeking_descriptor(fd, whence, || unsafe { lseek64::real(fd, offset, whence) });

    fn fstat(fd: c_int, status: *mut libc::stat) -> c_int, until kernel(libc::SYS_fstat);
        // SAFETY: as above.
        if active() => noting(fd, || unsafe { fstat::real(fd, status) });

    fn fstat64(fd: c_int, status: *mut libc::stat) -> c_int, until kernel(libc::SYS_fstat);
        // SAFETY: as above.
        if active() => noting(fd, || unsafe { fstat64::real(fd, status) });

    fn __fxstat(version: c_int, fd: c_int, status: *mut libc::stat) -> c_int,
        until kernel(libc::SYS_fstat, fd, status);
        // SAFETY: as above.
        if active() => noting(fd, || unsafe { __fxstat::real(version, fd, status) });

    fn __fxstat64(version: c_int, fd: c_int, status: *mut libc::stat) -> c_int,
        until kernel(libc::SYS_fstat, fd, status);
        // SAFETY: as above.
        if active() => noting(fd, || unsafe { __fxstat64::real(version, fd, status) });
}
