//! A few mappings kept in reserve, for the moment in which a program has used up `vm.max_map_count`.
//!
//! To exchange the pages of a mapping one by one takes one more mapping for a moment. Without it, pages stay in the mapping of the file,
//! where a truncation takes them away.
#![allow(unsafe_code)] // Protects pages of its own.

use crate::transfer::PAGE;
use elision_sys::memory;

/// Pages of the reserve. Every second one has another protection than its neighbours, and so is a mapping of its own.
const PAGES: usize = 5;

/// The reserve: all zeroes are none.
pub struct Reserve {
    addr: usize,
    /// So many of its pages have been given a protection of their own.
    kept: usize,
}

impl Reserve {
    /// Keeps some from now on, as many as can be had. (In a forked child, those of its parent.)
    pub fn keep(&mut self) {
        if self.addr == 0 {
            self.addr = memory::reserve(PAGES * PAGE).unwrap_or(0);
        }
        while self.addr != 0 && self.kept < PAGES / 2 {
            let at = self.addr + (2 * self.kept + 1) * PAGE;
            // Before it is so: a helper may be killed here.
            self.kept += 1;
            // SAFETY: nobody else knows of these pages.
            if unsafe { memory::protect(at, PAGE, libc::PROT_READ) }.is_err() {
                self.kept -= 1;
                break;
            }
        }
    }

    /// Gives them up. False: there were none.
    pub fn spend(&mut self) -> bool {
        // SAFETY: as above. They become one mapping, for which none is needed.
        core::mem::take(&mut self.kept) != 0
            && unsafe { memory::protect(self.addr, PAGES * PAGE, libc::PROT_NONE) }.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reserve, in a test that ends while it is kept.
    struct Kept(Reserve);

    impl Drop for Kept {
        fn drop(&mut self) {
            // SAFETY: the reserve's own pages, which it never touches.
            unsafe { memory::unmap(self.0.addr, PAGES * PAGE) };
        }
    }

    /// Mappings that have pages of the reserve.
    fn mappings(reserve: &Reserve) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ranges = maps.lines().map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap())
        });
        ranges.filter(|&(start, end)| start < reserve.addr + PAGES * PAGE && end > reserve.addr).count()
    }

    #[test]
    fn what_is_kept_can_be_spent_once_and_kept_again() {
        let mut reserve = Kept(Reserve { addr: 0, kept: 0 });
        assert!(!reserve.0.spend());
        for _ in 0..3 {
            reserve.0.keep();
            reserve.0.keep();
            assert_eq!(mappings(&reserve.0), PAGES);
            assert!(reserve.0.spend());
            assert_eq!(mappings(&reserve.0), 1);
            assert!(!reserve.0.spend());
        }
    }
}
