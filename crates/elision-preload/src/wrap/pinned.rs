//! Memory that the kernel keeps hold of after a call: by its pages, not by its address.
//!
//! A page of a deferred range is the file's own. What holds on to it would see later changes of the file, even after the range
//! was materialised. So before such a call the range becomes plain memory, for good: a program that lends a buffer once does
//! so again.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use libc::{c_int, c_uint, c_void, iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::kernel;
use crate::state::memory::{settle, settle_all};
use crate::state::stop::{active, stopped, stopping};

/// Does a send with these flags keep the pages that it sends from?
#[inline(always)]
pub(crate) fn pins(flags: c_int) -> bool {
    flags & libc::MSG_ZEROCOPY != 0
}

/// A message is about to be sent.
pub(crate) fn before_send(flags: c_int, message: *const msghdr) {
    if !pins(flags) || message.is_null() || !kernel::readable(message as usize, size_of::<msghdr>()) {
        return;
    }
    // SAFETY: just found to be readable; the kernel would read it in the same way.
    let message = unsafe { message.read_unaligned() };
    settle_all(message.msg_iov, message.msg_iovlen);
}

/// Several messages are.
pub(crate) fn before_sends(flags: c_int, messages: *const mmsghdr, count: c_uint) {
    if pins(flags) {
        // The kernel takes no more at a time.
        for index in 0..count.min(1024) as usize {
            before_send(flags, messages.wrapping_add(index).cast());
        }
    }
}

/// AF_XDP has the pages of its packets registered once and for all.
pub(crate) fn registers(level: c_int, name: c_int) -> bool {
    level == libc::SOL_XDP && name == libc::XDP_UMEM_REG
}

interpose! {
    /// See vmsplice(2).
    fn vmsplice(fd: c_int, iov: *const iovec, count: size_t, flags: c_uint) -> ssize_t,
        until kernel(libc::SYS_vmsplice);
        if active() => {
            settle_all(iov, count);
            // SAFETY: the program's call.
            unsafe { vmsplice::real(fd, iov, count, flags) }
        };

    /// See send(2).
    fn send(socket: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_sendto, socket, buf, len, flags, 0, 0);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: the program's call.
            unsafe { send::real(socket, buf, len, flags) }
        };

    /// An old name of send.
    fn __send(socket: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_sendto, socket, buf, len, flags, 0, 0);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: the program's call.
            unsafe { __send::real(socket, buf, len, flags) }
        };

    /// See sendto(2).
    fn sendto(socket: c_int, buf: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t)
        -> ssize_t, until kernel(libc::SYS_sendto);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: the program's call.
            unsafe { sendto::real(socket, buf, len, flags, to, to_len) }
        };

    /// See setsockopt(2).
    fn setsockopt(socket: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int,
        until kernel(libc::SYS_setsockopt);
        if registers(level, name) && !stopped() => stopping("AF_XDP", || {
            // SAFETY: the program's call.
            unsafe { setsockopt::real(socket, level, name, value, len) }
        });
}
