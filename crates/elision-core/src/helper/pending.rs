//! A truncation that is put off: the program has opened its file with O_TRUNC, and is about to write nearly the same bytes.
//!
//! Until somebody may hear of it, nothing is cut. Meanwhile the program's other threads are held, and the saving thread stops where
//! a system call begins and ends ([`crate::quiet`]). Before the first that may tell anybody anything, before others may have the
//! file, and after a few milliseconds the file is cut to what was written.
#![allow(unsafe_code)] // Stores the file's size where the kernel has just stored another.

use crate::extent::TargetId;
use crate::helper::descriptions;
use crate::helper::files::Files;
use crate::helper::guard::breaks;
use crate::helper::page_tables::PageTables;
use crate::helper::requests;
use crate::helper::state::{NO_PENDING, Pending, State};
use crate::helper::stop_world::StopWorld;
use crate::quiet::{self, Form, Meaning};
use crate::shared::control;
use crate::shared::pending as shared;
use crate::shared::requests::{Op, Request, step};
use core::mem::offset_of;
use elision_sys::file;
use elision_sys::maps;
use elision_sys::task::{self, CallStop, Onward, Stop, Traced};

/// Threads that are held for a save.
const THREADS: usize = 256;

/// How long the program may compute between its calls, alone and while its other threads are held.
const PATIENCE_NS: u64 = 100_000_000;
const PATIENCE_OF_OTHERS_NS: u64 = 10_000_000;

/// In all, as a multiple of that, writes under way apart: the saving thread may spin until another one does something.
const IN_ALL: u64 = 10;

/// Calls of `write` that are let through. What writes little by little gains nothing.
const WRITES: u32 = 32;

/// What a save may write while the other threads are held: some milliseconds.
const MOST: usize = 4 << 20;

/// Looks without a nap.
const LOOKS: u32 = 400;

/// Holds the program's threads, all but the one that asks, and puts the truncation of this file off. False: nothing was done.
pub(crate) fn begin(state: &mut State, id: TargetId, request: &Request) -> bool {
    let State { pending, world, program, .. } = state;
    let program = *program;
    if shares_memory(&state.tables) || !world.try_to_stop(program, THREADS) {
        return false;
    }
    shared::begin(request.fd, request.key);
    if !world.let_run(program, request.tid, Onward::ToCall) {
        shared::end();
        world.resume(program);
        return false;
    }
    let mut fds = NO_PENDING.fds;
    if let Some(first) = fds.first_mut() {
        *first = request.fd;
    }
    let now = task::now_ns();
    *pending = Pending { tid: request.tid, id, fds, since_ns: now, begun_ns: now, ..NO_PENDING };
    true
}

/// Stores into memory that others share are not seen.
fn shares_memory(tables: &PageTables) -> bool {
    let mut at = 0;
    while let Ok(mapping) = maps::mapping_shared(tables.maps, at) {
        if !crate::shared::forks::is_board(mapping.start, mapping.end) {
            return true;
        }
        at = mapping.end;
    }
    false
}

/// May the request be answered while the truncation is put off?
pub(crate) fn goes_on(state: &State, request: &Request) -> bool {
    let of_the_save = state.files.find(request.key) == Some(state.pending.id);
    match request.op {
        Op::Ping | Op::Untrack => true,
        Op::Wrote => of_the_save,
        Op::Plan if request.more => of_the_save,
        // What is skipped is a hole.
        Op::Plan | Op::BeforeWrite => {
            of_the_save && request.offset.saturating_sub(request.head as u64) <= shared::size()
        }
        _ => false,
    }
}

/// Follows the saving thread until somebody asks for something. False: the truncation is to be made.
pub(crate) fn watch(state: &mut State) -> bool {
    let mut looks = 0;
    loop {
        step();
        if requests::waiting() || breaks::any() {
            return true;
        }
        let State { pending, world, files, .. } = &mut *state;
        match world.poll(pending.tid) {
            Traced::Running => {
                if is_over(pending, world, files) {
                    return false;
                }
                looks += 1;
                if looks < LOOKS { task::yield_now() } else { task::nap_us(20) }
            }
            Traced::Stopped(Stop::Call) => {
                looks = 0;
                if !at_call(state) {
                    return false;
                }
                state.pending.since_ns = task::now_ns();
            }
            Traced::Stopped(_) | Traced::Gone => return false,
        }
    }
}

fn is_over(pending: &Pending, world: &StopWorld, files: &Files) -> bool {
    let patience = if world.holds_others() { PATIENCE_OF_OTHERS_NS } else { PATIENCE_NS };
    let now = task::now_ns();
    files.get(pending.id).writer == 0
        && (now.saturating_sub(pending.since_ns) > patience
            || now.saturating_sub(pending.begun_ns) > IN_ALL * patience)
}

