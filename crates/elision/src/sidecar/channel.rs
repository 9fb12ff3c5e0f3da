//! Requests and answers between the program's threads and the sidecar.
//!
//! A request lives in one of a fixed number of slots in shared memory. A thread claims a slot, fills it, pushes it on a
//! lock-free list, rings the bell and waits; the sidecar takes the whole list, answers each request in turn and wakes
//! its thread. The thread's signals are blocked meanwhile: a handler that left by `longjmp` would otherwise
//! return the slot, or let the sidecar map over a buffer whose read the program believes abandoned.
#![allow(unsafe_code)] // The slots are shared with another process: interior mutability by hand-over, argued below.

use super::launch;
use crate::stats::Reason;
use crate::sys::file::FileKey;
use crate::sys::task;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::*};

/// What the sidecar is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Op {
    /// Nothing; shows that it is there.
    #[default]
    Ping,
    /// Map whole pages of a file over a buffer.
    Associate,
    /// Which pages does a write have to write?
    Plan,
    /// A planned write was carried out, up to `len`; `tried` bytes were planned.
    Wrote,
    /// A small write to a guarded file is about to happen.
    BeforeWrite,
    /// The file is about to change in a way nobody can follow.
    Release,
    /// A descriptor of the file is about to be closed, perhaps the last.
    Closing,
    /// All write leases go.
    Surrender,
    /// Drop the records of a range.
    Forget,
    /// Make a range plain memory.
    Dissolve,
    /// Make deferred pages of a range zero.
    Zero,
    /// What is the state of the pages of a range?
    Query,
    /// A fork is about to happen: hold everything still.
    Fork,
    /// Write the statistics and go.
    Finish,
}

/// A run of pages in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageRun {
    /// Address of the first byte.
    pub addr: usize,
    /// Bytes.
    pub len: usize,
    /// For [`Op::Query`]: 0 plain, 1 associated and not loaded, 2 associated and loaded, 3 associated with memory of
    /// its own, 4 altered.
    pub state: u8,
}

/// Page runs that one answer can hold.
pub const RUNS: usize = 256;

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Process whose descriptor `fd` is: a vfork child shares memory but not descriptors.
    pub pid: i32,
    /// Descriptor.
    pub fd: i32,
    /// Its status flags (`F_GETFL`).
    pub flags: i32,
    /// Its file.
    pub key: FileKey,
    /// Memory.
    pub addr: usize,
    /// Bytes.
    pub len: usize,
    /// File position of `addr`.
    pub offset: u64,
    /// The caller vouches that every change through this description is shown first.
    pub owned: bool,
    /// Nobody else can store into the pages around the buffer: fragments may be associated too.
    pub exclusive: bool,
    /// Begin to track what is written.
    pub track: bool,
    /// Bytes of the same transfer just before these pages.
    pub head: usize,
    /// Bytes just after; for [`Op::Plan`] nonzero also for the last page alone.
    pub tail: usize,
    /// For [`Op::Wrote`]: bytes planned.
    pub tried: usize,
    /// The answer: `None` done, or why not.
    pub declined: Option<Reason>,
    /// Answer: bytes handled; the rest has to be asked again.
    pub handled: usize,
    /// Answer: how many of `runs` are filled.
    pub count: usize,
    /// Answer: page runs.
    pub runs: [PageRun; RUNS],
}

const BLANK: Request = Request {
    op: Op::Ping,
    pid: 0,
    fd: -1,
    flags: 0,
    key: FileKey { dev: 0, ino: 0 },
    addr: 0,
    len: 0,
    offset: 0,
    owned: false,
    exclusive: false,
    track: false,
    head: 0,
    tail: 0,
    tried: 0,
    declined: None,
    handled: 0,
    count: 0,
    runs: [PageRun { addr: 0, len: 0, state: 0 }; RUNS],
};

impl Default for Request {
    fn default() -> Self {
        BLANK
    }
}

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const SLEEPING: u32 = 3;
const DONE: u32 = 4;

struct Slot {
    status: AtomicU32,
    next: AtomicPtr<Slot>,
    request: UnsafeCell<Request>,
}

// SAFETY: `request` belongs to the thread that moved `status` from FREE to CLAIMED, to the sidecar from POSTED (or
// SLEEPING) until it stores DONE, and to the thread again until it stores FREE. Each hand-over is a release store
// read by an acquire load.
unsafe impl Sync for Slot {}

const SLOTS: usize = 32;

static POOL: [Slot; SLOTS] = [const {
    Slot {
        status: AtomicU32::new(FREE),
        next: AtomicPtr::new(ptr::null_mut()),
        request: UnsafeCell::new(BLANK),
    }
}; SLOTS];

static HEAD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Rung for every request and every signal; the sidecar sleeps on it.
pub(super) static BELL: AtomicU32 = AtomicU32::new(0);

