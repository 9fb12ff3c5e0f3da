//! Gives pages memory of their own before their file changes.
//!
//! A truncation takes away even a mapping's private copies (`unmap_mapping_range`, `even_cows`), so the mapping must go:
//!
//! 1. anonymous memory is filled with the file bytes of unaltered pages, fixed by the guard;
//! 2. the threads are stopped, and altered pages copied over: a store between copy and move would be lost;
//! 3. the memory is moved over the mapping.
//!
//! Untouchable memory replaces a page that its device does not deliver: later file content must not show.
#![allow(unsafe_code)] // Replaces the program's memory by equal memory.

use crate::extent::{BLANK, Extent, TargetId};
use crate::helper::files::Guard;
use crate::helper::guard::copy as shared_copy;
use crate::helper::in_place;
use crate::helper::map::Map;
use crate::helper::mappings;
use crate::helper::page_tables::{PROTECT, PageTables};
use crate::helper::residency::is_loaded;
use crate::helper::state::State;
use crate::helper::strips::MATERIALISED;
use crate::history;
use crate::shared::hot::HOT;
use crate::shared::requests;
use crate::stats::{COUNTERS, Counters};
use crate::transfer::PAGE;
use core::sync::atomic::Ordering::Relaxed;
use elision_sys::pages::{Run, Wanted, category};
use elision_sys::raw::Result;
use elision_sys::{file, memory, task};

const BATCH: usize = 128;

/// Pieces of an extent: a piece's altered pages exist twice for a moment.
const PIECES: usize = 16;
const SMALLEST_PIECE: usize = 2 << 20;

const OWN_MEMORY: Wanted = Wanted {
    all: category::FILE,
    inverted: category::FILE,
    any: category::PRESENT | category::SWAPPED,
    protect: false,
};

#[derive(Clone, Copy)]
struct Shadow {
    extent: Extent,
    memory: usize,
    /// No unaltered page could be read.
    unreadable: bool,
    /// The memory is a mapping of what relatives share.
    copy: Option<TargetId>,
}

