//! Offers the library a transfer, after the cancellation test of libc's function.
#![allow(unsafe_code)] // The program's pointers.

use elision_core::client;
use elision_core::client::offer::{FileFacts, Judged, TransferOptions};
use elision_core::client::write::Track;
use elision_core::stats::Reason;
use libc::{c_int, off_t, ssize_t};

use crate::abi::{kernel, raw};
use crate::state::heap::{block, expected};
use crate::state::runs::{self, PIECE, Piece};
use crate::state::{descriptions, memory};

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    Point,
    /// `syscall()`, or within stdio.
    No,
}

fn settle(made: Option<elision_sys::raw::Result<usize>>) -> Option<ssize_t> {
    made.map(|result| match result {
        Ok(bytes) => bytes as ssize_t,
        Err(errno) => {
            raw::set_errno(errno.0);
            -1
        }
    })
}

/// The kernel refuses negative offsets itself.
pub(crate) fn at(offset: off_t) -> Option<Option<u64>> {
    u64::try_from(offset).ok().map(Some)
}

/// Makes a read: deferred if it is a big one or part of one, else by `real`. `offset`: as [`at`] has it, or `Some(None)` for the
/// position.
#[inline(always)]
pub(crate) fn reading(
    fd: c_int,
    addr: usize,
    len: usize,
    offset: Option<Option<u64>>,
    cancel: Cancel,
    real: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let matters = runs::matters(len);
    if matters
        && let Some(offset) = offset
        && let Some(result) = offer_read(fd, addr, len, offset, cancel)
    {
        return result;
    }
    let got = real();
    if matters {
        runs::note_traditional(addr, len, got);
    }
    got
}

/// What the next block of the size should agree with. True: the buffer is in a block of ours.
#[inline(never)] // The stack is free again before the helper is asked.
fn learn_place(fd: c_int, addr: usize, len: usize, offset: Option<u64>) -> bool {
    expected::used(fd);
    let ours = block::in_window(addr);
    if ours && let Some(position) = offset.or_else(|| kernel::position(fd)) {
        expected::reads(fd, position.saturating_add(len as u64));
        block::read_into(addr, position);
    }
    ours
}

#[cold]
#[inline(never)]
pub(crate) fn offer_read(
    fd: c_int,
    addr: usize,
    len: usize,
    offset: Option<u64>,
    cancel: Cancel,
) -> Option<ssize_t> {
    let run = runs::reading(addr, len);
    if run.piece == Piece::Traditional {
        return None;
    }
    // The kernel checks all, though it moves less.
    if fd < 0 || len > isize::MAX as usize || !kernel::nameable(addr, len) || descriptions::being_shared() {
        return None;
    }
    let len = len.min(kernel::MOST);
    if !memory::eligible(addr, len) {
        elision_core::decline_read(Reason::Memory, len);
        return None;
    }
    test_cancel(cancel);
    let since = descriptions::moment();
    // Before the facts, so that a later change shows.
    let before = if descriptions::writable(fd) { descriptions::begun(fd) } else { 0 };
    let facts = match FileFacts::of(fd, client::life::min_bytes()) {
        Ok(facts) => facts,
        Err(reason) => {
            elision_core::decline_read(reason, len);
            return None;
        }
    };
    // It is likely to be executed soon: then the kernel wants nobody to have it open for writing, and all would have to be loaded.
    if descriptions::writable(fd) && kernel::is_program(fd, &facts.stat) {
        descriptions::disown(fd);
    }
    let owned = descriptions::owned(fd, &facts.stat);
    let mut options = TransferOptions::for_program(offset, owned);
    options.placed = learn_place(fd, addr, len, offset);
    if let Piece::First | Piece::Next = run.piece {
        options.least = PIECE;
        options.judged = if run.piece == Piece::First { Judged::ByRest } else { Judged::Before };
    }
    let read = || {
        // SAFETY: read(2)'s arguments. `owned`: `descriptions` saw the open, and every use since.
        let read = unsafe { client::read::associate(fd, &facts, addr, len, options) }?;
        let still = !owned || !read.has_fragments() || descriptions::quiet_since(fd, before);
        still.then(|| read.finish())
    };
    let made = if owned { descriptions::reading(fd, since, read)? } else { read() };
    if made.is_some() && !memory::eligible(addr, len) {
        // Another thread reshaped the memory when there was nothing to undo yet.
        client::memory::dissolve(addr, len);
    }
    let result = settle(made)?;
    run.ended(addr, result, true);
    Some(result)
}

#[inline(always)]
pub(crate) fn write_matters(fd: c_int, len: usize) -> bool {
    len >= client::life::min_bytes() || descriptions::writable(fd) || client::changes::write_leases()
}

/// Callers are within [`descriptions::changing`].
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
    // A child that borrows this memory has its own descriptor numbers, and leases are given up before it starts.
    let big = len >= client::life::min_bytes() && !descriptions::being_shared();
    if !big && !descriptions::write_lease_on(fd) {
        return None;
    }
    test_cancel(cancel);
    let _inside = client::truncate::enter();
    let len = len.min(kernel::MOST);
    let since = descriptions::moment();
    let stat = elision_sys::file::stat(fd).ok()?;
    let owned = descriptions::owned(fd, &stat);
    let before = (big && owned).then(|| descriptions::activity(fd));
    let options = TransferOptions::for_program(offset, owned);
    let made = client::write::plan(fd, &stat, addr, len, options, Track::SecondTime).map(|write| {
        let alone = write.is_planned() && before.is_some() && descriptions::alone(fd);
        write.carry_out(alone)
    });
    if let Some(before) = before {
        if since != descriptions::moment() {
            // The description may be shared by now, and a lease taken.
            client::changes::before_change(fd);
        }
        if made.is_some() && !descriptions::alone_since(fd, before) {
            client::memory::untrack(addr, len);
        }
    }
    settle(made)
}

pub(crate) fn test_cancel(cancel: Cancel) {
    if cancel == Cancel::Point {
        // SAFETY: no frame of the drop-in holds what unwinding would drop.
        unsafe { pthread_testcancel() }
    }
}
