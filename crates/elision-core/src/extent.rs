//! The association map: which pages of memory stand for which bytes of which file.
//!
//! Extents are sorted, disjoint and merged. Only the kernel knows whether a page was altered since; [`state`] combines both. No
//! allocation: the caller lends the storage, because the helper must not enter the program's allocator.

use crate::transfer::PAGE;
use core::num::NonZeroU32;
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// The file whose bytes pages equal: its number in the helper's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetId(pub u32);

/// What is mapped: its number in the table plus one, so that zero is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct SourceId(NonZeroU32);

impl SourceId {
    pub fn of(target: TargetId) -> SourceId {
        SourceId(NonZeroU32::MIN.saturating_add(target.0))
    }

    pub fn number(self) -> u32 {
        self.0.get() - 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A private file mapping, guarded at all times. Pages written back are write-tracked.
    Mapped = 0,
    /// Memory of its own, equal to the file when armed, write-tracked since. Any alignment.
    Tracked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub addr: usize,
    /// Bytes; a multiple of [`PAGE`], never zero.
    pub len: usize,
    /// What is mapped. `None`: tracked memory.
    pub source: Option<SourceId>,
    pub target: TargetId,
    /// File position. A multiple of [`PAGE`] if mapped.
    pub offset: u64,
}

const _: () = assert!(size_of::<Extent>() == 32);

impl Extent {
    pub fn mapped(addr: usize, len: usize, target: TargetId, offset: u64) -> Extent {
        Extent { addr, len, source: Some(SourceId::of(target)), target, offset }
    }

    pub fn kind(&self) -> Kind {
        if self.is_mapped() { Kind::Mapped } else { Kind::Tracked }
    }

    pub fn is_mapped(&self) -> bool {
        self.source.is_some()
    }

    pub fn end(&self) -> usize {
        self.addr + self.len
    }

    /// `delta`: file position less address.
    pub fn stands_at(&self, target: TargetId, delta: u64) -> bool {
        self.target == target && self.offset.wrapping_sub(self.addr as u64) == delta
    }

