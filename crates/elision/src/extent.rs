//! The association map: which pages of memory stand for which bytes of which file.
//!
//! An [`Extent`] is a run of whole pages associated with an equally long run of file bytes. The map holds
//! them sorted by address and disjoint; neighbours that continue each other are one. It decides nothing about
//! a single page: whether a page has been altered since is something only the kernel knows, and
//! [`state`] combines the two into the one answer that the rest of the system acts on.
//!
//! Pure and without allocation: the storage is lent by the caller, because in a running system the map is owned by
//! the sidecar, which must not enter the program's allocator.

use crate::transfer::PAGE;

/// Index of a file in the sidecar's table.
pub type FileId = u32;

/// How the pages of an extent came to be associated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A private mapping of the file: a page has no memory of its own until it is altered. Needs a guard at
    /// all times. Pages altered and written back again are told apart by write tracking.
    Mapped,
    /// Memory of its own, equal to the file when it was armed, write-tracked since. Any alignment.
    Tracked,
}

/// A run of pages and the file bytes they stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Address of the first page; a multiple of [`PAGE`].
    pub addr: usize,
    /// Bytes; a multiple of [`PAGE`], never zero.
    pub len: usize,
    /// The file.
    pub file: FileId,
    /// File position of the first byte. A multiple of [`PAGE`] if mapped.
    pub offset: u64,
    /// Mapped or tracked.
    pub kind: Kind,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> usize {
        self.addr + self.len
    }

    fn continues(&self, before: &Extent) -> bool {
        before.end() == self.addr
            && before.file == self.file
            && before.kind == self.kind
            && before.offset + before.len as u64 == self.offset
    }

    /// The part of this extent within `[addr, end)`, if any.
    pub fn clip(&self, addr: usize, end: usize) -> Option<Extent> {
        let from = self.addr.max(addr);
        let to = self.end().min(end);
        (from < to).then(|| Extent {
            addr: from,
            len: to - from,
            offset: self.offset + (from - self.addr) as u64,
            ..*self
        })
    }

    /// The whole pages of this extent any byte of which stands for file bytes `[start, end)`.
    pub fn clip_file(&self, start: u64, end: u64) -> Option<Extent> {
        let from = self.offset.max(start);
        let to = (self.offset + self.len as u64).min(end);
        if from >= to {
            return None;
        }
        let skip = (from - self.offset) as usize / PAGE * PAGE;
        let stop = ((to - self.offset) as usize).next_multiple_of(PAGE);
        self.clip(self.addr + skip, self.addr + stop)
    }
}

/// What the kernel says of one page (or of a run of pages that are alike).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageFacts {
    /// In memory.
    pub present: bool,
    /// In swap.
    pub swapped: bool,
    /// Backed by a file's page cache, not by memory of its own.
    pub file: bool,
    /// Not write-protected by the tracker: stored into since it was armed, or never armed.
    pub written: bool,
}

/// The state of a page: the picture that everything else serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Associated, and without memory of its own.
    Mapped,
    /// Associated, in memory of its own, write-tracked.
    Tracked,
    /// Stored into since: belongs to memory and swap.
    Altered,
}

/// The one decision: given what the map says and what the kernel says, what is the page?
pub fn state(kind: Kind, facts: PageFacts) -> State {
    let own_memory = (facts.present || facts.swapped) && !facts.file;
    match (kind, own_memory, facts.written) {
        (Kind::Mapped, false, _) => State::Mapped,
        (Kind::Mapped | Kind::Tracked, true, false) => State::Tracked,
        (Kind::Mapped | Kind::Tracked, true, true) => State::Altered,
        // A tracked page that is nowhere was given back (MADV_DONTNEED, a new mapping): it reads as zeroes
        // or as something else, and nobody told us.
        (Kind::Tracked, false, _) => State::Altered,
    }
}

/// The map is full: the caller declines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Extents sorted by address, in storage lent by the caller.
pub struct ExtentMap<'a> {
    rows: &'a mut [Extent],
    len: &'a mut usize,
}

/// A row that says nothing, to fill storage with.
pub const BLANK: Extent = Extent { addr: 0, len: 0, file: 0, offset: 0, kind: Kind::Mapped };

impl<'a> ExtentMap<'a> {
    /// A map over `rows`, of which the first `len` are in use.
    pub fn new(rows: &'a mut [Extent], len: &'a mut usize) -> Self {
        ExtentMap { rows, len }
    }

    /// The extents, in order of address.
    pub fn rows(&self) -> &[Extent] {
        self.rows.get(..*self.len).unwrap_or(&[])
    }

    /// Index of the first extent that ends after `addr`.
    pub fn first_after(&self, addr: usize) -> usize {
        self.rows().partition_point(|row| row.end() <= addr)
    }

