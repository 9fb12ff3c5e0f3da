//! Materialising in the mapping itself, where there is no room for a second copy, no mapping to spare, or no page to be read.
#![allow(unsafe_code)] // Replaces the program's memory by equal memory.

use crate::extent::Extent;
use crate::helper::mappings;
use crate::helper::page_tables::{PageTables, SOMEWHERE};
use crate::helper::reserve::Reserve;
use crate::helper::state::State;
use crate::shared::live::{self, IN_HAND};
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU8, Ordering::*, compiler_fence};
use elision_sys::{memory, pages};

/// Copies pages in their mapping and then, if the program is `held`, exchanges them one by one by way of the helper's page. The program stays
/// held for all of that. Copies that stay in the mapping (a debugger is attached) outlive every change of the file but a truncation.
pub(crate) fn copy(state: &mut State, extent: Extent, unreadable: bool, held: bool) {
    let mut at = extent.addr;
    while at < extent.end() {
        let (end, ours) = mappings::stretch(&state.tables, &state.files, extent, at);
        if ours && (unreadable || !populate(at, end)) {
            copy_what_can_be_read(state, at, end, held, unreadable);
        } else if ours && held {
            exchange_pages(&mut state.page, &mut state.reserve, at, end);
        }
        at = end;
    }
    let _ = state.map.view().remove(extent.addr, extent.len);
    state.map.dropped = true;
}

/// The same page by page, where some cannot be read: if the program is held, these become untouchable. `unreadable`: the device is not
/// asked once more, which might take long.
fn copy_what_can_be_read(state: &mut State, from: usize, to: usize, held: bool, unreadable: bool) {
    let mut lost = from;
    for at in (from..to).step_by(PAGE) {
        let somewhere = state.tables.count(at, at + PAGE, SOMEWHERE) > 0;
        let good = (somewhere || !unreadable) && populate(at, at + PAGE);
        if !good {
            continue;
        }
        lose(lost, at, held);
        lost = at + PAGE;
        if held {
            exchange_pages(&mut state.page, &mut state.reserve, at, at + PAGE);
        }
    }
    lose(lost, to, held);
}

/// Puts memory that cannot be touched in place of pages that cannot be read, with the program held still.
fn lose(from: usize, to: usize, held: bool) {
    // SAFETY: no byte of these pages is known to anybody.
    if held && from < to && unsafe { memory::untouchable_at(from, to - from) }.is_ok() {
        live::keep_marks();
    }
}

/// Pages of the range that were lost become fresh zero pages: the program discards them, or reads something else there.
pub(crate) fn find_again(tables: &PageTables, addr: usize, len: usize) {
    let (mut at, end) = (addr, addr + len);
    while live::marks_are_kept()
        && at < end
        && let Ok(mapping) = pages::mapping(tables.maps, at)
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

/// Anonymous pages for those of `[from, to)`, a populated part of one mapping, with the program held. The mapping shrinks from its
/// beginning, so for a moment one mapping more is needed, which may come out of the reserve. Ends early if it is refused, with nothing lost.
fn exchange_pages(page: &mut [u8; PAGE], reserve: &mut Reserve, from: usize, to: usize) {
    let spare = page.as_mut_ptr();
    for at in (from..to).step_by(PAGE) {
        // SAFETY: the page is there, private and readable, and nobody stores into it now; `spare` is a page of ours. The program gets its
        // bytes back before it goes on.
        unsafe {
            core::ptr::copy_nonoverlapping(at as *const u8, spare, PAGE);
            take_in_hand(at);
            while memory::allocate_at(at, PAGE).is_err() {
                if !reserve.spend() {
                    return take_in_hand(0);
                }
            }
            core::ptr::copy_nonoverlapping(spare, at as *mut u8, PAGE);
        }
        take_in_hand(0);
    }
}

/// Puts the page that a helper had in hand when it was killed where it belongs. What the program has stored there since, other than zeroes,
/// stays.
pub(crate) fn put_back_page(state: &mut State) {
    let at = IN_HAND.load(Acquire);
    if at == 0 {
        return;
    }
    let held = state.tables.is_plain(at) && state.world.stop(state.program);
    if IN_HAND.load(Acquire) == at && state.tables.is_plain(at) {
        for (offset, kept) in state.page.into_iter().enumerate() {
            // SAFETY: just seen to be memory that can be read and written; to the program this is a store by another of its threads.
            let byte = unsafe { AtomicU8::from_ptr((at + offset) as *mut u8) };
            let _ = byte.compare_exchange(0, kept, Relaxed, Relaxed);
        }
    }
    // Not before: if this helper is killed as well, the next one puts it back.
    let _ = IN_HAND.compare_exchange(at, 0, AcqRel, Relaxed);
    if held {
        state.world.resume(state.program);
    }
}

/// From here on (or with 0 no more) the helper's page has bytes that may be nowhere else, in whatever instruction it is killed.
fn take_in_hand(at: usize) {
    compiler_fence(SeqCst);
    IN_HAND.store(at, Release);
    compiler_fence(SeqCst);
}

/// Copies into the mapping what it has no memory of its own for. False if that is not possible, or not for every page.
fn populate(from: usize, to: usize) -> bool {
    // SAFETY: populating changes no contents.
    unsafe { memory::advise(from, to - from, libc::MADV_POPULATE_WRITE) }.is_ok()
}
