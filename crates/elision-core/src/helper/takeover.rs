//! What becomes of the extents when their helper was killed, or in a forked child.
#![allow(unsafe_code)] // The state, in a client that has no helper.

use crate::extent::{BLANK, Extent};
use crate::helper::files::{Files, Guard, NO_COPY};
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use crate::helper::state::{self, NO_PENDING, State};
use crate::helper::{guard, in_place, mappings, materialise, pending, ranges, requests};
use crate::shared::live;
use elision_sys::file::{self, FileKey};
use elision_sys::{maps, task};

/// In a forked child: takes guards of its own while the parent's helper waits.
pub(crate) fn take_over(state: &mut State, predecessor: i32) {
    // The write tracker belongs to the parent's memory; the child's only thread waits.
    state.map.view().retain(|row| row.is_mapped());
    state.world.alone = true;
    for id in state.files.ids() {
        let known = state.files.get(id);
        // In this process the number may be another file's.
        if let Some(entry) = state.files.get_mut(id) {
            entry.copy = NO_COPY;
        }
        if !known.used || known.guard == Guard::None {
            guard::drop_file(state, id);
            continue;
        }
        let taken = guard::on_fork(&known, predecessor);
        match (taken, state.files.get_mut(id)) {
            (Some(fd), Some(entry)) => {
                (entry.source.fd, entry.writer) = (fd, 0);
                entry.copy = guard::copy::join(known.copy, predecessor);
                state.files.watch(fd, id);
            }
            (None, Some(entry)) => {
                entry.guard = Guard::None;
                entry.source.fd = guard::reopen(&known, predecessor);
                entry.copy = guard::copy::join(known.copy, predecessor);
            }
            _ => (),
        }
    }
    // Only now: what they leave may be entered as a file.
    for id in state.files.ids() {
        let known = state.files.get(id);
        if known.used && known.guard == Guard::None {
            materialise::file(state, id);
            file::close(known.source.fd);
            guard::drop_file(state, id);
        }
    }
    state.world.alone = false;
    state.map.publish();
}

/// The killed helper's leases are gone, so nothing may stay mapped.
pub(crate) fn take_over_from_nobody(state: &mut State) {
    // Until all is done, extents depend on this helper or its successor, whatever the map says.
    state.map.unsurveyed = true;
    state.map.publish();
    in_place::put_back_page(state);
    recall(state);
    for id in state.files.ids() {
        if state.map.share(id).mapped > 0 {
            materialise::orphan(state, id);
        }
    }
    begin_anew(state);
}

pub(crate) fn begin_anew(state: &mut State) {
    guard::give_up_orphans(state);
    state.taking = FileKey::default();
    match state.map.usage.whole {
        true => state.map.view().retain(|_| false),
        false => state.map.view().clear(),
    }
    state.files.clear();
    state.map.intend(BLANK);
    state.map.usage.whole = true;
    state.map.unsurveyed = false;
    state.map.publish();
}

/// Records what deferred reads have mapped. If the dead helper was changing the map, the kernel is asked.
fn recall(state: &mut State) {
    for id in state.files.ids() {
        // In this process the descriptor's number may be another file's.
        if let Some(entry) = state.files.get_mut(id) {
            (entry.source.fd, entry.copy) = (-1, NO_COPY);
        }
    }
    if state.map.usage.whole {
        enter_mapped(state, state.map.intent);
        ranges::drain_unmapped(state);
    } else {
        state.map.view().clear();
        ranges::drain_unmapped(state);
        survey(&mut state.map, &state.tables, &state.files);
    }
}

/// Records every private mapping of a guarded file. One of the program's own is materialised with them, and then does not show later
/// changes of the file: so the kernel is asked only if the map cannot be believed.
fn survey(map: &mut Map, tables: &PageTables, files: &Files) {
    let mut at = 0;
    while let Ok(mapping) = maps::mapping_like_ours(tables.maps, at) {
        at = mapping.end;
        if let Some(file) = files.shown_as(mapping.dev, mapping.ino).filter(|_| !mapping.shared) {
            let (addr, len) = (mapping.start, mapping.end - mapping.start);
            let _ = map.view().insert(Extent::mapped(addr, len, file, mapping.offset));
        }
    }
}

fn enter_mapped(state: &mut State, whole: Extent) {
    let mut at = whole.addr;
    while at < whole.end() {
        let (end, ours) = mappings::stretch(&state.tables, &state.files, whole, at);
        if ours && let Some(extent) = whole.clip(at, end) {
            if let Some(source) = whole.source {
                mappings::learn(&state.tables, &mut state.files, source, at);
            }
            let _ = state.map.view().insert(extent);
            live::mark(extent.addr, extent.len);
        }
        at = end;
    }
}

fn in_the_program(state: &mut State, work: impl FnOnce(&mut State)) {
    state.world.alone = true;
    state.map.taking = false;
    state.tables.tracker = -1;
    let read_only = libc::O_RDONLY | libc::O_CLOEXEC;
    state.tables.pagemap = file::open(c"/proc/self/pagemap", read_only, 0).unwrap_or(-1);
    state.tables.maps = file::open(c"/proc/self/maps", read_only, 0).unwrap_or(-1);
    work(state);
    file::close(state.tables.pagemap);
    file::close(state.tables.maps);
}

/// In a forked child whose copy was taken while the helper worked.
///
/// # Safety
/// There must be no helper, and no other thread.
pub(crate) unsafe fn distrust() {
    // SAFETY: the caller's promise.
    if let Some(state) = unsafe { state::state() } {
        state.map.usage.whole = false;
    }
}

/// In a forked child that could not start a helper.
///
/// # Safety
/// As [`distrust`].
pub(crate) unsafe fn materialise_alone() {
    // SAFETY: the caller's promise.
    if let Some(state) = unsafe { state::state() } {
        in_the_program(state, |state| {
            recall(state);
            for id in state.files.ids() {
                materialise::file(state, id);
                guard::drop_file(state, id);
            }
        });
        state.map.publish();
    }
}

/// In a program whose helper and supervisor were killed: the next helper may not reach the file.
///
/// # Safety
/// As [`take_over_alone`].
pub(crate) unsafe fn truncate_alone() {
    // SAFETY: the caller's promise.
    if let Some(state) = unsafe { state::state() } {
        pending::end_orphan(task::pid(), &state.files);
    }
}

/// In a program whose killed helper cannot be replaced. Other threads run: a store into a page being exchanged is lost.
///
/// # Safety
/// There must be no helper, and no other thread may come here.
pub(crate) unsafe fn take_over_alone() {
    // SAFETY: the caller's promise.
    if let Some(state) = unsafe { state::state() } {
        requests::begin();
        state.pending = NO_PENDING;
        pending::end_orphan(task::pid(), &state.files);
        in_the_program(state, take_over_from_nobody);
    }
}
