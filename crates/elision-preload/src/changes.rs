//! Calls other than write that change a file. The library is told before; then they are made.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use core::ffi::{c_char, c_ulong, c_void};

use elision::dropin;
use libc::{c_int, c_uint, off_t, size_t, ssize_t};

use crate::export::interpose;
use crate::ownership::{self, changing};
use crate::real;

/// Must a change through `fd` be told?
#[inline(always)]
pub(crate) fn matters(fd: c_int) -> bool {
    ownership::writable(fd) || dropin::write_leases()
}

/// Tells the library, and then makes the change.
#[inline]
pub(crate) fn telling<T>(fd: c_int, change: impl FnOnce() -> T) -> T {
    changing(fd, || {
        // What a read has just mapped cannot be had again once it is cut off.
        ownership::wait_for_readers();
        dropin::before_change(fd);
        change()
    })
}

/// Can the request change the contents of a file? The groups of btrfs (which lent its clone requests to all), of
/// XFS, and of what file systems have in common.
#[inline]
pub(crate) fn request_matters(request: c_ulong) -> bool {
    matches!((request >> 8) as u8, 0x94 | b'X' | b'f')
}

/// `$name::real` with the program's arguments, told before.
macro_rules! told {
    ($fd:ident, $name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        telling($fd, || unsafe { $name::real($($arg),*) })
    };
}

/// libc writes to `fd` in a way that we do not see.
fn writes_unseen<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    ownership::disown(fd);
    call()
}

/// Does fallocate with this mode change what a file says? Not if it only sets room aside, as numpy does
/// before it writes an array in place.
pub(crate) fn reshapes(mode: c_int) -> bool {
    mode & !libc::FALLOC_FL_KEEP_SIZE != 0
}

interpose! {
    /// See ftruncate(2).
    fn ftruncate(fd: c_int, len: off_t) -> c_int, until kernel(libc::SYS_ftruncate);
        if matters(fd) => told!(fd, ftruncate(fd, len));

    /// See ftruncate(2).
    fn ftruncate64(fd: c_int, len: off_t) -> c_int, until kernel(libc::SYS_ftruncate);
        if matters(fd) => told!(fd, ftruncate64(fd, len));

    /// See fallocate(2).
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, until kernel(libc::SYS_fallocate);
        if reshapes(mode) && matters(fd) => told!(fd, fallocate(fd, mode, offset, len));

    /// See fallocate(2).
    fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, until kernel(libc::SYS_fallocate);
        if reshapes(mode) && matters(fd) => told!(fd, fallocate64(fd, mode, offset, len));

    /// See posix_fallocate(3).
    fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int, until lookup(libc::ENOSYS);
        if matters(fd) => told!(fd, posix_fallocate(fd, offset, len));

    /// See posix_fallocate(3).
    fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int, until lookup(libc::ENOSYS);
        if matters(fd) => told!(fd, posix_fallocate64(fd, offset, len));

    /// See copy_file_range(2).
    fn copy_file_range(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint)
        -> ssize_t, until kernel(libc::SYS_copy_file_range);
        if matters(to) => told!(to, copy_file_range(from, from_at, to, to_at, len, flags));

    /// See sendfile(2).
    fn sendfile(to: c_int, from: c_int, from_at: *mut off_t, len: size_t) -> ssize_t,
        until kernel(libc::SYS_sendfile);
        if matters(to) => told!(to, sendfile(to, from, from_at, len));

    /// See sendfile(2).
    fn sendfile64(to: c_int, from: c_int, from_at: *mut off_t, len: size_t) -> ssize_t,
        until kernel(libc::SYS_sendfile);
        if matters(to) => told!(to, sendfile64(to, from, from_at, len));

    /// See splice(2).
    fn splice(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint)
        -> ssize_t, until kernel(libc::SYS_splice);
        if matters(to) => told!(to, splice(from, from_at, to, to_at, len, flags));

    /// See ioctl(2). All that C passes behind the request fits one register.
    fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int, until kernel(libc::SYS_ioctl);
        if request_matters(request) && matters(fd) => told!(fd, ioctl(fd, request, argument));

    /// See vdprintf(3).
    fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, until lookup(-1);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call. A va_list is passed by its address.
            unsafe { vdprintf::real(fd, format, arguments) }
        });

    /// `vdprintf` as fortified programs call it.
    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int,
        until lookup(-1);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call.
            unsafe { __vdprintf_chk::real(fd, flag, format, arguments) }
        });

    /// See backtrace_symbols_fd(3). (Returns nothing; nobody looks.)
    fn backtrace_symbols_fd(frames: *const *mut c_void, count: c_int, fd: c_int) -> c_int, until lookup(0);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call.
            unsafe { backtrace_symbols_fd::real(frames, count, fd) }
        });

    /// The same, under glibc's other name.
    fn __backtrace_symbols_fd(frames: *const *mut c_void, count: c_int, fd: c_int) -> c_int, until lookup(0);
        if matters(fd) => writes_unseen(fd, || {
            // SAFETY: the program's call.
            unsafe { __backtrace_symbols_fd::real(frames, count, fd) }
        });
}