    fn continues(&self, before: &Extent) -> bool {
        before.end() == self.addr
            && before.target == self.target
            && before.source == self.source
            && before.offset + before.len as u64 == self.offset
    }

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

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageFacts {
    pub present: bool,
    pub swapped: bool,
    /// Backed by page cache, not by memory of its own.
    pub file: bool,
    /// Not write-protected: stored into since armed, or never armed.
    pub written: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Mapped,
    Tracked,
    Altered,
}

pub fn state(kind: Kind, facts: PageFacts) -> State {
    let own_memory = (facts.present || facts.swapped) && !facts.file;
    match (kind, own_memory, facts.written) {
        (Kind::Mapped, false, _) => State::Mapped,
        (Kind::Mapped | Kind::Tracked, true, false) => State::Tracked,
        (Kind::Mapped | Kind::Tracked, true, true) => State::Altered,
        // A tracked page that is absent was dropped (MADV_DONTNEED, a new mapping).
        (Kind::Tracked, false, _) => State::Altered,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

pub const CHUNK: usize = 64;

#[derive(Clone, Copy, Debug)]
pub struct Chunk<const N: usize = CHUNK> {
    rows: [Extent; N],
    len: usize,
    /// Lower bound of their file bytes.
    low: u64,
    high: u64,
}

pub const BLANK: Extent = Extent { addr: 0, len: 0, source: None, target: TargetId(0), offset: 0 };

impl<const N: usize> Chunk<N> {
    pub const EMPTY: Self = Chunk { rows: [BLANK; N], len: 0, low: u64::MAX, high: 0 };

    fn rows(&self) -> &[Extent] {
        self.rows.get(..self.len).unwrap_or(&[])
    }

    fn end(&self) -> usize {
        self.rows().last().map_or(0, Extent::end)
    }

    /// Widens the bounds. (A removal leaves them.)
    fn include(&mut self, row: Extent) {
        self.low = self.low.min(row.offset);
        self.high = self.high.max(row.offset + row.len as u64);
    }

    fn resize(&mut self, len: usize) {
        (self.len, self.low, self.high) = (len, u64::MAX, 0);
        for at in 0..len {
            if let Some(row) = self.rows.get(at).copied() {
                self.include(row);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    pub mapped: usize,
    pub tracked: usize,
    /// Lower bound of their addresses.
    low: usize,
    high: usize,
}

impl Share {
    pub const NONE: Share = Share { mapped: 0, tracked: 0, low: usize::MAX, high: 0 };
}

/// How much of its storage a map uses; zero, with the order filled by [`ExtentMap::clear`], is an empty map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    chunks: usize,
    pub extents: usize,
    pub mapped: usize,
    /// Not in the middle of a change: a helper may be killed between any two instructions.
    pub whole: bool,
}

/// Extents sorted by address, in lent storage.
///
/// Chunks bound the rows that a change moves. Two neighbours are over two thirds of one, so a third of the rows can be used.
pub struct ExtentMap<'a, const N: usize = CHUNK> {
    chunks: &'a mut [Chunk<N>],
    /// The chunks in use by address, then the free ones.
    order: &'a mut [u32],
    shares: &'a mut [Share],
    usage: &'a mut Usage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    chunk: usize,
    row: usize,
}

impl<'a, const N: usize> ExtentMap<'a, N> {
    /// `order` has one place for each chunk; `shares` one for each file.
    pub fn new(
        chunks: &'a mut [Chunk<N>],
        order: &'a mut [u32],
        shares: &'a mut [Share],
        usage: &'a mut Usage,
    ) -> Self {
        ExtentMap { chunks, order, shares, usage }
    }

    pub fn clear(&mut self) {
        self.change(|map| {
            (map.usage.chunks, map.usage.extents, map.usage.mapped) = (0, 0, 0);
            for (place, id) in map.order.iter_mut().zip(0..) {
                *place = id;
            }
            map.shares.fill(Share::NONE);
        });
    }

    fn change<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        let whole = core::mem::replace(&mut self.usage.whole, false);
        compiler_fence(SeqCst);
        let made = make(self);
        compiler_fence(SeqCst);
        self.usage.whole = whole;
        made
    }

    pub fn len(&self) -> usize {
        self.usage.extents
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Is there room for `more` insertions, whatever they replace?
    pub fn has_room(&self, more: usize) -> bool {
        // Each can split an extent, and so need two rows.
        self.usage.chunks + 2 * more <= self.order.len()
    }

    pub fn share(&self, target: TargetId) -> Share {
        self.shares.get(target.0 as usize).copied().unwrap_or(Share::NONE)
    }

    fn chunk(&self, at: usize) -> Option<&Chunk<N>> {
        let id = *self.order.get(..self.usage.chunks)?.get(at)?;
        self.chunks.get(id as usize)
    }

    fn chunk_mut(&mut self, at: usize) -> Option<&mut Chunk<N>> {
        let id = *self.order.get(..self.usage.chunks)?.get(at)?;
        self.chunks.get_mut(id as usize)
    }

    fn get(&self, place: Place) -> Option<Extent> {
        self.chunk(place.chunk)?.rows().get(place.row).copied()
    }

    /// The first extent that ends after `addr`, or the place behind the last.
    fn find(&self, addr: usize) -> Place {
        let in_use = self.order.get(..self.usage.chunks).unwrap_or(&[]);
        let ends = |id: &u32| self.chunks.get(*id as usize).map_or(0, Chunk::end);
        let chunk = in_use.partition_point(|id| ends(id) <= addr);
        let row = self.chunk(chunk).map_or(0, |chunk| chunk.rows().partition_point(|row| row.end() <= addr));
        Place { chunk, row }
    }

    fn after(&self, place: Place) -> Place {
        match self.chunk(place.chunk) {
            Some(chunk) if place.row + 1 >= chunk.len => Place { chunk: place.chunk + 1, row: 0 },
            _ => Place { row: place.row + 1, ..place },
        }
    }

    fn before(&self, place: Place) -> Option<Place> {
        match place.row.checked_sub(1) {
            Some(row) => Some(Place { row, ..place }),
            None => {
                let chunk = place.chunk.checked_sub(1)?;
                Some(Place { chunk, row: self.chunk(chunk)?.len.checked_sub(1)? })
            }
        }
    }

    pub fn next(&self, addr: usize) -> Option<Extent> {
        self.get(self.find(addr))
    }

    pub fn from(&self, addr: usize) -> impl Iterator<Item = Extent> + '_ {
        let mut place = self.find(addr);
        core::iter::from_fn(move || {
            let row = self.get(place)?;
            place = self.after(place);
            Some(row)
        })
    }

    pub fn overlapping(&self, addr: usize, len: usize) -> impl Iterator<Item = Extent> + '_ {
        let end = addr + len;
        self.from(addr).take_while(move |row| row.addr < end).filter_map(move |row| row.clip(addr, end))
    }

    pub fn of_target(&self, target: TargetId, addr: usize) -> impl Iterator<Item = Extent> + '_ {
        let share = self.share(target);
        let high = if share.mapped + share.tracked == 0 { 0 } else { share.high };
        self.from(addr.max(share.low.min(high)))
            .take_while(move |row| row.addr < high)
            .filter(move |row| row.target == target)
    }

    /// The extents of a file after `addr` that stand for any of `[start, end)`. Skips chunks by their bounds.
    pub fn standing_for(
        &self,
        target: TargetId,
        addr: usize,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = Extent> + '_ {
        let share = self.share(target);
        let high = if share.mapped + share.tracked == 0 { 0 } else { share.high };
        let mut place = self.find(addr.max(share.low.min(high)));
        core::iter::from_fn(move || {
            loop {
                let chunk = self.chunk(place.chunk)?;
                let near = chunk.low < end && start < chunk.high;
                match chunk.rows().get(place.row).copied() {
                    Some(row) if row.addr >= high => return None,
                    Some(row) if near => {
                        place.row += 1;
                        if row.target == target && row.clip_file(start, end).is_some() {
                            return Some(row);
                        }
                    }
                    _ => place = Place { chunk: place.chunk + 1, row: 0 },
                }
            }
        })
    }

    /// Drops the records of a range.
    ///
    /// # Errors
    /// [`Full`] if a split needs a missing row; nothing is changed then.
    pub fn remove(&mut self, addr: usize, len: usize) -> Result<(), Full> {
        self.change(|map| map.cut(addr, len))
    }

    fn cut(&mut self, addr: usize, len: usize) -> Result<(), Full> {
        let end = addr + len;
        loop {
            let place = self.find(addr);
            let Some(row) = self.get(place).filter(|row| row.addr < end) else { return Ok(()) };
            let left = Extent { len: addr.saturating_sub(row.addr), ..row };
            let cut = end.min(row.end()) - row.addr;
            let right =
                Extent { addr: row.addr + cut, len: row.len - cut, offset: row.offset + cut as u64, ..row };
            match (left.len > 0, right.len > 0) {
                (true, true) => {
                    self.insert_at(self.after_in(place), right)?;
                    self.set(self.find(addr - 1), left);
                    return Ok(());
                }
                (true, false) => self.set(place, left),
                (false, true) => self.set(place, right),
                (false, false) => self.delete(place),
            }
        }
    }

    /// Records `extent` over whatever was there.
    ///
    /// # Errors
    /// [`Full`]. The replaced records may be gone, which is safe.
    pub fn insert(&mut self, extent: Extent) -> Result<(), Full> {
        debug_assert!(extent.len > 0);
        self.change(|map| map.put(extent))
    }

    fn put(&mut self, extent: Extent) -> Result<(), Full> {
        self.cut(extent.addr, extent.len)?;
        let place = self.find(extent.addr);
        let after = self.get(place).filter(|after| after.continues(&extent));
        let before = self.before(place).and_then(|at| Some((at, self.get(at)?)));
        let before = before.filter(|(_, before)| extent.continues(before));
        match (before, after) {
            (Some((at, b)), Some(a)) => {
                self.set(at, Extent { len: b.len + extent.len + a.len, ..b });
                self.delete(place);
            }
            (Some((at, b)), None) => self.set(at, Extent { len: b.len + extent.len, ..b }),
            (None, Some(a)) => self.set(place, Extent { len: extent.len + a.len, ..extent }),
            (None, None) => self.insert_at(place, extent)?,
        }
        Ok(())
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&Extent) -> bool) {
        let mut addr = 0;
        while let Some(row) = self.next(addr) {
            if !keep(&row) {
                self.change(|map| map.delete(map.find(addr)));
            }
            addr = row.end();
        }
    }

