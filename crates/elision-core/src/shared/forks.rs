//! Is a fork under way, and how many were there?
//!
//! A fork copies mappings, but a lease cannot be shared, and pages that parent and child load later are in memory twice. So the helper
//! materialises everything before a fork, and defers nothing until it is over. The child then depends on nobody.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Counts begin and end of each fork: a file opened between the two may have been copied.
static FORKS: AtomicU64 = AtomicU64::new(0);
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

pub(crate) fn count() -> u64 {
    FORKS.load(SeqCst)
}

pub(crate) fn begin() {
    FORKS.fetch_add(1, SeqCst);
    UNDER_WAY.store(true, SeqCst);
}

pub(crate) fn end() {
    UNDER_WAY.store(false, SeqCst);
    FORKS.fetch_add(1, SeqCst);
}

pub(crate) fn under_way() -> bool {
    UNDER_WAY.load(SeqCst)
}
