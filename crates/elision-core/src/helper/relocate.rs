//! Moves a buffer, deferred pages and all.
#![allow(unsafe_code)] // Moves memory that only the waiting thread uses.

use crate::extent::Extent;
use crate::helper::ranges;
use crate::helper::state::State;
use crate::shared::live;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::{maps, memory};

/// The request says what has moved and is about to: the helper may be killed. The kernel does not move tracking protection.
pub(crate) fn relocate(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (from, end, to) = (request.addr, request.addr + request.len, request.offset as usize);
    let rows = state.map.view().overlapping(from, request.len).count();
    if !state.map.view().has_room(rows + 4) {
        return Some(Reason::Limit);
    }
    // Recorded in both places before anything moves: a successor finds it in either.
    let mut next = from;
    while let Some(row) = state.map.next_piece(next, end) {
        next = row.end();
        if row.is_mapped() {
            let _ = state.map.view().insert(Extent { addr: to + (row.addr - from), ..row });
            live::mark(to + (row.addr - from), row.len);
        }
    }
    let mut at = from;
    while at < end {
        let Ok(mapping) = maps::mapping(state.tables.maps, at) else { break };
        let piece_end = mapping.end.min(end);
        let len = piece_end - at;
        request.tried = len;
        // SAFETY: the waiting caller owns both ranges and keeps nothing of the target. The kernel refuses before it acts.
        if mapping.start > at || unsafe { memory::move_from(at, to + (at - from), len) }.is_err() {
            break;
        }
        // SAFETY: the pages have moved. The addresses stay reserved, without the file.
        let _ = unsafe { memory::unreserve(at, len) };
        at = piece_end;
        request.handled = at - from;
    }
    request.tried = 0;
    // There is room: at most one row is cut in two.
    let _ = state.map.view().remove(to + request.handled, request.len - request.handled);
    ranges::forget(state, from, request.handled);
    state.prefetch.moved(from, request.handled, to);
    None
}