    pub fn retain_of(&mut self, target: TargetId, mut keep: impl FnMut(&Extent) -> bool) {
        let mut addr = 0;
        loop {
            let Some(row) = self.of_target(target, addr).next() else { break };
            if !keep(&row) {
                self.change(|map| map.delete(map.find(row.addr)));
            }
            addr = row.end();
        }
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first broken one.
    pub fn validate(&self) -> Result<(), &'static str> {
        let mut last: Option<Extent> = None;
        let (mut count, mut mapped) = (0, 0);
        for row in self.from(0) {
            if row.len == 0 || !row.len.is_multiple_of(PAGE) || !row.addr.is_multiple_of(PAGE) {
                return Err("an extent is empty or not page aligned");
            }
            if row.is_mapped() && !row.offset.is_multiple_of(PAGE as u64) {
                return Err("a mapped extent is not congruent with its file");
            }
            if last.is_some_and(|last| last.end() > row.addr) {
                return Err("two extents overlap or are out of order");
            }
            if last.is_some_and(|last| row.continues(&last)) {
                return Err("two neighbours that continue each other were not merged");
            }
            let share = self.share(row.target);
            if row.addr < share.low || row.end() > share.high {
                return Err("an extent is outside of what is said of its file");
            }
            count += 1;
            mapped += usize::from(row.is_mapped());
            last = Some(row);
        }
        let sum = self.shares.iter().fold((0, 0), |sum, share| (sum.0 + share.mapped, sum.1 + share.tracked));
        if (count, mapped) != (self.usage.extents, self.usage.mapped) || (mapped, count - mapped) != sum {
            return Err("the extents are counted wrong");
        }
        let chunks = (0..self.usage.chunks).filter_map(|at| self.chunk(at));
        let outside = |chunk: &Chunk<N>, row: &Extent| {
            row.offset < chunk.low || row.offset + row.len as u64 > chunk.high
        };
        if chunks.into_iter().any(|chunk| chunk.rows().iter().any(|row| outside(chunk, row))) {
            return Err("an extent is outside of what is said of its chunk");
        }
        let sizes = (0..self.usage.chunks).map(|at| self.chunk(at).map_or(0, |chunk| chunk.len));
        let mut before = N;
        for size in sizes {
            if size == 0 || size > N || Self::could_be_one(before, size) {
                return Err("a chunk is empty, or could be one with its neighbour");
            }
            before = size;
        }
        Ok(())
    }