impl Shadow {
    fn drop(self) {
        if self.memory != 0 {
            // SAFETY: nobody else knows the shadow.
            unsafe { memory::unmap(self.memory, self.extent.len) };
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exchange {
    Done,
    Stale,
    /// From this address on.
    Failed(usize),
}

/// Rounds in which the program may unmap what is being copied.
const PATIENCE: usize = 100;

#[derive(Clone, Copy)]
enum Which {
    File(TargetId),
    Range(usize, usize),
}

/// Materialises a file's extents; with tracking they stay as tracked ones. False: a mapping may be left.
pub(crate) fn file(state: &mut State, id: TargetId) -> bool {
    let track = state.fine_ctime && history::tracks_copies();
    materialise(state, Which::File(id), track)
}

/// The file's descriptor is gone, but mappings keep the lease: writers wait for the last exchange.
pub(crate) fn orphan(state: &mut State, id: TargetId) {
    if let Some(entry) = state.files.get_mut(id) {
        file::close(core::mem::replace(&mut entry.source.fd, -1));
    }
    materialise(state, Which::File(id), false);
}

pub(crate) fn range(state: &mut State, addr: usize, len: usize) {
    materialise(state, Which::Range(addr, len), false);
}

fn materialise(state: &mut State, which: Which, track: bool) -> bool {
    let mut gone = true;
    for round in 0usize.. {
        let mut batch = [Shadow { extent: BLANK, memory: 0, unreadable: false, copy: None }; BATCH];
        let mut count = 0;
        let mut from = 0;
        while let Some(extent) = next_mapped(&mut state.map, which, from) {
            if !mappings::is_ours(&state.tables, &state.files, extent)
                && mappings::prune(&mut state.map, &state.tables, &state.files, extent)
            {
                continue;
            }
            let Some(slot) = batch.get_mut(count) else { break };
            let extent = extent.clip(from, extent.end()).unwrap_or(extent);
            *slot = precopy(state, extent, matches!(which, Which::File(_)));
            if slot.memory == 0 && !slot.unreadable && count > 0 {
                // Perhaps there is no room: exchanging what has been copied makes some.
                break;
            }
            from = extent.end();
            count += 1;
        }
        if count == 0 {
            // If the reserve was spent, there may be room for it again.
            state.reserve.keep();
            break;
        }
        let batch = batch.get(..count).unwrap_or(&[]);
        let held = state.world.stop(state.program);
        for &shadow in batch {
            let outcome = match held && shadow.memory != 0 {
                true => swap(state, shadow, track),
                false => Exchange::Failed(shadow.extent.addr),
            };
            match outcome {
                Exchange::Done => (),
                // A part was unmapped: the rest has its turn again.
                Exchange::Stale if round < PATIENCE => shadow.drop(),
                Exchange::Stale | Exchange::Failed(_) => {
                    shadow.drop();
                    let from = if let Exchange::Failed(from) = outcome { from } else { shadow.extent.addr };
                    if let Some(rest) = shadow.extent.clip(from, shadow.extent.end()) {
                        in_place::copy(state, rest, shadow.unreadable, held);
                    }
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

/// Extents of a range are taken whole: half of one would leave two mappings.
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

/// Copies an extent, or its beginning where address space is short or a page unreadable.
fn precopy(state: &mut State, extent: Extent, shares: bool) -> Shadow {
    if !mappings::is_ours(&state.tables, &state.files, extent) {
        return Shadow { extent, memory: 0, unreadable: false, copy: None };
    }
    let fd = extent.source.map_or(-1, |source| state.files.source(source).fd);
    // Reading is faster than the mapping, but may show as an access.
    let shows = fd < 0 || file::shows_access(fd);
    let known = state.files.get(extent.target);
    let own = fd >= 0 && known.guard != Guard::Write;
    let hidden = shows && own && hide_access(fd, true);
    let by_mapping = shows && !hidden;
    let shared = if shares && !by_mapping { share(state, extent, fd) } else { None };
    // Once an overlay has copied a file up, the description reads the upper file, which O_RDONLY with O_TRUNC may have emptied. The
    // mapping stays the lower one's.
    let by_mapping = by_mapping || known.fs.is_some_and(|fs| fs.layered) && !file::only_in_lower_layer(fd);
    let shadow = shared.unwrap_or_else(|| copy(&mut state.tables, extent, fd, by_mapping));
    if hidden {
        hide_access(fd, false);
    }
    shadow
}

/// Of the helper's own description: whether reads through it show as accesses.
fn hide_access(fd: i32, hide: bool) -> bool {
    file::flags(fd).is_ok_and(|flags| {
        let flags = if hide { flags | libc::O_NOATIME } else { flags & !libc::O_NOATIME };
        file::fcntl(fd, libc::F_SETFL, flags as usize).is_ok()
    })
}

/// What relatives share, filled where this process needs it. `None`: there are none, or it cannot be done.
fn share(state: &mut State, extent: Extent, fd: i32) -> Option<Shadow> {
    if !state.map.view().has_room(PIECES) {
        return None;
    }
    let unaltered = |tables: &mut PageTables, fill: &mut dyn FnMut(usize, usize)| {
        each_unaltered(tables, extent, fill) == extent.end()
    };
    let load = |window, from, to| load(extent, window, fd, from, to, false);
    let made = shared_copy::shadow(&mut state.files, &mut state.tables, extent, unaltered, load)?;
    Counters::add(&COUNTERS.materialised, made.copied);
    Some(Shadow { extent, memory: made.memory, unreadable: false, copy: Some(made.id) })
}

/// Returns how far the kernel has told.
fn each_unaltered(tables: &mut PageTables, extent: Extent, mut act: impl FnMut(usize, usize)) -> usize {
    let mut cursor = extent.addr;
    let mut between = |from: usize, to: usize| {
        if from < to {
            act(from, to);
        }
    };
    let reached = tables.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
        between(cursor, run.start as usize);
        cursor = run.end as usize;
    });
    between(cursor, reached);
    reached
}

/// Memory to be moved to an extent: in huge pages if the program asks for such.
fn allocate(extent: Extent) -> Result<usize> {
    const HUGE: usize = 2 << 20;
    if HOT.huge.load(Relaxed)
        && extent.len >= 2 * HUGE
        && let Ok(start) = memory::allocate(extent.len + HUGE, false)
    {
        // Only what is aligned as its destination moves whole.
        let before = extent.addr.wrapping_sub(start) % HUGE;
        let shadow = start + before;
        // SAFETY: nobody else knows the memory.
        unsafe {
            memory::unmap(start, before);
            memory::unmap(shadow + extent.len, HUGE - before);
            let _ = memory::advise(shadow, extent.len, libc::MADV_HUGEPAGE);
        }
        return Ok(shadow);
    }
    memory::allocate(extent.len, false)
}

fn copy(tables: &mut PageTables, mut extent: Extent, fd: i32, by_mapping: bool) -> Shadow {
    let none = Shadow { extent, memory: 0, unreadable: false, copy: None };
    let whole = extent;
    let shadow = loop {
        match allocate(extent) {
            Ok(shadow) => break shadow,
            Err(_) if extent.len > PAGE => extent.len = (extent.len / 2).next_multiple_of(PAGE),
            Err(_) => return none,
        }
    };
    let mut unread = None;
    let mut copied = 0;
    let fill = |from: usize, to: usize| {
        if unread.is_none() {
            let good = load(extent, shadow, fd, from, to, by_mapping) / PAGE * PAGE;
            copied += good;
            unread = (good < to - from).then_some(from + good);
        }
    };
    let reached = each_unaltered(tables, extent, fill);
    let good = unread.unwrap_or(reached);
    if good == extent.addr {
        let len = match unread {
            Some(_) => unreadable_from(extent, shadow, fd, by_mapping),
            None => whole.len,
        };
        // SAFETY: nobody else knows the shadow.
        unsafe { memory::unmap(shadow, extent.len) };
        return Shadow { extent: Extent { len, ..whole }, unreadable: unread.is_some(), ..none };
    }
    // SAFETY: as above.
    unsafe { memory::unmap(shadow + (good - extent.addr), extent.end() - good) };
    extent.len = good - extent.addr;
    Counters::add(&COUNTERS.materialised, copied);
    Shadow { extent, memory: shadow, ..none }
}

/// With the program held: copies altered pages, and moves the shadow into place.
fn swap(state: &mut State, shadow: Shadow, track: bool) -> Exchange {
    let Shadow { extent, memory: fresh, copy, .. } = shadow;
    let track = track && copy.is_none();
    if !mappings::is_ours(&state.tables, &state.files, extent) {
        return Exchange::Stale;
    }
    let mut altered = [(0usize, 0usize); 64];
    let mut count = 0;
    let reached = state.tables.scan_each(extent.addr, extent.end(), OWN_MEMORY, |run| {
        if let Some(slot) = altered.get_mut(count) {
            *slot = (run.start as usize, run.end as usize);
        }
        count += 1;
    });
    let unaltered = count == 0 && reached == extent.end();
    let piece = match unaltered {
        true => extent.len,
        false => (extent.len / PIECES).next_multiple_of(PAGE).max(SMALLEST_PIECE),
    };
    for start in (extent.addr..extent.end()).step_by(piece) {
        let end = extent.end().min(start + piece);
        let place = fresh + (start - extent.addr);
        let copy_run = |run: Run| {
            let (from, len) = (run.start as usize, (run.end - run.start) as usize);
            for at in (from..from + len).step_by(STEP) {
                let len = STEP.min(from + len - at);
                // SAFETY: the pages are readable, the program is held, and the shadow is the helper's.
                unsafe {
                    core::ptr::copy_nonoverlapping(at as *const u8, (place + (at - start)) as *mut u8, len)
                };
                requests::step();
            }
        };
        if !unaltered && state.tables.scan_each(start, end, OWN_MEMORY, copy_run) < end {
            return Exchange::Failed(start);
        }
        let moved = copy.map(|id| {
            let offset = extent.offset + (start - extent.addr) as u64;
            Extent::mapped(start, end - start, id, offset)
        });
        state.map.intend(moved.unwrap_or(BLANK));
        // SAFETY: the bytes are the same, and the program is held.
        let done = unsafe { memory::move_over(place, start, end - start) }.is_ok();
        if let Some(moved) = moved.filter(|_| done) {
            let _ = state.map.view().insert(moved);
        }
        state.map.intend(BLANK);
        if !done {
            return Exchange::Failed(start);
        }
    }
    state.journal.note(state.files.get(extent.target).key, extent.offset, extent.len, MATERIALISED);
    if copy.is_none() {
        let _ = state.map.view().remove(extent.addr, extent.len);
    }
    state.map.dropped = true;
    if track && count <= altered.len() {
        keep_tracked(&mut state.map, &mut state.tables, extent, altered.get(..count).unwrap_or(&[]));
    }
    Exchange::Done
}

/// Unaltered pages still equal the file: they stay associated.
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

/// Bytes copied between two signs of life.
const STEP: usize = 8 << 20;

/// At most what the kernel asks a device for at once, and what the processor's cache holds: memory is made before it is filled, without
/// a fault for each page.
const AHEAD: usize = 1 << 20;

/// What is not in the page cache is read in longer pieces: the kernel's requests are no longer than the rest of a piece.
const COLD: usize = 16 << 20;

/// Returns how far it came. Reading is faster than the mapping, but may show as an access.
fn load(extent: Extent, shadow: usize, fd: i32, from: usize, to: usize, by_mapping: bool) -> usize {
    let target = shadow + (from - extent.addr);
    let mut done = 0;
    if by_mapping {
        let mut step = AHEAD;
        while done < to - from {
            let (at, len) = (from + done, step.min(to - from - done));
            requests::step();
            // SAFETY: these calls change no contents; the shadow is the helper's.
            unsafe {
                let _ = memory::advise(at, len, libc::MADV_WILLNEED);
                match memory::advise(at, len, libc::MADV_POPULATE_READ) {
                    Ok(()) => {
                        // By the kernel: the running program may have unmapped the pages.
                        let copied = task::copy_own(at, target + done, len).unwrap_or_else(|_| {
                            core::ptr::copy_nonoverlapping(at as *const u8, (target + done) as *mut u8, len);
                            len
                        });
                        done += copied;
                        if copied < len {
                            return done;
                        }
                    }
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
        let rest = to - from - done;
        let cold = COLD.min(rest);
        let len = if is_loaded(from + done + cold - PAGE) { AHEAD.min(rest) } else { cold };
        // SAFETY: the shadow is the helper's.
        match unsafe {
            let _ = memory::advise(target + done, len, libc::MADV_POPULATE_WRITE);
            file::pread(fd, target + done, len, offset)
        } {
            Ok(0) | Err(_) => return done,
            Ok(n) => done += n,
        }
    }
    done
}

/// Bytes from an unreadable first page to a readable one. The shadow serves to try.
fn unreadable_from(extent: Extent, shadow: usize, fd: i32, by_mapping: bool) -> usize {
    let rest = (extent.addr + PAGE..extent.end()).step_by(PAGE);
    let readable = |&at: &usize| {
        let page =
            Extent { addr: at, len: PAGE, offset: extent.offset + (at - extent.addr) as u64, ..extent };
        load(page, shadow, fd, at, at + PAGE, by_mapping) == PAGE
    };
    rest.into_iter().find(readable).unwrap_or(extent.end()) - extent.addr
}
