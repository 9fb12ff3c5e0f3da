//! Memory that the program is about to unmap, move, reshape or overwrite.
//!
//! Ranges are an address and a length in bytes. A function is `unsafe` where a wrong call loses bytes of the program; a wrong call of
//! the others can only have more loaded or written than need be.
#![allow(unsafe_code)] // The callers' promises are passed on.

use crate::client::call::Call;
use crate::history;
use crate::shared::live;
use crate::shared::requests::{self, Op, PageRun, RUNS, Request};
use crate::shared::unmap_queue;
use crate::stats;
use crate::transfer::PAGE;
use elision_sys::pages;

/// May any page of the range have an extent? `false` is certain. One atomic load while nothing is deferred.
pub fn touched(addr: usize, len: usize) -> bool {
    live::touched(addr, len)
}

/// All pages that a range touches.
fn pages_around(addr: usize, len: usize) -> (usize, usize) {
    let start = addr / PAGE * PAGE;
    (start, (addr + len).next_multiple_of(PAGE).saturating_sub(start))
}

/// The whole pages inside a range.
fn pages_inside(addr: usize, len: usize) -> (usize, usize) {
    let start = addr.next_multiple_of(PAGE);
    (start, ((addr + len) / PAGE * PAGE).saturating_sub(start))
}

/// Sends a request on a range, unless it has no extent. The answer: how many bytes were handled.
fn ask(op: Op, (addr, len): (usize, usize)) -> usize {
    if len > 0 && touched(addr, len) { ask_known(op, addr, len) } else { 0 }
}

/// As [`ask`], for a range that is recorded, or about to be.
fn ask_known(op: Op, addr: usize, len: usize) -> usize {
    let Some(mut call) = Call::new(op, false) else { return 0 };
    (call.request().addr, call.request().len) = (addr, len);
    if call.send().is_none() { call.request().handled } else { 0 }
}

/// Drops every record of a range that is about to be unmapped, or mapped over. The memory is untouched.
/// The client waits for the helper only where the history needs to know what became of the pages.
///
/// # Safety
/// The caller must not rely on the contents of the range any more: the file may change from now on.
pub unsafe fn forget(addr: usize, len: usize) {
    let (addr, len) = pages_around(addr, len);
    if len == 0 || !touched(addr, len) {
        return;
    }
    live::let_go_of_page(addr, len);
    if history::is_curious(len) {
        ask_known(Op::Forget, addr, len);
    } else {
        forget_known(addr, len);
    }
}

/// [`forget`] for whole pages that are recorded, or about to be.
pub(crate) fn forget_known(addr: usize, len: usize) {
    // Exact statistics need the page tables of the range, which the helper has to read before they are gone.
    if !stats::exact() && unmap_queue::leave(addr, len) {
        requests::ring();
    } else {
        ask_known(Op::Forget, addr, len);
    }
}

/// Makes the range plain anonymous memory with the same contents, before the program reshapes it (mremap,
/// mprotect, mlock, madvise other than DONTNEED).
pub fn dissolve(addr: usize, len: usize) {
    ask(Op::Dissolve, pages_around(addr, len));
}

/// Moves whole pages from `addr` to `to`, over what is there; deferred pages stay deferred. The old addresses stay
/// reserved. The answer: how many bytes were moved, from the beginning on.
///
/// # Safety
/// Both ranges must be the caller's alone: no thread touches the first, or relies on the contents of the second.
pub unsafe fn relocate(addr: usize, len: usize, to: usize) -> usize {
    if !touched(addr, len) {
        return 0;
    }
    let Some(mut call) = Call::new(Op::Relocate, false) else { return 0 };
    let request = call.request();
    (request.addr, request.len, request.offset) = (addr, len, to as u64);
    let declined = call.send();
    if !call.is_good() {
        return 0;
    }
    let &mut Request { handled, tried, .. } = call.request();
    // A helper that was killed may have moved the last run without saying so.
    let more = declined.is_some() && tried > 0 && pages::have_moved(addr + handled, to + handled, tried);
    handled + if more { tried } else { 0 }
}

/// Stops tracking a range that was just written to a file while another write to that file was under way: the
/// file's bytes are not known.
pub fn untrack(addr: usize, len: usize) {
    ask(Op::Untrack, pages_inside(addr, len));
}

/// Makes deferred pages of a range fresh zero pages, before MADV_DONTNEED.
///
/// # Safety
/// The caller must own the range, and want it overwritten.
pub unsafe fn zero(addr: usize, len: usize) {
    live::let_go_of_page(addr, len);
    ask(Op::Zero, pages_inside(addr, len));
}

/// Gives the memory of loaded pages without memory of their own back; a touch loads them again. The answer: how many bytes.
///
/// # Safety
/// No thread may store into the range meanwhile.
pub unsafe fn unload(addr: usize, len: usize) -> usize {
    ask(Op::Unload, (addr, len))
}

/// The state of each run of pages from `addr` on, as in [`PageRun::state`]. The answer: how many bytes are known.
pub fn query(addr: usize, len: usize, mut each: impl FnMut(&PageRun)) -> usize {
    let mut at = 0;
    while at < len && touched(addr, len) {
        let Some(mut call) = Call::new(Op::Query, false) else { break };
        let request = call.request();
        (request.addr, request.len) = (addr + at, len - at);
        if call.send().is_some() {
            break;
        }
        let answer = call.request();
        answer.runs.iter().take(answer.count.min(RUNS)).for_each(&mut each);
        if answer.handled == 0 {
            break;
        }
        at += answer.handled;
    }
    at
}

/// For tests: the number of extents, or what is inconsistent in the helper's records.
///
/// # Errors
/// A sentence on the first broken invariant.
pub fn validate() -> Result<usize, &'static str> {
    let Some(mut call) = Call::new(Op::Validate, false) else { return Ok(0) };
    if call.send().is_some() {
        return Ok(0);
    }
    match call.request().broken {
        Some(broken) => Err(broken),
        None => Ok(call.request().handled),
    }
}