/// The saving thread has stopped where a call begins or ends. False: the call may tell.
fn at_call(state: &mut State) -> bool {
    let State { pending, world, files, program, .. } = state;
    let mut onward = Onward::ToCall;
    match task::trace_call(pending.tid) {
        // The save's own writes, which may be many.
        Some(CallStop::Begin { .. }) if shared::is_inside() && files.get(pending.id).writer != 0 => {
            onward = Onward::Past;
        }
        Some(CallStop::Begin { .. }) if is_over(pending, world, files) => return false,
        Some(CallStop::Begin { number, arguments }) => {
            let ours = |fd| fd >= 0 && pending.fds.contains(&fd);
            pending.call = match quiet::meaning(number, &arguments, ours, is_empty) {
                Meaning::Tells | Meaning::AsksSize(..) if shared::is_inside() => Meaning::Quiet,
                Meaning::Tells if wakes_us(number, &arguments) => Meaning::Quiet,
                other => other,
            };
            match pending.call {
                Meaning::Tells => return false,
                Meaning::Duplicates if !pending.fds.contains(&-1) => return false,
                Meaning::Writes(at, most) => {
                    pending.writes += 1;
                    let at = at.or_else(|| position(files, pending.id));
                    let Some(at) = at.filter(|&at| at <= shared::size()) else { return false };
                    if pending.writes > WRITES {
                        return false;
                    }
                    pending.until = at.saturating_add(most);
                }
                _ => (),
            }
        }
        Some(CallStop::End { result }) => at_end(pending, files, result),
        None => return false,
    }
    world.let_run(*program, pending.tid, onward)
}

/// What has become of the call that has begun.
fn at_end(pending: &mut Pending, files: &Files, result: i64) {
    pending.until = 0;
    match core::mem::replace(&mut pending.call, Meaning::Quiet) {
        Meaning::AsksSize(at, form) if result == 0 => store_size(at as usize, form),
        Meaning::Writes(at, _) if result > 0 => {
            let end = at.map(|at| at + result as u64).or_else(|| position(files, pending.id));
            shared::has_grown(end.unwrap_or(0));
        }
        Meaning::Duplicates if result >= 0 => {
            if let Some(free) = pending.fds.iter_mut().find(|fd| **fd < 0) {
                *free = result as i32;
            }
        }
        _ => (),
    }
}

/// Would a save with this plan keep the other threads waiting?
pub(crate) fn takes_long(state: &mut State, request: &Request) -> bool {
    let runs = request.runs.iter().take(request.count);
    state.pending.written += runs.map(|run| run.len).sum::<usize>();
    state.world.holds_others() && state.pending.written > MOST
}

/// After a save whose writes were not looked at: the saving thread is in Elision's own code still.
pub(crate) fn look_again(state: &mut State) -> bool {
    let State { pending, world, program, .. } = state;
    pending.since_ns = task::now_ns();
    world.catch(*program, pending.tid) && world.let_run(*program, pending.tid, Onward::ToCall)
}

/// Cuts the file, and lets the program go.
pub(crate) fn end(state: &mut State) {
    let State { pending, world, files, map, program, .. } = state;
    let mut pending = core::mem::replace(pending, NO_PENDING);
    let Pending { tid, id, .. } = pending;
    // A call that has ended is accounted for first.
    let _ = world.catch(*program, tid);
    if let Some(CallStop::End { result }) = world.call_of(tid) {
        at_end(&mut pending, files, result);
    }
    // A killed program leaves what it has written. What a write under way may need stays.
    let size = if world.is_ending(tid) { shared::size() } else { needed(files, id).max(pending.until) };
    file::cut(files.get(id).source.fd, size);
    if let Some(entry) = files.get_mut(id) {
        entry.solid = entry.solid.min(size);
    }
    map.view().retain_of(id, |row| row.offset + row.len as u64 <= size);
    map.publish();
    shared::end();
    world.resume(*program);
}

/// In the middle of a save the bytes that it leaves out are still needed.
fn needed(files: &Files, id: TargetId) -> u64 {
    if files.get(id).writer != 0 { shared::until() } else { shared::size() }
}

/// What a killed helper has put off.
pub(crate) fn end_orphan(program: i32, files: &Files) {
    if let Some((fd, key, size)) = shared::now() {
        let size = files.find(key).map_or(size, |id| needed(files, id));
        if let Ok(fd) = descriptions::of_orphan(program, fd, key) {
            if file::stat(fd).is_ok_and(|stat| stat.id == key) {
                file::cut(fd, size);
            }
            file::close(fd);
        }
        shared::end();
    }
}

/// The client has a stopped helper or supervisor go on.
fn wakes_us(number: i64, arguments: &[u64; 6]) -> bool {
    let [pid, signal, ..] = *arguments;
    let us = [control::helper(), control::supervisor()];
    number == libc::SYS_kill && signal as i32 == libc::SIGCONT && us.contains(&(pid as u32))
}

fn position(files: &Files, id: TargetId) -> Option<u64> {
    file::seek(files.get(id).source.fd, 0, libc::SEEK_CUR).ok()
}

fn is_empty(path: u64) -> bool {
    path == 0 || task::peek(path as usize).is_some_and(|[word, _]| word as u8 == 0)
}

/// The size and the blocks of the file, as a real truncation would have left them.
fn store_size(at: usize, form: Form) {
    let size = shared::size();
    let (size_at, blocks_at) = match form {
        Form::Stat => (offset_of!(libc::stat, st_size), offset_of!(libc::stat, st_blocks)),
        Form::Statx => (offset_of!(libc::statx, stx_size), offset_of!(libc::statx, stx_blocks)),
    };
    let blocks = size.next_multiple_of(crate::transfer::PAGE as u64) / 512;
    for (offset, value) in [(size_at, size), (blocks_at, blocks)] {
        // SAFETY: the thread is stopped at the end of a call that has stored a structure there; the other threads are held.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at + offset).write_unaligned(value) };
    }
}
