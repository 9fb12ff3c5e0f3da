//! read and write, in all their names.
//!
//! A call below the threshold costs a comparison or two. A big one is offered to the library, and made the
//! traditional way unless the library says that it is done. Writes through a descriptor that could carry a
//! write lease are counted while they are under way, however small (see [`crate::state::descriptions`]).
//!
//! libc's functions are points where a thread may be cancelled, so a call is one before it is offered.
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use elision_core::client::dropin::{self, Outcome};
use elision_core::stats::Reason;
use libc::{c_int, c_void, iovec, off_t, size_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::{kernel, raw};
use crate::state::descriptions::{self, Unnoted, changing};
use crate::state::{in_flight, memory};
use crate::wrap::resuming::{self, SHORT};
use crate::wrap::vector;

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

/// Is the call one where libc lets the thread be cancelled?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    /// A function of libc's.
    Point,
    /// `syscall()`, or libc's own call inside stdio.
    No,
}

/// The value of a call that the library took, or `None` for the traditional call.
fn settle(outcome: Outcome) -> Option<ssize_t> {
    match outcome {
        Outcome::PassThrough => None,
        Outcome::Done(bytes) => Some(bytes as ssize_t),
        Outcome::Failed(errno) => {
            raw::set_errno(errno.0);
            Some(-1)
        }
    }
}

/// The offset of a positioned call. The kernel refuses the negative ones itself.
pub(crate) fn at(offset: off_t) -> Option<Option<u64>> {
    u64::try_from(offset).ok().map(Some)
}

/// Offers a read of at least [`dropin::min_bytes`].
#[cold]
#[inline(never)]
pub(crate) fn offer_read(
    fd: c_int,
    addr: usize,
    len: usize,
    offset: Option<u64>,
    cancel: Cancel,
) -> Option<ssize_t> {
    // (The kernel looks at all of what is named, though it moves less.)
    if fd < 0 || len > isize::MAX as usize || !kernel::nameable(addr, len) || descriptions::paused() {
        return None;
    }
    let len = len.min(kernel::MOST);
    if !memory::eligible(addr, len) {
        dropin::declined(Reason::Memory, len);
        return None;
    }
    test_cancel(cancel);
    let since = descriptions::moment();
    let owned = descriptions::owned(fd);
    let outcome = if owned {
        let before = descriptions::begun(fd);
        let undisturbed = || descriptions::quiet_since(fd, before);
        // SAFETY: what the program passed to read(2); `ownership` has seen the description opened, and every use of it since.
        let read = || unsafe { dropin::read(fd, addr, len, offset, true, undisturbed) };
        descriptions::reading(fd, since, read)?
    } else {
        // SAFETY: what the program passed to read(2). Nothing is vouched for.
        unsafe { dropin::read(fd, addr, len, offset, false, || true) }
    };
    if outcome != Outcome::PassThrough && !memory::eligible(addr, len) {
        // Another thread has done something since that does not go with deferral, and found nothing to undo then.
        dropin::dissolve(addr, len);
    }
    settle(outcome)
}

/// Must a write of `len` bytes through `fd` be looked at?
#[inline(always)]
pub(crate) fn write_matters(fd: c_int, len: usize) -> bool {
    len >= dropin::min_bytes() || descriptions::writable(fd) || dropin::write_leases()
}

/// What is to be done about a write.
enum Way {
    /// Nothing.
    Straight,
    /// It is noted, and that is all.
    Noted(in_flight::Noted),
    /// It is to be looked at more closely.
    Apart,
}

/// The way of a write of `len` bytes through `fd`: a few loads from a few cache lines, as every small write asks.
#[inline(always)]
fn way_of_write(fd: c_int, len: usize) -> Way {
    if len >= dropin::min_bytes() {
        return Way::Apart;
    }
    match descriptions::note_unguarded(fd) {
        Ok(noted) => Way::Noted(noted),
        Err(Unnoted::NotForWriting) if !dropin::write_leases() => Way::Straight,
        Err(_) => Way::Apart,
    }
}

