//! Offers the library a transfer.
#![allow(unsafe_code)] // The program's pointers.

use elision_core::client::dropin::{self, Outcome};
use elision_core::stats::Reason;
use libc::{c_int, off_t, ssize_t};

use crate::abi::{kernel, raw};
use crate::state::{descriptions, memory};

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
