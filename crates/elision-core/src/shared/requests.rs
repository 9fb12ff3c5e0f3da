//! Requests and answers between the program's threads and the helper.
//!
//! A thread claims a slot in shared memory, fills it, posts it on a lock-free list, rings the bell and waits; the helper takes
//! the whole list and answers in turn. The thread blocks signals meanwhile: a handler's `longjmp` would abandon the slot.
#![allow(unsafe_code)] // The slots are shared with another process: interior mutability by hand-over, argued below.

use crate::fs_traits::FsTraits;
use crate::stats::Reason;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::hand_over::Address;
use elision_sys::task;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Op {
    #[default]
    Ping,
    Associate,
    Plan,
    /// Clone the file that a range stands for into the empty file `fd`, and tell what else the range has.
    Clone,
    /// In a planned write: what the range stands for and the file are to share blocks. `handled`: so many bytes do. Leaves the runs.
    Share,
    /// A planned write wrote `len` of `tried` bytes. It is over unless there is `more`.
    Wrote,
    /// Do not trust what a write of this range has armed.
    Untrack,
    /// The file was opened to be emptied: may that wait until somebody could tell? `len`: the least that would be gained.
    Truncate,
    /// Does a range have the file's bytes? First guard and protect. Then, with `more`: all but the runs does, if `track`.
    Recognise,
    /// A small write to a guarded file is next.
    BeforeWrite,
    /// The file is about to change untracked.
    Release,
    /// A descriptor is about to be closed, perhaps the last.
    Closing,
    Surrender,
    Forget,
    Dissolve,
    /// Move the pages of a range to address `offset`.
    Relocate,
    /// Let the pages at address `offset` stand for what those of a range stand for, but for the runs.
    Duplicate,
    Zero,
    /// Give loaded pages back; `handled`: how many bytes.
    Unload,
    Query,
    Validate,
    Fork,
    /// Materialise everything, and end.
    Retire,
    /// Give up write leases and end: an exec is next.
    Leave,
    End,
    #[cfg(test)]
    Fail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageRun {
    pub addr: usize,
    pub len: usize,
    /// For [`Op::Query`]: 0 plain, 1 associated and not loaded, 2 loaded, 3 with memory of its own, 4 altered.
    pub state: u8,
}

pub const RUNS: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub op: Op,
    /// Whose descriptor `fd` is: a vfork child shares memory only.
    pub pid: i32,
    /// For [`Op::Truncate`]: the thread that asks.
    pub tid: i32,
    pub fd: i32,
    /// Answer: declined, unless the client hands its descriptor over there.
    pub meet: Option<Address>,
    /// The process that did so. 0: none.
    pub sender: i32,
    pub flags: i32,
    pub key: FileKey,
    pub fs: Option<&'static FsTraits>,
    pub addr: usize,
    pub len: usize,
    /// File position of `addr`; for [`Op::Relocate`] and [`Op::Duplicate`] the new address.
    pub offset: u64,
    /// The library sees every change through this description first.
    pub owned: bool,
    /// The count of forks up to which that holds.
    pub forks: u64,
    /// No other thread stores into the pages around.
    pub exclusive: bool,
    /// The file can never change.
    pub immutable: bool,
    pub track: bool,
    pub head: usize,
    pub tail: usize,
    pub tried: usize,
    /// For [`Op::Plan`]: a part was planned before. For [`Op::Wrote`]: another will be. For [`Op::Recognise`]: it was compared.
    pub more: bool,
    pub declined: Option<Reason>,
    pub broken: Option<&'static str>,
    /// For [`Op::Plan`]: may the file share blocks with others? Answer: what lies between the runs can.
    pub shares: bool,
    /// Answer: bytes handled; ask again for the rest.
    pub handled: usize,
    /// Answer of [`Op::Plan`]: bytes already associated; of [`Op::Release`] and [`Op::BeforeWrite`]: deferred in vain.
    pub known: usize,
    pub altered: usize,
    /// Answer of [`Op::Plan`]: most pages are deferred from elsewhere, and not mapped in the page tables. All will be written.
    pub deferred: bool,
    /// Answer of [`Op::Plan`]: the file has no holes there, and the memory is plain.
    pub comparable: bool,
    /// Answer of [`Op::Associate`]: [`changes`](crate::shared::live::changes) then.
    pub changes: u64,
    pub count: usize,
    pub runs: [PageRun; RUNS],
}

const BLANK: Request = Request {
    op: Op::Ping,
    pid: 0,
    tid: 0,
    fd: -1,
    meet: None,
    sender: 0,
    flags: 0,
    key: FileKey { dev: 0, ino: 0 },
    fs: None,
    addr: 0,
    len: 0,
    offset: 0,
    owned: false,
    forks: 0,
    exclusive: false,
    immutable: false,
    track: false,
    head: 0,
    tail: 0,
    tried: 0,
    more: false,
    shares: false,
    declined: None,
    broken: None,
    handled: 0,
    known: 0,
    altered: 0,
    deferred: false,
    comparable: false,
    changes: 0,
    count: 0,
    runs: [PageRun { addr: 0, len: 0, state: 0 }; RUNS],
};

impl Request {
    /// Appends `[from, to)`, joined with the last run over at most `gap`. False: no room.
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

/// The states of a slot. [`SLEEPS`] is added if the thread must be woken.
pub(crate) const FREE: u32 = 0;
pub(crate) const CLAIMED: u32 = 1;
/// On the list; the taker owns it next.
pub(crate) const POSTED: u32 = 2;
pub(crate) const TAKEN: u32 = 3;
pub(crate) const DONE: u32 = 4;
/// Given up by its thread: the taker frees it, or `find_lost` if a killed helper had taken the list.
pub(crate) const LOST: u32 = 5;
pub(crate) const SLEEPS: u32 = 8;

pub(crate) struct Slot {
    pub status: AtomicU32,
    pub taken_by: AtomicU32,
    pub next: AtomicPtr<Slot>,
    pub request: UnsafeCell<Request>,
}

// SAFETY: `status` says who owns `request`: the thread from FREE→CLAIMED, the helper from POSTED→TAKEN to DONE, then the thread
// until FREE. A thread gives up only by POSTED→LOST, or when the taker is dead. Each hand-over is a release store read by an
// acquire load.
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

pub(crate) static SOME_LOST: AtomicBool = AtomicBool::new(false);

pub(crate) static HEAD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Rung for requests and signals; the helper sleeps on it.
pub(crate) static BELL: AtomicU32 = AtomicU32::new(0);

/// Nonzero while the helper sleeps, or is about to.
pub(crate) static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Progress of the helper, in steps of some seconds at most.
pub(crate) static STEPS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn step() {
    STEPS.fetch_add(1, Relaxed);
}

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

pub fn ring() {
    BELL.fetch_add(1, SeqCst);
    if ASLEEP.load(SeqCst) != 0 {
        task::futex_wake(&BELL);
    }
}

/// In a forked child: the threads of these requests do not exist.
pub(crate) fn reset() {
    HEAD.store(ptr::null_mut(), Relaxed);
    for slot in &POOL {
        slot.status.store(FREE, Relaxed);
    }
}
