//! The program has opened a file to empty it.

use crate::helper::files::Guard;
use crate::helper::state::State;
use crate::helper::{guard, pending};
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file::FileKey;

/// Puts the truncation off if the program has pages that equal the file's: `len` bytes at least. Else the program truncates.
pub(crate) fn truncate(state: &mut State, request: &mut Request) -> Option<Reason> {
    if !request.owned || equal(state, request.key) < request.len {
        return Some(Reason::Emptied);
    }
    let (id, _) = match guard::acquire(state, Guard::Write, request) {
        Ok(taken) => taken,
        Err(reason) => return Some(reason),
    };
    // The guard tells whether the file is still the same.
    let begun = equal(state, request.key) >= request.len
        && state.map.share(id).mapped == 0
        && pending::begin(state, id, request);
    if !begun {
        guard::release(state, id);
        return Some(Reason::Emptied);
    }
    None
}

/// Bytes of the file's tracked extents.
fn equal(state: &mut State, key: FileKey) -> usize {
    let Some(id) = state.files.find(key) else { return 0 };
    let (mut bytes, mut at) = (0, 0);
    while let Some(row) = state.map.view().of_target(id, at).next() {
        at = row.end();
        bytes += if row.is_mapped() { 0 } else { row.len };
    }
    bytes
}
