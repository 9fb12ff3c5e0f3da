//! What becomes of each file's pages over time, for `elision run --report`.
//!
//! A file is divided into cells. For each file whose cells have changed, the helper appends a line to the statistics: the state of each
//! cell, and what was done with it since the line before.

use crate::helper::state::State;
use crate::helper::strips::{AHEAD, ELIDED, WRITTEN};
use crate::shared::requests::{Op, Request};

/// A save of `request.len` bytes: what lies in the planned runs was written.
pub(crate) fn saved(state: &mut State, request: &Request) {
    if !state.journal.is_on() {
        return;
    }
    let end = request.addr + request.len;
    let mut note = |from: usize, to: usize, did: u8| {
        let (from, to) = (from.min(end), to.min(end));
        let offset = request.offset + (from - request.addr) as u64;
        state.journal.note(request.key, offset, to.saturating_sub(from), did);
    };
    let mut at = request.addr;
    for run in request.runs.iter().take(request.count) {
        note(at, run.addr.max(at), ELIDED);
        note(run.addr, run.addr + run.len, WRITTEN);
        at = run.addr + run.len;
    }
    note(at.min(end), end, ELIDED);
}

/// Before an answer that may end what the page tables tell.
pub(crate) fn before(state: &mut State, op: Op) {
    let ends =
        matches!(op, Op::Forget | Op::Release | Op::Dissolve | Op::Zero | Op::Retire | Op::Leave | Op::End);
    if ends {
        look(state, true);
    }
}

/// `force`: also if it is early.
pub(crate) fn look(state: &mut State, force: bool) {
    let State { journal, map, files, tables, prefetch, .. } = state;
    if !journal.is_on() {
        return;
    }
    if let Some((id, offset, len)) = prefetch.take_asked() {
        journal.note(files.get(id).key, offset, len, AHEAD);
    }
    journal.look(map, tables, files, force);
}
