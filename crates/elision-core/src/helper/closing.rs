//! The program closes a descriptor of a file under a write lease.
//!
//! The helper's own descriptor keeps the description open: whoever watches the file would not be told that the writer is done.

use crate::extent::TargetId;
use crate::helper::files::{Files, Guard};
use crate::helper::guard::{self, holds_locks, program_holds};
use crate::helper::state::State;
use crate::shared::requests::Request;
use elision_sys::task;

/// When the helper looks whether a close was the last one: first and last time.
const FIRST_LOOK_MS: u64 = 100;
const LAST_LOOK_MS: u64 = 1600;

/// Closed, and there is no need to look.
const NEVER: u64 = u64::MAX >> 1;

/// Keeping the description pays only for unloaded pages and for a moment, and never if it holds a lock.
pub(crate) fn closing(state: &mut State, request: &Request) {
    let Some(id) = state.files.find(request.key) else { return };
    let known = state.files.get(id);
    if known.guard != Guard::Write {
        return;
    }
    if state.map.share(id).mapped == 0 || holds_locks(known.source.fd) {
        guard::release(state, id);
    } else if !request.owned {
        put_off(&mut state.files, &mut state.look_at_ms, id, FIRST_LOOK_MS);
    } else if let Some(entry) = state.files.get_mut(id) {
        entry.closed = NEVER;
    }
}

fn put_off(files: &mut Files, look_at_ms: &mut u64, id: TargetId, put_off: u64) {
    // Files closed in a row are looked at together.
    let when = (task::now_ms() + put_off).next_multiple_of(FIRST_LOOK_MS / 2);
    if let Some(entry) = files.get_mut(id) {
        (entry.closed, entry.put_off) = (when, put_off);
    }
    look_when(look_at_ms, when);
}

fn look_when(look_at_ms: &mut u64, when: u64) {
    *look_at_ms = if *look_at_ms == 0 { when } else { (*look_at_ms).min(when) };
}

pub(crate) fn look(state: &mut State) {
    let now = if state.look_at_ms == 0 { 0 } else { task::now_ms() };
    if now < state.look_at_ms || state.look_at_ms == 0 {
        return;
    }
    state.look_at_ms = 0;
    for id in state.files.ids() {
        let known = state.files.get(id);
        if known.guard != Guard::Write || known.closed == 0 {
            continue;
        }
        if known.closed > now {
            look_when(&mut state.look_at_ms, known.closed);
        } else if !program_holds(&known, state.program) {
            guard::release(state, id);
        } else if known.put_off < LAST_LOOK_MS {
            // There is a duplicate, or the close is still to come.
            put_off(&mut state.files, &mut state.look_at_ms, id, known.put_off * 4);
        } else if let Some(entry) = state.files.get_mut(id) {
            entry.closed = 0;
        }
    }
}
