//! The program's memory: where large blocks are placed, and which ranges may have extents.
//!
//! | word | meaning |
//! | --- | --- |
//! | block | a large allocation that the drop-in placed itself, in a slot of its window ([`block`]) |
//! | record | a range that the program mapped as anonymous private memory, kept by [`ranges`] |
//! | eligible | in a live block or a record that nothing has reshaped: an extent may lie there |
//! | reshaped | the program did something to a block's pages that an extent would not survive or would betray |
//!
//! What an extent demands of the memory under it: it is anonymous, private, readable and writable, it is a
//! single mapping as far as the program knows, and every later call that changes one of these is seen here
//! first. glibc's own heap fails the last demand (it trims, grows and discards its pages with calls that
//! nobody else sees), which is why large blocks are taken out of its hands.
//!
//! Nothing here takes a lock. Every record is one atomic word that says all there is to say, so a signal
//! handler, or a child forked while another thread was in the middle, finds nothing half done; the worst it
//! can find is a range that is not eligible any more.

use super::heap::{self, block};
use super::ranges;
use core::sync::atomic::{AtomicBool, Ordering};
use elision_core::client::dropin;

/// The page size; the drop-in is for x86-64 only.
pub const PAGE: usize = 4096;

/// One past the highest address a program has without asking for more.
pub(crate) const ADDRESS_LIMIT: usize = 1 << 47;

/// The program's own anonymous private mappings.
pub(crate) static RECORD: ranges::Ranges<4096> = ranges::Ranges::new();

/// Set by `mlockall`: the program wants its pages present, and an extent's are not.
pub(crate) static NOTHING_ELIGIBLE: AtomicBool = AtomicBool::new(false);

/// In a forked child, before it does anything else. Nothing can be held or half done (see above), so this
/// has nothing to repair; it is the place for it, should that change.
pub fn after_fork_child() {}

/// May the range have extents? Asked before a read into it is offered.
pub fn eligible(addr: usize, len: usize) -> bool {
    let Some(end) = addr.checked_add(len) else { return false };
    if len == 0 || NOTHING_ELIGIBLE.load(Ordering::SeqCst) {
        return false;
    }
    if block::in_window(addr) { block::eligible(addr, end) } else { RECORD.contains(addr, end) }
}

/// Nothing is eligible any more, and no block is placed or kept. See [`crate::state::stop`].
pub(crate) fn stop() {
    NOTHING_ELIGIBLE.store(true, Ordering::SeqCst);
    crate::wrap::memory::dissolve_all();
    heap::place_no_more();
}

/// No page of the range is eligible from now on.
pub(crate) fn disqualify(addr: usize, end: usize) {
    RECORD.remove(addr, end);
    block::reshape(addr, end);
}

/// Is the drop-in at work at all? What every wrapper here asks first.
#[inline]
pub(crate) fn active() -> bool {
    dropin::min_bytes() != usize::MAX
}

/// `n` rounded up to whole pages; `None` past the end of the address space.
#[inline]
pub(crate) fn whole_pages(n: usize) -> Option<usize> {
    n.checked_next_multiple_of(PAGE)
}
