use crate::extent::Extent;
use crate::helper::before_write::name_of;
use crate::helper::files::Guard;
use crate::helper::guard::is_held;
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use crate::helper::state::State;
use crate::shared::live;
use crate::shared::requests::Request;

pub(crate) fn wrote(state: &mut State, request: &Request) {
    let Some(id) = state.files.find(request.key) else { return };
    if let Some(entry) =
        state.files.get_mut(id).filter(|entry| entry.writer == name_of(request) && !request.more)
    {
        entry.writer = 0;
    }
    state.map.dropped = true;
    let (start, done, tried) = (request.addr, request.len, request.tried);
    if done < tried {
        state.tables.unprotect(start + done, tried - done);
    }
    if !request.track {
        // Unprotected, tracked extents would always pass for altered.
        let mut at = start;
        while let Some(row) = state.map.next_piece(at, start + done) {
            at = row.end();
            if !row.is_mapped() && row.target == id {
                let _ = state.map.view().remove(row.addr, row.len);
            }
        }
        state.map.publish();
    }
    let known = state.files.get(id);
    if done == 0
        || !request.track
        || state.tables.tracker < 0
        || known.guard != Guard::Write
        || !is_held(&known)
    {
        return;
    }
    let delta = request.offset.wrapping_sub(start as u64);
    let mut at = start;
    while at < start + done {
        let (to, mapped) = match state.map.next_piece(at, start + done) {
            Some(row) if row.addr <= at => (row.end(), row.is_mapped() && row.stands_at(id, delta)),
            Some(row) => (row.addr, false),
            None => (start + done, false),
        };
        // A mapped extent of another place stays: it is what the memory is.
        let elsewhere = state.map.view().overlapping(at, to - at).any(|row| row.is_mapped());
        if !mapped && !elsewhere {
            let offset = delta.wrapping_add(at as u64);
            let extent = Extent { addr: at, len: to - at, source: None, target: id, offset };
            if state.map.view().has_room(4) && state.map.view().insert(extent).is_ok() {
                live::mark(at, to - at);
            }
        }
        at = to;
    }
    state.map.publish();
}

/// Two writes overlapped, and the file may have either's bytes: the range counts as altered.
pub(crate) fn untrack(map: &mut Map, tables: &PageTables, addr: usize, len: usize) {
    let mut at = addr;
    while let Some(row) = map.next_piece(at, addr + len) {
        tables.unprotect(row.addr, row.len);
        at = row.end();
        if at >= addr + len {
            break;
        }
    }
}
