//! Giving pages memory of their own before their file changes.
//!
//! Copy-on-write is not enough: truncating a file takes away even the private copies that a mapping of it holds (the kernel's
//! `unmap_mapping_range` with `even_cows`), and what touches them then dies of SIGBUS. So the mapping itself must go. For each extent:
//!
//! 1. fresh anonymous memory is filled with the file bytes of all pages that are not altered (they cannot change: the file is guarded);
//! 2. the program's threads are stopped; pages that are altered by now are copied over;
//! 3. the anonymous memory is moved over the mapping, in a few steps;
//! 4. the threads go on.
//!
//! Without step 2 a store between the copy and the move would be lost.
//!
//! A page that its device does not deliver must not show what the file has later: memory that cannot be touched takes its place, and
//! whoever touches it gets SIGBUS, as before.
#![allow(unsafe_code)] // Replaces the program's memory by equal memory.

use crate::extent::{BLANK, Extent, TargetId};
use crate::helper::in_place;
use crate::helper::map::Map;
use crate::helper::mappings;
use crate::helper::page_tables::{PROTECT, PageTables};
use crate::helper::state::State;
use crate::shared::requests;
use crate::stats::{COUNTERS, Counters};
use crate::transfer::PAGE;
use elision_sys::pages::{Wanted, category};
use elision_sys::{file, memory, task};

/// Extents moved while threads are stopped once.
const BATCH: usize = 128;

/// An extent is exchanged in at most so many pieces: what is altered in a piece is there twice for a moment.
const PIECES: usize = 16;
const SMALLEST_PIECE: usize = 2 << 20;

/// Pages with memory of their own in a private file mapping: altered ones.
const OWN_MEMORY: Wanted = Wanted {
    all: category::FILE,
    inverted: category::FILE,
    any: category::PRESENT | category::SWAPPED,
    protect: false,
};

/// An extent and the memory that is to take its place.
#[derive(Clone, Copy)]
struct Shadow {
    extent: Extent,
    /// 0 if there is none.
    memory: usize,
    /// No page of the extent could be read just now. (Those that are altered need not be.)
    unreadable: bool,
}

impl Shadow {
    fn drop(self) {
        if self.memory != 0 {
            // SAFETY: the shadow was never anybody else's.
            unsafe { memory::unmap(self.memory, self.extent.len) };
        }
    }
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
    File(TargetId),
    Range(usize, usize),
}

/// Materialises every mapped extent of a file. Where tracking allows it, they stay associated as tracked extents. False: some mapping of it
/// may be left.
pub(crate) fn file(state: &mut State, id: TargetId) -> bool {
    let track = state.fine_ctime;
    materialise(state, Which::File(id), track)
}

/// Materialises every mapped extent of a file whose descriptor is gone. The mappings still know the file, and keep its lease, so writers wait
/// until the last one is exchanged.
pub(crate) fn orphan(state: &mut State, id: TargetId) {
    if let Some(entry) = state.files.get_mut(id) {
        file::close(core::mem::replace(&mut entry.source.fd, -1));
    }
    materialise(state, Which::File(id), false);
}

/// Materialises what is mapped in a range.
pub(crate) fn range(state: &mut State, addr: usize, len: usize) {
    materialise(state, Which::Range(addr, len), false);
}

/// True if every mapping of it is gone.
fn materialise(state: &mut State, which: Which, track: bool) -> bool {
    let mut gone = true;
    for round in 0usize.. {
        let mut batch = [Shadow { extent: BLANK, memory: 0, unreadable: false }; BATCH];
        let mut count = 0;
        let mut from = 0;
        while let Some(extent) = next_mapped(&mut state.map, which, from) {
            // What is gone is cut out of the map; what is left of the extent is found again.
            if !mappings::is_ours(&state.tables, &state.files, extent)
                && mappings::prune(&mut state.map, &state.tables, &state.files, extent)
            {
                continue;
            }
            let Some(slot) = batch.get_mut(count) else { break };
            // (Of an extent of which a part has been copied, the rest.)
            let extent = extent.clip(from, extent.end()).unwrap_or(extent);
            *slot = precopy(state, extent);
            if slot.memory == 0 && !slot.unreadable && count > 0 {
                // Perhaps there is no room: first what has been copied, which makes some.
                break;
            }
            from = extent.end();
            count += 1;
        }
        if count == 0 {
            // If some had to be spent, there may be room again.
            state.reserve.keep();
            break;
        }
        let batch = batch.get(..count).unwrap_or(&[]);
        let held = state.world.stop(state.program);
        for &shadow in batch {
            let outcome = match held && shadow.memory != 0 {
                true => swap(state, shadow, track),
                false => Exchange::Failed,
            };
            match outcome {
                Exchange::Done => (),
                // A part was unmapped meanwhile; the rest keeps its record, and its turn comes again.
                Exchange::Stale if round < PATIENCE => shadow.drop(),
                Exchange::Stale | Exchange::Failed => {
                    shadow.drop();
                    in_place::copy(state, shadow.extent, shadow.unreadable, held);
                    gone = false;
                }
            }
        }
        if held {
            state.world.resume(state.program);
        }
        state.map.publish();
    }
    gone
}

