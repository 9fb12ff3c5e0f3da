//! Memory that the program is about to unmap, move, reshape or overwrite.
//!
//! A function is `unsafe` where a wrong call loses bytes; the others can only load or write too much.
#![allow(unsafe_code)] // The callers' promises are passed on.

use crate::client::call::Call;
use crate::history;
use crate::shared::live;
use crate::shared::requests::{self, Op, PageRun, RUNS, Request};
use crate::shared::unmap_queue;
use crate::stats;
use crate::transfer::PAGE;
use elision_sys::pages;

/// May any page have an extent? `false` is certain. One atomic load while nothing is deferred.
pub fn touched(addr: usize, len: usize) -> bool {
    live::touched(addr, len)
}

fn pages_around(addr: usize, len: usize) -> (usize, usize) {
    let start = addr / PAGE * PAGE;
    (start, (addr + len).next_multiple_of(PAGE).saturating_sub(start))
}

fn pages_inside(addr: usize, len: usize) -> (usize, usize) {
    let start = addr.next_multiple_of(PAGE);
    (start, ((addr + len) / PAGE * PAGE).saturating_sub(start))
}

/// Sends a request on a range that may have extents. Returns the bytes handled.
fn ask(op: Op, (addr, len): (usize, usize)) -> usize {
    if len > 0 && touched(addr, len) { ask_known(op, addr, len) } else { 0 }
}

fn ask_known(op: Op, addr: usize, len: usize) -> usize {
    let Some(mut call) = Call::new(op, false) else { return 0 };
    (call.request().addr, call.request().len) = (addr, len);
    if call.send().is_none() { call.request().handled } else { 0 }
}

/// Drops the records of a range before it is unmapped or mapped over.
///
/// # Safety
/// The caller no longer relies on the contents: the file may change from now on.
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

pub(crate) fn forget_known(addr: usize, len: usize) {
    // The helper reads the page tables before they are gone.
    if !stats::exact() && unmap_queue::leave(addr, len) {
        requests::ring();
    } else {
        ask_known(Op::Forget, addr, len);
    }
}

pub fn dissolve(addr: usize, len: usize) {
    ask(Op::Dissolve, pages_around(addr, len));
}

/// Moves whole pages over those at `to`; deferred pages stay deferred, old addresses stay reserved. Returns the bytes moved.
///
/// # Safety
/// Both ranges are the caller's alone, and the contents at `to` may go.
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
    // A helper killed just after a move has not reported it.
    let more = declined.is_some() && tried > 0 && pages::have_moved(addr + handled, to + handled, tried);
    handled + if more { tried } else { 0 }
}

/// Stops tracking a range just written: another write to the file was under way.
pub fn untrack(addr: usize, len: usize) {
    ask(Op::Untrack, pages_inside(addr, len));
}

/// Makes deferred pages zero, before MADV_DONTNEED.
///
/// # Safety
/// The caller owns the range, and wants it overwritten.
pub unsafe fn zero(addr: usize, len: usize) {
    live::let_go_of_page(addr, len);
    ask(Op::Zero, pages_inside(addr, len));
}

/// Gives loaded, unaltered pages back; a touch loads them again. Returns the bytes.
///
/// # Safety
/// No thread may store into the range meanwhile.
pub unsafe fn unload(addr: usize, len: usize) -> usize {
    ask(Op::Unload, (addr, len))
}

/// The runs of pages from `addr` on. Returns the bytes covered.
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

/// For tests: the number of extents.
///
/// # Errors
/// The first broken invariant.
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
