//! Giving pages memory of their own before their file changes.
//!
//! Copy-on-write is not enough: truncating a file takes away even the private copies that a mapping of it holds (the
//! kernel's `unmap_mapping_range` with `even_cows`), and what touches them then dies of SIGBUS. So the mapping itself
//! must go. For each extent:
//!
//! 1. fresh anonymous memory is filled with the file bytes of all pages that are not altered (they
//!    cannot change: the file is guarded);
//! 2. the program's threads are held still; pages that are altered, by now, are copied over;
//! 3. the anonymous memory is moved over the mapping, in a few steps;
//! 4. the threads go on.
//!
//! Without step 2 a store between the copy and the move would be lost.
//!
//! A page that its device does not deliver has no bytes to be kept. It must not show what the file has later, so memory is put
//! in its place that cannot be touched either: SIGBUS, as it would have been before. All others are as they were.
#![allow(unsafe_code)] // Replaces the program's memory by equal memory.

use crate::extent::{Extent, FileId, Kind};
use crate::helper::plan::SOMEWHERE;
use crate::helper::state::{self, IN_HAND, State};
use crate::shared::channel;
use crate::stats::{COUNTERS, Counters};
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU8, Ordering::*, compiler_fence};
use elision_sys::pages::{self, Wanted, category};
use elision_sys::{file, memory, task};

/// Extents moved in one pause.
const BATCH: usize = 128;

/// An extent is exchanged in at most so many pieces: what has been altered in a piece is there twice for a moment, and more
/// than that a program may not have room for. The pieces become one mapping again.
const PIECES: usize = 16;
const SMALLEST_PIECE: usize = 2 << 20;

/// Pages with memory of their own in a private file mapping: altered ones.
const OWN_MEMORY: Wanted = Wanted {
    all: category::FILE,
    inverted: category::FILE,
    any: category::PRESENT | category::SWAPPED,
    protect: false,
};

/// Pages without, that are in memory.
const LOADED: Wanted =
    Wanted { all: category::FILE | category::PRESENT, inverted: 0, any: category::PRESENT, protect: false };

/// An extent and the memory that is to take its place.
#[derive(Clone, Copy)]
struct Shadow {
    extent: Extent,
    /// 0 if there is none.
    memory: usize,
    /// No page of the extent could be read just now. (Those that are altered need not be.)
    unreadable: bool,
}

/// What became of an extent's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exchange {
    Done,
    /// It is no longer what it was.
    Stale,
    Failed,
}

/// Rounds in which a program may unmap parts of what is being copied before it is copied in place instead.
const PATIENCE: usize = 100;

/// Which extents.
#[derive(Clone, Copy)]
enum Which {
    File(FileId),
    Range(usize, usize),
}

impl State {
    /// Materialises every mapped extent of a file. Where tracking allows it, they stay associated as tracked extents. False: some
    /// mapping of it may be left.
    pub(crate) fn materialise_file(&mut self, id: FileId) -> bool {
        self.materialise(Which::File(id), self.fine_ctime)
    }

    /// Materialises every mapped extent of a file whose descriptor is gone. The mappings still know the file; and they
    /// keep its lease alive, with nobody to answer for it, so writers wait until the last one is exchanged.
    pub(crate) fn materialise_orphan(&mut self, id: FileId) {
        if let Some(entry) = self.files.get_mut(id) {
            file::close(core::mem::replace(&mut entry.fd, -1));
        }
        self.materialise(Which::File(id), false);
    }

    /// Makes a range plain memory: nothing of it is mapped, tracked or associated any more.
    pub(crate) fn dissolve(&mut self, addr: usize, len: usize) {
        self.materialise(Which::Range(addr, len), false);
        self.forget(addr, len);
    }

