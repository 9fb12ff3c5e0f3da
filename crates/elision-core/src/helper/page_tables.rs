use crate::extent::PageFacts;
use elision_sys::maps;
use elision_sys::pages::{self, Run, Wanted, category};

const SCAN: usize = 512;

pub(crate) const SOMEWHERE: Wanted =
    Wanted { all: 0, inverted: 0, any: category::PRESENT | category::SWAPPED, protect: false };

pub(crate) const PROTECT: Wanted = Wanted { protect: true, ..SOMEWHERE };

pub(crate) struct PageTables {
    pub pagemap: i32,
    pub maps: i32,
    pub tracker: i32,
    scan: [Run; SCAN],
}

impl PageTables {
    /// Returns how far it came: less than `end` only if the scan failed.
    pub(crate) fn scan_each(
        &mut self,
        start: usize,
        end: usize,
        wanted: Wanted,
        mut each: impl FnMut(Run),
    ) -> usize {
        self.scan_while(start, end, wanted, |run| {
            each(run);
            true
        })
    }

    pub(crate) fn scan_while(
        &mut self,
        start: usize,
        end: usize,
        wanted: Wanted,
        mut each: impl FnMut(Run) -> bool,
    ) -> usize {
        let mut at = start;
        while at < end {
            let Ok((count, stopped)) = pages::scan(self.pagemap, at, end, wanted, &mut self.scan) else {
                return at;
            };
            for run in self.scan.iter().take(count) {
                if !each(*run) {
                    return run.end as usize;
                }
            }
            if stopped <= at {
                return at;
            }
            at = stopped;
        }
        end
    }

    pub(crate) fn count(&mut self, start: usize, end: usize, wanted: Wanted) -> usize {
        let mut bytes = 0;
        self.scan_each(start, end, wanted, |run| bytes += (run.end - run.start) as usize);
        bytes
    }

    pub(crate) fn is_plain(&self, addr: usize) -> bool {
        self.maps >= 0
            && maps::mapping(self.maps, addr)
                .is_ok_and(|m| m.start <= addr && m.readable && m.writable && !m.shared && m.ino == 0)
    }

    pub(crate) fn track(&self, addr: usize, len: usize) -> bool {
        self.tracker >= 0 && pages::track(self.tracker, addr, len).is_ok()
    }

    pub(crate) fn unprotect(&self, addr: usize, len: usize) {
        if self.tracker >= 0 {
            let _ = pages::unprotect(self.tracker, addr, len);
        }
    }
}

pub(crate) fn facts(categories: u64) -> PageFacts {
    PageFacts {
        present: categories & category::PRESENT != 0,
        swapped: categories & category::SWAPPED != 0,
        file: categories & category::FILE != 0,
        // Written, or never armed.
        written: categories & (category::WRITTEN | category::TRACKED) != category::TRACKED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 7.3 and later report no page as written that is not tracked. What was stored into was taken for unaltered, and not saved.
    #[test]
    fn what_is_not_tracked_counts_as_written() {
        for (categories, written) in [
            (category::PRESENT, true),
            (category::PRESENT | category::WRITTEN, true),
            (category::PRESENT | category::TRACKED | category::WRITTEN, true),
            (category::PRESENT | category::TRACKED, false),
        ] {
            assert_eq!(facts(categories).written, written, "{categories:b}");
        }
    }
}
