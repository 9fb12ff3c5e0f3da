//! What the program's threads may know of the map: its size, a filter of addresses, and changes of guards.

use crate::shared::hot::HOT;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};

pub(crate) static LIVE: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn publish(extents: usize) {
    LIVE.store(extents, Release);
    if !any() {
        TOUCHED.iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// The address whose bytes only the helper's reserve page may have; or 0.
pub(crate) static IN_HAND: AtomicUsize = AtomicUsize::new(0);

/// The program replaces this range: nobody needs the bytes that a killed helper had in hand.
pub(crate) fn let_go_of_page(addr: usize, len: usize) {
    let at = IN_HAND.load(Acquire);
    if at != 0 && (addr..addr + len).contains(&at) {
        let _ = IN_HAND.compare_exchange(at, 0, AcqRel, Relaxed);
    }
}

/// Moves before a guard goes, and before a guarded file changes.
static CHANGES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn count_change() {
    CHANGES.fetch_add(1, AcqRel);
}

/// While this is unchanged, whatever was guarded is unchanged.
pub fn changes() -> u64 {
    CHANGES.load(Acquire)
}

static LEFT: AtomicBool = AtomicBool::new(false);

/// From now on the filter counts for good: the drop-in must not reuse such memory.
pub(crate) fn keep_marks() {
    LEFT.store(true, Release);
}

pub(crate) fn marks_are_kept() -> bool {
    LEFT.load(Acquire)
}

pub fn any() -> bool {
    LIVE.load(Acquire) != 0 || marks_are_kept()
}

/// Does anything depend on the helper: extents, or a write lease on the program's own description, which outlives it?
pub fn any_or_leases() -> bool {
    any() || HOT.writers.load(Acquire) != 0
}

/// Which 2 MiB stretches ever had an extent: a hashed filter.
static TOUCHED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

const STRETCH: usize = 21;
fn stretches(addr: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let first = addr >> STRETCH;
    let last = (addr + len.max(1) - 1) >> STRETCH;
    // A range that wraps the filter looks at each word once.
    (first >> 6..=last >> 6).take(TOUCHED.len() + 1).map(move |word| {
        let from = first.max(word << 6) & 63;
        let to = last.min(word << 6 | 63) & 63;
        (word % TOUCHED.len(), u64::MAX >> (63 - (to - from)) << from)
    })
}

pub fn mark(addr: usize, len: usize) {
    for (word, bit) in stretches(addr, len) {
        if let Some(word) = TOUCHED.get(word)
            && word.load(Acquire) & bit != bit
        {
            word.fetch_or(bit, AcqRel);
        }
    }
}

/// `false` is certain.
pub fn touched(addr: usize, len: usize) -> bool {
    any()
        && stretches(addr, len)
            .any(|(word, bit)| TOUCHED.get(word).is_none_or(|w| w.load(Acquire) & bit != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_agrees_with_a_walk_over_stretches() {
        for first in [0usize, 1, 62, 63, 64, 65, 1000, 65_535, 65_536] {
            for count in [1usize, 2, 3, 63, 64, 65, 130, 5000, 70_000] {
                let mut expected = vec![0u64; TOUCHED.len()];
                for stretch in first..first + count {
                    expected[stretch / 64 % TOUCHED.len()] |= 1 << (stretch % 64);
                }
                let mut got = vec![0u64; TOUCHED.len()];
                for (word, bits) in stretches((first << STRETCH) + 4096, (count << STRETCH) - 4096) {
                    got[word] |= bits;
                }
                assert!(got == expected, "{first} {count}");
            }
        }
    }
}