    /// Makes the deferred pages of a range fresh zero pages, and drops what was recorded of it.
    pub(crate) fn zero(&mut self, addr: usize, len: usize) {
        let mut at = addr;
        loop {
            let next = self.map().overlapping(at, (addr + len).saturating_sub(at)).next();
            let Some(row) = next else { break };
            if row.kind == Kind::Mapped && self.is_still_mapped(row) {
                // SAFETY: the program is about to discard these very pages.
                let _ = unsafe { memory::allocate_at(row.addr, row.len) };
            }
            at = row.end();
        }
        self.find_again(addr, len);
        self.forget(addr, len);
    }

    /// Has the loaded pages of a range loaded again when they are touched. Says how many bytes. (Here and not in the thread that wants it: what
    /// it was told is loaded may have been given memory of its own by the time it acts on that, and would be zeroes. Seen once in some
    /// 50,000 histories.)
    pub(crate) fn unload(&mut self, addr: usize, len: usize) -> usize {
        let mut given = 0;
        let mut at = addr;
        loop {
            let next = self.map().overlapping(at, (addr + len).saturating_sub(at)).next();
            let Some(row) = next else { return given };
            at = row.end();
            if row.kind != Kind::Mapped || !self.is_still_mapped(row) {
                continue;
            }
            self.scan_each(row.addr, row.end(), LOADED, |run| {
                let (from, len) = (run.start as usize, (run.end - run.start) as usize);
                // SAFETY: these pages have no memory of their own: what is dropped is a view of the page cache, and whoever could
                // alter them waits for the answer.
                if unsafe { memory::advise(from, len, libc::MADV_DONTNEED) }.is_ok() {
                    given += len;
                }
            });
        }
    }

    /// Drops what was recorded of a range.
    pub(crate) fn forget(&mut self, addr: usize, len: usize) {
        self.count_loaded(addr, len);
        if self.map().remove(addr, len).is_err() {
            // No room to split an extent. Its outer parts need their guard, so they get memory of their own.
            // (What is unmapped by now is found to be, and left alone.)
            self.materialise(Which::Range(addr.saturating_sub(1), len + 2), false);
            self.map().retain(|row| row.clip(addr, addr + len).is_none());
        }
        self.dirty = true;
        self.publish();
    }

    /// True if every mapping of it is gone.
    fn materialise(&mut self, which: Which, track: bool) -> bool {
        let mut gone = true;
        for round in 0usize.. {
            let mut batch = [Shadow { extent: crate::extent::BLANK, memory: 0, unreadable: false }; BATCH];
            let mut count = 0;
            let mut from = 0;
            while let Some(extent) = self.next_mapped(which, from) {
                // What is gone is cut out of the map; what is left of the extent is found again.
                if !self.is_still_mapped(extent) && self.prune(extent) {
                    continue;
                }
                let Some(slot) = batch.get_mut(count) else { break };
                // (Of an extent of which a part has been copied, the rest.)
                let extent = extent.clip(from, extent.end()).unwrap_or(extent);
                *slot = self.precopy(extent);
                if slot.memory == 0 && !slot.unreadable && count > 0 {
                    // Perhaps there is no room: first what has been copied, which makes some.
                    break;
                }
                from = extent.end();
                count += 1;
            }
            if count == 0 {
                // If some had to be spent, there may be room again.
                self.spare.keep();
                break;
            }
            let batch = batch.get(..count).unwrap_or(&[]);
            let held = self.pause();
            for &shadow in batch {
                let outcome = match held && shadow.memory != 0 {
                    true => self.swap(shadow, track),
                    false => Exchange::Failed,
                };
                match outcome {
                    Exchange::Done => (),
                    // A part was unmapped meanwhile; the rest keeps its record, and its turn comes again.
                    Exchange::Stale if round < PATIENCE => self.drop_shadow(shadow),
                    Exchange::Stale | Exchange::Failed => {
                        self.copy_in_place(shadow, held);
                        gone = false;
                    }
                }
            }
            if held {
                self.resume();
            }
            self.publish();
        }
        gone
    }

