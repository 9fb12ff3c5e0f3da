//! The heap of large blocks.

pub mod block;
pub mod page_offset;

pub(super) use crate::abi::kernel::whole_pages;
pub(super) use elision_sys::PAGE;

use core::sync::atomic::{AtomicUsize, Ordering};

/// From how many bytes on blocks are placed. Before [`place_from`], and after [`place_no_more`]: none.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From how many bytes on blocks are placed; `usize::MAX` if none is.
#[inline]
pub fn least() -> usize {
    LEAST.load(Ordering::Acquire)
}

/// From now on blocks of at least `bytes` are placed.
pub fn place_from(bytes: usize) {
    LEAST.store(bytes, Ordering::Release);
}

/// From now on no block of less than `bytes` is placed.
pub fn place_none_below(bytes: usize) {
    LEAST.fetch_max(bytes, Ordering::AcqRel);
}

/// From now on no block is placed or kept.
pub(crate) fn place_no_more() {
    place_from(usize::MAX);
    block::keep_nothing();
}
