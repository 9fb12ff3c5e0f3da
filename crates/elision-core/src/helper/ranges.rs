#![allow(unsafe_code)] // Replaces memory that the program is about to discard.

use crate::helper::state::State;
use crate::helper::{in_place, learn, mappings, materialise};
use crate::shared::unmap_queue;
use elision_sys::memory;
use elision_sys::pages::{Wanted, category};

/// Loaded pages without memory of their own.
const LOADED: Wanted =
    Wanted { all: category::FILE | category::PRESENT, inverted: 0, any: category::PRESENT, protect: false };

pub(crate) fn dissolve(state: &mut State, addr: usize, len: usize) {
    materialise::range(state, addr, len);
    forget(state, addr, len);
}

pub(crate) fn zero(state: &mut State, addr: usize, len: usize) {
    let mut at = addr;
    while let Some(row) = state.map.next_piece(at, addr + len) {
        if row.is_mapped() && mappings::is_ours(&state.tables, &state.files, row) {
            // SAFETY: the program discards these pages.
            let _ = unsafe { memory::allocate_at(row.addr, row.len) };
        }
        at = row.end();
    }
    in_place::find_again(&state.tables, addr, len);
    forget(state, addr, len);
}

/// Unloads pages. The calling thread cannot: a page that has memory of its own by then would become zeroes.
pub(crate) fn unload(state: &mut State, addr: usize, len: usize) -> usize {
    let mut given = 0;
    let mut at = addr;
    while let Some(row) = state.map.next_piece(at, addr + len) {
        at = row.end();
        if !row.is_mapped() || !mappings::is_ours(&state.tables, &state.files, row) {
            continue;
        }
        state.tables.scan_each(row.addr, row.end(), LOADED, |run| {
            let (from, len) = (run.start as usize, (run.end - run.start) as usize);
            // SAFETY: these pages have no memory of their own, and whoever could alter them waits.
            if unsafe { memory::advise(from, len, libc::MADV_DONTNEED) }.is_ok() {
                given += len;
            }
        });
    }
    given
}

pub(crate) fn forget(state: &mut State, addr: usize, len: usize) {
    learn::count_loaded(&mut state.map, &mut state.tables, addr, len);
    if state.map.view().remove(addr, len).is_err() {
        // No room to split an extent: its outer parts would lose their guard.
        materialise::range(state, addr.saturating_sub(1), len + 2);
        state.map.view().retain(|row| row.clip(addr, addr + len).is_none());
    }
    state.map.dropped = true;
    state.map.publish();
}

pub(crate) fn drain_unmapped(state: &mut State) {
    unmap_queue::take_all(|addr, len| forget(state, addr, len));
}
