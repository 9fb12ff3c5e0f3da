//! Which files may be under a write lease: what the program's threads ask before they change one.

use crate::shared::hot::HOT;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::file::FileKey;

pub(crate) const BUCKETS: usize = 256;

static WRITE_GUARDED: [AtomicBool; BUCKETS] = [const { AtomicBool::new(false) }; BUCKETS];

/// A number that tells one file from another, though not beyond all doubt, nor in its lowest bits.
pub fn number(key: FileKey) -> u64 {
    (key.ino ^ key.dev.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The bucket of a file.
pub(crate) fn bucket(key: FileKey) -> usize {
    (number(key) >> 56) as usize
}

/// In the helper: a bucket has a file under a write lease, or none; there are `all` in all. One store for each bucket, so that what it
/// says is never wrong in between.
pub(crate) fn publish(bucket: usize, held: bool, all: u32) {
    if let Some(slot) = WRITE_GUARDED.get(bucket) {
        slot.store(held, Release);
    }
    HOT.writers.store(all, Release);
}

/// In the helper: there is none.
pub(crate) fn clear() {
    WRITE_GUARDED.iter().for_each(|held| held.store(false, Release));
    HOT.writers.store(0, Release);
}

/// May this file be under a write lease? `false` is certain.
pub fn write_guarded(key: FileKey) -> bool {
    write_guarded_number(number(key))
}

/// The same for its [`number`], whatever the lowest bits are.
#[inline]
pub fn write_guarded_number(number: u64) -> bool {
    HOT.writers.load(Acquire) != 0
        && WRITE_GUARDED.get((number >> 56) as usize).is_none_or(|held| held.load(Acquire))
}
