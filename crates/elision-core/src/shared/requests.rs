//! Requests and answers between the program's threads and the helper.
//!
//! A thread claims a slot in shared memory, fills it, posts it on a lock-free list, rings the bell and waits. The helper takes the whole
//! list, answers each request in turn and wakes its thread. The thread's signals are blocked meanwhile: a handler that left by
//! `longjmp` would abandon the slot, or a read that the helper carries out later.
#![allow(unsafe_code)] // The slots are shared with another process: interior mutability by hand-over, argued below.

use crate::fs_traits::FsTraits;
use crate::stats::Reason;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::task;

/// What the helper is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Op {
    /// Nothing; shows that it is there.
    #[default]
    Ping,
    /// Map whole pages of a file over a buffer.
    Associate,
    /// Which pages does a write have to write?
    Plan,
    /// A planned write was carried out, up to `len`; `tried` bytes were planned. It is over, unless there is `more` of it.
    Wrote,
    /// What a write of this range has armed is not to be trusted.
    Untrack,
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
    /// Move the pages of a range, which only the caller uses, to where `offset` says.
    Relocate,
    /// Make deferred pages of a range zero.
    Zero,
    /// Give the memory of loaded pages of the range back; they stay associated. `handled`: how many bytes.
    Unload,
    /// What is the state of the pages of a range?
    Query,
    /// Does everything that is known hold together? Says how many extents there are.
    Validate,
    /// A fork is about to happen: hold everything still.
    Fork,
    /// Give everything memory of its own, and go.
    Retire,
    /// Give up write leases, and go: another program is about to take the place of this one, with its descriptors.
    Leave,
    /// Go: the program is about to end.
    End,
    /// Make a mistake.
    #[cfg(test)]
    Fail,
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
    /// The file system of the file, for [`Op::Associate`] and [`Op::Plan`].
    pub fs: Option<&'static FsTraits>,
    /// Memory.
    pub addr: usize,
    /// Bytes.
    pub len: usize,
    /// File position of `addr`; for [`Op::Relocate`], the address to move to.
    pub offset: u64,
    /// The caller vouches that every change through this description is shown first.
    pub owned: bool,
    /// The count of forks up to which that holds.
    pub forks: u64,
    /// Nobody else can store into the pages around the buffer: fragments may be associated too.
    pub exclusive: bool,
    /// Begin to track what is written.
    pub track: bool,
    /// Bytes of the same transfer just before these pages.
    pub head: usize,
    /// Bytes just after.
    pub tail: usize,
    /// For [`Op::Wrote`]: bytes planned.
    pub tried: usize,
    /// For [`Op::Plan`]: a part of this write was planned before. For [`Op::Wrote`]: another part will be.
    pub more: bool,
    /// The answer: `None` done, or why not.
    pub declined: Option<Reason>,
    /// The answer of [`Op::Validate`]: what does not hold.
    pub broken: Option<&'static str>,
    /// Answer: bytes handled; the rest has to be asked again.
    pub handled: usize,
    /// Answer of [`Op::Plan`]: of the bytes handled, those that were associated with where they are to be written… Of [`Op::Release`] and
    /// [`Op::BeforeWrite`]: those that had been deferred for nothing.
    pub known: usize,
    /// …and those of them that were altered since.
    pub altered: usize,
    /// Answer of [`Op::Associate`]: [`changes`](crate::shared::live::changes) when it was given; `addr` and `handled` are what was mapped.
    pub changes: u64,
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
    fs: None,
    addr: 0,
    len: 0,
    offset: 0,
    owned: false,
    forks: 0,
    exclusive: false,
    track: false,
    head: 0,
    tail: 0,
    tried: 0,
    more: false,
    declined: None,
    broken: None,
    handled: 0,
    known: 0,
    altered: 0,
    changes: 0,
    count: 0,
    runs: [PageRun { addr: 0, len: 0, state: 0 }; RUNS],
};

