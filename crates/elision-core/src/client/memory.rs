//! Memory that the program is about to unmap, move, reshape or overwrite.
//!
//! A function is `unsafe` where a wrong call loses bytes; the others can only load or write too much.
#![allow(unsafe_code)] // The callers' promises are passed on.

use crate::client::call::Call;
use crate::history;
use crate::shared::hot::HOT;
use crate::shared::live;
use crate::shared::requests::{self, Op, PageRun, RUNS, Request};
use crate::shared::unmap_queue;
use crate::stats;
use crate::transfer::PAGE;
use core::sync::atomic::Ordering::Relaxed;
use elision_sys::{memory, pages};

/// May any page have an extent? `false` is certain. One atomic load while nothing is deferred.
pub fn touched(addr: usize, len: usize) -> bool {
    live::touched(addr, len)
}

/// The program asks for huge pages: memory that is materialised comes in such.
pub fn wants_huge_pages() {
    HOT.huge.store(true, Relaxed);
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

/// Maps a range that the kernel is about to copy. (At each fault within a copy ext4 goes on in smaller folios.) Ends before a page
/// that has to be read: the copy reads in order, and memory may not have room for all.
pub(crate) fn map_cached(addr: usize, len: usize) {
    const STEP: usize = 512;
    let (start, len) = pages_around(addr, len);
    for at in (start..start + len).step_by(STEP * PAGE) {
        let mut there = [0; STEP];
        let count = STEP.min((start + len - at) / PAGE);
        let Some(there) = there.get_mut(..count) else { return };
        // SAFETY: populating changes no contents. What cannot be mapped is the copy's to report.
        let map = || unsafe { memory::advise(at, count * PAGE, libc::MADV_POPULATE_READ) };
        if memory::all_cached(at, there) != Some(true) || map().is_err() {
            return;
        }
    }
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

/// Lets whole pages at `to` stand for the file bytes that those at `addr` stand for. Calls `copy` with each part (from, length) of the range
/// that the caller has to copy.
///
/// # Safety
/// Nobody stores into the pages at `addr` meanwhile; those at `to` are the caller's alone, and fresh.
pub unsafe fn duplicate(addr: usize, len: usize, to: usize, mut copy: impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < len && touched(addr, len) {
        let Some(mut call) = Call::new(Op::Duplicate, false) else { break };
        let request = call.request();
        (request.addr, request.len, request.offset) = (addr + at, len - at, (to + at) as u64);
        if call.send().is_some() {
            break;
        }
        let answer = call.request();
        let (handled, runs, count) = (answer.handled.min(len - at), answer.runs, answer.count.min(RUNS));
        // Signals are blocked until here.
        drop(call);
        if handled == 0 {
            break;
        }
        runs.iter().take(count).for_each(|run| copy(run.addr - addr, run.len));
        at += handled;
    }
    if at < len {
        copy(at, len - at);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use elision_sys::file;
    use elision_sys::pages::{Run, Wanted, category};
    use std::os::fd::AsRawFd;

    #[test]
    fn cached_pages_are_mapped_up_to_one_that_is_not_there() {
        let (count, step) = (2000, 512);
        let cached = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &cached, &vec![1; count * PAGE]).unwrap();
        let pagemap = file::open(c"/proc/self/pagemap", libc::O_RDONLY | libc::O_CLOEXEC, 0).unwrap();
        let wanted = Wanted { any: category::PRESENT, ..Wanted::default() };
        for missing in [count, 3 * step - 1] {
            let at = memory::reserve(count * PAGE).unwrap();
            // SAFETY: of this test alone.
            unsafe {
                memory::map_file_at(at, count * PAGE, cached.as_raw_fd(), 0).unwrap();
                memory::unmap(at + missing * PAGE, (count - missing) * PAGE);
            }
            map_cached(at + 1, count * PAGE - 2);
            let mut runs = [Run::default(); 8];
            let (found, _) = pages::scan(pagemap, at, at + count * PAGE, wanted, &mut runs).unwrap();
            let mapped: u64 = runs[..found].iter().map(|run| run.end - run.start).sum();
            // One fault maps up to 16 pages.
            let least = if missing == count { count } else { 2 * step };
            assert!((least..least + 16).contains(&(mapped as usize / PAGE)), "{mapped}");
            // SAFETY: as above.
            unsafe { memory::unmap(at, count * PAGE) };
        }
        file::close(pagemap);
    }
}
