//! A write of what still is another file: the two files share blocks.

use crate::extent::{Extent, TargetId};
use crate::helper::altered::altered_bytes;
use crate::helper::before_write::name_of;
use crate::helper::files::{File, Guard};
use crate::helper::guard::{is_held, is_whole};
use crate::helper::mappings;
use crate::helper::state::State;
use crate::shared::requests::Request;
use crate::shared::sharing::least;
use crate::stats::Reason;
use crate::transfer::PAGE;
use elision_sys::{file, limits};

/// May what is planned for this file share blocks?
pub(crate) fn may(state: &State, request: &Request, id: TargetId) -> bool {
    let known = state.files.get(id);
    known.fs.is_some_and(|fs| fs.clones)
        && file::block_size(known.source.fd)
            .is_ok_and(|block| block <= PAGE as u64 && request.offset.is_multiple_of(block))
        // The kernel would signal the helper.
        && limits::file_size() == u64::MAX
}

/// The file whose blocks these pages can give, as far as they are not altered.
fn source(state: &State, row: Extent, id: TargetId, request: &Request) -> Option<File> {
    let known = state.files.get(row.target);
    let fits = row.target != id
        && matches!(known.guard, Guard::Read | Guard::Write)
        && known.fs.is_some_and(|fs| fs.clones)
        // Where the file keeps the pages of its own saves, tracked ones become its own.
        && (row.is_mapped() || !request.track)
        && (!row.is_mapped() || mappings::is_ours(&state.tables, &state.files, row))
        && is_whole(&known);
    fits.then_some(known)
}

pub(crate) fn can_give(state: &State, row: Extent, id: TargetId, request: &Request) -> bool {
    source(state, row, id, request).is_some_and(|known| {
        file::block_size(known.source.fd).is_ok_and(|block| row.offset.is_multiple_of(block))
            && is_clean(known.source.fd, row.offset, row.offset + row.len as u64)
    })
}

/// The kernel writes dirty pages to the device before it shares their blocks. More than this takes longer than to copy all.
pub(crate) fn is_clean(source: i32, start: u64, end: u64) -> bool {
    const DIRTY: u64 = 4096;
    let dirty =
        file::cached(source, start, end).map_or(u64::MAX, |cached| cached.dirty + cached.being_written);
    dirty <= DIRTY.min((end - start) / PAGE as u64 / 16)
}

/// Runs take in what is too short to be shared at the begin and the end of a plan. (Between them they were joined.) The bytes that are left.
pub(crate) fn widen(request: &mut Request) -> usize {
    let (start, end) = (request.addr, request.addr + request.handled);
    if request.count == 0 && request.handled < least() {
        request.push_run(start, end, 0, 0);
    }
    let count = request.count;
    if let Some(first) = request.runs.get_mut(0).filter(|first| count > 0 && first.addr - start < least()) {
        (first.addr, first.len) = (start, first.addr + first.len - start);
    }
    let last = count.checked_sub(1).and_then(|last| request.runs.get_mut(last));
    if let Some(last) = last.filter(|last| end - (last.addr + last.len) < least()) {
        last.len = end - last.addr;
    }
    request.handled - request.runs.iter().take(count).map(|run| run.len).sum::<usize>()
}

/// Ends where something was altered since the plan: the client copies that.
pub(crate) fn share(state: &mut State, request: &mut Request) -> Option<Reason> {
    request.handled = 0;
    let id = state.files.find(request.key)?;
    let to = state.files.get(id);
    if to.guard != Guard::Write || to.writer != name_of(request) || !is_held(&to) {
        return Some(Reason::Raced);
    }
    let (mut at, end) = (request.addr, request.addr + request.len);
    while at < end {
        let Some(row) = state.map.next_piece(at, end).filter(|row| row.addr == at) else { break };
        let Some(from) = source(state, row, id, request) else { break };
        let place = request.offset + (at - request.addr) as u64;
        // The guard is asked again: the kernel takes it from a helper that is stopped too long.
        if altered_bytes(&mut state.tables, row.kind(), at, row.end()) > 0
            || file::clone_range(to.source.fd, place, from.source.fd, row.offset, row.len as u64).is_err()
            || !is_held(&from)
        {
            break;
        }
        at = row.end();
    }
    request.handled = at - request.addr;
    None
}