impl Request {
    /// Appends the run `[from, to)` to the answer, joined with the run before it if there is no more than `gap` between them. False: no room.
    pub(crate) fn push_run(&mut self, from: usize, to: usize, state: u8, gap: usize) -> bool {
        if from >= to {
            return true;
        }
        let count = self.count;
        if let Some(last) = count.checked_sub(1).and_then(|i| self.runs.get_mut(i))
            && from <= last.addr + last.len + gap
            && last.state == state
        {
            last.len = last.len.max(to - last.addr);
            return true;
        }
        match self.runs.get_mut(count) {
            Some(slot) => {
                *slot = PageRun { addr: from, len: to - from, state };
                self.count += 1;
                true
            }
            None => false,
        }
    }
}

impl Default for Request {
    fn default() -> Self {
        BLANK
    }
}

/// A slot's status: who owns its request. With [`SLEEPS`] added, its thread has to be woken.
pub(crate) const FREE: u32 = 0;
/// The thread that claimed it fills it in.
pub(crate) const CLAIMED: u32 = 1;
/// On the list; whoever takes it there owns it next.
pub(crate) const POSTED: u32 = 2;
/// The helper works on it.
pub(crate) const TAKEN: u32 = 3;
/// Answered: the thread's again.
pub(crate) const DONE: u32 = 4;
/// Given up by its thread while it may still be on the list; whoever finds it there frees it, or, if a helper was killed that had taken
/// the list, whoever looks for it (`find_lost`).
pub(crate) const LOST: u32 = 5;
pub(crate) const SLEEPS: u32 = 8;

pub(crate) struct Slot {
    pub status: AtomicU32,
    /// Which helper took it, by [`crate::shared::control::epoch`].
    pub taken_by: AtomicU32,
    pub next: AtomicPtr<Slot>,
    pub request: UnsafeCell<Request>,
}

// SAFETY: `request` belongs to the thread that moved `status` from FREE to CLAIMED, and to the helper from the moment
// that it moves it from POSTED to TAKEN until it stores DONE; then to the thread again, until it stores FREE. A thread
// gives up only by moving POSTED to LOST, so that no helper can take it any more, or when the helper that took
// it is dead. Each hand-over is a release store read by an acquire load.
unsafe impl Sync for Slot {}

pub(crate) const SLOTS: usize = 32;

pub(crate) static POOL: [Slot; SLOTS] = [const {
    Slot {
        status: AtomicU32::new(FREE),
        taken_by: AtomicU32::new(0),
        next: AtomicPtr::new(ptr::null_mut()),
        request: UnsafeCell::new(BLANK),
    }
}; SLOTS];

/// Some were lost since anybody looked for them.
pub(crate) static SOME_LOST: AtomicBool = AtomicBool::new(false);

pub(crate) static HEAD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Rung for every request and every signal; the helper sleeps on it.
pub(crate) static BELL: AtomicU32 = AtomicU32::new(0);

/// Nonzero while the helper is asleep, or about to be.
pub(crate) static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// What the helper has done, in steps that take some seconds at most.
pub(crate) static STEPS: AtomicU32 = AtomicU32::new(0);

/// In the helper: it has done something.
pub(crate) fn step() {
    STEPS.fetch_add(1, Relaxed);
}

/// Puts a slot on the list.
pub(crate) fn post(slot: &Slot) {
    let this = ptr::from_ref(slot).cast_mut();
    let mut head = HEAD.load(Relaxed);
    loop {
        slot.next.store(head, Relaxed);
        match HEAD.compare_exchange_weak(head, this, AcqRel, Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// Wakes the helper.
pub fn ring() {
    BELL.fetch_add(1, SeqCst);
    if ASLEEP.load(SeqCst) != 0 {
        task::futex_wake(&BELL);
    }
}

/// In a forked child, which has none of the threads whose requests these were: all slots free again.
pub(crate) fn reset() {
    HEAD.store(ptr::null_mut(), Relaxed);
    for slot in &POOL {
        slot.status.store(FREE, Relaxed);
    }
}