/// Nonzero while the sidecar is asleep, or about to be.
pub(super) static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Rounds of polling before a thread sleeps for its answer, and polls in each. Between rounds it yields, in case the
/// sidecar waits for this very processor. Together some hundred microseconds, which an answer takes if the sidecar has
/// to be woken first; to sleep and be woken as well would double that.
const ROUNDS: u32 = 40;
const POLLS: u32 = 100;

/// A claimed slot: the request to fill in, then to [`Call::send`].
pub struct Call {
    slot: &'static Slot,
    mask: task::Mask,
}

impl Call {
    /// Claims a slot for a request to the sidecar, starting it if need be (`start`) and possible. `None`: do without.
    pub fn new(op: Op, start: bool) -> Option<Call> {
        let mask = task::block_signals();
        let ready = if start { launch::ensure() } else { launch::alive() };
        let slot = if ready {
            POOL.iter().find(|slot| slot.status.compare_exchange(FREE, CLAIMED, Acquire, Relaxed).is_ok())
        } else {
            None
        };
        let Some(slot) = slot else {
            task::restore_signals(mask);
            return None;
        };
        let mut call = Call { slot, mask };
        let request = call.request();
        // The runs are not cleared: `count` says how many mean anything.
        request.op = op;
        request.pid = task::pid();
        request.fd = -1;
        request.key = FileKey::default();
        (request.addr, request.len, request.offset, request.tried) = (0, 0, 0, 0);
        (request.head, request.tail) = (0, 0);
        (request.owned, request.exclusive, request.track) = (false, false, false);
        (request.declined, request.handled, request.count) = (None, 0, 0);
        Some(call)
    }

    /// The request, to be filled in; after [`Call::send`], the answer.
    pub fn request(&mut self) -> &mut Request {
        // SAFETY: the slot is claimed, and not posted while `self` is borrowed mutably outside `send`.
        unsafe { &mut *self.slot.request.get() }
    }

    /// Sends the request and waits for the answer: `None` if it was done, or why it was not.
    pub fn send(&mut self) -> Option<Reason> {
        self.slot.status.store(POSTED, Release);
        let slot = self.slot as *const Slot as *mut Slot;
        let mut head = HEAD.load(Relaxed);
        loop {
            self.slot.next.store(head, Relaxed);
            match HEAD.compare_exchange_weak(head, slot, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        ring();
        for _ in 0..ROUNDS {
            for _ in 0..POLLS {
                if self.slot.status.load(Acquire) == DONE {
                    return self.request().declined;
                }
                core::hint::spin_loop();
            }
            task::yield_now();
        }
        while self.slot.status.load(Acquire) != DONE {
            let _ = self.slot.status.compare_exchange(POSTED, SLEEPING, AcqRel, Acquire);
            // The time-out is for a sidecar that was killed: nobody would wake us.
            task::futex_wait(&self.slot.status, SLEEPING, 100);
            if !launch::alive() && self.slot.status.load(Acquire) != DONE {
                launch::lost();
                HEAD.store(ptr::null_mut(), Release);
                return Some(Reason::Sidecar);
            }
        }
        self.request().declined
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.slot.status.store(FREE, Release);
        task::restore_signals(self.mask);
    }
}

/// Wakes the sidecar.
pub fn ring() {
    BELL.fetch_add(1, SeqCst);
    if ASLEEP.load(SeqCst) != 0 {
        task::futex_wake(&BELL);
    }
}

/// In the sidecar: takes every waiting request, calls `taken`, answers each, oldest first, and calls `answered` after
/// each answer was given. True if there were any.
pub(super) fn answer_all<S>(
    state: &mut S,
    taken: fn(&mut S),
    answer: fn(&mut S, &mut Request),
    answered: fn(&mut S),
) -> bool {
    let mut list = HEAD.swap(ptr::null_mut(), AcqRel);
    taken(state);
    let mut oldest: *mut Slot = ptr::null_mut();
    // SAFETY: the pointers on the list are to slots of POOL, which is static; what was swapped out is ours alone.
    unsafe {
        while let Some(slot) = list.as_ref() {
            list = slot.next.swap(oldest, Relaxed);
            oldest = slot as *const Slot as *mut Slot;
        }
        let any = !oldest.is_null();
        while let Some(slot) = oldest.as_ref() {
            oldest = slot.next.load(Relaxed);
            answer(state, &mut *slot.request.get());
            if slot.status.swap(DONE, AcqRel) == SLEEPING {
                task::futex_wake(&slot.status);
            }
            answered(state);
        }
        any
    }
}

/// Is a request waiting?
pub(super) fn waiting() -> bool {
    !HEAD.load(SeqCst).is_null()
}

/// In a forked child, which has none of the threads whose requests these were: all slots free again.
pub(super) fn reset() {
    HEAD.store(ptr::null_mut(), Relaxed);
    for slot in &POOL {
        slot.status.store(FREE, Relaxed);
    }
}