    /// The next mapped extent that ends after `from`. Extents of a range are taken whole: half of one would leave two
    /// mappings where one entry was.
    fn next_mapped(&mut self, which: Which, from: usize) -> Option<Extent> {
        let map = self.map();
        match which {
            Which::File(id) if map.share(id).mapped == 0 => None,
            Which::File(id) => map.of_file(id, from).find(|row| row.kind == Kind::Mapped),
            Which::Range(addr, len) => map
                .from(addr.max(from))
                .take_while(|row| row.addr < addr + len)
                .find(|row| row.kind == Kind::Mapped),
        }
    }

    /// Anonymous memory with the file bytes of an extent's pages that have no memory of their own; 0 if that cannot
    /// be had. Where address space is short, or a page cannot be read, of the first pages of the extent.
    fn precopy(&mut self, mut extent: Extent) -> Shadow {
        let none = Shadow { extent, memory: 0, unreadable: false };
        if !self.is_still_mapped(extent) {
            return none;
        }
        let whole = extent;
        let shadow = loop {
            match memory::allocate(extent.len, false) {
                Ok(shadow) => break shadow,
                Err(_) if extent.len > PAGE => extent.len = (extent.len / 2).next_multiple_of(PAGE),
                Err(_) => return none,
            }
        };
        let fd = self.file(extent.file).fd;
        let by_mapping = self.pause.alone || fd < 0 || file::shows_access(fd);
        let mut unread = None;
        let mut cursor = extent.addr;
        let mut copied = 0;
        let mut fill = |from: usize, to: usize| {
            if unread.is_none() && from < to {
                let good = load(extent, shadow, fd, from, to, by_mapping) / PAGE * PAGE;
                copied += good;
                unread = (good < to - from).then_some(from + good);
            }
        };
        let reached = self.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
            fill(cursor, run.start as usize);
            cursor = run.end as usize;
        });
        fill(cursor, reached);
        let good = unread.unwrap_or(reached);
        if good == extent.addr {
            let len = match unread {
                Some(_) => unreadable_from(extent, shadow, fd, by_mapping),
                None => whole.len,
            };
            // SAFETY: the shadow was never anybody else's.
            unsafe { memory::unmap(shadow, extent.len) };
            return Shadow { extent: Extent { len, ..whole }, memory: 0, unreadable: unread.is_some() };
        }
        // SAFETY: as above.
        unsafe { memory::unmap(shadow + (good - extent.addr), extent.end() - good) };
        extent.len = good - extent.addr;
        Counters::add(&COUNTERS.materialised, copied);
        Shadow { extent, memory: shadow, unreadable: false }
    }

    fn drop_shadow(&mut self, shadow: Shadow) {
        if shadow.memory != 0 {
            // SAFETY: the shadow was never anybody else's.
            unsafe { memory::unmap(shadow.memory, shadow.extent.len) };
        }
    }

    /// With the program held still: copies what is altered, and moves the shadow into place.
    fn swap(&mut self, shadow: Shadow, track: bool) -> Exchange {
        let Shadow { extent, memory: fresh, .. } = shadow;
        if !self.is_still_mapped(extent) {
            return Exchange::Stale;
        }
        let mut altered = [(0usize, 0usize); 64];
        let mut count = 0;
        if track {
            self.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
                if let Some(slot) = altered.get_mut(count) {
                    *slot = (run.start as usize, run.end as usize);
                }
                count += 1;
            });
        }
        let piece = (extent.len / PIECES).next_multiple_of(PAGE).max(SMALLEST_PIECE);
        for start in (extent.addr..extent.end()).step_by(piece) {
            let end = extent.end().min(start + piece);
            let place = fresh + (start - extent.addr);
            let reached = self.scan_each(start, end, OWN_MEMORY, |run| {
                let (from, len) = (run.start as usize, (run.end - run.start) as usize);
                for at in (from..from + len).step_by(STEP) {
                    let len = STEP.min(from + len - at);
                    // SAFETY: the pages are present or in swap in a readable mapping, nobody stores into them now, and
                    // the shadow is ours.
                    unsafe {
                        core::ptr::copy_nonoverlapping(
                            at as *const u8,
                            (place + (at - start)) as *mut u8,
                            len,
                        )
                    };
                    channel::step();
                }
            });
            // SAFETY: the shadow holds the same bytes, page by page, and no thread is there to see the exchange.
            if reached < end || unsafe { memory::move_over(place, start, end - start) }.is_err() {
                return Exchange::Failed;
            }
        }
        let _ = self.map().remove(extent.addr, extent.len);
        self.dirty = true;
        // So fragmented an extent is not worth following.
        if track && count <= altered.len() && self.tracker >= 0 {
            self.keep_tracked(extent, altered.get(..count).unwrap_or(&[]));
        }
        Exchange::Done
    }

    /// The pages that were not altered still equal the file: they stay associated, with memory of their own.
    fn keep_tracked(&mut self, extent: Extent, altered: &[(usize, usize)]) {
        if pages::track(self.tracker, extent.addr, extent.len).is_err() {
            return;
        }
        let protect = Wanted { protect: true, ..SOMEWHERE };
        let mut cursor = extent.addr;
        for &(from, to) in altered {
            self.scan_each(cursor, from, protect, |_| ());
            cursor = to;
        }
        self.scan_each(cursor, extent.end(), protect, |_| ());
        let _ = self.map().insert(Extent { kind: Kind::Tracked, ..extent });
    }

    /// What is left where there is no room for a second copy, or no mapping to spare: pages are copied in the mapping itself
    /// and then, if the program is `held`, exchanged one by one by way of a page of ours. It stays held for all of that.
    /// Copies that stay in the mapping (a debugger attached) outlive every change of the file but a truncation.
    fn copy_in_place(&mut self, shadow: Shadow, held: bool) {
        let Shadow { extent, unreadable, .. } = shadow;
        self.drop_shadow(shadow);
        let mut at = extent.addr;
        while at < extent.end() {
            let (end, ours) = self.stretch(extent, at);
            if ours && (unreadable || !populate(at, end)) {
                self.copy_what_can_be_read(at, end, held, unreadable);
            } else if ours && held {
                self.exchange_pages(at, end);
            }
            at = end;
        }
        let _ = self.map().remove(extent.addr, extent.len);
        self.dirty = true;
    }

    /// The same page by page, where some cannot be read: if the program is held, these are never to be touched again. Where
    /// it is known that they cannot be read the device is not asked once more, which might take long.
    fn copy_what_can_be_read(&mut self, from: usize, to: usize, held: bool, unreadable: bool) {
        let mut lost = from;
        for at in (from..to).step_by(PAGE) {
            let mut somewhere = false;
            self.scan_each(at, at + PAGE, SOMEWHERE, |_| somewhere = true);
            let good = (somewhere || !unreadable) && populate(at, at + PAGE);
            if !good {
                continue;
            }
            self.lose(lost, at, held);
            lost = at + PAGE;
            if held {
                self.exchange_pages(at, at + PAGE);
            }
        }
        self.lose(lost, to, held);
    }

    /// Puts memory that cannot be touched in place of pages that cannot be read, with the program held still.
    fn lose(&mut self, from: usize, to: usize, held: bool) {
        // SAFETY: no byte of these pages is known to anybody.
        if held && from < to && unsafe { memory::untouchable_at(from, to - from) }.is_ok() {
            state::keep_marks();
        }
    }

    /// Pages of the range that were lost become fresh zero pages: the program discards them, or reads something else there.
    pub(crate) fn find_again(&mut self, addr: usize, len: usize) {
        let (mut at, end) = (addr, addr + len);
        while state::marks_are_kept()
            && at < end
            && let Ok(mapping) = pages::mapping(self.maps, at)
            && mapping.start < end
        {
            let (from, to) = (mapping.start.max(at), mapping.end.min(end));
            if !mapping.shared && mapping.ino != 0 && mapping.offset >= memory::UNTOUCHABLE {
                // SAFETY: what was there cannot be read, and the program is about to discard it.
                let _ = unsafe { memory::allocate_at(from, to - from) };
            }
            at = mapping.end;
        }
    }

    /// Anonymous pages for those of `[from, to)`, a part of one mapping that has been populated, with the program held
    /// still. The mapping shrinks from its beginning, so no more of them than there are now are needed, but for a moment
    /// one, which may come out of the reserve. Ends early if even that is refused, with nothing lost.
    fn exchange_pages(&mut self, from: usize, to: usize) {
        let spare = self.page.as_mut_ptr();
        for at in (from..to).step_by(PAGE) {
            // SAFETY: the page is present or in swap, private and readable, and nobody stores into it now; `spare` is a
            // page of ours. What is mapped over it has no other user than the program, which gets its bytes back
            // before it goes on.
            unsafe {
                core::ptr::copy_nonoverlapping(at as *const u8, spare, PAGE);
                take_in_hand(at);
                while memory::allocate_at(at, PAGE).is_err() {
                    if !self.spare.spend() {
                        return take_in_hand(0);
                    }
                }
                core::ptr::copy_nonoverlapping(spare, at as *mut u8, PAGE);
            }
            take_in_hand(0);
        }
    }

    /// The page that a sidecar had in hand when it was killed is put where it belongs. Its program went on in the meantime; what
    /// it has stored there since, other than zeroes, stays.
    pub(crate) fn put_back_page(&mut self) {
        let at = IN_HAND.load(Acquire);
        if at == 0 {
            return;
        }
        let held = self.is_plain(at) && self.pause();
        // (If the program cannot be held, it is better to see them come than not to have them.)
        if IN_HAND.load(Acquire) == at && self.is_plain(at) {
            for (offset, kept) in self.page.into_iter().enumerate() {
                // SAFETY: just seen to be memory that can be read and written; whoever else uses it meanwhile has it
                // changed under his hands as by another thread of his own, and none of his bytes taken.
                let byte = unsafe { AtomicU8::from_ptr((at + offset) as *mut u8) };
                let _ = byte.compare_exchange(0, kept, Relaxed, Relaxed);
            }
        }
        // Not before: if this one is killed as well, the next one puts it back.
        let _ = IN_HAND.compare_exchange(at, 0, AcqRel, Relaxed);
        if held {
            self.resume();
        }
    }

    /// Does the kernel agree that the extent is a private, readable and writable mapping of its file? The program may
    /// have unmapped or moved it, or a part of it, in a way we did not see.
    pub(crate) fn is_still_mapped(&self, extent: Extent) -> bool {
        let mut at = extent.addr;
        while at < extent.end() {
            let (end, ours) = self.stretch(extent, at);
            if !ours {
                return false;
            }
            at = end;
        }
        true
    }

    /// Cuts out of the map what of an extent is not ours any more. True if there was something, and room to do it.
    pub(crate) fn prune(&mut self, extent: Extent) -> bool {
        let mut cut = false;
        let mut at = extent.addr;
        while at < extent.end() {
            let (end, ours) = self.stretch(extent, at);
            if !ours {
                cut |= self.map().remove(at, end - at).is_ok();
            }
            at = end;
        }
        self.dirty |= cut;
        cut
    }

    /// The mapping at `addr` is known to be of the file: from here on, only what shows the same device and inode number is.
    pub(crate) fn learn_mapping(&mut self, id: FileId, addr: usize) {
        if !self.file(id).mapping_is_known()
            && self.maps >= 0
            && let Ok(mapping) = pages::mapping(self.maps, addr)
            && let Some(entry) = self.files.get_mut(id)
        {
            entry.mapped = (mapping.dev, mapping.ino);
        }
    }

    /// From `at` on, how far the extent is of one kind, and whether it is still our mapping there.
    pub(crate) fn stretch(&self, extent: Extent, at: usize) -> (usize, bool) {
        if self.maps < 0 {
            return (extent.end(), true);
        }
        let mapping = match pages::mapping(self.maps, at) {
            Ok(mapping) => mapping,
            // Nothing is mapped from here on.
            Err(_) => return (extent.end(), false),
        };
        if mapping.start > at {
            return (mapping.start.min(extent.end()), false);
        }
        let known = self.file(extent.file);
        let here = mapping.offset.wrapping_add((at - mapping.start) as u64);
        let ours = !mapping.shared
            && mapping.readable
            && mapping.writable
            && mapping.ino != 0
            && here == extent.offset + (at - extent.addr) as u64
            && (!known.mapping_is_known() || (mapping.dev, mapping.ino) == known.mapped);
        (mapping.end.min(extent.end()), ours)
    }
}

