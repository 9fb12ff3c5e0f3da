use crate::extent::{SourceId, TargetId};
use crate::fs_traits::FsTraits;
use crate::shared::write_guarded::{self, BUCKETS, bucket, number};
use elision_sys::file::FileKey;

pub const FILES: usize = 1 << 14;

/// Descriptors noted by number: one for each guarded file, and others.
pub const DESCRIPTORS: usize = 2 * FILES;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Guard {
    /// Tracked extents may refer to the file while its ctime is `stamp`.
    None = 0,
    /// A read lease on the helper's own description.
    Read,
    /// A write lease on the program's description.
    Write,
    /// None is needed: a memory file that only relatives have open.
    Copy,
    /// None is needed: the file can never change.
    Immutable,
}

impl Guard {
    /// Nothing that anybody does to the file needs an answer.
    pub fn lasts(self) -> bool {
        matches!(self, Guard::Copy | Guard::Immutable)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct File {
    pub used: bool,
    pub key: FileKey,
    pub fs: Option<&'static FsTraits>,
    pub guard: Guard,
    pub source: Source,
    pub stamp: Stamp,
    /// What relatives share once the file changes.
    pub copy: SharedCopy,
    /// The request of the write under way: nobody else may change or read the file. 0: none.
    pub writer: usize,
    pub small: u32,
    pub saved: bool,
    /// No holes up to here.
    pub solid: u64,
    /// When to look after a close (see `closing`), and how long that was put off. 0: not.
    pub closed: u64,
    pub(crate) put_off: u64,
    pub(crate) next: u32,
}

/// The memory file of a file's copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedCopy {
    pub fd: i32,
    pub key: FileKey,
}

pub const NO_COPY: SharedCopy = SharedCopy { fd: -1, key: FileKey { dev: 0, ino: 0 } };

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The helper's descriptor while guarded, or −1.
    pub fd: i32,
    /// Device and inode that mappings show, once known (stat's may differ).
    pub shown: (u64, u64),
}

impl Source {
    pub const NONE: Source = Source { fd: -1, shown: (0, 0) };

    /// A killed helper may have noted one of the two numbers.
    pub fn is_known(&self) -> bool {
        self.shown.0 != 0 && self.shown.1 != 0
    }
}

pub type Stamp = (i64, u32);

/// No stamp has 0 nanoseconds.
pub const NO_STAMP: Stamp = (0, 0);

pub const NO_FILE: File = File {
    used: false,
    key: FileKey { dev: 0, ino: 0 },
    fs: None,
    guard: Guard::None,
    source: Source::NONE,
    stamp: NO_STAMP,
    copy: NO_COPY,
    writer: 0,
    small: 0,
    saved: false,
    solid: 0,
    closed: 0,
    put_off: 0,
    next: 0,
};

const HASHES: usize = 1 << 12;

/// Zeroes are an empty table.
pub struct Files {
    entries: [File; FILES],
    /// Entries from here on were never used.
    top: usize,
    /// The first free entry, plus one; 0: none.
    free: u32,
    /// The first file of each hash, plus one.
    first: [u32; HASHES],
    guarded: [u32; BUCKETS],
    watched: [TargetId; DESCRIPTORS],
}

impl Files {
    pub fn clear(&mut self) {
        for entry in self.entries.iter_mut().take(self.top) {
            *entry = NO_FILE;
        }
        (self.top, self.free) = (0, 0);
        self.first.fill(0);
        self.guarded.fill(0);
        write_guarded::clear();
    }

    pub fn ids(&self) -> impl Iterator<Item = TargetId> + use<> {
        (0..self.top as u32).map(TargetId)
    }

    pub fn known(&self) -> impl Iterator<Item = &File> {
        self.entries.get(..self.top).unwrap_or(&[]).iter().filter(|file| file.used)
    }

    pub fn find(&self, key: FileKey) -> Option<TargetId> {
        let mut link = *self.first.get(hash(key))?;
        while let Some(id) = linked(link) {
            let file = self.entries.get(id.0 as usize)?;
            if file.key == key {
                return Some(id);
            }
            link = file.next;
        }
        None
    }

