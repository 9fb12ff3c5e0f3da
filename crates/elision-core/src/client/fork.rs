//! What happens to the sidecar at a fork.
//!
//! The child gets copies of the mappings, but leases that only its parent's sidecar holds. So before a fork the
//! sidecar is brought to rest (its memory is copied in a consistent state) and puts a mark on a page that parent and
//! child share: *uncovered*. While any mark stands, it materialises for breaks as ever, but lets no guard go. The child
//! starts a sidecar of its own, which opens the files through the first one's descriptors, takes leases of
//! its own (or materialises, where one is refused) and removes the mark.
#![allow(unsafe_code)] // A page that parent and child share, and a mask that whoever holds a lock may touch.

use crate::client::launch;
use crate::helper::processes;
use crate::shared::channel::{self, Call, Op};
use crate::stats::{COUNTERS, Reason};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::task::{self, Mask};

/// Marks on a page shared with forked children.
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
/// The fork for which the sidecar has to rest, by number; 0 for none. And the last number.
static REST: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The sidecar that has answered for the fork under way and rests, by its number; 0 if there is none.
static RESTING: AtomicU32 = AtomicU32::new(0);
/// A child of which nothing is known that has not covered itself by then was killed on the way. (One that is known to live may be stopped, or
/// have to wait for a processor.)
const UNKNOWN_MS: u64 = 5_000;
/// No child takes so long: another process has its number by now.
const UNCOVERED_MS: u64 = 60_000;

/// Held across one fork; forks of several threads take turns.
static FORKING: AtomicU32 = AtomicU32::new(0);

/// Beginnings and ends of forks of this process and of those it was forked from. (Both: what is opened between the two may have been copied.)
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Counts forks: what was opened when it was another may be shared with a forked process.
pub fn forks() -> u64 {
    launch::register();
    count()
}

/// In the sidecar: the same.
pub(crate) fn count() -> u64 {
    FORKS.load(SeqCst)
}

struct ForkMask(UnsafeCell<Option<Mask>>);
// SAFETY: only touched by the thread that holds FORKING.
unsafe impl Sync for ForkMask {}
static FORK_MASK: ForkMask = ForkMask(UnsafeCell::new(None));

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

/// In the supervisor: waits until no fork is under way for which a sidecar rests, or rested when it was killed. Not for ever: the forking
/// thread may wait for a lock of stdio's, whose holder waits for the next sidecar. (Then the child sees by the epoch that what it has
/// copies of was not at rest.)
pub(crate) fn wait_for_fork() {
    let begun = task::now_ms();
    loop {
        let fork = RESTING.load(SeqCst);
        let waited = task::ms_since(begun);
        if fork == 0 || waited >= 1_000 {
            return;
        }
        task::futex_wait(&RESTING, fork, 1_000 - waited);
    }
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
                // Who forked may not have come to saying so, either.
                0 => age < UNKNOWN_MS || processes::is_stopped(launch::PROGRAM.load(Acquire)),
                child => !processes::is_gone(child),
            }
    }
}

/// In the sidecar: is there a forked child that does not hold its own leases yet?
pub(crate) fn children_uncovered() -> bool {
    let now = task::now_ms();
    board().is_some_and(|board| (0..MARKS).any(|at| board.stands(at, now)))
}

/// In the sidecar: sets a mark for the fork that is about to happen. False: there is none left.
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

/// In the sidecar: the fork that is being prepared.
pub(crate) fn fork_under_way() -> u32 {
    REST.load(Acquire)
}

/// In the sidecar, after it answered [`Op::Fork`]: touches nothing until that fork is over. (The next one is another,
/// and still has to be answered.)
pub(crate) fn rest(fork: u32) {
    loop {
        // (Not if it is over already.)
        task::futex_wait(&REST, fork, 5);
        // What is asked for after the fork need not be declined.
        if REST.load(Acquire) != fork {
            return;
        }
        channel::answer_at_rest();
        if !processes::program_lives(launch::PROGRAM.load(Acquire)) {
            return;
        }
    }
}

fn remove_mark() {
    if let Some(mark) = board().and_then(|board| board.uncovered.get(MARK.load(Acquire))) {
        mark.store(0, Release);
    }
}

