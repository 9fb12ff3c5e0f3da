//! Calls other than write that change a file: the library is told before.
#![allow(unsafe_code)] // The program's pointers.

use core::ffi::{c_char, c_ulong, c_void};

use elision_core::client;
use libc::{c_int, c_uint, off_t, size_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::state::descriptions::{self, changing};
use crate::state::stop::{active, stop, stopped};
use crate::wrap::process;
use crate::wrap::resuming::copying;

#[inline(always)]
pub(crate) fn matters(fd: c_int) -> bool {
    descriptions::writable(fd) || client::changes::write_leases()
}

#[inline]
pub(crate) fn telling<T>(fd: c_int, change: impl FnOnce() -> T) -> T {
    if !matters(fd) {
        return change();
    }
    changing(fd, || {
        // A cut file loses what a read has just mapped.
        descriptions::wait_for_readers();
        client::changes::before_change(fd);
        change()
    })
}

/// The groups of btrfs (whose clone requests all file systems share), XFS, and requests that file systems have in common.
#[inline]
fn request_matters(request: c_ulong) -> bool {
    matches!((request >> 8) as u8, 0x94 | b'X' | b'f')
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Plain,
    /// May change the file of this descriptor.
    Changes,
    /// Writes to, or keeps, a file whose descriptor is in the argument.
    Shares,
    /// The kernel or a device keeps memory that the argument names.
    Pins,
}

#[inline]
pub(crate) fn kind_of(request: c_ulong) -> Request {
    match (request & 0xffff) as u16 {
        // A loop device writes to its file.
        0x4c00 | 0x4c06 | 0x4c0a => Request::Shares,
        // Exchanges of contents (ext4, XFS), btrfs send.
        0x660f | 0x586d | 0x5881..=0x5883 | 0x9426 => Request::Shares,
        // Memory of encrypted guests, enclaves, trusted applications.
        0xaebb | 0xae24 | 0xa409 => Request::Pins,
        // userfaultfd, VFIO, iommufd, vhost, RDMA, video buffers, NVIDIA: pages are kept, whatever becomes of the address.
        0xaa00..=0xaaff
        | 0x3b00..=0x3bff
        | 0xaf00..=0xafff
        | 0x1b00..=0x1bff
        | 0x5600..=0x56ff
        | 0x4600..=0x46ff => Request::Pins,
        _ if request_matters(request) => Request::Changes,
        _ => Request::Plain,
    }
}

#[cold]
pub(crate) fn controlling<T>(fd: c_int, request: c_ulong, call: impl FnOnce() -> T) -> T {
    match kind_of(request) {
        Request::Changes if matters(fd) => telling(fd, call),
        Request::Shares => process::sharing(call),
        Request::Pins => {
            stop("an ioctl that keeps memory");
            call()
        }
        _ => call(),
    }
}

macro_rules! told {
    ($fd:ident, $name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        telling($fd, || unsafe { $name::real($($arg),*) })
    };
}

fn writes_unseen<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    descriptions::disown(fd);
    call()
}

/// Reserving room alone changes no contents.
pub(crate) fn reshapes(mode: c_int) -> bool {
    mode & !libc::FALLOC_FL_KEEP_SIZE != 0
}

