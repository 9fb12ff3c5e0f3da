//! A copy of a buffer that stands for the same file bytes.
#![allow(unsafe_code)] // Maps over fresh memory of the waiting thread's, at its request.

use crate::extent::{BLANK, Extent, SourceId};
use crate::helper::altered::{altered_bytes, altered_runs, push};
use crate::helper::associate::unfit_memory;
use crate::helper::files::Guard;
use crate::helper::guard::is_whole;
use crate::helper::mappings;
use crate::helper::state::State;
use crate::shared::live;
use crate::shared::requests::Request;
use crate::stats::{COUNTERS, Counters, Reason};
use elision_sys::memory;

/// Maps what the range has mapped a second time, at `offset`. The runs are what the client has to copy: it lends the range, so that nobody
/// stores there meanwhile.
pub(crate) fn duplicate(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (start, end) = (request.addr, request.addr + request.len);
    let to = request.offset as usize;
    (request.count, request.handled) = (0, 0);
    let mut at = start;
    while at < end {
        let row = state.map.next_piece(at, end);
        let until = row.map_or(end, |row| if row.addr > at { row.addr } else { row.end() });
        let row = row.filter(|row| row.addr == at && can_be_mapped(state, *row, to + (at - start)));
        let reached = match row {
            Some(row) => altered_runs(&mut state.tables, row.kind(), at, until, request),
            None if push(request, at, until) => until,
            None => at,
        };
        if let Some(row) = row
            && at < reached
        {
            let twin = Extent { addr: to + (at - start), len: reached - at, ..row };
            if !map(state, twin) {
                break;
            }
        }
        at = reached;
        if reached < until {
            break;
        }
    }
    state.map.publish();
    request.handled = at - start;
    None
}

/// Is it under guard, and more than half of it not altered?
fn can_be_mapped(state: &mut State, row: Extent, to: usize) -> bool {
    let known = state.files.get(row.target);
    row.source == Some(SourceId::of(row.target))
        && matches!(known.guard, Guard::Read | Guard::Write | Guard::Immutable)
        // Between a plan and its end the file may not have what the pages have.
        && known.writer == 0
        && is_whole(&known)
        && mappings::is_ours(&state.tables, &state.files, row)
        && altered_bytes(&mut state.tables, row.kind(), row.addr, row.end()) <= row.len / 2
        && state.map.view().has_room(4)
        && unfit_memory(&mut state.map, &state.tables, state.map_limit, to, row.len).is_none()
}

fn map(state: &mut State, twin: Extent) -> bool {
    let fd = state.files.get(twin.target).source.fd;
    state.map.intend(twin);
    // SAFETY: the memory is fresh, and of the thread that asks for this and waits.
    let mapped = unsafe { memory::map_file_at(twin.addr, twin.len, fd, twin.offset) }.is_ok();
    // There is room for the two rows an insertion can need.
    let good = mapped && state.map.view().insert(twin).is_ok();
    state.map.intend(BLANK);
    if good {
        live::mark(twin.addr, twin.len);
        state.prefetch.note(twin);
        Counters::add(&COUNTERS.deferred, twin.len);
    }
    good
}
