#![allow(unsafe_code)] // Looks at a page of the program.

use crate::extent::{Extent, TargetId};
use crate::helper::altered::{altered_runs, least_gap, push};
use crate::helper::before_write::{self, name_of};
use crate::helper::files::{Files, Guard};
use crate::helper::guard::{self, has_our_lease, is_held, is_whole};
use crate::helper::map::Map;
use crate::helper::mappings;
use crate::helper::page_tables::{PROTECT, PageTables, SOMEWHERE};
use crate::helper::share;
use crate::helper::state::State;
use crate::shared::requests::Request;
use crate::stats::Reason;
use crate::transfer::PAGE;
use elision_sys::{file, maps, task};

/// Finds pages to write; the others equal the file. Protects them first: a store during the write counts for the next one.
pub(crate) fn plan(state: &mut State, request: &mut Request) -> Option<Reason> {
    if !request.more {
        request.deferred = mostly_deferred(state, request);
    }
    let id = match guard_for_write(state, request) {
        Ok(id) => id,
        Err(reason) => return Some(reason),
    };
    let end_offset = request.offset + request.len as u64;
    let holes = has_holes(&mut state.files, id, request.offset, end_offset);
    request.comparable = !holes && is_plain(&state.tables, request.addr, request.len);
    request.shares = request.shares && share::may(state, request, id);
    (request.count, request.handled, request.altered) = (0, 0, 0);
    let mut unknown = 0;
    let (start, end) = (request.addr, request.addr + request.len);
    let delta = request.offset.wrapping_sub(start as u64);
    let gap = least_gap(request);
    let synchronous = request.flags & libc::O_DSYNC != 0;
    if synchronous && !request.more {
        request.push_run(start, start + PAGE, 0, gap);
    }
    let mut at = start;
    while at < end {
        let piece = state.map.next_piece(at, end);
        let (to, known) = match piece {
            Some(row) if row.addr <= at => (row.end(), Some(row)),
            Some(row) => (row.addr, None),
            None => (end, None),
        };
        let here = known.filter(|row| {
            (!row.is_mapped() || mappings::is_ours(&state.tables, &state.files, *row))
                && !holes
                && row.stands_at(id, delta)
        });
        let shared = || known.filter(|row| request.shares && share::can_give(state, *row, id, request));
        let reached = match here.or_else(shared) {
            Some(row) => altered_runs(&mut state.tables, row.kind(), at, to, request),
            None if known.is_none() && to - at == PAGE && !holes && equals(state, request, id, at) => to,
            None if push(request, at, to) => to,
            None => at,
        };
        if here.is_none() {
            unknown += reached - at;
        }
        at = reached;
        if reached < to {
            break;
        }
    }
    request.handled = at - start;
    if request.shares {
        let shared = share::widen(request);
        request.shares = shared > 0;
        request.deferred &= shared < request.handled / 2;
        before_write::before_write(
            state,
            id,
            request.offset,
            request.offset + request.handled as u64,
            Some(delta),
        );
    }
    (request.known, request.altered) =
        (request.handled.saturating_sub(unknown), request.altered.saturating_sub(unknown));
    if synchronous && request.tail > 0 && at == end {
        request.push_run(end - PAGE, end, 0, gap);
    }
    let protect = request.track && register(state, request, id, delta);
    for i in 0..request.count {
        let Some(run) = request.runs.get(i).copied() else { break };
        if protect {
            follow(&mut state.map, &mut state.tables, id, delta, run.addr, run.addr + run.len);
        }
        let from = request.offset + (run.addr - start) as u64;
        before_write::before_write(state, id, from, from + run.len as u64, Some(delta));
    }
    // The fragments are always written, and the first page if there is no head.
    let delta = Some(delta);
    let first = request.offset - request.head as u64;
    let first_end = if request.head > 0 { request.offset } else { request.offset + PAGE as u64 };
    before_write::before_write(state, id, first, first_end, delta);
    before_write::before_write(state, id, end_offset, end_offset + request.tail as u64, delta);
    // If the guard was released here, the plan still was true when it was made.
    if let Some(entry) = state.files.get_mut(id).filter(|entry| entry.guard != Guard::None) {
        (entry.writer, entry.small, entry.saved) = (name_of(request), 0, true);
    }
    None
}

/// A page between two pieces that were read one after the other: the file's, if both halves are. Protected before it is compared.
fn equals(state: &mut State, request: &Request, id: TargetId, at: usize) -> bool {
    if request.track {
        if !state.tables.track(at, PAGE) {
            return false;
        }
        state.tables.scan_each(at, at + PAGE, PROTECT, |_| ());
    }
    let (offset, mut there) = (request.offset + (at - request.addr) as u64, [0u8; PAGE]);
    // SAFETY: a page of the helper's own. The program's page may go meanwhile.
    let copied = unsafe { task::copy_own(at, state.page.as_mut_ptr() as usize, PAGE) };
    copied == Ok(PAGE)
        && file::read_cached(state.files.get(id).source.fd, &mut there, offset) == Ok(PAGE)
        && there == state.page
}