interpose! {
    fn ftruncate(fd: c_int, len: off_t) -> c_int, until kernel(libc::SYS_ftruncate);
        if matters(fd) => told!(fd, ftruncate(fd, len));

    fn ftruncate64(fd: c_int, len: off_t) -> c_int, until kernel(libc::SYS_ftruncate);
        if matters(fd) => told!(fd, ftruncate64(fd, len));

    /// The kernel waits for the helper to release leases.
    fn truncate(path: *const c_char, len: off_t) -> c_int, until kernel(libc::SYS_truncate);
        if active() => {
            client::life::look_after();
            // SAFETY: as above.
            unsafe { truncate::real(path, len) }
        };

    fn truncate64(path: *const c_char, len: off_t) -> c_int, until kernel(libc::SYS_truncate);
        if active() => {
            client::life::look_after();
            // SAFETY: as above.
            unsafe { truncate64::real(path, len) }
        };

    fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, until kernel(libc::SYS_fallocate);
        if reshapes(mode) && matters(fd) => told!(fd, fallocate(fd, mode, offset, len));

    fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, until kernel(libc::SYS_fallocate);
        if reshapes(mode) && matters(fd) => told!(fd, fallocate64(fd, mode, offset, len));

    fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int, until lookup(libc::ENOSYS);
        if matters(fd) => told!(fd, posix_fallocate(fd, offset, len));

    fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int, until lookup(libc::ENOSYS);
        if matters(fd) => told!(fd, posix_fallocate64(fd, offset, len));

    fn copy_file_range(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint)
        -> ssize_t, until kernel(libc::SYS_copy_file_range);
        if active() => telling(to, || copying(to, len, |len| {
            // SAFETY: the program's call, or its rest.
            unsafe { copy_file_range::real(from, from_at, to, to_at, len, flags) }
        }));

    fn sendfile(to: c_int, from: c_int, from_at: *mut off_t, len: size_t) -> ssize_t,
        until kernel(libc::SYS_sendfile);
        if active() => telling(to, || copying(to, len, |len| {
            // SAFETY: as above.
            unsafe { sendfile::real(to, from, from_at, len) }
        }));

    fn sendfile64(to: c_int, from: c_int, from_at: *mut off_t, len: size_t) -> ssize_t,
        until kernel(libc::SYS_sendfile);
        if active() => telling(to, || copying(to, len, |len| {
            // SAFETY: as above.
            unsafe { sendfile64::real(to, from, from_at, len) }
        }));

    fn splice(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint)
        -> ssize_t, until kernel(libc::SYS_splice);
        if matters(to) => told!(to, splice(from, from_at, to, to_at, len, flags));

    /// What C passes behind the request fits one register.
    fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int, until kernel(libc::SYS_ioctl);
        if kind_of(request) != Request::Plain && !stopped() => controlling(fd, request, || {
            // SAFETY: the program's call.
            unsafe { ioctl::real(fd, request, argument) }
        });

    fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, until lookup(-1);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call; a va_list is passed by its address.
            unsafe { vdprintf::real(fd, format, arguments) }
        });

    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int,
        until lookup(-1);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call.
            unsafe { __vdprintf_chk::real(fd, flag, format, arguments) }
        });

    /// C declares void.
    fn backtrace_symbols_fd(frames: *const *mut c_void, count: c_int, fd: c_int) -> c_int, until lookup(0);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: as above.
            unsafe { backtrace_symbols_fd::real(frames, count, fd) }
        });

    fn __backtrace_symbols_fd(frames: *const *mut c_void, count: c_int, fd: c_int) -> c_int, until lookup(0);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: as above.
            unsafe { __backtrace_symbols_fd::real(frames, count, fd) }
        });
}

/// Variadic, and recent glibcs write past stdio's table: `fd` is disowned before.
mod variadic {
    use super::{descriptions, matters};
    use crate::abi::arch::forward;
    use crate::abi::interpose::{Function, onward};
    use crate::abi::next::Next;
    use core::ffi::{c_int, c_void};

    static DPRINTF: Next<Function> = Next::new(c"dprintf");
    static DPRINTF_CHK: Next<Function> = Next::new(c"__dprintf_chk");

    extern "C" fn before_dprintf(fd: c_int) -> *const c_void {
        before(fd, &DPRINTF)
    }

    extern "C" fn before_dprintf_chk(fd: c_int) -> *const c_void {
        before(fd, &DPRINTF_CHK)
    }

    fn before(fd: c_int, next: &Next<Function>) -> *const c_void {
        if matters(fd) {
            descriptions::disown(fd);
        }
        onward(next)
    }

    forward!(dprintf, before_dprintf);
    forward!(__dprintf_chk, before_dprintf_chk);
}
