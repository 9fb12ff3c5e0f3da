//! Moving a buffer to another place, deferred pages and all.
#![allow(unsafe_code)] // Moves memory that only the waiting thread uses.

use crate::extent::Extent;
use crate::helper::ranges;
use crate::helper::state::State;
use crate::shared::live;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::{memory, pages};

/// Moves `[addr, addr + len)` to where the request says, mapping by mapping, and answers how much of it, from the
/// beginning on, was moved; all the while it says how far it has come, and how much it is about to move, since it may be killed
/// on the way. Mapped extents stay associated; tracked ones do not, since the kernel does not move their protection.
pub(crate) fn relocate(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (from, end, to) = (request.addr, request.addr + request.len, request.offset as usize);
    let rows = state.map.view().overlapping(from, request.len).count();
    if !state.map.view().has_room(rows + 4) {
        return Some(Reason::Limit);
    }
    // Before anything moves: where both places are recorded, whoever comes after us if we are killed finds it in either.
    let mut next = from;
    while let Some(row) = state.map.next_piece(next, end) {
        next = row.end();
        if row.is_mapped() {
            // There is room, as was seen above.
            let _ = state.map.view().insert(Extent { addr: to + (row.addr - from), ..row });
            live::mark(to + (row.addr - from), row.len);
        }
    }
    let mut at = from;
    while at < end {
        let Ok(mapping) = pages::mapping(state.tables.maps, at) else { break };
        let piece_end = mapping.end.min(end);
        let len = piece_end - at;
        request.tried = len;
        // SAFETY: the caller owns both ranges, and waits; the target has nothing that he wants to keep. (Where the
        // kernel refuses, it has looked for room before it touched either.)
        if mapping.start > at || unsafe { memory::move_from(at, to + (at - from), len) }.is_err() {
            break;
        }
        // SAFETY: what was there has moved. The addresses stay reserved, never anybody else's in between; but the
        // file must not stay mapped there.
        let _ = unsafe { memory::unreserve(at, len) };
        at = piece_end;
        request.handled = at - from;
    }
    request.tried = 0;
    // What has not moved. (There is room: at most one row is cut in two.)
    let _ = state.map.view().remove(to + request.handled, request.len - request.handled);
    ranges::forget(state, from, request.handled);
    None
}