    fn could_be_one(a: usize, b: usize) -> bool {
        a + b <= N * 2 / 3
    }

    fn after_in(&self, place: Place) -> Place {
        Place { row: place.row + 1, ..place }
    }

    fn count(&mut self, row: Extent, up: bool) {
        let usage = &mut *self.usage;
        let mut spare = Share::NONE;
        let share = self.shares.get_mut(row.target.0 as usize).unwrap_or(&mut spare);
        let step = |counter: &mut usize| match up {
            true => *counter += 1,
            false => *counter = counter.saturating_sub(1),
        };
        step(&mut usage.extents);
        match row.kind() {
            Kind::Mapped => {
                step(&mut usage.mapped);
                step(&mut share.mapped);
            }
            Kind::Tracked => step(&mut share.tracked),
        }
        if up {
            (share.low, share.high) = (share.low.min(row.addr), share.high.max(row.end()));
        } else if share.mapped + share.tracked == 0 {
            *share = Share::NONE;
        }
    }

    /// Replaces an extent, at most growing over its neighbours.
    fn set(&mut self, place: Place, row: Extent) {
        let Some(before) = self.get(place) else { return };
        if let Some(chunk) = self.chunk_mut(place.chunk)
            && let Some(slot) = chunk.rows.get_mut(place.row)
        {
            *slot = row;
            chunk.include(row);
        }
        self.count(row, true);
        self.count(before, false);
    }

