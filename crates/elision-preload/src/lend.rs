//! Memory lent to the kernel: vmsplice, and sends that copy nothing.
//!
//! The kernel keeps the pages themselves, beyond the call, and the program may not store into them until they have been
//! taken. Pages of a file are nothing to lend: somebody else may change the file before that, and materialising
//! exchanges the program's mapping, not what the kernel holds. So they become the program's own before.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use core::ffi::c_void;

use elision::dropin;
use libc::{c_int, c_uint, iovec, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::export::interpose;
use crate::{kernel, vector};

/// Is anything deferred that could be lent?
#[inline]
fn matters() -> bool {
    dropin::touched(0, usize::MAX)
}

/// Does a send with these flags lend?
#[inline]
pub(crate) fn lends(flags: c_int) -> bool {
    flags & libc::MSG_ZEROCOPY != 0 && matters()
}

/// The range is about to be lent.
pub(crate) fn range(addr: usize, len: usize) {
    if kernel::nameable(addr, len) {
        dropin::dissolve(addr, len);
    }
}

/// The pieces of a vector are about to be lent.
pub(crate) fn pieces(iov: *const iovec, count: size_t) {
    let count = c_int::try_from(count).unwrap_or(c_int::MAX);
    for piece in vector::pieces(iov, count).unwrap_or(&[]) {
        range(piece.iov_base as usize, piece.iov_len);
    }
}

/// What a message names is about to be lent.
pub(crate) fn message(message: *const msghdr) {
    if !message.is_null() && kernel::readable(message as usize, size_of::<msghdr>()) {
        // SAFETY: not null, and just found to be readable; the kernel would read it in the same way.
        let (iov, count) = unsafe {
            let (iov, count) = (&raw const (*message).msg_iov, &raw const (*message).msg_iovlen);
            (iov.read_unaligned(), count.read_unaligned())
        };
        pieces(iov, count);
    }
}

/// What several messages name is about to be lent. The kernel takes no more of them at a time than of pieces.
pub(crate) fn messages(messages: *const libc::mmsghdr, count: c_uint) {
    for i in 0..count.min(1024) as usize {
        // A `mmsghdr` begins with its message.
        message(messages.wrapping_add(i).cast());
    }
}

interpose! {
    /// See vmsplice(2).
    fn vmsplice(pipe: c_int, iov: *const iovec, count: size_t, flags: c_uint) -> ssize_t,
        until kernel(libc::SYS_vmsplice);
        if matters() => {
            pieces(iov, count);
            // SAFETY: the program's call.
            unsafe { vmsplice::real(pipe, iov, count, flags) }
        };

    /// See send(2).
    fn send(socket: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_sendto, socket, bytes, len, flags, 0, 0);
        if lends(flags) => {
            range(bytes as usize, len);
            // SAFETY: the program's call.
            unsafe { send::real(socket, bytes, len, flags) }
        };

    /// See sendto(2).
    fn sendto(socket: c_int, bytes: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t)
        -> ssize_t, until kernel(libc::SYS_sendto);
        if lends(flags) => {
            range(bytes as usize, len);
            // SAFETY: the program's call.
            unsafe { sendto::real(socket, bytes, len, flags, to, to_len) }
        };
}