    /// The guarded file whose mappings may show these numbers.
    pub fn shown_as(&self, dev: u64, ino: u64) -> Option<TargetId> {
        let shows = |id: &TargetId| {
            let file = self.get(*id);
            let same =
                if file.source.is_known() { file.source.shown == (dev, ino) } else { file.key.ino == ino };
            file.used && file.guard != Guard::None && same
        };
        self.find(FileKey { dev, ino }).filter(shows).or_else(|| self.ids().find(shows))
    }

    pub fn get(&self, id: TargetId) -> File {
        self.entries.get(..self.top).and_then(|known| known.get(id.0 as usize)).copied().unwrap_or(NO_FILE)
    }

    pub fn source(&self, id: SourceId) -> Source {
        self.get(TargetId(id.number())).source
    }

    pub fn source_mut(&mut self, id: SourceId) -> Option<&mut Source> {
        self.get_mut(TargetId(id.number())).map(|entry| &mut entry.source)
    }

    pub fn get_mut(&mut self, id: TargetId) -> Option<&mut File> {
        self.entries.get_mut(..self.top)?.get_mut(id.0 as usize).filter(|file| file.used)
    }

    pub fn watch(&mut self, fd: i32, id: TargetId) {
        if let Some(slot) = usize::try_from(fd).ok().and_then(|fd| self.watched.get_mut(fd)) {
            *slot = id;
        }
    }

    pub fn watched(&self, fd: i32) -> Option<TargetId> {
        let id = *self.watched.get(usize::try_from(fd).ok()?)?;
        let file = self.get(id);
        (file.used && file.guard != Guard::None && file.source.fd == fd).then_some(id)
    }

    pub fn add(&mut self, file: File) -> Option<TargetId> {
        let id = match linked(self.free) {
            Some(id) => {
                self.free = self.entries.get(id.0 as usize)?.next;
                id
            }
            None if self.top < FILES => {
                self.top += 1;
                TargetId(self.top as u32 - 1)
            }
            None => return None,
        };
        let first = self.first.get_mut(hash(file.key))?;
        *self.entries.get_mut(id.0 as usize)? = File { used: true, next: *first, ..file };
        *first = link_to(id);
        if file.guard == Guard::Write {
            self.count_guard(file.key, true);
        }
        Some(id)
    }

    pub fn set(&mut self, id: TargetId, file: File) {
        let before = self.get(id);
        if file.guard == Guard::Write && before.guard != Guard::Write {
            self.count_guard(before.key, true);
        }
        if let Some(entry) = self.get_mut(id) {
            *entry = File { used: true, key: before.key, next: before.next, ..file };
        }
        if file.guard != Guard::Write && before.guard == Guard::Write {
            self.count_guard(before.key, false);
        }
    }

    pub fn remove(&mut self, id: TargetId) {
        let file = self.get(id);
        if !file.used {
            return;
        }
        if file.guard == Guard::Write {
            self.count_guard(file.key, false);
        }
        let mut before = None;
        let mut link = self.first.get(hash(file.key)).copied().unwrap_or(0);
        while let Some(at) = linked(link).filter(|&at| at != id) {
            before = Some(at);
            link = self.get(at).next;
        }
        let link = match before {
            Some(at) => self.get_mut(at).map(|entry| &mut entry.next),
            None => self.first.get_mut(hash(file.key)),
        };
        if let Some(link) = link {
            *link = file.next;
        }
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            *entry = File { next: self.free, ..NO_FILE };
            self.free = link_to(id);
        }
    }

    fn count_guard(&mut self, key: FileKey, up: bool) {
        let Some(count) = self.guarded.get_mut(bucket(key)) else { return };
        *count = if up { *count + 1 } else { count.saturating_sub(1) };
        let held = *count > 0;
        write_guarded::publish(bucket(key), held, self.guarded.iter().sum());
    }
}

