//! Memory that the kernel keeps by its pages. A deferred page is the file's, so the kernel would see the file change. Before such
//! a call the range becomes plain memory, for good: programs reuse such buffers.
#![allow(unsafe_code)] // The program's pointers.

use libc::{c_int, c_uint, c_void, iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::kernel;
use crate::state::memory::{settle, settle_all};
use crate::state::stop::{active, stopped, stopping};

#[inline(always)]
pub(crate) fn pins(flags: c_int) -> bool {
    flags & libc::MSG_ZEROCOPY != 0
}

pub(crate) fn before_send(flags: c_int, message: *const msghdr) {
    if !pins(flags) || message.is_null() || !kernel::readable(message as usize, size_of::<msghdr>()) {
        return;
    }
    // SAFETY: just found readable, as the kernel reads it.
    let message = unsafe { message.read_unaligned() };
    settle_all(message.msg_iov, message.msg_iovlen);
}

pub(crate) fn before_sends(flags: c_int, messages: *const mmsghdr, count: c_uint) {
    if pins(flags) {
        for index in 0..count.min(1024) as usize {
            before_send(flags, messages.wrapping_add(index).cast());
        }
    }
}

/// AF_XDP registers its packets' pages for good.
pub(crate) fn registers(level: c_int, name: c_int) -> bool {
    level == libc::SOL_XDP && name == libc::XDP_UMEM_REG
}

interpose! {
    fn vmsplice(fd: c_int, iov: *const iovec, count: size_t, flags: c_uint) -> ssize_t,
        until kernel(libc::SYS_vmsplice);
        if active() => {
            settle_all(iov, count);
            // SAFETY: the program's call.
            unsafe { vmsplice::real(fd, iov, count, flags) }
        };

    fn send(socket: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_sendto, socket, buf, len, flags, 0, 0);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: as above.
            unsafe { send::real(socket, buf, len, flags) }
        };

    fn __send(socket: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_sendto, socket, buf, len, flags, 0, 0);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: as above.
            unsafe { __send::real(socket, buf, len, flags) }
        };

    fn sendto(socket: c_int, buf: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t)
        -> ssize_t, until kernel(libc::SYS_sendto);
        if pins(flags) && active() => {
            settle(buf as usize, len);
            // SAFETY: as above.
            unsafe { sendto::real(socket, buf, len, flags, to, to_len) }
        };

    fn setsockopt(socket: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int,
        until kernel(libc::SYS_setsockopt);
        if registers(level, name) && !stopped() => stopping("AF_XDP", || {
            // SAFETY: as above.
            unsafe { setsockopt::real(socket, level, name, value, len) }
        });
}
