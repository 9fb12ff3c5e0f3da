//! The program's memory: which ranges may have extents.
//!
//! | word | meaning |
//! | --- | --- |
//! | block | a large allocation that the drop-in placed ([`block`]) |
//! | record | the program's anonymous private mapping ([`ranges`]) |
//! | eligible | in a live block or record, not reshaped: an extent may lie there |
//! | reshaped | changed in a way that an extent would not survive, or would betray |
//!
//! Memory under an extent must be anonymous, private, readable, writable and one mapping; the drop-in must see every change of
//! this first. glibc's heap trims, grows and discards unseen: hence the blocks.
//!
//! Nothing locks. A record is one atomic word, so handlers and forked children find nothing half done; at worst, a range is not
//! eligible.
#![allow(unsafe_code)] // For memory that the program gives up.

use super::heap::{self, block};
use super::ranges;
use crate::abi::arch::ADDRESS_LIMIT;
use crate::abi::kernel;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};
use elision_core::client;
use elision_sys::PAGE;

/// The program's anonymous private mappings.
static RECORD: ranges::Ranges<4096> = ranges::Ranges::new();

/// Set by `mlockall`: an extent's pages are absent.
static NOTHING_ELIGIBLE: AtomicBool = AtomicBool::new(false);

pub fn eligible(addr: usize, len: usize) -> bool {
    let Some(end) = addr.checked_add(len) else { return false };
    if len == 0 || NOTHING_ELIGIBLE.load(Ordering::SeqCst) {
        return false;
    }
    if block::in_window(addr) { block::eligible(addr, end) } else { RECORD.contains(addr, end) }
}

pub(crate) fn nothing_eligible() {
    NOTHING_ELIGIBLE.store(true, Ordering::SeqCst);
    Span { start: PAGE, end: ADDRESS_LIMIT - PAGE }.dissolve();
}

/// The same, and ends the blocks.
pub(crate) fn stop() {
    nothing_eligible();
    heap::place_no_more();
}

fn disqualify(addr: usize, end: usize) {
    RECORD.remove(addr, end);
    block::reshape(addr, end);
}

#[inline]
pub(crate) fn active() -> bool {
    client::life::min_bytes() != usize::MAX
}

#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }

    pub(crate) fn touched(self) -> bool {
        client::memory::touched(self.start, self.len())
    }

    pub(crate) fn dissolve(self) {
        if self.touched() {
            client::memory::dissolve(self.start, self.len());
        }
    }

    pub(crate) fn forget(self) {
        if self.touched() {
            // SAFETY: the program gives the range up, or nothing in it is deferred.
            unsafe { client::memory::forget(self.start, self.len()) };
        }
    }

    pub(crate) fn disqualify(self) {
        disqualify(self.start, self.end);
    }

    pub(crate) fn replace(self) {
        self.dissolve();
        self.forget();
        self.disqualify();
    }
}

/// A call's pages. `None`: the kernel refuses it, or does nothing.
pub(crate) fn span(addr: *const c_void, len: usize) -> Option<Span> {
    let start = addr.addr();
    let end = start.checked_add(kernel::whole_pages(len)?)?;
    (start.is_multiple_of(PAGE) && start < end && end <= ADDRESS_LIMIT).then_some(Span { start, end })
}

pub(crate) fn span_around(addr: *const c_void, len: usize) -> Option<Span> {
    let start = addr.addr() & !(PAGE - 1);
    span(core::ptr::without_provenance(start), len.checked_add(addr.addr() - start)?)
}

/// Records a mapping, if a read as large would be deferred.
pub(crate) fn record(addr: *const c_void, len: usize) {
    if len >= client::life::min_bytes()
        && let Some(pages) = span(addr, len)
    {
        RECORD.insert(pages.start, pages.end);
    }
}

/// Makes pages plain memory for good.
pub(crate) fn settle(addr: usize, len: usize) {
    if active()
        && let Some(pages) = span_around(core::ptr::without_provenance(addr), len)
    {
        pages.dissolve();
        pages.disqualify();
    }
}

/// The same for a vector. (The kernel refuses a bad one.)
pub(crate) fn settle_all(iov: *const libc::iovec, count: usize) {
    let pieces = i32::try_from(count).ok().and_then(|count| kernel::pieces(iov, count));
    for piece in pieces.unwrap_or(&[]) {
        settle(piece.iov_base as usize, piece.iov_len);
    }
}