/// The next mapped extent that ends after `from`. Extents of a range are taken whole: half of one would leave two mappings.
fn next_mapped(map: &mut Map, which: Which, from: usize) -> Option<Extent> {
    let map = map.view();
    match which {
        Which::File(id) if map.share(id).mapped == 0 => None,
        Which::File(id) => map.of_target(id, from).find(|row| row.is_mapped()),
        Which::Range(addr, len) => {
            map.from(addr.max(from)).take_while(|row| row.addr < addr + len).find(|row| row.is_mapped())
        }
    }
}

/// Anonymous memory with the file bytes of an extent's pages that have no memory of their own, or of its first pages where address space is
/// short or a page cannot be read; 0 if there is none.
fn precopy(state: &mut State, mut extent: Extent) -> Shadow {
    let none = Shadow { extent, memory: 0, unreadable: false };
    if !mappings::is_ours(&state.tables, &state.files, extent) {
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
    let fd = extent.source.map_or(-1, |source| state.files.source(source).fd);
    let by_mapping = state.world.alone || fd < 0 || file::shows_access(fd);
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
    let reached = state.tables.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
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

/// With the program held still: copies what is altered, and moves the shadow into place.
fn swap(state: &mut State, shadow: Shadow, track: bool) -> Exchange {
    let Shadow { extent, memory: fresh, .. } = shadow;
    if !mappings::is_ours(&state.tables, &state.files, extent) {
        return Exchange::Stale;
    }
    let mut altered = [(0usize, 0usize); 64];
    let mut count = 0;
    if track {
        state.tables.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
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
        let reached = state.tables.scan_each(start, end, OWN_MEMORY, |run| {
            let (from, len) = (run.start as usize, (run.end - run.start) as usize);
            for at in (from..from + len).step_by(STEP) {
                let len = STEP.min(from + len - at);
                // SAFETY: the pages are there, readable, and nobody stores into them now; the shadow is ours.
                unsafe {
                    core::ptr::copy_nonoverlapping(at as *const u8, (place + (at - start)) as *mut u8, len)
                };
                requests::step();
            }
        });
        // SAFETY: the shadow holds the same bytes, page by page, and no thread is there to see the exchange.
        if reached < end || unsafe { memory::move_over(place, start, end - start) }.is_err() {
            return Exchange::Failed;
        }
    }
    let _ = state.map.view().remove(extent.addr, extent.len);
    state.map.dropped = true;
    // So fragmented an extent is not worth following.
    if track && count <= altered.len() {
        keep_tracked(&mut state.map, &mut state.tables, extent, altered.get(..count).unwrap_or(&[]));
    }
    Exchange::Done
}

/// The pages that were not altered still equal the file: they stay associated, with memory of their own.
fn keep_tracked(map: &mut Map, tables: &mut PageTables, extent: Extent, altered: &[(usize, usize)]) {
    if !tables.track(extent.addr, extent.len) {
        return;
    }
    let mut cursor = extent.addr;
    for &(from, to) in altered {
        tables.scan_each(cursor, from, PROTECT, |_| ());
        cursor = to;
    }
    tables.scan_each(cursor, extent.end(), PROTECT, |_| ());
    let _ = map.view().insert(Extent { source: None, ..extent });
}

/// Bytes that are copied at once: a matter of seconds, however slow the device.
const STEP: usize = 8 << 20;

/// Bytes that the kernel reads ahead when it is told what will be needed, or less.
const AHEAD: usize = 1 << 20;

/// Fills the part `[from, to)` of an extent's shadow with file bytes. Says how far it came.
///
/// By reading, which is faster; or from the mapping where a read would show: the program's own has counted as an access already.
fn load(extent: Extent, shadow: usize, fd: i32, from: usize, to: usize, by_mapping: bool) -> usize {
    let target = shadow + (from - extent.addr);
    let mut done = 0;
    if by_mapping {
        // (In a client without a helper the descriptor is not there, but the mapping is.)
        let mut step = AHEAD;
        while done < to - from {
            let (at, len) = (from + done, step.min(to - from - done));
            requests::step();
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
        requests::step();
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