    /// The extents, clipped, that overlap `[addr, addr + len)`.
    pub fn overlapping(&self, addr: usize, len: usize) -> impl Iterator<Item = Extent> + '_ {
        let end = addr + len;
        let from = self.first_after(addr);
        self.rows()
            .iter()
            .skip(from)
            .take_while(move |row| row.addr < end)
            .filter_map(move |row| row.clip(addr, end))
    }

    /// The pages, clipped, that stand for file bytes `[start, end)` of `file`.
    pub fn in_file(&self, file: FileId, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        self.rows()
            .iter()
            .filter(move |row| row.file == file)
            .filter_map(move |row| row.clip_file(start, end))
    }

    /// Does any extent stand for bytes of `file`?
    pub fn depends_on(&self, file: FileId, kind: Kind) -> bool {
        self.rows().iter().any(|row| row.file == file && row.kind == kind)
    }

    /// Drops whatever is recorded of `[addr, addr + len)`.
    ///
    /// # Errors
    /// [`Full`] if splitting an extent in two needs a row that is not there; nothing is changed then.
    pub fn remove(&mut self, addr: usize, len: usize) -> Result<(), Full> {
        let end = addr + len;
        let from = self.first_after(addr);
        let Some(first) = self.rows().get(from).copied() else { return Ok(()) };
        if first.addr >= end {
            return Ok(());
        }
        if first.addr < addr && first.end() > end {
            let right = Extent {
                addr: end,
                len: first.end() - end,
                offset: first.offset + (end - first.addr) as u64,
                ..first
            };
            self.open_gap(from + 1)?;
            self.put(from, Extent { len: addr - first.addr, ..first });
            self.put(from + 1, right);
            return Ok(());
        }
        let mut keep = from;
        if first.addr < addr {
            self.put(from, Extent { len: addr - first.addr, ..first });
            keep += 1;
        }
        let mut next = keep;
        while let Some(row) = self.rows().get(next).copied() {
            if row.end() > end {
                if row.addr < end {
                    let cut = end - row.addr;
                    self.put(
                        next,
                        Extent { addr: end, len: row.len - cut, offset: row.offset + cut as u64, ..row },
                    );
                }
                break;
            }
            next += 1;
        }
        self.close_gap(keep, next);
        Ok(())
    }

    /// Records `extent` in place of whatever was there.
    ///
    /// # Errors
    /// [`Full`] if there is no room. What the new extent would have replaced may be gone, which is always safe: less
    /// is associated.
    pub fn insert(&mut self, extent: Extent) -> Result<(), Full> {
        debug_assert!(extent.len > 0);
        self.remove(extent.addr, extent.len)?;
        let at = self.first_after(extent.addr);
        let before = at.checked_sub(1).and_then(|i| self.rows().get(i).copied());
        let after = self.rows().get(at).copied();
        match (before.filter(|b| extent.continues(b)), after.filter(|a| a.continues(&extent))) {
            (Some(b), Some(a)) => {
                self.put(at - 1, Extent { len: b.len + extent.len + a.len, ..b });
                self.close_gap(at, at + 1);
            }
            (Some(b), None) => self.put(at - 1, Extent { len: b.len + extent.len, ..b }),
            (None, Some(a)) => self.put(at, Extent { len: extent.len + a.len, ..extent }),
            (None, None) => {
                self.open_gap(at)?;
                self.put(at, extent);
            }
        }
        Ok(())
    }

    /// Drops every extent for which `keep` says false.
    pub fn retain(&mut self, mut keep: impl FnMut(&Extent) -> bool) {
        let mut kept = 0;
        for i in 0..*self.len {
            let Some(row) = self.rows.get(i).copied() else { break };
            if keep(&row) {
                self.put(kept, row);
                kept += 1;
            }
        }
        *self.len = kept;
    }

    /// Checks what the map promises: sorted, disjoint, page aligned, nothing empty, neighbours merged.
    ///
    /// # Errors
    /// A sentence on the first broken promise.
    pub fn validate(&self) -> Result<(), &'static str> {
        for row in self.rows() {
            if row.len == 0 || !row.len.is_multiple_of(PAGE) || !row.addr.is_multiple_of(PAGE) {
                return Err("an extent is empty or not page aligned");
            }
            if row.kind == Kind::Mapped && !row.offset.is_multiple_of(PAGE as u64) {
                return Err("a mapped extent is not congruent with its file");
            }
        }
        for (a, b) in self.rows().iter().zip(self.rows().iter().skip(1)) {
            if a.end() > b.addr {
                return Err("two extents overlap or are out of order");
            }
            if b.continues(a) {
                return Err("two neighbours that continue each other were not merged");
            }
        }
        Ok(())
    }

    fn put(&mut self, at: usize, row: Extent) {
        if let Some(slot) = self.rows.get_mut(at) {
            *slot = row;
        }
    }

    fn open_gap(&mut self, at: usize) -> Result<(), Full> {
        if *self.len >= self.rows.len() {
            return Err(Full);
        }
        self.rows.copy_within(at..*self.len, at + 1);
        *self.len += 1;
        Ok(())
    }

    fn close_gap(&mut self, from: usize, to: usize) {
        if to > from {
            self.rows.copy_within(to..*self.len, from);
            *self.len -= to - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: usize = 24;

    /// The oracle: one cell for each page.
    type Model = [Option<(FileId, u64, Kind)>; PAGES];

    #[derive(Clone, Debug)]
    enum Step {
        Insert { page: usize, pages: usize, file: FileId, offset: u64, kind: Kind },
        Remove { page: usize, pages: usize },
        DropFile(FileId),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = (0..PAGES, 1..PAGES).prop_map(|(p, n)| (p, n.min(PAGES - p)));
        let kind = prop_oneof![Just(Kind::Mapped), Just(Kind::Tracked)];
        prop_oneof![
            4 => (place.clone(), 0..3u32, -2i64..3, kind).prop_map(|((page, pages), file, shift, kind)| {
                // Offsets near the page's own position make neighbours continue each other often.
                let odd = if kind == Kind::Tracked && shift == 2 { 100 } else { 0 };
                let offset = ((page as i64 + shift.clamp(0, 1)) * PAGE as i64) as u64 + odd;
                Step::Insert { page, pages, file, offset, kind }
            }),
            2 => place.prop_map(|(page, pages)| Step::Remove { page, pages }),
            1 => (0..3u32).prop_map(Step::DropFile),
        ]
    }

    fn check(map: &ExtentMap, model: &Model) {
        map.validate().unwrap();
        let mut seen: Model = [None; PAGES];
        for row in map.rows() {
            for page in 0..row.len / PAGE {
                seen[row.addr / PAGE + page] = Some((row.file, row.offset + (page * PAGE) as u64, row.kind));
            }
        }
        assert_eq!(&seen, model);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_map_agrees_with_one_cell_for_each_page(steps in proptest::collection::vec(step(), 1..40)) {
            let (mut rows, mut len) = ([BLANK; PAGES], 0);
            let mut map = ExtentMap::new(&mut rows, &mut len);
            let mut model: Model = [None; PAGES];
            for step in steps {
                match step {
                    Step::Insert { page, pages, file, offset, kind } => {
                        let extent = Extent { addr: page * PAGE, len: pages * PAGE, file, offset, kind };
                        map.insert(extent).unwrap();
                        for i in 0..pages {
                            model[page + i] = Some((file, offset + (i * PAGE) as u64, kind));
                        }
                    }
                    Step::Remove { page, pages } => {
                        map.remove(page * PAGE, pages * PAGE).unwrap();
                        model[page..page + pages].fill(None);
                    }
                    Step::DropFile(file) => {
                        map.retain(|row| row.file != file);
                        for cell in &mut model {
                            *cell = cell.filter(|cell| cell.0 != file);
                        }
                    }
                }
                check(&map, &model);
            }
        }

        #[test]
        fn what_stands_for_file_bytes_is_what_a_walk_finds(
            offset in 0u64..20_000, pages in 1usize..6, start in 0u64..40_000, size in 0u64..20_000,
        ) {
            let extent = Extent { addr: 64 * PAGE, len: pages * PAGE, file: 0, offset, kind: Kind::Tracked };
            let end = start + size;
            let touched = |page: usize| {
                let from = offset + (page * PAGE) as u64;
                (from..from + PAGE as u64).any(|at| (start..end).contains(&at))
            };
            let expected: Vec<usize> = (0..pages).filter(|&p| touched(p)).collect();
            let got: Vec<usize> = extent.clip_file(start, end).map_or(vec![], |c| {
                ((c.addr - extent.addr) / PAGE..(c.end() - extent.addr) / PAGE).collect()
            });
            prop_assert_eq!(got, expected);
        }
    }

    /// Every combination of map and kernel facts, against the sentences of the design.
    #[test]
    fn the_state_of_a_page_follows_the_picture() {
        for bits in 0..16u8 {
            let facts = PageFacts {
                present: bits & 1 != 0,
                swapped: bits & 2 != 0,
                file: bits & 4 != 0,
                written: bits & 8 != 0,
            };
            let own = (facts.present || facts.swapped) && !facts.file;
            let mapped = state(Kind::Mapped, facts);
            let tracked = state(Kind::Tracked, facts);
            // A private file mapping without memory of its own shows the file's bytes, whatever else is said.
            assert_eq!(mapped == State::Mapped, !own, "{facts:?}");
            // What is write-protected in memory of its own has not been stored into.
            assert_eq!(mapped == State::Tracked, own && !facts.written, "{facts:?}");
            // A tracked page is trusted only while it is there and protected.
            assert_eq!(tracked == State::Tracked, own && !facts.written, "{facts:?}");
            assert_ne!(tracked, State::Mapped, "{facts:?}");
        }
    }

    #[test]
    fn a_full_map_refuses_and_stays_valid() {
        let (mut rows, mut len) = ([BLANK; 2], 0);
        let mut map = ExtentMap::new(&mut rows, &mut len);
        let at = |page: usize, pages: usize, file| Extent {
            addr: page * PAGE,
            len: pages * PAGE,
            file,
            offset: 0,
            kind: Kind::Mapped,
        };
        map.insert(at(0, 5, 0)).unwrap();
        map.insert(at(8, 1, 1)).unwrap();
        assert_eq!(map.insert(at(12, 1, 2)), Err(Full));
        assert_eq!(map.remove(2 * PAGE, PAGE), Err(Full));
        assert_eq!(map.rows().len(), 2);
        map.validate().unwrap();
    }
}
