//! What the sidecar knows.
//!
//! One value, in memory that the program shares (so that a forked child finds a consistent copy), written by the
//! sidecar alone. A few facts that the program's threads ask on every call are kept beside it in atomics.

use super::announced;
use super::pause::Pause;
use crate::extent::{self, Chunk, ExtentMap, FileId, Kind, Share, Usage};
use crate::sys::file::{FileKey, lease};
use crate::sys::pages::Run;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

/// Files known at a time.
pub const FILES: usize = 512;

/// Chunks of extents.
const CHUNKS: usize = 1 << 14;

/// Extents for which there is certain to be room.
pub const EXTENTS: usize = CHUNKS * extent::CHUNK / 3;

/// What keeps a file's bytes fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// Nothing: only tracked extents may refer to the file, and only if its ctime is still `stamp`.
    None,
    /// A read lease on a description that only the mappings themselves hold (see [`crate::quick`]). It ends with the last of
    /// them, and we are told when it is being broken, though not which one of them it was.
    Carried,
    /// A read lease on a description of our own.
    Read,
    /// A write lease on the program's own description, of which we hold a descriptor.
    Write,
}

/// A file that extents refer to.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// In use?
    pub used: bool,
    /// Which file.
    pub key: FileKey,
    /// What guards it.
    pub guard: Guard,
    /// Our descriptor, while guarded; −1 if the guard is carried.
    pub fd: i32,
    /// While not guarded: ctime when the guard was let go; tracked extents hold only if it has not moved.
    pub stamp: Option<(i64, u32)>,
    /// Writes that have been planned and not yet reported as done. (One that never is keeps the guard until somebody
    /// wants the file.)
    pub writes: u32,
    /// Up to here it was found to have no holes.
    pub solid: u64,
    /// Device and inode number that mappings of it show (they differ from stat's on some file systems), once known.
    pub mapped: (u64, u64),
}

/// A file entry that says nothing.
pub const NO_FILE: File = File {
    used: false,
    key: FileKey { dev: 0, ino: 0 },
    guard: Guard::None,
    fd: -1,
    stamp: None,
    writes: 0,
    solid: 0,
    mapped: (0, 0),
};

/// Page runs that one scan may return.
pub const SCAN: usize = 512;

/// Everything the sidecar knows.
pub struct State {
    /// The program.
    pub program: i32,
    /// Our /proc/self/pagemap, which is the program's.
    pub pagemap: i32,
    /// Our /proc/self/maps, if it can be queried.
    pub maps: i32,
    /// The write tracker, or -1.
    pub tracker: i32,
    /// Where statistics go at the end, or -1.
    pub stats: i32,
    /// Fine-grained ctimes: a file that changed shows it (Linux 6.13).
    pub fine_ctime: bool,
    /// Mapped extents that may exist before vm.max_map_count is in danger.
    pub map_limit: usize,
    /// The files.
    pub files: [File; FILES],
    /// Entries of `files` from here on were never used.
    pub top: usize,
    /// How much of the map's storage is in use.
    pub usage: Usage,
    /// How much the map has of each file.
    pub shares: [Share; FILES],
    /// The map's storage, and its order.
    pub chunks: [Chunk; CHUNKS],
    pub order: [u32; CHUNKS],
    /// Room for scans.
    pub scan: [Run; SCAN],
    /// The program's threads, while they are held still.
    pub pause: Pause,
    /// Asked to go.
    pub retiring: bool,
    /// Extents were dropped since guards were last looked over.
    pub dirty: bool,
    /// The fork that was just answered, and has to be rested for; or 0.
    pub fork: u32,
    /// Room to compare a page.
    pub page: [u8; crate::transfer::PAGE],
}

impl State {
    /// The association map.
    pub fn map(&mut self) -> ExtentMap<'_> {
        ExtentMap::new(&mut self.chunks, &mut self.order, &mut self.shares, &mut self.usage)
    }

    /// The entry of a file, if there is one.
    pub fn find(&self, key: FileKey) -> Option<FileId> {
        self.files.iter().take(self.top).position(|file| file.used && file.key == key).map(|i| i as FileId)
    }

    /// The entry of a file.
    pub fn file(&self, id: FileId) -> File {
        self.files.get(id as usize).copied().unwrap_or(NO_FILE)
    }

    /// Changes the entry of a file.
    pub fn file_mut(&mut self, id: FileId) -> Option<&mut File> {
        self.files.get_mut(id as usize)
    }

    /// A free entry.
    pub fn new_file(&mut self, file: File) -> Option<FileId> {
        let id = self.files.iter().position(|file| !file.used)?;
        self.top = self.top.max(id + 1);
        KNOWN_FILES.store(self.top, Release);
        *self.files.get_mut(id)? = File { used: true, ..file };
        Some(id as FileId)
    }

    /// Mapped extents that exist.
    pub fn mapped_extents(&self) -> usize {
        self.usage.mapped
    }

    /// What everything here relies on, between requests.
    ///
    /// # Errors
    /// A sentence on what does not hold.
    pub fn validate(&mut self) -> Result<(), &'static str> {
        self.map().validate()?;
        let mut at = 0;
        while let Some(row) = self.map().next(at) {
            at = row.end();
            let file = self.file(row.file);
            if !file.used {
                return Err("an extent is of a file that is not known");
            }
            if row.kind == Kind::Mapped && file.guard == Guard::None {
                return Err("a mapped extent has no guard");
            }
            if row.kind == Kind::Tracked && file.guard == Guard::Carried {
                return Err("a tracked extent has a guard that says nothing of the time before it");
            }
            if row.kind == Kind::Tracked && file.guard == Guard::None && file.stamp.is_none() {
                return Err("a tracked extent has neither guard nor stamp");
            }
        }
        for file in self.files.iter().take(self.top).filter(|file| file.used) {
            let held = match file.guard {
                Guard::None if file.fd >= 0 => return Err("a file without a guard has a descriptor"),
                Guard::None | Guard::Carried => continue,
                Guard::Read => libc::F_RDLCK,
                Guard::Write => libc::F_WRLCK,
            };
            // (Of one that is just being broken the kernel says what it has to become.)
            if !matches!(lease(file.fd), Ok(now) if now == held || now == libc::F_UNLCK || now == libc::F_RDLCK)
            {
                return Err("a guard's lease is gone");
            }
        }
        Ok(())
    }

    /// Tells the program's threads how much there is. To be called after extents changed.
    pub fn publish(&mut self) {
        LIVE.store(self.usage.extents, Release);
        if !any() {
            for word in &TOUCHED {
                word.store(0, Relaxed);
            }
        }
    }

    /// Tells the program's threads which files are under write leases. To be called after these changed.
    pub fn publish_guards(&self) {
        publish_guards(&self.files);
    }
}

