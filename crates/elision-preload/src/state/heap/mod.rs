//! The heap of large blocks.

pub mod block;
pub mod page_offset;
pub mod threshold;

pub(super) use crate::abi::kernel::whole_pages;
pub(super) use elision_sys::PAGE;

use core::sync::atomic::{AtomicBool, Ordering};
use elision_core::client;

/// Are blocks placed?
static PLACING: AtomicBool = AtomicBool::new(false);

/// Are they?
#[inline]
pub fn placing() -> bool {
    PLACING.load(Ordering::Acquire)
}

/// From now on blocks are placed, if `when`.
pub fn place(when: bool) {
    PLACING.store(when, Ordering::Release);
}

/// From now on no block is placed, and none is kept for later.
pub(crate) fn place_no_more() {
    place(false);
    block::give_back();
}

/// From how many bytes on blocks are placed, at present.
pub fn least() -> usize {
    if placing() { client::life::min_bytes() } else { usize::MAX }
}
