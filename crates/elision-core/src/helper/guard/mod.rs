//! Guards keep a file's bytes fixed while extents depend on them.
//!
//! Each kind is one file with `acquire`, `still_holds`, `on_break` (may it go?), `on_fork` (a child's guard) and `give_up`.
//! Extents are materialised before the guard goes; the [`stamp`] outlives it.

pub(crate) mod breaks;
pub(crate) mod copy;
mod immutable;
mod lease;
mod read_lease;
pub(crate) mod stamp;
mod write_lease;

pub(crate) use immutable::is_immutable;
pub(crate) use lease::keep_spare_descriptors;
#[cfg(test)]
pub(crate) use lease::take_read_lease;
pub(crate) use write_lease::{has_our_lease, holds_locks, program_holds};

use crate::extent::{Extent, TargetId};
use crate::helper::descriptions;
use crate::helper::files::{File, Guard, NO_COPY, NO_FILE, Source};
use crate::helper::guard::breaks::Broken;
use crate::helper::state::State;
use crate::helper::{learn, materialise, pending};
use crate::shared::control;
use crate::shared::live;
use crate::shared::processes;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file::{self, FileKey, Stat};

pub(crate) fn acquire(
    state: &mut State,
    kind: Guard,
    request: &mut Request,
) -> Result<(TargetId, Stat), Reason> {
    // The lease outlives a helper that is killed before the file is entered.
    if kind == Guard::Write {
        state.taking = request.key;
    }
    let taken = match kind {
        Guard::None | Guard::Copy => Err(Reason::OwnWriter),
        Guard::Read => read_lease::acquire(request),
        Guard::Write => write_lease::acquire(state, request),
        Guard::Immutable => immutable::acquire(request),
    };
    let entered = taken.and_then(|fd| {
        enter(state, request, kind, fd).inspect_err(|_| {
            if kind == Guard::Write {
                let _ = file::set_lease(fd, libc::F_UNLCK);
            }
            file::close(fd);
        })
    });
    state.taking = FileKey::default();
    entered
}

/// The guard is there, and nobody waits for the file.
pub(crate) fn is_whole(known: &File) -> bool {
    still_holds(known, false)
}

/// The guard is there, even if somebody waits. The kernel takes it from a helper that was stopped too long.
pub(crate) fn is_held(known: &File) -> bool {
    still_holds(known, true)
}

fn still_holds(known: &File, though_wanted: bool) -> bool {
    match known.guard {
        Guard::None | Guard::Copy | Guard::Immutable => true,
        Guard::Read => read_lease::still_holds(known.source.fd, though_wanted),
        Guard::Write => write_lease::still_holds(known.source.fd, though_wanted),
    }
}

fn on_break(known: &File, program: i32) -> bool {
    match known.guard {
        Guard::None | Guard::Copy | Guard::Immutable => true,
        Guard::Read => read_lease::on_break(known, program),
        Guard::Write => write_lease::on_break(known, program),
    }
}

pub(crate) fn on_fork(known: &File, predecessor: i32) -> Option<i32> {
    match known.guard {
        Guard::None => None,
        Guard::Read => read_lease::on_fork(known, predecessor),
        Guard::Write => write_lease::on_fork(known, predecessor),
        Guard::Copy => copy::on_fork(known, predecessor),
        Guard::Immutable => immutable::on_fork(known, predecessor),
    }
}

/// The file, for a forked child that got no guard while its parent's helper has one. −1: none.
pub(crate) fn reopen(known: &File, predecessor: i32) -> i32 {
    let fd = if matches!(known.guard, Guard::Read | Guard::Immutable) {
        read_lease::reopen(known, predecessor)
    } else {
        None
    };
    fd.unwrap_or(-1)
}

/// `gone`: no mapping is left. False: a forked child depends on the guard.
fn give_up(state: &State, known: &File, gone: bool) -> bool {
    match known.guard {
        Guard::None | Guard::Copy => true,
        Guard::Read => read_lease::give_up(known),
        Guard::Immutable => immutable::give_up(),
        Guard::Write => write_lease::give_up(known, gone, state.program, state.tables.maps),
    }
}

/// Earlier tracked extents hold only if the file did not change unguarded.
fn enter(state: &mut State, request: &Request, guard: Guard, fd: i32) -> Result<(TargetId, Stat), Reason> {
    let (stat, stamp) = file::stat_and_ctime(fd).map_err(lease::refused)?;
    let (key, fs) = (request.key, request.fs);
    if stat.id != key {
        return Err(Reason::Raced);
    }
    let id = match state.files.find(key) {
        Some(id) => {
            let known = state.files.get(id);
            if known.stamp != stamp {
                state.map.view().retain_of(id, |row| row.is_mapped());
                state.map.publish();
            }
            state.files.set(id, File { fs, guard, source: Source { fd, ..known.source }, ..NO_FILE });
            id
        }
        None => state
            .files
            .add(File { key, fs, guard, source: Source { fd, ..Source::NONE }, ..NO_FILE })
            .ok_or(Reason::Limit)?,
    };
    state.files.watch(fd, id);
    Ok((id, stat))
}

