//! The fork board: what the processes that come of a fork tell each other.
//!
//! A child gets copies of the mappings, but only its parent's helper holds the leases. So before a fork that helper quiesces (its memory is
//! copied in a consistent state) and sets a mark on a page that parent and child share: *uncovered*. While any mark stands, the helper
//! materialises for breaks as ever, but lets no guard go. The child starts a helper of its own, which opens the files through the first one's
//! descriptors, takes leases of its own (or materialises, where one is refused), and removes the mark.
#![allow(unsafe_code)] // A page that parent and child share.

use crate::shared::control::PROGRAM;
use crate::shared::processes;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::task;

/// Marks on the page.
const MARKS: usize = 64;

#[repr(C)]
struct Board {
    uncovered: [AtomicU32; MARKS],
    /// The thread whose last fork has set the mark.
    forker: [AtomicU32; MARKS],
    /// The process that came of it, if that is known.
    child: [AtomicI32; MARKS],
    since_ms: [AtomicU64; MARKS],
}

static BOARD: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());
/// The mark of the fork under way.
static MARK: AtomicUsize = AtomicUsize::new(MARKS);
/// The fork for which the helper has to quiesce, by number; 0 for none. And the last number.
static QUIESCE: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The helper that has quiesced for the fork under way, by its number; 0 if there is none.
static QUIESCED: AtomicU32 = AtomicU32::new(0);
/// A child of which nothing is known that has not covered itself by then was killed on the way.
const UNKNOWN_MS: u64 = 5_000;
/// No child takes so long: another process has its number by now.
const UNCOVERED_MS: u64 = 60_000;

/// Beginnings and ends of forks of this process and of those it was forked from. (Both: what is opened between the two may have been copied.)
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Counts forks: what was opened when it was another may be shared with a forked process.
pub(crate) fn count() -> u64 {
    FORKS.load(SeqCst)
}

/// A fork begins, or has ended.
pub(crate) fn count_one() {
    FORKS.fetch_add(1, SeqCst);
}

/// Makes the page that is shared with children. Before anything else here.
pub(crate) fn prepare() -> bool {
    let board = memory::allocate(size_of::<Board>().next_multiple_of(crate::transfer::PAGE), true);
    BOARD.store(board.unwrap_or(0) as *mut Board, Release);
    board.is_ok()
}

fn board() -> Option<&'static Board> {
    // SAFETY: null, or memory that is never unmapped; it holds atomics only.
    unsafe { BOARD.load(Acquire).as_ref() }
}

impl Board {
    /// Does the mark stand for a child that does not hold its own leases yet?
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
                // The thread that forked may not have come to saying so, either.
                0 => age < UNKNOWN_MS || processes::is_stopped(PROGRAM.load(Acquire)),
                child => !processes::is_gone(child),
            }
    }
}

/// In the helper: is there a forked child that does not hold its own leases yet?
pub(crate) fn children_uncovered() -> bool {
    let now = task::now_ms();
    board().is_some_and(|board| (0..MARKS).any(|at| board.stands(at, now)))
}

/// In the helper: sets a mark for the fork that is about to happen. False: there is none left.
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

/// In a client: no fork has a mark.
pub(crate) fn no_mark() {
    MARK.store(MARKS, Release);
}

/// Removes the mark of the fork under way.
pub(crate) fn remove_mark() {
    if let Some(mark) = board().and_then(|board| board.uncovered.get(MARK.load(Acquire))) {
        mark.store(0, Release);
    }
}

/// In a client, before its fork: the mark is this thread's, and those of its earlier forks are not.
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

/// In a client: what the calling thread's fork came to, a child or (negative) none. True if that has removed a mark.
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

/// In a client, which is about to ask the helper: gives the fork a number of its own.
pub(crate) fn begin() {
    let number = NUMBER.load(Relaxed).wrapping_add(1).max(1);
    NUMBER.store(number, Relaxed);
    QUIESCE.store(number, Release);
}

/// In a client: the fork is over, or the helper was killed before it could quiesce.
pub(crate) fn end() {
    QUIESCE.store(0, Release);
    task::futex_wake(&QUIESCE);
}

/// In a forked child: that fork is over.
pub(crate) fn reset() {
    QUIESCED.store(0, Release);
    QUIESCE.store(0, Release);
}

/// In the helper: the fork that is being prepared.
pub(crate) fn under_way() -> u32 {
    QUIESCE.load(Acquire)
}

/// In the helper: waits a little while for the end of a fork. True: it is over.
pub(crate) fn wait_for_end(fork: u32) -> bool {
    task::futex_wait(&QUIESCE, fork, 5);
    QUIESCE.load(Acquire) != fork
}

/// In a client: this helper has quiesced, or (0) need not any more. If it is killed meanwhile, the supervisor waits for the end of the fork.
pub(crate) fn set_quiesced(epoch: u32) {
    QUIESCED.store(epoch, SeqCst);
    if epoch == 0 {
        task::futex_wake(&QUIESCED);
    }
}

/// The helper that has quiesced, by its number, or 0.
pub(crate) fn quiesced() -> u32 {
    QUIESCED.load(SeqCst)
}

/// In the supervisor: waits for the end of a fork for which a helper quiesced that was killed. Not for ever: the forking thread may wait for a
/// lock of stdio's, whose holder waits for the next helper. (Then the child sees by the epoch that what it has copied was not quiet.)
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