/// Are most pages deferred from elsewhere, and not mapped in the page tables?
fn mostly_deferred(state: &mut State, request: &Request) -> bool {
    let (mut at, end) = (request.addr, request.addr + request.len);
    let delta = request.offset.wrapping_sub(at as u64);
    let target = state.files.find(request.key);
    let mut bytes = 0;
    while let Some(row) = state.map.next_piece(at, end) {
        at = row.end();
        if is_elsewhere(row, target, delta) {
            bytes += row.len.saturating_sub(state.tables.count(row.addr, at, SOMEWHERE));
        }
    }
    bytes > request.len / 2
}

fn is_elsewhere(row: Extent, id: Option<TargetId>, delta: u64) -> bool {
    row.is_mapped() && !id.is_some_and(|id| row.stands_at(id, delta))
}

fn guard_for_write(state: &mut State, request: &mut Request) -> Result<TargetId, Reason> {
    if let Some(id) = state.files.find(request.key)
        && state.files.get(id).guard != Guard::None
    {
        let known = state.files.get(id);
        let same = known.guard == Guard::Write
            && request.owned
            && has_our_lease(request.pid, request.fd, request.key, false);
        // Others wait until one write is done, not until none is under way.
        return match same {
            true if request.more && known.writer == name_of(request) && is_held(&known) => Ok(id),
            true if !request.more && is_whole(&known) => Ok(id),
            _ => Err(Reason::OwnWriter),
        };
    }
    // What was true of the description when the write began may have changed.
    if !request.owned || request.more {
        return Err(Reason::OwnWriter);
    }
    guard::acquire(state, Guard::Write, request).map(|(id, _)| id)
}

/// Readable memory of no file: to look at it raises no signal.
fn is_plain(tables: &PageTables, addr: usize, len: usize) -> bool {
    let mut at = addr;
    while at < addr + len {
        match maps::mapping(tables.maps, at) {
            Ok(mapping) if mapping.start <= at && mapping.readable && mapping.ino == 0 => at = mapping.end,
            _ => return false,
        }
    }
    true
}

/// A plain write would fill holes; an elided one would not.
fn has_holes(files: &mut Files, id: TargetId, start: u64, end: u64) -> bool {
    let known = files.get(id);
    if start.max(end) <= known.solid {
        return false;
    }
    let Ok(stat) = file::stat(known.source.fd) else { return true };
    let holes = match file::has_hole(known.source.fd, known.solid, end.max(start)) {
        Some(hole) => hole,
        // Without FIEMAP (tmpfs) blocks are exactly the present pages.
        None => !stat.is_solid(),
    };
    if !holes && let Some(entry) = files.get_mut(id) {
        entry.solid = end.max(start).min(stat.size);
    }
    holes
}

/// Runs that are registered one by one, in any case and at most: each may split its mapping in three.
const FEW: usize = 8;
const MANY: usize = 128;
/// What the kernel maps at a fault.
const AROUND: usize = 64 << 10;

/// Registers the pages that [`follow`] protects. In a registered mapping each page takes a fault of its own. So at a file's first save
/// a few altered pages are registered alone; later all are, or the mappings would become many.
fn register(state: &mut State, request: &Request, id: TargetId, delta: u64) -> bool {
    let few = (request.len / AROUND).min(state.map_limit / (4 * (state.map.usage.extents + 1)));
    let (map, tables) = (&mut state.map, &state.tables);
    if state.files.get(id).saved || request.count > few.clamp(FEW, MANY) {
        return track(map, tables, id, delta, request.addr, request.addr + request.len);
    }
    let mut runs = request.runs.iter().take(request.count);
    runs.all(|run| track(map, tables, id, delta, run.addr, run.addr + run.len))
}

/// Deferred pages of another place stay out: they could not be elided here anyway.
fn track(map: &mut Map, tables: &PageTables, id: TargetId, delta: u64, start: usize, end: usize) -> bool {
    let mut at = start;
    while at < end {
        let (to, elsewhere) = match map.next_piece(at, end) {
            Some(row) if row.addr <= at => (row.end(), is_elsewhere(row, Some(id), delta)),
            Some(row) => (row.addr, false),
            None => (end, false),
        };
        if !elsewhere && !tables.track(at, to - at) {
            return false;
        }
        at = to;
    }
    true
}

/// Untracks other places. Their mapped extents stay unprotected: altered pages would pass for unaltered.
fn follow(map: &mut Map, tables: &mut PageTables, id: TargetId, delta: u64, from: usize, to: usize) {
    let mut at = from;
    while at < to {
        let (end, free) = match map.next_piece(at, to) {
            Some(row) if row.addr <= at => {
                let free = row.stands_at(id, delta)
                    || !row.is_mapped() && map.view().remove(at, row.end() - at).is_ok();
                (row.end(), free)
            }
            Some(row) => (row.addr, true),
            None => (to, true),
        };
        if free {
            tables.scan_each(at, end, PROTECT, |_| ());
        }
        at = end;
    }
}