/// From here on, or no more, the room for a page has what may be nowhere else. (A sidecar is killed between any two instructions.)
fn take_in_hand(at: usize) {
    compiler_fence(SeqCst);
    IN_HAND.store(at, Release);
    compiler_fence(SeqCst);
}

/// Bytes that are copied at once: a matter of seconds, however slow the device.
const STEP: usize = 8 << 20;

/// Bytes that the kernel reads ahead when it is told what will be needed, or less.
const AHEAD: usize = 1 << 20;

/// Copies into the mapping what it has no memory of its own for. False if that is not possible, or not for every page.
fn populate(from: usize, to: usize) -> bool {
    // SAFETY: populating changes no contents.
    unsafe { memory::advise(from, to - from, libc::MADV_POPULATE_WRITE) }.is_ok()
}

/// Fills the part `[from, to)` of an extent's shadow with file bytes. Says how far it came.
///
/// By reading, which is faster; or from the mapping, which nobody can see: the program's read has counted as an access
/// to the file when it was made, and this must not count as another, perhaps after the program has put the time back.
fn load(extent: Extent, shadow: usize, fd: i32, from: usize, to: usize, by_mapping: bool) -> usize {
    let target = shadow + (from - extent.addr);
    let mut done = 0;
    if by_mapping {
        // In a child without a sidecar the descriptor is not there, but the mapping is.
        let mut step = AHEAD;
        while done < to - from {
            let (at, len) = (from + done, step.min(to - from - done));
            channel::step();
            // SAFETY: advice and populating change no contents, and the shadow is ours.
            unsafe {
                let _ = memory::advise(at, len, libc::MADV_WILLNEED);
                match memory::advise(at, len, libc::MADV_POPULATE_READ) {
                    Ok(()) => {
                        // By the kernel: the program goes on, and may have unmapped it by now.
                        let copied = task::copy_own(at, target + done, len).unwrap_or_else(|_| {
                            core::ptr::copy_nonoverlapping(at as *const u8, (target + done) as *mut u8, len);
                            len
                        });
                        done += copied;
                        if copied < len {
                            return done;
                        }
                    }
                    // Up to the very page that cannot be read.
                    Err(_) if step > PAGE => step = PAGE,
                    Err(_) => return done,
                }
            }
        }
        return done;
    }
    while done < to - from {
        let offset = extent.offset + (from - extent.addr + done) as u64;
        channel::step();
        // SAFETY: into the shadow, which is ours.
        match unsafe { file::pread(fd, target + done, STEP.min(to - from - done), offset) } {
            Ok(0) | Err(_) => return done,
            Ok(n) => done += n,
        }
    }
    done
}

/// The first page of an extent cannot be read. How many bytes are there to the next one that can? (Its shadow serves to try.)
fn unreadable_from(extent: Extent, shadow: usize, fd: i32, by_mapping: bool) -> usize {
    let rest = (extent.addr + PAGE..extent.end()).step_by(PAGE);
    let readable = |&at: &usize| {
        let page =
            Extent { addr: at, len: PAGE, offset: extent.offset + (at - extent.addr) as u64, ..extent };
        load(page, shadow, fd, at, at + PAGE, by_mapping) == PAGE
    };
    rest.into_iter().find(readable).unwrap_or(extent.end()) - extent.addr
}
