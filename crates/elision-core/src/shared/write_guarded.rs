//! Which files may be under a write lease.

use crate::shared::hot::HOT;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::file::FileKey;

pub(crate) const BUCKETS: usize = 256;

static WRITE_GUARDED: [AtomicBool; BUCKETS] = [const { AtomicBool::new(false) }; BUCKETS];

/// A hash of a file's identity, not unique, weak in its lowest bits.
pub fn number(key: FileKey) -> u64 {
    (key.ino ^ key.dev.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) fn bucket(key: FileKey) -> usize {
    (number(key) >> 56) as usize
}

/// One store for each bucket, so that no state between is wrong.
pub(crate) fn publish(bucket: usize, held: bool, all: u32) {
    if let Some(slot) = WRITE_GUARDED.get(bucket) {
        slot.store(held, Release);
    }
    HOT.writers.store(all, Release);
}

pub(crate) fn clear() {
    WRITE_GUARDED.iter().for_each(|held| held.store(false, Release));
    HOT.writers.store(0, Release);
}

/// `false` is certain.
pub fn write_guarded(key: FileKey) -> bool {
    write_guarded_number(number(key))
}

#[inline]
pub fn write_guarded_number(number: u64) -> bool {
    HOT.writers.load(Acquire) != 0
        && WRITE_GUARDED.get((number >> 56) as usize).is_none_or(|held| held.load(Acquire))
}
