//! The size from which on transfers are deferred and elided.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes; 0 while nobody has set it.
static MIN_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Below some size between 4 and 8 MiB `std::fs::read` is faster where the allocator has warm memory for it, if every byte is then
/// looked at.
const READ: usize = 8 << 20;

/// The same for a read into a buffer that is there already: between 1 and 4 MiB. From the benches.
const REFILL: usize = 4 << 20;

/// What is written, or read to be edited, is compared with the file later: that pays from a smaller size on.
const SAVE: usize = 1 << 20;

/// Sets the size from which on transfers of this crate are deferred and elided, in bytes; at least one page. Unless set, it is
/// 8 MiB for a read into a new buffer, 4 MiB into one that is there already, and 1 MiB for [`edit`](crate::edit) and writes.
pub fn set_min_bytes(bytes: usize) {
    MIN_BYTES.store(bytes.max(elision_core::transfer::PAGE), Relaxed);
}

/// The threshold for a read into a new buffer.
pub(crate) fn to_read() -> usize {
    min_bytes_or(READ)
}

/// The threshold for a read into a buffer whose memory may have been touched.
pub(crate) fn to_refill() -> usize {
    min_bytes_or(REFILL)
}

/// The threshold for a write, and for a read that a save is expected after.
pub(crate) fn to_save() -> usize {
    min_bytes_or(SAVE)
}

fn min_bytes_or(unset: usize) -> usize {
    match MIN_BYTES.load(Relaxed) {
        0 => unset,
        set => set,
    }
}
