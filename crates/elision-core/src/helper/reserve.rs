//! Mappings in reserve: exchanging pages takes one more for a moment, which a program at `vm.max_map_count` cannot get.
#![allow(unsafe_code)] // Protects pages of its own.

use crate::transfer::PAGE;
use elision_sys::memory;

/// Every second page has another protection than its neighbours, and so is a mapping of its own.
const PAGES: usize = 5;

pub struct Reserve {
    addr: usize,
    kept: usize,
}

impl Reserve {
    pub fn keep(&mut self) {
        if self.addr == 0 {
            self.addr = memory::reserve(PAGES * PAGE).unwrap_or(0);
        }
        while self.addr != 0 && self.kept < PAGES / 2 {
            let at = self.addr + (2 * self.kept + 1) * PAGE;
            // Counted first: a helper may be killed here.
            self.kept += 1;
            // SAFETY: the pages are the reserve's.
            if unsafe { memory::protect(at, PAGE, libc::PROT_READ) }.is_err() {
                self.kept -= 1;
                break;
            }
        }
    }

    pub fn spend(&mut self) -> bool {
        // SAFETY: as above. They become one mapping.
        core::mem::take(&mut self.kept) != 0
            && unsafe { memory::protect(self.addr, PAGES * PAGE, libc::PROT_NONE) }.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept(Reserve);

    impl Drop for Kept {
        fn drop(&mut self) {
            // SAFETY: as above.
            unsafe { memory::unmap(self.0.addr, PAGES * PAGE) };
        }
    }

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
