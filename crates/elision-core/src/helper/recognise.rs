//! Memory that has a file's bytes, though no call that was seen brought them there: the client compares the two.

use crate::extent::Extent;
use crate::helper::associate::guard_for_read;
use crate::helper::before_write::name_of;
use crate::helper::guard::is_whole;
use crate::helper::page_tables::PROTECT;
use crate::helper::state::State;
use crate::shared::live;
use crate::shared::requests::Request;
use crate::stats::Reason;

/// First guards the file and protects the range: a store from now on is seen. Then, with `more`, everything but the runs equals the
/// file, unless the client found too little (no `track`).
pub(crate) fn recognise(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (start, end) = (request.addr, request.addr + request.len);
    if !request.more {
        return prepare(state, request, start, end);
    }
    state.map.dropped = true;
    let id = state.files.find(request.key);
    // The writer is forgotten when the guard is given up, and by a new helper. If it is still noted, the guard was held all the time.
    let ours = id.and_then(|id| state.files.get_mut(id)).filter(|entry| entry.writer == name_of(request));
    let guarded = ours.is_some_and(|entry| {
        entry.writer = 0;
        is_whole(entry)
    });
    let equal = request.track && guarded && state.map.next_piece(start, end).is_none();
    let Some(id) = id.filter(|_| equal && state.map.view().has_room(4)) else {
        state.tables.unprotect(start, end - start);
        return Some(Reason::Emptied);
    };
    for run in request.runs.iter().take(request.count) {
        state.tables.unprotect(run.addr, run.len);
    }
    let extent = Extent { addr: start, len: end - start, source: None, target: id, offset: request.offset };
    if state.map.view().insert(extent).is_ok() {
        live::mark(start, end - start);
    }
    state.map.publish();
    None
}

fn prepare(state: &mut State, request: &mut Request, start: usize, end: usize) -> Option<Reason> {
    // What the program has of the file is known already.
    let known = state.files.find(request.key).is_some_and(|id| state.map.share(id).tracked > 0);
    if known || state.map.next_piece(start, end).is_some() {
        return Some(Reason::Emptied);
    }
    let (id, stat) = match guard_for_read(state, request) {
        Ok(guarded) => guarded,
        Err(reason) => return Some(reason),
    };
    let entry = state.files.get(id);
    let outlives = state.fine_ctime && entry.fs.is_some_and(|fs| fs.times_tell);
    let solid = stat.is_none_or(|stat| stat.is_solid() && stat.size >= request.offset + request.len as u64);
    if !outlives || !solid || !state.tables.is_plain(start) || !state.tables.track(start, end - start) {
        state.map.dropped = true;
        return Some(Reason::Emptied);
    }
    state.tables.scan_each(start, end, PROTECT, |_| ());
    if let Some(entry) = state.files.get_mut(id) {
        // The guard stays while the client compares, as in the middle of a save.
        entry.writer = name_of(request);
    }
    None
}