/// Before a fork.
pub extern "C" fn before_fork() {
    let mask = task::block_signals();
    while FORKING.compare_exchange(0, 1, SeqCst, Acquire).is_err() {
        task::futex_wait(&FORKING, 1, 100);
    }
    FORKS.fetch_add(1, SeqCst);
    // SAFETY: FORKING is held.
    unsafe { *FORK_MASK.0.get() = Some(mask) };
    MARK.store(MARKS, Release);
    launch::wait_started();
    // Even if there is nothing that depends on a lease yet: another thread may be about to change that.
    while launch::present() {
        let epoch = launch::epoch();
        // Another number each time: one that has rested for the last already has to see that this is another.
        let number = NUMBER.load(Relaxed).wrapping_add(1).max(1);
        NUMBER.store(number, Relaxed);
        REST.store(number, Release);
        let answered =
            Call::new(Op::Fork, false).is_some_and(|mut call| call.send() != Some(Reason::Sidecar));
        if answered {
            // If it is killed from now on, its parent waits with the next one until this is 0 again; unless that has begun already.
            RESTING.store(epoch, SeqCst);
            if launch::epoch() == epoch {
                break;
            }
            end_rest();
        }
        // It was killed; the next one has to be asked, who needs no mark that the last one may have set.
        REST.store(0, Release);
        remove_mark();
    }
    let Some(board) = board() else { return };
    // This thread's earlier forks are none of those that may yet turn out to have failed.
    let forker = task::tid() as u32;
    for slot in &board.forker {
        let _ = slot.compare_exchange(forker, 0, AcqRel, Relaxed);
    }
    if let Some(slot) = board.forker.get(MARK.load(Acquire)) {
        slot.store(forker, Release);
    }
}

/// After [`after_fork_parent`]: what the calling thread's fork came to. The mark would be removed by the child alone, and whoever wanted a
/// file had to wait for [`UNKNOWN_MS`] if there was none, or it was killed before it could.
pub fn forked(child: i32) {
    let (Some(board), forker) = (board(), task::tid() as u32) else { return };
    for (at, slot) in board.forker.iter().enumerate() {
        let (Some(mark), Some(known)) = (board.uncovered.get(at), board.child.get(at)) else { break };
        if slot.load(Acquire) != forker {
            continue;
        }
        known.store(child.max(0), Release);
        if slot.compare_exchange(forker, 0, AcqRel, Relaxed).is_ok() && child < 0 {
            mark.store(0, Release);
            channel::ring();
        }
    }
}

fn end_rest() {
    RESTING.store(0, SeqCst);
    task::futex_wake(&RESTING);
}

/// After a fork, in the parent.
pub extern "C" fn after_fork_parent() {
    end_rest();
    REST.store(0, Release);
    task::futex_wake(&REST);
    end_fork();
}

/// After a fork, in the child.
pub extern "C" fn after_fork_child() {
    // Else there was none, or it was killed while it rested; and what this is a copy of may have been changed by another in the middle of it.
    let rested = RESTING.load(Acquire) == launch::epoch() && launch::running();
    RESTING.store(0, Release);
    REST.store(0, Release);
    let predecessor = launch::begin_in_child();
    channel::reset();
    crate::shared::unmap_queue::reset();
    processes::begin();
    COUNTERS.reset();
    if crate::helper::state::LIVE.load(Acquire) > 0 {
        // SAFETY: there is no sidecar, and this is the only thread.
        if !rested && let Some(state) = unsafe { launch::state() } {
            state.usage.whole = false;
        }
        if !launch::start_in_child(if rested { predecessor } else { -1 }) {
            // SAFETY: as above.
            if let Some(state) = unsafe { launch::state() } {
                state.materialise_alone();
            }
        }
    } else {
        crate::shared::hot::GLANCE.writers.store(0, Release);
    }
    remove_mark();
    end_fork();
}

fn end_fork() {
    // SAFETY: FORKING is held, by this thread or by the one it was copied from.
    let mask = unsafe { (*FORK_MASK.0.get()).take() };
    FORKS.fetch_add(1, SeqCst);
    FORKING.store(0, Release);
    task::futex_wake(&FORKING);
    if let Some(mask) = mask {
        task::restore_signals(mask);
    }
}
