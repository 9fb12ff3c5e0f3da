//! What the sidecar knows.
//!
//! One value, in memory that the program shares (so that a forked child finds a consistent copy), written by the
//! sidecar alone. A few facts that the program's threads ask on every call are kept beside it in atomics.

use crate::extent::{self, Chunk, Extent, ExtentMap, FileId, Kind, Share, Usage};
use crate::helper::files::{self, FILES, File, Files, Guard};
use crate::helper::spare::Spare;
use crate::helper::stop_world::Pause;
use crate::shared::hot::GLANCE;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*, compiler_fence};
use elision_sys::file::{FileKey, lease};
use elision_sys::pages::Run;

/// Chunks of extents.
const CHUNKS: usize = 1 << 14;

/// Extents for which there is certain to be room.
pub const EXTENTS: usize = CHUNKS * extent::CHUNK / 3;

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
    pub files: Files,
    /// How much of the map's storage is in use.
    pub usage: Usage,
    /// How much the map has of each file.
    pub shares: [Share; FILES],
    /// The map's storage, and its order.
    pub chunks: [Chunk; CHUNKS],
    pub(crate) order: [u32; CHUNKS],
    /// Room for scans.
    pub scan: [Run; SCAN],
    /// The program's threads, while they are held still.
    pub pause: Pause,
    /// Asked to go.
    pub retiring: bool,
    /// Extents were dropped since guards were last looked over.
    pub dirty: bool,
    /// When to look which files are closed (see [`State::look_at_closed`]), or 0.
    pub closed: u64,
    /// The fork that was just answered, and has to be rested for; or 0.
    pub fork: u32,
    /// What is mapped has still to be asked of the kernel: there may be more than there are extents.
    pub unsurveyed: bool,
    /// What is about to be mapped, or has been, before the map says so; of no length if nothing is.
    pub intent: Extent,
    /// Mappings in reserve.
    pub spare: Spare,
    /// Room for a page: to compare it, or to have it while there is nothing in its place.
    pub page: [u8; crate::transfer::PAGE],
    /// The file on a description of which a write lease is being taken: there may be one already that no entry tells of.
    pub taking: FileKey,
}

impl State {
    /// The association map.
    pub fn map(&mut self) -> ExtentMap<'_> {
        ExtentMap::new(&mut self.chunks, &mut self.order, &mut self.shares, &mut self.usage)
    }

    /// The entry of a file.
    pub fn file(&self, id: FileId) -> File {
        self.files.get(id)
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
        if !self.usage.whole || self.intent.len != 0 {
            return Err("the map is said to be in the middle of a change");
        }
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
            if row.kind == Kind::Tracked && file.guard == Guard::None && file.stamp == files::NO_STAMP {
                return Err("a tracked extent has neither guard nor stamp");
            }
        }
        for file in self.files.known() {
            let held = match file.guard {
                Guard::None if file.fd >= 0 => return Err("a file without a guard has a descriptor"),
                Guard::None => continue,
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

    /// Records what there is of a mapping that should be ours.
    pub(crate) fn enter_mapped(&mut self, whole: Extent) {
        let mut at = whole.addr;
        while at < whole.end() {
            let (end, ours) = self.stretch(whole, at);
            if ours && let Some(extent) = whole.clip(at, end) {
                self.learn_mapping(whole.file, at);
                let _ = self.map().insert(extent);
                mark(extent.addr, extent.len);
            }
            at = end;
        }
    }

    /// Says what is about to be mapped, or with [`extent::BLANK`] that nothing is. (A sidecar is killed between any two instructions: what it
    /// says has a length only while all else of it is there.)
    pub(crate) fn intend(&mut self, extent: Extent) {
        compiler_fence(SeqCst);
        self.intent.len = 0;
        compiler_fence(SeqCst);
        self.intent = Extent { len: 0, ..extent };
        compiler_fence(SeqCst);
        self.intent.len = extent.len;
        compiler_fence(SeqCst);
    }

    /// Tells the program's threads how much there is. To be called after extents changed.
    pub fn publish(&mut self) {
        LIVE.store(self.usage.extents + usize::from(self.unsurveyed), Release);
        if !any() {
            for word in &TOUCHED {
                word.store(0, Relaxed);
            }
        }
    }
}

/// There will soon be something, perhaps: a sidecar that is killed on the way is to have a successor.
pub(crate) fn expect(extents: usize) {
    LIVE.store(extents + 1, Release);
}

/// There are so many.
pub(crate) fn expected(extents: usize) {
    LIVE.store(extents, Release);
}

/// The address whose bytes [`State::page`] has, and perhaps nobody else; or 0.
pub(crate) static IN_HAND: AtomicUsize = AtomicUsize::new(0);

/// The program is about to have something else in this range: if the bytes of a page of it are in the hand of a sidecar that was killed,
/// nobody wants them any more.
pub fn let_go_of_page(addr: usize, len: usize) {
    let at = IN_HAND.load(Acquire);
    if at != 0 && (addr..addr + len).contains(&at) {
        let _ = IN_HAND.compare_exchange(at, 0, AcqRel, Relaxed);
    }
}

/// Extents that exist.
pub static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Moves whenever a guard is about to go, and whenever somebody is about to change a guarded file.
static CHANGES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn count_change() {
    CHANGES.fetch_add(1, AcqRel);
}

/// If this is what it was, whatever was guarded then is still what it was.
pub fn changes() -> u64 {
    CHANGES.load(Acquire)
}

/// Something was left in the program's memory of which there is no extent.
static LEFT: AtomicBool = AtomicBool::new(false);

/// From now on, what has had an extent counts as having one: the drop-in must not give such memory to anybody else.
pub(crate) fn keep_marks() {
    LEFT.store(true, Release);
}

pub(crate) fn marks_are_kept() -> bool {
    LEFT.load(Acquire)
}

/// Is anything deferred or tracked, as far as is known?
pub fn any() -> bool {
    LIVE.load(Acquire) != 0 || marks_are_kept()
}

/// Does anything depend on there being a sidecar: what is deferred or tracked, or those who want a file of which it holds the write
/// lease, on a description that would outlive it?
pub fn any_or_leases() -> bool {
    any() || GLANCE.writers.load(Acquire) != 0
}

/// Mappings that the sidecar makes at most; 0 before it is there.
pub(crate) static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// Which 2 MiB stretches of memory have ever had an extent, hashed: a filter, not a record.
static TOUCHED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

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
}