    fn delete(&mut self, place: Place) {
        let Some(row) = self.get(place) else { return };
        if let Some(chunk) = self.chunk_mut(place.chunk) {
            chunk.rows.copy_within(place.row + 1..chunk.len, place.row);
            chunk.len -= 1;
        }
        self.count(row, false);
        self.join(place.chunk);
        if let Some(before) = place.chunk.checked_sub(1) {
            self.join(before);
        }
    }

    fn join(&mut self, at: usize) {
        let size = |map: &Self, at: usize| map.chunk(at).map(|chunk| chunk.len);
        let Some(len) = size(self, at) else { return };
        let next = size(self, at + 1);
        if len == 0 {
            return self.give_back(at);
        }
        if let Some(next) = next.filter(|&next| Self::could_be_one(len, next)) {
            let Some(from) = self.chunk(at + 1).copied() else { return };
            if let Some(chunk) = self.chunk_mut(at) {
                for (slot, row) in chunk.rows.iter_mut().skip(len).zip(from.rows()) {
                    *slot = *row;
                }
                chunk.resize(len + next);
            }
            self.give_back(at + 1);
        }
    }

    fn give_back(&mut self, at: usize) {
        if let Some(in_use) = self.order.get_mut(at..self.usage.chunks) {
            in_use.rotate_left(1);
            self.usage.chunks -= 1;
        }
    }

    fn take_chunk(&mut self, at: usize) -> Result<(), Full> {
        let Some(with_free) = self.order.get_mut(at..=self.usage.chunks) else { return Err(Full) };
        with_free.rotate_right(1);
        self.usage.chunks += 1;
        if let Some(chunk) = self.chunk_mut(at) {
            chunk.resize(0);
        }
        Ok(())
    }