/// Offers a write, if it is big or a write lease may depend on it. To be called within [`changing`].
#[inline(never)]
pub(crate) fn offer_write(
    fd: c_int,
    addr: usize,
    len: usize,
    offset: Option<u64>,
    cancel: Cancel,
) -> Option<ssize_t> {
    if fd < 0 || len == 0 || len > isize::MAX as usize || !kernel::nameable(addr, len) {
        return None;
    }
    // A child that borrows our memory numbers its descriptors for itself. Leases are given up before it starts.
    let big = len >= dropin::min_bytes() && !descriptions::paused();
    if !big && !descriptions::write_lease_on(fd) {
        return None;
    }
    test_cancel(cancel);
    let len = len.min(kernel::MOST);
    let since = descriptions::moment();
    let owned = descriptions::owned(fd);
    if !(big && owned) {
        // SAFETY: what the program passed to write(2); what is vouched for, as in `offer_read`.
        return settle(unsafe { dropin::write(fd, addr, len, offset, owned, || false) });
    }
    let before = descriptions::activity(fd);
    // SAFETY: as above.
    let outcome = unsafe { dropin::write(fd, addr, len, offset, true, || descriptions::alone(fd)) };
    if since != descriptions::moment() {
        // The description may be shared by now, and a lease have been taken all the same.
        dropin::before_change(fd);
    }
    if outcome != Outcome::PassThrough && !descriptions::alone_since(fd, before) {
        dropin::untrack(addr, len);
    }
    settle(outcome)
}

/// Lets a pending cancellation happen, where libc's call would.
pub(crate) fn test_cancel(cancel: Cancel) {
    if cancel == Cancel::Point {
        // SAFETY: no frame of ours holds anything that unwinding would have to drop.
        unsafe { pthread_testcancel() }
    }
}

/// The traditional call if the offer was declined.
#[inline(always)]
fn or(offered: Option<ssize_t>, traditional: impl FnOnce() -> ssize_t) -> ssize_t {
    match offered {
        Some(result) => result,
        None => traditional(),
    }
}

/// A read at a given or the current position that is large enough to be offered, or to be cut short.
macro_rules! reading {
    ($name:ident($fd:ident, $buf:ident, $len:ident $(, $rest:ident)*), $offset:expr) => {{
        let offered = match $len >= dropin::min_bytes() {
            true => $offset.and_then(|offset| offer_read($fd, $buf as usize, $len, offset, Cancel::Point)),
            false => None,
        };
        or(offered, || resuming::reading($fd, $buf, $len, |buf, len| {
            // SAFETY: the program's call, or the rest of it.
            unsafe { $name::real($fd, buf, len $(, $rest)*) }
        }))
    }};
}

/// The same for a write. One that is to be noted and no more, as most are, has but the note to keep while the kernel is at it.
/// What is rare is left to a function with the same arguments, so that this one needs next to no stack.
macro_rules! writing {
    ($name:ident($fd:ident, $buf:ident, $len:ident $(, $rest:ident)*), $offset:expr) => {{
        #[cold]
        #[inline(never)]
        unsafe extern "C-unwind" fn apart($fd: c_int, $buf: *const c_void, $len: size_t $(, $rest: off_t)*) -> ssize_t {
            changing($fd, || or(
                $offset.and_then(|offset| offer_write($fd, $buf as usize, $len, offset, Cancel::Point)),
                // SAFETY: the program's call.
                || unsafe { $name::real($fd, $buf, $len $(, $rest)*) },
            ))
        }
        match way_of_write($fd, $len) {
            // SAFETY: the program's call.
            Way::Straight => unsafe { $name::real($fd, $buf, $len $(, $rest)*) },
            Way::Noted(noted) => {
                // SAFETY: the program's call.
                let result = unsafe { $name::real($fd, $buf, $len $(, $rest)*) };
                in_flight::end(noted);
                result
            }
            // SAFETY: the program's call.
            Way::Apart => unsafe { apart($fd, $buf, $len $(, $rest)*) },
        }
    }};
}

/// The current position, for [`reading!`] and [`writing!`].
const HERE: Option<Option<u64>> = Some(None);