fn publish_guards(files: &[File]) {
    let mut buckets = [false; BUCKETS];
    let mut count = 0;
    for file in files.iter().filter(|file| file.used && file.guard == Guard::Write) {
        if let Some(held) = buckets.get_mut(bucket(file.key)) {
            *held = true;
        }
        count += 1;
    }
    // One store each: what a file's bucket says is never wrong in between, whatever happens to other files. (It was,
    // when there was a list of files instead; a write that looked just then was not seen.)
    for (word, held) in WRITE_GUARDED.iter().zip(buckets) {
        word.store(held, Release);
    }
    WRITERS.store(count, Release);
}

/// Extents that exist.
pub static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Is anything deferred or tracked, as far as is known?
pub fn any() -> bool {
    LIVE.load(Acquire) != 0 || announced::pending() != 0
}

/// Is there certain to be room for what is announced, and one more? Each may need an entry for a file and two for extents.
pub fn room_for_another() -> bool {
    let pending = announced::pending() + THREADS_AT_A_TIME;
    KNOWN_FILES.load(Acquire) + pending < FILES
        && (LIVE.load(Acquire) + 2 * pending) < EXTENTS.min(MAPPINGS.load(Acquire))
}

/// Threads that may have asked for room, and been told that there is, before any of them has taken it.
const THREADS_AT_A_TIME: usize = 64;

/// Entries of the table of files that are in use, or were.
static KNOWN_FILES: AtomicUsize = AtomicUsize::new(0);

/// Mappings that the sidecar makes at most; 0 before it is there.
pub(super) static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// Files under a write lease.
pub static WRITERS: AtomicU32 = AtomicU32::new(0);

const BUCKETS: usize = 256;

static WRITE_GUARDED: [AtomicBool; BUCKETS] = [const { AtomicBool::new(false) }; BUCKETS];

/// Which 2 MiB stretches of memory have ever had an extent, hashed: a filter, not a record.
static TOUCHED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// A number that tells one file from another, though not beyond all doubt, nor in its lowest bits.
pub fn number(key: FileKey) -> u64 {
    (key.ino ^ key.dev.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn bucket(key: FileKey) -> usize {
    (number(key) >> 56) as usize
}

/// May this file be under a write lease? `false` is certain.
pub fn write_guarded(key: FileKey) -> bool {
    write_guarded_number(number(key))
}

/// The same for its [`number`], whatever the lowest bits are.
pub fn write_guarded_number(number: u64) -> bool {
    WRITERS.load(Acquire) != 0
        && WRITE_GUARDED.get((number >> 56) as usize).is_none_or(|held| held.load(Acquire))
}

const STRETCH: usize = 21;

/// The words of the filter that a range has bits in, and the bits.
fn stretches(addr: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let first = addr >> STRETCH;
    let last = (addr + len.max(1) - 1) >> STRETCH;
    // A range that wraps the whole filter needs to look at each word but once.
    (first >> 6..=last >> 6).take(TOUCHED.len() + 1).map(move |word| {
        let from = first.max(word << 6) & 63;
        let to = last.min(word << 6 | 63) & 63;
        (word % TOUCHED.len(), u64::MAX >> (63 - (to - from)) << from)
    })
}

/// Notes that the range has extents.
pub fn mark(addr: usize, len: usize) {
    for (word, bit) in stretches(addr, len) {
        if let Some(word) = TOUCHED.get(word)
            && word.load(Acquire) & bit != bit
        {
            word.fetch_or(bit, AcqRel);
        }
    }
}

/// May any page of the range have an extent? `false` is certain.
pub fn touched(addr: usize, len: usize) -> bool {
    any()
        && stretches(addr, len)
            .any(|(word, bit)| TOUCHED.get(word).is_none_or(|w| w.load(Acquire) & bit != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle goes from one stretch to the next.
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

    /// A write of 1,504 bytes went unseen in one of some ten thousand threaded histories, and a later write of the whole
    /// file left its page out: the list of guarded files was being written anew, for another file, while the
    /// write asked whether its own was on it.
    #[test]
    fn a_guarded_file_is_never_overlooked_while_others_come_and_go() {
        let file = |ino| File { used: true, key: FileKey { dev: 1, ino }, guard: Guard::Write, ..NO_FILE };
        let (alone, joined) = ([NO_FILE, file(7)], [file(8), file(7)]);
        publish_guards(&alone);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    publish_guards(&joined);
                    publish_guards(&alone);
                }
                done.store(true, Release);
            });
            while !done.load(Acquire) {
                assert!(write_guarded(alone[1].key));
            }
        });
    }
}
