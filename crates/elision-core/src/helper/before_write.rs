//! What else stands for file bytes that are about to be written.
#![allow(unsafe_code)] // Faults pages in for other extents; changes no contents.

use crate::extent::{Extent, TargetId};
use crate::helper::files::Files;
use crate::helper::map::Map;
use crate::helper::state::State;
use crate::helper::{guard, mappings};
use crate::shared::requests::{Op, Request};
use elision_sys::memory;

pub(crate) fn name_of(request: &Request) -> usize {
    core::ptr::from_ref(request) as usize
}

/// A planned write is several calls: no other write may come in between, and no read see a part.
pub(crate) fn held_up(files: &Files, request: &Request) -> bool {
    matches!(request.op, Op::Associate | Op::Plan | Op::BeforeWrite | Op::Release | Op::Closing)
        && files.find(request.key).is_some_and(|id| {
            let writer = files.get(id).writer;
            writer != 0 && writer != name_of(request)
        })
}

/// A request costs several times a small write: after many the guard goes.
pub(crate) fn small_write(state: &mut State, request: &mut Request) {
    const MANY: u32 = 256;
    let Some(id) = state.files.find(request.key) else { return };
    let Some(entry) = state.files.get_mut(id) else { return };
    entry.small += 1;
    if entry.small > MANY && entry.writer == 0 {
        guard::release_for_nothing(state, id, request);
    } else {
        before_write(state, id, request.offset, request.offset + request.len as u64, None);
    }
}

/// Pages elsewhere that stand for these bytes get memory of their own. `delta` is the writer's file offset less address.
pub(crate) fn before_write(state: &mut State, id: TargetId, start: u64, end: u64, delta: Option<u64>) {
    let mut from = 0;
    // Looked up anew each time: the map cannot stay borrowed.
    while let Some((row, clip)) = next_elsewhere(&mut state.map, id, from, start, end, delta) {
        if clip.is_mapped()
            && !mappings::is_ours(&state.tables, &state.files, clip)
            && mappings::prune(&mut state.map, &state.tables, &state.files, clip)
        {
            continue;
        }
        from = row.end();
        if clip.is_mapped() {
            // SAFETY: populating changes no contents.
            if unsafe { memory::advise(clip.addr, clip.len, libc::MADV_POPULATE_WRITE) }.is_err() {
                guard::release(state, id);
                return;
            }
        }
        state.tables.unprotect(clip.addr, clip.len);
        if !clip.is_mapped() {
            // If there is no room to cut the pages out, they count as altered, being unprotected.
            let _ = state.map.view().remove(clip.addr, clip.len);
        }
    }
}

/// The next extent after `from` that stands for the bytes, but for those at `delta`; and the pages that do.
fn next_elsewhere(
    map: &mut Map,
    id: TargetId,
    from: usize,
    start: u64,
    end: u64,
    delta: Option<u64>,
) -> Option<(Extent, Extent)> {
    map.view()
        .standing_for(id, from, start, end)
        .filter(|row| Some(row.offset.wrapping_sub(row.addr as u64)) != delta)
        .find_map(|row| row.clip_file(start, end).map(|clip| (row, clip)))
}