interpose! {
    /// See read(2).
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_read);
        if len > SHORT => reading!(read(fd, buf, len), HERE);

    /// An old name of read.
    fn __read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_read);
        if len > SHORT => reading!(__read(fd, buf, len), HERE);

    /// See pread(2).
    fn pread(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t, until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(pread(fd, buf, len, offset), at(offset));

    /// See pread(2).
    fn pread64(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t, until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(pread64(fd, buf, len, offset), at(offset));

    /// An old name of pread64.
    fn __pread64(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(__pread64(fd, buf, len, offset), at(offset));

    /// `read` as fortified programs call it. libc ends the program if `len` is more than there is room for.
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_read, fd, buf, len.min(room));
        if len > SHORT && len <= room => reading!(__read_chk(fd, buf, len, room), HERE);

    /// `pread` as fortified programs call it.
    fn __pread_chk(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_pread64, fd, buf, len.min(room), offset);
        if len > SHORT && len <= room => reading!(__pread_chk(fd, buf, len, offset, room), at(offset));

    /// `pread64` as fortified programs call it.
    fn __pread64_chk(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_pread64, fd, buf, len.min(room), offset);
        if len > SHORT && len <= room => reading!(__pread64_chk(fd, buf, len, offset, room), at(offset));

    /// See write(2).
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_write);
        => writing!(write(fd, buf, len), HERE);

    /// An old name of write.
    fn __write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_write);
        => writing!(__write(fd, buf, len), HERE);

    /// See pwrite(2).
    fn pwrite(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(pwrite(fd, buf, len, offset), at(offset));

    /// See pwrite(2).
    fn pwrite64(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(pwrite64(fd, buf, len, offset), at(offset));

    /// An old name of pwrite64.
    fn __pwrite64(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(__pwrite64(fd, buf, len, offset), at(offset));

    /// See readv(2).
    fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, until kernel(libc::SYS_readv);
        if vector::big(fd, iov, count) => vector::read(fd, iov, count, None, Cancel::Point, |iov, count, _| {
            // SAFETY: the program's vector, or a part of it.
            unsafe { readv::real(fd, iov, count) }
        });

    /// See preadv(2).
    fn preadv(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_preadv, fd, iov, count, offset, 0);
        if offset >= 0 && vector::big(fd, iov, count) =>
            vector::read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { preadv::real(fd, iov, count, offset) }
            });

    /// See preadv(2).
    fn preadv64(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_preadv, fd, iov, count, offset, 0);
        if offset >= 0 && vector::big(fd, iov, count) =>
            vector::read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { preadv64::real(fd, iov, count, offset) }
            });

    /// See preadv2(2). With flags, or at the current position, it goes straight through.
    fn preadv2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_preadv2, fd, iov, count, offset, 0, flags);
        if flags == 0 && offset >= 0 && vector::big(fd, iov, count) =>
            vector::read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { preadv2::real(fd, iov, count, offset, flags) }
            });

    /// See preadv2(2).
    fn preadv64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_preadv2, fd, iov, count, offset, 0, flags);
        if flags == 0 && offset >= 0 && vector::big(fd, iov, count) =>
            vector::read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { preadv64v2::real(fd, iov, count, offset, flags) }
            });

    /// See writev(2).
    fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, until kernel(libc::SYS_writev);
        if write_matters(fd, 0) || vector::big(fd, iov, count) =>
            vector::write(fd, iov, count, None, Cancel::Point, |iov, count, _| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { writev::real(fd, iov, count) }
            });

    /// See pwritev(2).
    fn pwritev(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwritev, fd, iov, count, offset, 0);
        if write_matters(fd, 0) || vector::big(fd, iov, count) =>
            vector::write(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { pwritev::real(fd, iov, count, offset) }
            });

    /// See pwritev(2).
    fn pwritev64(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwritev, fd, iov, count, offset, 0);
        if write_matters(fd, 0) || vector::big(fd, iov, count) =>
            vector::write(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { pwritev64::real(fd, iov, count, offset) }
            });

    /// See pwritev2(2).
    fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_pwritev2, fd, iov, count, offset, 0, flags);
        if write_matters(fd, 0) || vector::big(fd, iov, count) =>
            vector::write2(fd, iov, count, offset, flags, Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { pwritev2::real(fd, iov, count, offset, flags) }
            });

    /// See pwritev2(2).
    fn pwritev64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_pwritev2, fd, iov, count, offset, 0, flags);
        if write_matters(fd, 0) || vector::big(fd, iov, count) =>
            vector::write2(fd, iov, count, offset, flags, Cancel::Point, |iov, count, offset| {
                // SAFETY: the program's vector, or a part of it.
                unsafe { pwritev64v2::real(fd, iov, count, offset, flags) }
            });
}