    fn insert_at(&mut self, mut place: Place, row: Extent) -> Result<(), Full> {
        if place.chunk >= self.usage.chunks {
            match self.usage.chunks.checked_sub(1) {
                Some(chunk) => place = Place { chunk, row: self.chunk(chunk).map_or(0, |chunk| chunk.len) },
                None => {
                    self.take_chunk(0)?;
                    place = Place { chunk: 0, row: 0 };
                }
            }
        }
        let split = self.chunk(place.chunk).is_some_and(|chunk| chunk.len == N);
        let at = place.chunk;
        if split {
            self.take_chunk(place.chunk + 1)?;
            // Address space that is filled from one end leaves full chunks behind; otherwise halves.
            let keep = match place.row {
                0 => N / 8,
                row if row == N => N - N / 8,
                _ => N / 2,
            }
            .clamp(1, N - 1);
            let Some(full) = self.chunk(place.chunk).copied() else { return Err(Full) };
            if let Some(chunk) = self.chunk_mut(place.chunk) {
                chunk.resize(keep);
            }
            if let Some(chunk) = self.chunk_mut(place.chunk + 1) {
                for (slot, row) in chunk.rows.iter_mut().zip(full.rows().iter().skip(keep)) {
                    *slot = *row;
                }
                chunk.resize(N - keep);
            }
            if place.row > keep {
                place = Place { chunk: place.chunk + 1, row: place.row - keep };
            }
        }
        if let Some(chunk) = self.chunk_mut(place.chunk)
            && place.row <= chunk.len
            && chunk.len < N
        {
            chunk.rows.copy_within(place.row..chunk.len, place.row + 1);
            if let Some(slot) = chunk.rows.get_mut(place.row) {
                *slot = row;
            }
            chunk.len += 1;
            chunk.include(row);
        }
        self.count(row, true);
        if split {
            self.join(at + 1);
            if let Some(before) = at.checked_sub(1) {
                self.join(before);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: usize = 24;

    type Model = [Option<(TargetId, u64, Kind)>; PAGES];

    #[derive(Clone, Debug)]
    enum Step {
        Insert { page: usize, pages: usize, file: TargetId, offset: u64, kind: Kind },
        Remove { page: usize, pages: usize },
        DropFile(TargetId),
    }

    fn of_kind(kind: Kind, extent: Extent) -> Extent {
        Extent { source: (kind == Kind::Mapped).then(|| SourceId::of(extent.target)), ..extent }
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = (0..PAGES, 1..PAGES).prop_map(|(p, n)| (p, n.min(PAGES - p)));
        let kind = prop_oneof![Just(Kind::Mapped), Just(Kind::Tracked)];
        prop_oneof![
            4 => (place.clone(), 0..3u32, -2i64..3, kind).prop_map(|((page, pages), file, shift, kind)| {
                let odd = if kind == Kind::Tracked && shift == 2 { 100 } else { 0 };
                let offset = ((page as i64 + shift.clamp(0, 1)) * PAGE as i64) as u64 + odd;
                Step::Insert { page, pages, file: TargetId(file), offset, kind }
            }),
            2 => place.prop_map(|(page, pages)| Step::Remove { page, pages }),
            1 => (0..3u32).prop_map(|file| Step::DropFile(TargetId(file))),
        ]
    }

    fn check<const N: usize>(map: &ExtentMap<N>, model: &Model) {
        map.validate().unwrap();
        let mut seen: Model = [None; PAGES];
        let mut each = |row: Extent| {
            for page in 0..row.len / PAGE {
                seen[row.addr / PAGE + page] =
                    Some((row.target, row.offset + (page * PAGE) as u64, row.kind()));
            }
        };
        map.from(0).for_each(&mut each);
        assert_eq!(&seen, model);
        seen = [None; PAGES];
        let mut each = |row: Extent| {
            for page in 0..row.len / PAGE {
                seen[row.addr / PAGE + page] =
                    Some((row.target, row.offset + (page * PAGE) as u64, row.kind()));
            }
        };
        (0..3).for_each(|file| map.of_target(TargetId(file), 0).for_each(&mut each));
        assert_eq!(&seen, model);
    }

    fn check_standing<const N: usize>(map: &ExtentMap<N>) {
        for file in (0..3).map(TargetId) {
            for at in 0..=PAGES {
                let (addr, start) = (at * 5 % PAGES * PAGE, (at * PAGE) as u64);
                for end in [start, start + 1, start + 2 * PAGE as u64] {
                    let found: Vec<Extent> = map.standing_for(file, addr, start, end).collect();
                    let all = map.of_target(file, addr);
                    let expected: Vec<Extent> =
                        all.filter(|row| row.clip_file(start, end).is_some()).collect();
                    assert_eq!(found, expected, "file {file:?}, from {addr}, bytes {start} to {end}");
                }
            }
        }
    }

    /// Few rows in each chunk, so that chunks split and join often.
    struct Storage<const N: usize> {
        chunks: Vec<Chunk<N>>,
        order: Vec<u32>,
        shares: [Share; 3],
        usage: Usage,
    }

    impl<const N: usize> Storage<N> {
        fn new(chunks: usize) -> Self {
            let mut storage = Storage {
                chunks: vec![Chunk::EMPTY; chunks],
                order: vec![0; chunks],
                shares: [Share::NONE; 3],
                usage: Usage::default(),
            };
            storage.map().clear();
            storage
        }

        fn map(&mut self) -> ExtentMap<'_, N> {
            ExtentMap::new(&mut self.chunks, &mut self.order, &mut self.shares, &mut self.usage)
        }
    }

    fn play<const N: usize>(steps: &[Step]) {
        let mut storage = Storage::<N>::new(PAGES);
        let mut map = storage.map();
        let mut model: Model = [None; PAGES];
        for step in steps {
            match *step {
                Step::Insert { page, pages, file, offset, kind } => {
                    let extent = of_kind(
                        kind,
                        Extent { addr: page * PAGE, len: pages * PAGE, offset, target: file, ..BLANK },
                    );
                    map.insert(extent).unwrap();
                    for i in 0..pages {
                        model[page + i] = Some((file, offset + (i * PAGE) as u64, kind));
                    }
                }
                Step::Remove { page, pages } => {
                    map.remove(page * PAGE, pages * PAGE).unwrap();
                    model[page..page + pages].fill(None);
                }
                Step::DropFile(file) if file.0 % 2 == 0 => {
                    map.retain(|row| row.target != file);
                    model.iter_mut().for_each(|cell| *cell = cell.filter(|cell| cell.0 != file));
                }
                Step::DropFile(file) => {
                    map.retain_of(file, |row| !row.is_mapped());
                    let keep = |cell: &(TargetId, u64, Kind)| cell.0 != file || cell.2 == Kind::Tracked;
                    model.iter_mut().for_each(|cell| *cell = cell.filter(keep));
                }
            }
            check(&map, &model);
        }
        check_standing(&map);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_map_agrees_with_one_cell_for_each_page(steps in proptest::collection::vec(step(), 1..40)) {
            play::<3>(&steps);
            play::<4>(&steps);
            play::<CHUNK>(&steps);
        }

        #[test]
        fn what_stands_for_file_bytes_is_what_a_walk_finds(
            offset in 0u64..20_000, pages in 1usize..6, start in 0u64..40_000, size in 0u64..20_000,
        ) {
            let extent = Extent { addr: 64 * PAGE, len: pages * PAGE, offset, ..BLANK };
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
            assert_eq!(mapped == State::Mapped, !own, "{facts:?}");
            assert_eq!(mapped == State::Tracked, own && !facts.written, "{facts:?}");
            assert_eq!(tracked == State::Tracked, own && !facts.written, "{facts:?}");
            assert_ne!(tracked, State::Mapped, "{facts:?}");
        }
    }

    #[test]
    fn a_full_map_refuses_and_stays_valid() {
        let mut storage = Storage::<2>::new(1);
        let mut map = storage.map();
        let at = |page: usize, pages: usize, file| {
            let target = TargetId(file);
            of_kind(Kind::Mapped, Extent { addr: page * PAGE, len: pages * PAGE, target, ..BLANK })
        };
        map.insert(at(0, 5, 0)).unwrap();
        map.insert(at(8, 1, 1)).unwrap();
        assert!(!map.has_room(1));
        assert_eq!(map.insert(at(12, 1, 2)), Err(Full));
        assert_eq!(map.remove(2 * PAGE, PAGE), Err(Full));
        assert_eq!(map.len(), 2);
        map.validate().unwrap();
    }

    #[test]
    fn many_extents_fill_their_storage_well() {
        const MANY: usize = 20_000;
        let row = |n: usize| of_kind(Kind::Mapped, Extent { addr: 2 * n * PAGE, len: PAGE, ..BLANK });
        let mixed = |n: usize| (n * 7919) % MANY;
        let orders: [&dyn Fn(usize) -> usize; 3] = [&|n| n, &|n| MANY - 1 - n, &mixed];
        for order in orders {
            let mut storage = Storage::<CHUNK>::new(MANY);
            let mut map = storage.map();
            for n in 0..MANY {
                map.insert(row(order(n))).unwrap();
            }
            map.validate().unwrap();
            assert!(map.usage.chunks <= MANY / (CHUNK / 3), "{} chunks", map.usage.chunks);
            for n in 0..MANY {
                if n % 10 != 0 {
                    map.remove(row(mixed(n)).addr, PAGE).unwrap();
                }
            }
            map.validate().unwrap();
            assert_eq!(map.len(), MANY / 10);
            assert!(map.usage.chunks <= map.len() / (CHUNK / 3) + 1, "{} chunks", map.usage.chunks);
        }
    }
}
