//! The heap of large blocks.

pub mod block;
pub mod expected;
mod listed;
mod placement;

pub(super) use crate::abi::kernel::whole_pages;
pub(super) use elision_sys::PAGE;

use core::sync::atomic::{AtomicUsize, Ordering};

/// The smallest placed block, in bytes. `usize::MAX`: none is placed.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);

#[inline]
pub fn least() -> usize {
    LEAST.load(Ordering::Acquire)
}

pub fn place_from(bytes: usize) {
    LEAST.store(bytes, Ordering::Release);
}

pub fn place_none_below(bytes: usize) {
    LEAST.fetch_max(bytes, Ordering::AcqRel);
}

pub(crate) fn place_no_more() {
    place_from(usize::MAX);
    block::keep_nothing();
}