/// True: some guard has to be asked about again soon.
pub(crate) fn answer_breaks(state: &mut State) -> bool {
    let mut again = false;
    breaks::take(|broken| {
        let named = match broken {
            Broken::One(fd) => state.files.watched(fd),
            Broken::All => None,
        };
        match named {
            Some(id) => again |= !answer_break(state, id),
            // Also if the named descriptor is no guard any more.
            None => state.files.ids().for_each(|id| again |= !answer_break(state, id)),
        }
    });
    again
}

fn answer_break(state: &mut State, id: TargetId) -> bool {
    let known = state.files.get(id);
    if !known.used || is_whole(&known) {
        return true;
    }
    if on_break(&known, state.program) {
        learn::learn_of_copy(&mut state.map, &mut state.tables, &state.files, id);
        if release(state, id) {
            return true;
        }
    }
    breaks::note(known.source.fd);
    false
}

/// Materialises what depends on the file, then gives up the guard. False: somebody still depends on it.
pub(crate) fn release(state: &mut State, id: TargetId) -> bool {
    let known = state.files.get(id);
    if known.guard == Guard::None {
        return true;
    }
    if state.pending.is_some() {
        // Only the program's own threads may be held when pages are exchanged.
        pending::end(state);
    }
    // The guard is asked for after the stamp: a guard that the kernel has taken away guarded nothing.
    let stamp = if state.fine_ctime && !known.guard.lasts() { stamp::take(&known) } else { None }
        .filter(|_| is_held(&known));
    live::count_change();
    let gone = materialise::file(state, id);
    if !give_up(state, &known, gone) {
        return false;
    }
    file::close(known.source.fd);
    match stamp.filter(|_| state.map.share(id).tracked > 0) {
        Some(stamp) => {
            known.copy.close();
            state.files.set(
                id,
                File {
                    guard: Guard::None,
                    source: Source { fd: -1, ..known.source },
                    stamp,
                    copy: NO_COPY,
                    solid: 0,
                    writer: 0,
                    ..known
                },
            );
        }
        None => drop_file(state, id),
    }
    state.map.publish();
    true
}

pub(crate) fn drop_file(state: &mut State, id: TargetId) {
    state.files.get(id).copy.close();
    state.map.view().retain_of(id, |_| false);
    state.files.remove(id);
}

pub(crate) fn sweep(state: &mut State) {
    state.map.dropped = false;
    for id in state.files.ids() {
        let known = state.files.get(id);
        let share = state.map.share(id);
        if known.used && known.writer == 0 && share.mapped + share.tracked == 0 {
            match known.guard {
                Guard::None => state.files.remove(id),
                _ => state.map.dropped |= !release(state, id),
            }
        }
    }
}

/// For a change other than a save; tells how much was deferred in vain.
pub(crate) fn release_for_nothing(state: &mut State, id: TargetId, request: &mut Request) {
    let known = state.files.get(id);
    if known.guard.lasts() {
        return;
    }
    if !known.saved {
        request.known = state.map.share(id).mapped;
    }
    release(state, id);
}

/// Before a fork: extents with altered pages get memory of their own, which a fork shares. The others stay deferred.
pub(crate) fn before_fork(state: &mut State) {
    let mut anonymous = None;
    for id in state.files.ids() {
        let known = state.files.get(id);
        if !known.used || known.guard == Guard::Immutable || state.map.share(id).mapped == 0 {
            continue;
        }
        let rows = state.map.view();
        let bytes: usize = rows.of_target(id, 0).filter(Extent::is_mapped).map(|row| row.len).sum();
        let (mut altered, mut at) = (0, 0);
        // The kernel takes long to look at each page of a file: 25 ms for 512 MiB.
        let most = *anonymous.get_or_insert_with(|| processes::anonymous(state.program).unwrap_or(u64::MAX));
        while most > bytes as u64 / 16
            && let Some(row) = state.map.view().of_target(id, at).find(|row| row.is_mapped())
        {
            at = row.end();
            altered += learn::ever_altered(&mut state.tables, row);
        }
        if altered > bytes / 16 {
            materialise::file(state, id);
        } else if known.guard == Guard::Read
            && known.copy == NO_COPY
            && let Some(entry) = state.files.get_mut(id)
        {
            entry.copy = copy::make().unwrap_or(NO_COPY);
        }
    }
    state.map.publish();
}

pub(crate) fn surrender(state: &mut State) {
    for id in state.files.ids() {
        if state.files.get(id).guard == Guard::Write {
            release(state, id);
        }
    }
}

/// The program is gone, but another process may have inherited its descriptions.
pub(crate) fn give_back_descriptions(state: &State) {
    state.files.known().filter(|file| file.guard == Guard::Write).for_each(write_lease::unlock);
}

/// In the program: what a killed helper has left, and the next could not reach.
pub(crate) fn give_up_own_orphans() {
    if control::take_orphans() {
        processes::each_own_descriptor(|fd| {
            descriptions::give_up_orphan(fd);
            true
        });
    }
}

/// Releases what a dead helper has left: else openers wait until the program closes. (Read leases go with mappings.)
pub(crate) fn give_up_orphans(state: &State) {
    let guarded = || {
        let known = state.files.known().filter(|file| file.guard == Guard::Write);
        known.map(|file| file.key).chain(Some(state.taking).filter(|&key| key != FileKey::default()))
    };
    if guarded().next().is_some() {
        processes::each_descriptor(state.program, |number| {
            write_lease::give_up_orphan(state.program, number, |key| guarded().any(|guarded| guarded == key));
            true
        });
    }
}