/// A link is a number plus one; 0: none.
fn link_to(id: TargetId) -> u32 {
    id.0 + 1
}

fn linked(link: u32) -> Option<TargetId> {
    link.checked_sub(1).map(TargetId)
}

fn hash(key: FileKey) -> usize {
    (number(key) >> 44) as usize % HASHES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::hot::HOT;
    use crate::shared::write_guarded::write_guarded;
    use core::sync::atomic::{AtomicBool, Ordering::*};
    use std::collections::HashMap;

    fn table() -> Box<Files> {
        // SAFETY: zeroes are valid, as in `launch::prepare`.
        #[allow(unsafe_code)]
        unsafe {
            Box::<Files>::new_zeroed().assume_init()
        }
    }

    fn file(ino: u64, guard: Guard) -> File {
        File { key: FileKey { dev: 1, ino }, guard, ..NO_FILE }
    }

    #[test]
    fn the_table_agrees_with_a_map() {
        let mut files = table();
        let mut model: HashMap<u64, (TargetId, Guard)> = HashMap::new();
        let mut random = 1u64;
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let ino = random % 900 * 4096;
            let guard = match random >> 39 & 1 {
                0 => Guard::Read,
                _ => Guard::Write,
            };
            let key = FileKey { dev: 1, ino };
            match files.find(key) {
                None => {
                    assert!(!model.contains_key(&ino));
                    model.insert(ino, (files.add(file(ino, guard)).unwrap(), guard));
                }
                Some(id) if random & (1 << 41) == 0 => {
                    assert_eq!(model.get(&ino).unwrap().0, id);
                    files.set(id, file(0, guard));
                    model.insert(ino, (id, guard));
                }
                Some(id) => {
                    assert_eq!(model.remove(&ino).unwrap().0, id);
                    files.remove(id);
                }
            }
            let guarded = model.values().filter(|file| file.1 == Guard::Write).count();
            assert_eq!(HOT.writers.load(Acquire) as usize, guarded);
        }
        assert_eq!(files.known().count(), model.len());
        for (&ino, &(id, guard)) in &model {
            let key = FileKey { dev: 1, ino };
            assert_eq!((files.find(key), files.get(id).guard), (Some(id), guard));
            assert!(guard != Guard::Write || write_guarded(key));
        }
        assert!(files.ids().count() <= 900);
        files.clear();
        assert_eq!((files.known().count(), HOT.writers.load(Acquire)), (0, 0));
    }

    #[test]
    fn a_file_is_found_by_what_its_mappings_show() {
        let mut files = table();
        let id = files.add(file(7, Guard::Read)).unwrap();
        // Unknown, half noted by a killed helper, and known.
        for (mapped, found) in
            [((0, 0), true), ((5, 0), true), ((0, 7), true), ((5, 7), true), ((6, 7), false)]
        {
            files.get_mut(id).unwrap().source.shown = mapped;
            assert_eq!(files.shown_as(5, 7), found.then_some(id), "{mapped:?}");
            assert_eq!(files.shown_as(5, 8), None, "{mapped:?}");
        }
    }

    #[test]
    fn a_full_table_refuses() {
        let mut files = table();
        for ino in 0..FILES as u64 {
            files.add(file(ino, Guard::Read)).unwrap();
        }
        assert_eq!(files.add(file(1 << 40, Guard::Read)), None);
        files.remove(TargetId(77));
        assert_eq!(files.add(file(1 << 40, Guard::Read)), Some(TargetId(77)));
    }

    #[test]
    fn a_guarded_file_is_never_overlooked_while_others_come_and_go() {
        let mut files = table();
        let held = file(7, Guard::Write);
        files.add(held).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for ino in 0..20_000 {
                    let other = files.add(file(8 + ino, Guard::Write)).unwrap();
                    files.remove(other);
                }
                done.store(true, Release);
            });
            while !done.load(Acquire) {
                assert!(write_guarded(held.key));
            }
        });
    }
}
