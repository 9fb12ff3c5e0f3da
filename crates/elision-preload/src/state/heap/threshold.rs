//! Which blocks glibc would have made mappings of their own, and given back as soon as they are freed. The others it keeps for later,
//! and so do we. From which size on that is grows with what is freed, unless it is set; see mallopt(3), M_MMAP_THRESHOLD.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What it is at first, and how far it grows or can be set.
const FIRST: usize = 128 << 10;
const HIGHEST: usize = 32 << 20;

/// Of blocks that are kept for later there may be so many bytes at any rate, and never more than so many. glibc trims what lies at the end of its
/// heap when that is more than twice the threshold (M_TRIM_THRESHOLD), but not what lies amid others. Here it is three times as much: with two,
/// four blocks of changing sizes had to get twice as many pages anew as with glibc, with three two thirds as many.
const KEPT: core::ops::RangeInclusive<usize> = 1 << 20..=2 * HIGHEST;

/// The threshold of this process.
pub static THRESHOLD: Threshold = Threshold::new();

/// A threshold that may grow.
pub struct Threshold {
    bytes: AtomicUsize,
    keeps: AtomicUsize,
    fixed: AtomicBool,
}

impl Threshold {
    const fn new() -> Self {
        let (bytes, keeps) = (AtomicUsize::new(FIRST), AtomicUsize::new(FIRST));
        Threshold { bytes, keeps, fixed: AtomicBool::new(false) }
    }

    /// As it was at first, whatever was tried out.
    pub fn begin(&self) {
        self.bytes.store(FIRST, Relaxed);
        self.keeps.store(FIRST, Relaxed);
        self.fixed.store(false, Relaxed);
    }

    /// Would this request be a mapping of its own?
    pub fn maps(&self, request: usize) -> bool {
        request.saturating_add(size_of::<usize>()) >= self.bytes.load(Relaxed)
    }

    /// How many bytes may be kept for later.
    pub fn keeps(&self) -> usize {
        self.keeps.load(Relaxed).clamp(*KEPT.start(), *KEPT.end())
    }

    /// A block of so many bytes was freed that would have been a mapping of its own.
    pub fn freed(&self, len: usize) {
        if len <= HIGHEST && !self.fixed.load(Relaxed) && self.bytes.fetch_max(len, Relaxed) < len {
            self.keeps.fetch_max(3 * len, Relaxed);
        }
    }

    /// It no longer grows, because of what was set.
    pub fn fix(&self) {
        self.fixed.store(true, Relaxed);
    }

    /// It was set. (glibc takes no more than the highest.)
    pub fn set(&self, bytes: usize) {
        if bytes <= HIGHEST {
            self.bytes.store(bytes, Relaxed);
            self.fix();
        }
    }

    /// It was set how many bytes may be kept.
    pub fn set_keeps(&self, bytes: usize) {
        self.keeps.store(bytes, Relaxed);
        self.fix();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_what_is_freed() {
        let threshold = Threshold::new();
        assert!(!threshold.maps(FIRST - 9) && threshold.maps(FIRST - 8) && threshold.maps(usize::MAX));
        assert_eq!(threshold.keeps(), 1 << 20);
        threshold.freed(20 << 20);
        threshold.freed(1 << 20);
        assert!(!threshold.maps((20 << 20) - 16) && threshold.maps(20 << 20));
        assert_eq!(threshold.keeps(), 60 << 20);
        threshold.freed(33 << 20);
        assert!(threshold.maps(20 << 20));
        threshold.freed(32 << 20);
        assert!(!threshold.maps(31 << 20));
        assert_eq!(threshold.keeps(), 64 << 20);
        threshold.begin();
        assert!(threshold.maps(FIRST) && threshold.keeps() == 1 << 20);
    }

    #[test]
    fn what_is_set_stays() {
        let threshold = Threshold::new();
        threshold.set(33 << 20);
        threshold.freed(1 << 20);
        assert!(!threshold.maps(FIRST));
        threshold.set(2 << 20);
        threshold.freed(20 << 20);
        assert!(threshold.maps(2 << 20) && !threshold.maps(1 << 20) && threshold.keeps() == 3 << 20);
        let threshold = Threshold::new();
        threshold.set_keeps(usize::MAX);
        threshold.freed(20 << 20);
        assert!(threshold.maps(FIRST) && threshold.keeps() == 64 << 20);
    }
}
