//! Materialises within the mapping, where memory or mappings are short or a page cannot be read.
#![allow(unsafe_code)] // Replaces the program's memory by equal memory.

use crate::extent::Extent;
use crate::helper::mappings;
use crate::helper::page_tables::{PageTables, SOMEWHERE};
use crate::helper::reserve::Reserve;
use crate::helper::state::State;
use crate::shared::live::{self, IN_HAND};
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU8, Ordering::*, compiler_fence};
use elision_sys::{maps, memory};

/// Copies pages in their mapping, and exchanges them if the program is `held`: else a truncation takes them away.
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

/// `unreadable`: asking the device again might take long.
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

fn lose(from: usize, to: usize, held: bool) {
    // SAFETY: nobody knows a byte of these pages.
    if held && from < to && unsafe { memory::untouchable_at(from, to - from) }.is_ok() {
        live::keep_marks();
    }
}

/// Lost pages become zero pages: the program discards or overwrites them.
pub(crate) fn find_again(tables: &PageTables, addr: usize, len: usize) {
    let (mut at, end) = (addr, addr + len);
    while live::marks_are_kept()
        && at < end
        && let Ok(mapping) = maps::mapping(tables.maps, at)
        && mapping.start < end
    {
        let (from, to) = (mapping.start.max(at), mapping.end.min(end));
        if !mapping.shared && mapping.ino != 0 && mapping.offset >= memory::UNTOUCHABLE {
            // SAFETY: the lost page cannot be read, and is about to be discarded.
            let _ = unsafe { memory::allocate_at(from, to - from) };
        }
        at = mapping.end;
    }
}

/// With the program held. The mapping shrinks from its beginning, which takes one more for a moment. Ends early without loss.
fn exchange_pages(page: &mut [u8; PAGE], reserve: &mut Reserve, from: usize, to: usize) {
    let spare = page.as_mut_ptr();
    for at in (from..to).step_by(PAGE) {
        // SAFETY: the page is private and readable, the program is held until its bytes are back, and `spare` is the helper's.
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

/// Puts back the page of a killed helper. Nonzero bytes that the program has stored since stay.
pub(crate) fn put_back_page(state: &mut State) {
    let at = IN_HAND.load(Acquire);
    if at == 0 {
        return;
    }
    let held = state.tables.is_plain(at) && state.world.stop(state.program);
    if IN_HAND.load(Acquire) == at && state.tables.is_plain(at) {
        for (offset, kept) in state.page.into_iter().enumerate() {
            // SAFETY: just seen readable and writable; to the program this is another thread's store.
            let byte = unsafe { AtomicU8::from_ptr((at + offset) as *mut u8) };
            let _ = byte.compare_exchange(0, kept, Relaxed, Relaxed);
        }
    }
    // Only now: if this helper is killed as well, the next one puts the page back.
    let _ = IN_HAND.compare_exchange(at, 0, AcqRel, Relaxed);
    if held {
        state.world.resume(state.program);
    }
}

/// From here on (0: no more) the helper's page may have the only copy, at whatever instruction the helper is killed.
fn take_in_hand(at: usize) {
    compiler_fence(SeqCst);
    IN_HAND.store(at, Release);
    compiler_fence(SeqCst);
}

fn populate(from: usize, to: usize) -> bool {
    // SAFETY: populating changes no contents.
    unsafe { memory::advise(from, to - from, libc::MADV_POPULATE_WRITE) }.is_ok()
}
