//! A set of address ranges that never claims too much. Pure.
//!
//! A range is one word. A removal narrows it by one compare and exchange, to the larger side of a hole: a second word for the
//! other could escape a concurrent removal.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use elision_sys::PAGE;

const LENGTH_BITS: u32 = 29;

pub struct Ranges<const N: usize> {
    /// The first page's number (bits 63..29) and the pages (28..0); 0: empty.
    words: [AtomicU64; N],
    /// Words from here on were never used.
    used: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pages {
    first: u64,
    end: u64,
}

impl Pages {
    fn new(first: u64, end: u64) -> Option<Self> {
        let fits = first < end && end <= 1 << (64 - LENGTH_BITS) && end - first < 1 << LENGTH_BITS;
        fits.then_some(Pages { first, end })
    }

    fn from_word(word: u64) -> Option<Self> {
        let first = word >> LENGTH_BITS;
        Pages::new(first, first + (word & ((1 << LENGTH_BITS) - 1)))
    }

    fn word(self) -> u64 {
        (self.first << LENGTH_BITS) | (self.end - self.first)
    }

    /// The larger side of the hole.
    fn without(self, first: u64, end: u64) -> Option<Self> {
        let below = Pages::new(self.first, self.end.min(first));
        let above = Pages::new(self.first.max(end), self.end);
        match (below, above) {
            (Some(below), Some(above)) => {
                Some(if below.end - below.first >= above.end - above.first { below } else { above })
            }
            (one, other) => one.or(other),
        }
    }
}

impl<const N: usize> Ranges<N> {
    #[allow(clippy::new_without_default)] // Only ever a static.
    pub const fn new() -> Self {
        Ranges { words: [const { AtomicU64::new(0) }; N], used: AtomicUsize::new(0) }
    }

    fn in_use(&self) -> impl Iterator<Item = &AtomicU64> {
        self.words.iter().take(self.used.load(Ordering::Acquire))
    }

    /// Adds the whole pages, given room and a length that fits a word.
    pub fn insert(&self, start: usize, end: usize) {
        let first = start.div_ceil(PAGE) as u64;
        let Some(pages) = Pages::new(first, (end / PAGE) as u64) else { return };
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0
                && word.compare_exchange(0, pages.word(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                self.used.fetch_max(index + 1, Ordering::AcqRel);
                return;
            }
        }
    }

    /// Removes every page touched.
    pub fn remove(&self, start: usize, end: usize) {
        let (first, last) = ((start / PAGE) as u64, end.div_ceil(PAGE) as u64);
        if first >= last {
            return;
        }
        for word in self.in_use() {
            let mut seen = word.load(Ordering::Acquire);
            while let Some(pages) = Pages::from_word(seen) {
                if pages.end <= first || last <= pages.first {
                    break;
                }
                let left = pages.without(first, last).map_or(0, Pages::word);
                match word.compare_exchange(seen, left, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(now) => seen = now,
                }
            }
        }
    }

    pub fn contains(&self, start: usize, end: usize) -> bool {
        let (first, last) = ((start / PAGE) as u64, end.div_ceil(PAGE) as u64);
        self.in_use()
            .filter_map(|word| Pages::from_word(word.load(Ordering::Acquire)))
            .any(|pages| pages.first <= first && last <= pages.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SPACE: usize = 24;

    #[derive(Default)]
    struct Naive(Vec<BTreeSet<usize>>);

    impl Naive {
        fn remove(&mut self, start: usize, end: usize) {
            for range in &mut self.0 {
                let cut = (start..end).any(|page| range.contains(&page));
                if cut {
                    let below: BTreeSet<_> = range.iter().copied().filter(|p| *p < start).collect();
                    let above: BTreeSet<_> = range.iter().copied().filter(|p| *p >= end).collect();
                    *range = if below.len() >= above.len() { below } else { above };
                }
            }
            self.0.retain(|range| !range.is_empty());
        }

        fn contains(&self, start: usize, end: usize) -> bool {
            self.0.iter().any(|range| (start..end).all(|page| range.contains(&page)))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn as_a_naive_set_does(steps in prop::collection::vec((any::<bool>(), 0..SPACE, 1..SPACE), 1..40)) {
            const BASE: usize = 0x7000_0000_0000;
            let ranges = Ranges::<8>::new();
            let mut naive = Naive::default();
            let mut mapped = [false; 2 * SPACE];
            for (add, start, len) in steps {
                let end = start + len;
                // A mapping replaces what was there.
                ranges.remove(BASE + start * PAGE, BASE + end * PAGE);
                naive.remove(start, end);
                mapped[start..end].fill(add);
                if add {
                    ranges.insert(BASE + start * PAGE, BASE + end * PAGE);
                    if naive.0.len() < 8 {
                        naive.0.push((start..end).collect());
                    }
                }
                for from in 0..2 * SPACE {
                    for to in from + 1..=2 * SPACE {
                        let holds = ranges.contains(BASE + from * PAGE, BASE + to * PAGE);
                        prop_assert_eq!(holds, naive.contains(from, to));
                        prop_assert!(!holds || mapped[from..to].iter().all(|m| *m));
                    }
                }
            }
        }
    }

    #[test]
    fn part_of_a_page_is_not_in_a_range_and_takes_a_whole_one_away() {
        let ranges = Ranges::<2>::new();
        ranges.insert(PAGE + 1, 4 * PAGE - 1);
        assert!(ranges.contains(2 * PAGE, 3 * PAGE));
        assert!(ranges.contains(2 * PAGE + 5, 3 * PAGE - 5));
        assert!(!ranges.contains(2 * PAGE, 3 * PAGE + 1));
        ranges.remove(3 * PAGE - 1, 3 * PAGE);
        assert!(!ranges.contains(2 * PAGE, 2 * PAGE + 1));
    }

    #[test]
    fn what_does_not_fit_a_word_is_not_added() {
        let ranges = Ranges::<2>::new();
        ranges.insert(0, (1 << LENGTH_BITS) * PAGE);
        ranges.insert(1 << 47, (1 << 47) + PAGE);
        ranges.insert(8 * PAGE, 8 * PAGE);
        assert_eq!(ranges.in_use().count(), 0);
    }

    #[test]
    fn removals_side_by_side_are_both_done() {
        for _ in 0..200 {
            let ranges = Ranges::<4>::new();
            ranges.insert(0, 100 * PAGE);
            std::thread::scope(|scope| {
                scope.spawn(|| ranges.remove(0, 10 * PAGE));
                scope.spawn(|| ranges.remove(90 * PAGE, 100 * PAGE));
                scope.spawn(|| ranges.remove(70 * PAGE, 71 * PAGE));
            });
            assert!(!ranges.contains(9 * PAGE, 10 * PAGE));
            assert!(!ranges.contains(90 * PAGE, 91 * PAGE));
            assert!(!ranges.contains(70 * PAGE, 71 * PAGE));
            assert!(ranges.contains(10 * PAGE, 70 * PAGE));
        }
    }
}