/// dprintf, which cannot be defined in Rust: its arguments are kept, `fd` is disowned, and the same arguments go on
/// to libc's. Recent glibcs write to the descriptor directly, past stdio's table.
mod variadic {
    use super::{matters, ownership, real};
    use core::ffi::{c_int, c_void};

    /// Only its address is wanted.
    type Function = unsafe extern "C" fn();

    static DPRINTF: real::Next<Function> = real::Next::new(c"dprintf");
    static DPRINTF_CHK: real::Next<Function> = real::Next::new(c"__dprintf_chk");

    extern "C" fn before_dprintf(fd: c_int) -> *const c_void {
        before(fd, &DPRINTF)
    }

    extern "C" fn before_dprintf_chk(fd: c_int) -> *const c_void {
        before(fd, &DPRINTF_CHK)
    }

    fn before(fd: c_int, next: &real::Next<Function>) -> *const c_void {
        if matters(fd) {
            ownership::disown(fd);
        }
        if next.address().is_null() {
            next.resolve();
        }
        next.address()
    }

    /// In place of a variadic function that takes a descriptor first.
    macro_rules! forward {
        ($name:ident, $before:ident) => {
            #[doc = concat!("See ", stringify!($name), "(3).")]
            ///
            /// # Safety
            /// The program's contract with libc.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    // Six registers for arguments, al for how many there are in vector registers, and those.
                    // With the return address this keeps the stack aligned.
                    "sub rsp, 184",
                    "movups [rsp], xmm0",
                    "movups [rsp + 16], xmm1",
                    "movups [rsp + 32], xmm2",
                    "movups [rsp + 48], xmm3",
                    "movups [rsp + 64], xmm4",
                    "movups [rsp + 80], xmm5",
                    "movups [rsp + 96], xmm6",
                    "movups [rsp + 112], xmm7",
                    "mov [rsp + 128], rdi",
                    "mov [rsp + 136], rsi",
                    "mov [rsp + 144], rdx",
                    "mov [rsp + 152], rcx",
                    "mov [rsp + 160], r8",
                    "mov [rsp + 168], r9",
                    "mov [rsp + 176], rax",
                    "call {before}",
                    "mov r11, rax",
                    "movups xmm0, [rsp]",
                    "movups xmm1, [rsp + 16]",
                    "movups xmm2, [rsp + 32]",
                    "movups xmm3, [rsp + 48]",
                    "movups xmm4, [rsp + 64]",
                    "movups xmm5, [rsp + 80]",
                    "movups xmm6, [rsp + 96]",
                    "movups xmm7, [rsp + 112]",
                    "mov rdi, [rsp + 128]",
                    "mov rsi, [rsp + 136]",
                    "mov rdx, [rsp + 144]",
                    "mov rcx, [rsp + 152]",
                    "mov r8, [rsp + 160]",
                    "mov r9, [rsp + 168]",
                    "mov rax, [rsp + 176]",
                    "add rsp, 184",
                    "jmp r11",
                    before = sym $before,
                )
            }
        };
    }

    forward!(dprintf, before_dprintf);
    forward!(__dprintf_chk, before_dprintf_chk);
}
