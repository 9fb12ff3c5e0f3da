//! The free ranges of a segment, by address and by length.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub struct FreeList {
    lengths: BTreeMap<usize, usize>,
    sizes: BTreeSet<(usize, usize)>,
}

impl FreeList {
    /// The shortest range of at least `len` bytes; the first of several.
    pub fn fitting(&self, len: usize) -> Option<usize> {
        self.sizes.range((len, 0)..).next().map(|&(_, addr)| addr)
    }

    /// The length of the range at `addr`; 0: none.
    pub fn at(&self, addr: usize) -> usize {
        self.lengths.get(&addr).copied().unwrap_or(0)
    }

    pub fn take(&mut self, addr: usize, len: usize) {
        let room = self.remove(addr);
        debug_assert!(0 < len && len <= room, "taken from what is not there");
        if room > len {
            self.insert(addr + len, room - len);
        }
    }

    pub fn give(&mut self, addr: usize, len: usize) {
        let (mut start, mut end) = (addr, addr + len);
        let before = self.lengths.range(..addr).next_back().map(|(&start, &len)| (start, start + len));
        if let Some((earlier, touching)) = before
            && touching == addr
        {
            self.remove(earlier);
            start = earlier;
        }
        end += self.remove(end);
        self.insert(start, end - start);
    }

    fn insert(&mut self, addr: usize, len: usize) {
        self.lengths.insert(addr, len);
        self.sizes.insert((len, addr));
    }

    fn remove(&mut self, addr: usize) -> usize {
        let len = self.lengths.remove(&addr).unwrap_or(0);
        self.sizes.remove(&(len, addr));
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CELLS: usize = 40;

    fn runs(free: &[bool]) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for at in (0..free.len()).filter(|&at| free[at]) {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == at => *len += 1,
                _ => runs.push((at, 1)),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn as_one_flag_for_each_cell(steps in prop::collection::vec((0..3, 0..CELLS, 1..CELLS), 1..60)) {
            let mut list = FreeList::default();
            let mut free = [false; CELLS];
            for (step, at, len) in steps {
                let shortest = runs(&free).into_iter().filter(|&(_, room)| room >= len).min_by_key(|&(at, room)| (room, at));
                prop_assert_eq!(list.fitting(len), shortest.map(|(at, _)| at));
                match step {
                    0 => if let Some((at, _)) = shortest {
                        list.take(at, len);
                        free[at..at + len].fill(false);
                    },
                    1 => {
                        let room = runs(&free).into_iter().find(|run| run.0 == at).map_or(0, |run| run.1);
                        prop_assert_eq!(list.at(at), room);
                        if room >= len {
                            list.take(at, len);
                            free[at..at + len].fill(false);
                        }
                    }
                    _ => {
                        let end = (at + len).min(CELLS);
                        if !free[at..end].contains(&true) {
                            list.give(at, end - at);
                            free[at..end].fill(true);
                        }
                    }
                }
                let found: Vec<_> = list.lengths.iter().map(|(&at, &len)| (at, len)).collect();
                prop_assert_eq!(found, runs(&free));
                let by_size: BTreeSet<_> = list.lengths.iter().map(|(&at, &len)| (len, at)).collect();
                prop_assert_eq!(&by_size, &list.sizes);
            }
        }
    }
}
