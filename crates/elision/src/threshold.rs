//! The size from which on transfers are deferred and elided.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes; 0 while nobody has set it.
static MIN_BYTES: AtomicUsize = AtomicUsize::new(0);

const NEW: usize = 1 << 20;

/// Reading into memory that was touched before is faster than mapping, even if every byte is then looked at, below some size
/// between 1 and 4 MiB. From the benches.
const TOUCHED: usize = 4 << 20;

/// Sets the size from which on transfers of this crate are deferred and elided, in bytes; at least one page. Unless set, it is
/// 1 MiB, and 4 MiB for reads into a buffer that is there already.
pub fn set_min_bytes(bytes: usize) {
    MIN_BYTES.store(bytes.max(elision_core::transfer::PAGE), Relaxed);
}

/// The threshold for a write, and for a read into new memory.
pub(crate) fn min_bytes() -> usize {
    min_bytes_or(NEW)
}

/// The threshold for a read into memory that may have been touched.
pub(crate) fn min_bytes_touched() -> usize {
    min_bytes_or(TOUCHED)
}

fn min_bytes_or(unset: usize) -> usize {
    match MIN_BYTES.load(Relaxed) {
        0 => unset,
        set => set,
    }
}
