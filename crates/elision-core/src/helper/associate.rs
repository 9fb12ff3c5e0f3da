#![allow(unsafe_code)] // Maps over the program's buffer, at its request.

use crate::extent::{BLANK, Extent, SourceId, TargetId};
use crate::helper::files::{File, Guard, Source};
use crate::helper::guard::{self, has_our_lease, is_whole};
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use crate::helper::state::State;
use crate::helper::{in_place, learn, mappings};
use crate::shared::live;
use crate::shared::requests::Request;
use crate::stats::{COUNTERS, Counters, Reason};
use crate::transfer::PAGE;
use elision_sys::file::Stat;
use elision_sys::{file, maps, memory};

/// With `exclusive`, the shared pages at both ends are associated, too, if all their bytes equal the file.
pub(crate) fn associate(state: &mut State, request: &mut Request) -> Option<Reason> {
    let (id, stat) = match guard_for_read(state, request) {
        Ok(guarded) => guarded,
        Err(reason) => return Some(reason),
    };
    let File { source: Source { fd, .. }, fs, .. } = state.files.get(id);
    // Asked under the guard: the client's length may be stale.
    let Some(now) = stat.or_else(|| file::stat(fd).ok()) else { return Some(Reason::Raced) };
    if now.size < request.offset + request.len as u64 {
        state.map.dropped = true;
        return Some(Reason::Raced);
    }
    if !now.is_solid() && !fs.is_some_and(|fs| fs.keeps_holes) {
        state.map.dropped = true;
        return Some(Reason::Holes);
    }
    let (mut addr, mut len, mut offset) = (request.addr, request.len, request.offset);
    if request.exclusive {
        // The page beside an end without a fragment may be another buffer's.
        if request.head > 0
            && equals_file(
                &state.tables,
                &mut state.page,
                fd,
                addr.wrapping_sub(PAGE),
                offset.wrapping_sub(PAGE as u64),
                now.size,
            )
        {
            (addr, len, offset) = (addr - PAGE, len + PAGE, offset - PAGE as u64);
        }
        if request.tail > 0
            && equals_file(&state.tables, &mut state.page, fd, addr + len, offset + len as u64, now.size)
        {
            len += PAGE;
        }
    }
    if len == 0 {
        state.map.dropped = true;
        return Some(Reason::Small);
    }
    in_place::find_again(&state.tables, addr, len);
    if let Some(reason) = unfit_memory(&mut state.map, &state.tables, state.map_limit, addr, len) {
        state.map.dropped = true;
        return Some(reason);
    }
    if !state.map.view().has_room(4) {
        return Some(Reason::Limit);
    }
    learn::count_loaded(&mut state.map, &mut state.tables, addr, len);
    learn::learn(&mut state.map, &mut state.tables, &state.files, addr, len);
    let extent = Extent::mapped(addr, len, id, offset);
    state.map.intend(extent);
    // SAFETY: the program asked for this, and waits. Other threads that use the buffer race with the read itself.
    let mut good = unsafe { memory::map_file_at(addr, len, fd, offset) }.is_ok();
    if good {
        mappings::learn(&state.tables, &mut state.files, SourceId::of(id), addr);
        // Only now: after a refusal the old records stay true. There is room for the two rows an insertion can need.
        good = state.map.view().insert(extent).is_ok();
    }
    state.map.intend(BLANK);
    if !good {
        state.map.dropped = true;
        return Some(Reason::Limit);
    }
    live::mark(addr, len);
    state.map.publish();
    state.prefetch.note(extent);
    state.journal.begin_strip(&state.files.get(id));
    Counters::add(&COUNTERS.deferred, len);
    (request.addr, request.handled, request.changes) = (addr, len, live::changes());
    None
}

pub(crate) fn guard_for_read(
    state: &mut State,
    request: &mut Request,
) -> Result<(TargetId, Option<Stat>), Reason> {
    let access = request.flags & libc::O_ACCMODE;
    if let Some(id) = state.files.find(request.key) {
        let known = state.files.get(id);
        match known.guard {
            // The helper may have been stopped since it answered breaks.
            Guard::Read if access == libc::O_RDONLY && is_whole(&known) => return Ok((id, None)),
            Guard::Write
                if is_whole(&known) && has_our_lease(request.pid, request.fd, request.key, false) =>
            {
                return Ok((id, None));
            }
            Guard::Immutable => return Ok((id, None)),
            // Two descriptions of one file: only one can be followed.
            Guard::Read | Guard::Write | Guard::Copy => return Err(Reason::OwnWriter),
            Guard::None => {}
        }
    }
    let kind = match access {
        _ if request.immutable => Guard::Immutable,
        libc::O_RDONLY => Guard::Read,
        libc::O_RDWR if request.owned => Guard::Write,
        _ => return Err(Reason::OwnWriter),
    };
    guard::acquire(state, kind, request).map(|(id, stat)| (id, Some(stat)))
}

fn equals_file(
    tables: &PageTables,
    page: &mut [u8; PAGE],
    fd: i32,
    addr: usize,
    offset: u64,
    size: u64,
) -> bool {
    if offset.checked_add(PAGE as u64).is_none_or(|end| end > size) || !tables.is_plain(addr) {
        return false;
    }
    let ours = page.as_mut_ptr() as usize;
    // SAFETY: reads into the helper's page. The other page was seen readable, and only the waiting thread may change it.
    unsafe {
        file::pread(fd, ours, PAGE, offset) == Ok(PAGE)
            && core::slice::from_raw_parts(addr as *const u8, PAGE) == page.as_slice()
    }
}

/// Only private, writable memory of no file but our mappings is fit.
pub(crate) fn unfit_memory(
    map: &mut Map,
    tables: &PageTables,
    limit: usize,
    addr: usize,
    len: usize,
) -> Option<Reason> {
    if map.usage.mapped >= limit {
        return Some(Reason::Limit);
    }
    let mut at = addr;
    while at < addr + len {
        let Ok(mapping) = maps::mapping(tables.maps, at) else { return Some(Reason::Memory) };
        let ours = mapping.ino == 0 || map.view().overlapping(at, PAGE).any(|row| row.is_mapped());
        if mapping.start > at || !mapping.readable || !mapping.writable || mapping.shared || !ours {
            return Some(Reason::Memory);
        }
        at = mapping.end;
    }
    None
}
