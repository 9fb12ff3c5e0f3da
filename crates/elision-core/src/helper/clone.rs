use crate::extent::{Extent, TargetId};
use crate::helper::altered::{altered_bytes, altered_runs, push};
use crate::helper::descriptions;
use crate::helper::files::Guard;
use crate::helper::guard::{is_held, is_whole};
use crate::helper::mappings;
use crate::helper::share::is_clean;
use crate::helper::state::State;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file;

/// Clones the file that most of the range stands for into the program's empty file, and tells the runs that are other than that file.
/// With `more`: goes on in the range.
pub(crate) fn clone(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (start, end) = (request.addr, request.addr + request.len);
    let delta = request.offset.wrapping_sub(start as u64);
    let id = match request.more {
        true => state.files.find(request.key),
        false => state.map.next_piece(start, end).map(|row| row.target),
    };
    let known = id.map(|id| state.files.get(id)).filter(|known| is_whole(known) && known.writer == 0);
    let (Some(id), Some(known)) = (id, known) else { return Some(Reason::OwnWriter) };
    if !matches!(known.guard, Guard::Read | Guard::Write) {
        return Some(Reason::OwnWriter);
    }
    if !request.more {
        if !known.fs.is_some_and(|fs| fs.clones) {
            return Some(Reason::FileSystem);
        }
        let (mut at, mut altered) = (start, 0);
        while at < end {
            let (to, row) = piece(state, id, delta, at, end);
            altered += row.map_or(to - at, |row| altered_bytes(&mut state.tables, row.kind(), at, to));
            at = to;
        }
        if altered > request.len / 2 {
            return Some(Reason::MostlyAltered);
        }
        if let Err(reason) = share_blocks(state, request, known.source.fd) {
            return Some(reason);
        }
        if !is_held(&known) {
            return Some(Reason::Raced);
        }
        request.key = known.key;
    }
    (request.count, request.handled) = (0, 0);
    let mut at = start;
    while at < end {
        let (to, row) = piece(state, id, delta, at, end);
        let reached = match row {
            Some(row) => altered_runs(&mut state.tables, row.kind(), at, to, request),
            None if push(request, at, to) => to,
            None => at,
        };
        at = reached;
        if reached < to {
            break;
        }
    }
    request.handled = at - start;
    None
}

/// From `at` on: how far everything is of one kind, and the extent, if it stands for its place in the file.
fn piece(state: &mut State, id: TargetId, delta: u64, at: usize, end: usize) -> (usize, Option<Extent>) {
    match state.map.next_piece(at, end) {
        Some(row) if row.addr > at => (row.addr, None),
        Some(row) => {
            let ours = !row.is_mapped() || mappings::is_ours(&state.tables, &state.files, row);
            (row.end(), Some(row).filter(|row| ours && row.stands_at(id, delta)))
        }
        None => (end, None),
    }
}

fn share_blocks(state: &mut State, request: &mut Request, source: i32) -> Result<(), Reason> {
    let size = file::stat(source).map_err(|_| Reason::Raced)?.size;
    if !is_clean(source, 0, size) {
        return Err(Reason::FileSystem);
    }
    let fd = descriptions::of(state, request).map_err(|_| Reason::NotRegular)?;
    let cloned = file::clone_range(fd, 0, source, 0, 0);
    file::close(fd);
    cloned.map_err(|_| Reason::FileSystem)
}
