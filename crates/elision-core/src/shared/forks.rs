//! The fork board: how processes that come of a fork coordinate.
//!
//! A child gets copies of the mappings, but the parent's helper holds the leases. Before a fork that helper quiesces, for a
//! consistent copy, and sets a mark (*uncovered*) on a page that both share. While any mark stands, the helper releases no guard.
//! The child's helper opens the files through the first one's descriptors, takes leases (or materialises), and removes the mark.
#![allow(unsafe_code)] // A page that parent and child share.

use crate::shared::control::PROGRAM;
use crate::shared::processes;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::task;

const MARKS: usize = 64;

#[repr(C)]
struct Board {
    uncovered: [AtomicU32; MARKS],
    forker: [AtomicU32; MARKS],
    child: [AtomicI32; MARKS],
    since_ms: [AtomicU64; MARKS],
}

static BOARD: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());
static MARK: AtomicUsize = AtomicUsize::new(MARKS);
/// The fork to quiesce for, by number; 0: none. And the last number.
static QUIESCE: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The epoch of the helper that has quiesced; 0: none.
static QUIESCED: AtomicU32 = AtomicU32::new(0);
/// An unknown child that is uncovered after this time was killed.
const UNKNOWN_MS: u64 = 5_000;
/// An uncovered child after this time is another process with its pid.
const UNCOVERED_MS: u64 = 60_000;

/// Counts begin and end of each fork: a file opened between the two may have been copied.
static FORKS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn count() -> u64 {
    FORKS.load(SeqCst)
}

pub(crate) fn count_one() {
    FORKS.fetch_add(1, SeqCst);
}

pub(crate) fn prepare() -> bool {
    let board = memory::allocate(size_of::<Board>().next_multiple_of(crate::transfer::PAGE), true);
    BOARD.store(board.unwrap_or(0) as *mut Board, Release);
    board.is_ok()
}

/// Is all of this range the board?
pub(crate) fn is_board(start: usize, end: usize) -> bool {
    let board = BOARD.load(Acquire).addr();
    board == start && end - start == size_of::<Board>().next_multiple_of(crate::transfer::PAGE)
}

fn board() -> Option<&'static Board> {
    // SAFETY: null, or atomics that are never unmapped.
    unsafe { BOARD.load(Acquire).as_ref() }
}

impl Board {
    fn stands(&self, at: usize, now: u64) -> bool {
        let (Some(mark), Some(since), Some(child)) =
            (self.uncovered.get(at), self.since_ms.get(at), self.child.get(at))
        else {
            return false;
        };
        let age = now.saturating_sub(since.load(Acquire));
        mark.load(Acquire) != 0
            && age < UNCOVERED_MS
            && match child.load(Acquire) {
                // The forking thread may be stopped before it names the child.
                0 => age < UNKNOWN_MS || processes::is_stopped(PROGRAM.load(Acquire)),
                child => !processes::is_gone(child),
            }
    }
}

pub(crate) fn children_uncovered() -> bool {
    let now = task::now_ms();
    board().is_some_and(|board| (0..MARKS).any(|at| board.stands(at, now)))
}

/// In the helper, before a fork. False: all marks are in use.
pub(crate) fn set_mark() -> bool {
    let Some(board) = board() else { return false };
    let now = task::now_ms();
    let free = (0..MARKS).find(|&at| !board.stands(at, now));
    MARK.store(free.unwrap_or(MARKS), Release);
    let Some((mark, since)) = free.and_then(|i| Some((board.uncovered.get(i)?, board.since_ms.get(i)?)))
    else {
        return false;
    };
    if let Some(child) = free.and_then(|i| board.child.get(i)) {
        child.store(0, Release);
    }
    since.store(now, Release);
    mark.store(1, Release);
    true
}

pub(crate) fn no_mark() {
    MARK.store(MARKS, Release);
}

pub(crate) fn remove_mark() {
    if let Some(mark) = board().and_then(|board| board.uncovered.get(MARK.load(Acquire))) {
        mark.store(0, Release);
    }
}

/// In a client, before its fork: takes the mark, and drops the thread's claim to earlier ones.
pub(crate) fn sign_mark() {
    let Some(board) = board() else { return };
    let forker = task::tid() as u32;
    for slot in &board.forker {
        let _ = slot.compare_exchange(forker, 0, AcqRel, Relaxed);
    }
    if let Some(slot) = board.forker.get(MARK.load(Acquire)) {
        slot.store(forker, Release);
    }
}

/// In a client: the fork's child, or negative. True if a mark was removed.
pub(crate) fn forked(child: i32) -> bool {
    let (Some(board), forker) = (board(), task::tid() as u32) else { return false };
    let mut removed = false;
    for (at, slot) in board.forker.iter().enumerate() {
        let (Some(mark), Some(known)) = (board.uncovered.get(at), board.child.get(at)) else { break };
        if slot.load(Acquire) != forker {
            continue;
        }
        known.store(child.max(0), Release);
        if slot.compare_exchange(forker, 0, AcqRel, Relaxed).is_ok() && child < 0 {
            mark.store(0, Release);
            removed = true;
        }
    }
    removed
}

pub(crate) fn begin() {
    let number = NUMBER.load(Relaxed).wrapping_add(1).max(1);
    NUMBER.store(number, Relaxed);
    QUIESCE.store(number, Release);
}

/// In a client: the fork is over, or the helper was killed.
pub(crate) fn end() {
    QUIESCE.store(0, Release);
    task::futex_wake(&QUIESCE);
}

pub(crate) fn reset() {
    QUIESCED.store(0, Release);
    QUIESCE.store(0, Release);
}

pub(crate) fn under_way() -> u32 {
    QUIESCE.load(Acquire)
}

pub(crate) fn wait_for_end(fork: u32) -> bool {
    task::futex_wait(&QUIESCE, fork, 5);
    QUIESCE.load(Acquire) != fork
}

/// This helper has quiesced; 0: no more.
pub(crate) fn set_quiesced(epoch: u32) {
    QUIESCED.store(epoch, SeqCst);
    if epoch == 0 {
        task::futex_wake(&QUIESCED);
    }
}

pub(crate) fn quiesced() -> u32 {
    QUIESCED.load(SeqCst)
}

/// In the supervisor, after the helper was killed: waits for the fork, with a time-out, since the forking thread may wait for a
/// lock whose holder waits for the next helper. The child sees by the epoch that its copy may be inconsistent.
pub(crate) fn wait_for_quiesced() {
    let begun = task::now_ms();
    loop {
        let fork = quiesced();
        let waited = task::ms_since(begun);
        if fork == 0 || waited >= 1_000 {
            return;
        }
        task::futex_wait(&QUIESCED, fork, 1_000 - waited);
    }
}
