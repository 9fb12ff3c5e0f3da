//! Requests and answers between the program's threads and the sidecar.
//!
//! A request lives in one of a fixed number of slots in shared memory. A thread claims a slot, fills it, pushes it on a
//! lock-free list, rings the bell and waits; the sidecar takes the whole list, answers each request in turn and wakes
//! its thread. The thread's signals are blocked meanwhile: a handler that left by `longjmp` would otherwise
//! return the slot, or let the sidecar map over a buffer whose read the program believes abandoned.
#![allow(unsafe_code)] // The slots are shared with another process: interior mutability by hand-over, argued below.

use crate::client::launch;
use crate::stats::Reason;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::task;

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
    /// Answer of [`Op::Associate`]: [`state::changes`](crate::helper::state::changes) when it was given; `addr` and `handled` are what was mapped.
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

impl Default for Request {
    fn default() -> Self {
        BLANK
    }
}

/// A slot's status: who owns its request. With [`SLEEPS`] added, its thread has to be woken.
const FREE: u32 = 0;
/// The thread that claimed it fills it in.
const CLAIMED: u32 = 1;
/// On the list; whoever takes it there owns it next.
const POSTED: u32 = 2;
/// The sidecar works on it.
const TAKEN: u32 = 3;
/// Answered: the thread's again.
const DONE: u32 = 4;
/// Given up by its thread while it may still be on the list; whoever finds it there frees it, or, if a sidecar was killed that had taken
/// the list, whoever looks for it ([`find_lost`]).
const LOST: u32 = 5;
const SLEEPS: u32 = 8;

struct Slot {
    status: AtomicU32,
    /// Which sidecar took it, by [`launch::epoch`].
    taken_by: AtomicU32,
    next: AtomicPtr<Slot>,
    request: UnsafeCell<Request>,
}

// SAFETY: `request` belongs to the thread that moved `status` from FREE to CLAIMED, and to the sidecar from the moment
// that it moves it from POSTED to TAKEN until it stores DONE; then to the thread again, until it stores FREE. A thread
// gives up only by moving POSTED to LOST, so that no sidecar can take it any more, or when the sidecar that took
// it is dead. Each hand-over is a release store read by an acquire load.
unsafe impl Sync for Slot {}

const SLOTS: usize = 32;

static POOL: [Slot; SLOTS] = [const {
    Slot {
        status: AtomicU32::new(FREE),
        taken_by: AtomicU32::new(0),
        next: AtomicPtr::new(ptr::null_mut()),
        request: UnsafeCell::new(BLANK),
    }
}; SLOTS];

/// Some were lost since anybody looked for them.
static SOME_LOST: AtomicBool = AtomicBool::new(false);

static HEAD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// In the sidecar: requests that it has taken, and that have to wait for the end of somebody's write.
static HELD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Rung for every request and every signal; the sidecar sleeps on it.
pub(crate) static BELL: AtomicU32 = AtomicU32::new(0);

/// Nonzero while the sidecar is asleep, or about to be.
pub(crate) static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Rounds of polling before a thread sleeps for its answer, and polls in each. Between rounds it yields, in case the
/// sidecar waits for this very processor. Together some hundred microseconds, which an answer takes if the sidecar has
/// to be woken first; to sleep and be woken as well would double that.
const ROUNDS: u32 = 40;
const POLLS: u32 = 100;

/// How often a thread that waits looks whether the sidecar is there.
const LOOK_MS: u64 = 100;
/// For how many looks it waits for a sidecar to take a transfer, before it makes the call in the traditional way.
const TRANSFER_LOOKS: u32 = 2;
/// For how many looks at which the sidecar has done nothing since the last one it waits before the next sidecar takes over: where it has taken
/// a transfer, which is a matter of milliseconds, and otherwise.
const IDLE_TRANSFER_LOOKS: u32 = 50;
const IDLE_LOOKS: u32 = (launch::IDLE_MS / LOOK_MS) as u32;

/// What the sidecar has done, in steps that take some seconds at most.
static STEPS: AtomicU32 = AtomicU32::new(0);

/// In the sidecar: it has done something.
pub(crate) fn step() {
    STEPS.fetch_add(1, Relaxed);
}

/// A claimed slot: the request to fill in, then to [`Call::send`].
pub struct Call {
    slot: &'static Slot,
    mask: task::Mask,
    /// The slot is not ours to free: see [`LOST`].
    lost: bool,
}

impl Call {
    /// Claims a slot for a request to the sidecar, starting it if need be (`start`) and possible. `None`: do without.
    pub fn new(op: Op, start: bool) -> Option<Call> {
        let mask = task::block_signals();
        let slot = loop {
            if !(if start { launch::ensure() } else { launch::present() }) {
                break None;
            }
            let free = |slot: &&Slot| slot.status.compare_exchange(FREE, CLAIMED, Acquire, Relaxed).is_ok();
            if let Some(slot) = POOL.iter().find(free) {
                break Some(slot);
            }
            // What would merely be deferred or elided need not be. Anything else has to be said, and slots come free:
            // nobody who holds one waits for anything but the sidecar and the file.
            if start {
                break None;
            }
            task::nap_us(50);
        };
        let Some(slot) = slot else {
            task::restore_signals(mask);
            return None;
        };
        let mut call = Call { slot, mask, lost: false };
        let request = call.request();
        // The runs are not cleared: `count` says how many mean anything.
        request.op = op;
        request.pid = task::pid();
        request.fd = -1;
        request.key = FileKey::default();
        (request.addr, request.len, request.offset, request.tried) = (0, 0, 0, 0);
        (request.head, request.tail) = (0, 0);
        (request.owned, request.exclusive, request.track, request.more) = (false, false, false, false);
        (request.declined, request.handled, request.count, request.known) = (None, 0, 0, 0);
        Some(call)
    }

    /// The request, to be filled in; after [`Call::send`], the answer.
    pub fn request(&mut self) -> &mut Request {
        // SAFETY: the slot is claimed, and not posted while `self` is borrowed mutably outside `send`.
        unsafe { &mut *self.slot.request.get() }
    }

    /// Sends the request and waits for the answer: `None` if it was done, or why it was not.
    pub fn send(&mut self) -> Option<Reason> {
        // It may be on the list still; put there a second time, it would lead to itself.
        if self.lost {
            return Some(Reason::Sidecar);
        }
        let epoch = launch::epoch();
        self.slot.status.store(POSTED, Release);
        post(self.slot);
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
        // (In the middle of a save the sidecar has to hear of its end: it keeps others from the file.)
        let request = self.request();
        let optional = request.op == Op::Associate || request.op == Op::Plan && !request.more;
        let (mut looks, mut idle, mut steps) = (0, 0, STEPS.load(Relaxed));
        loop {
            let status = self.slot.status.load(Acquire);
            if status == DONE {
                return self.request().declined;
            }
            let sleeping = status | SLEEPS;
            if self.slot.status.compare_exchange(status, sleeping, AcqRel, Acquire).is_err() {
                continue;
            }
            // The time-out is for a sidecar that was killed or stopped: nobody would wake us.
            task::futex_wait(&self.slot.status, sleeping, LOOK_MS);
            if (!launch::alive() || launch::epoch() != epoch) && self.give_up() {
                // Until another has been at work, if anything depends on it. (Once was not enough: he who starts one may believe that it runs, and
                // it is the one that was killed.)
                launch::present();
                break;
            }
            if self.slot.status.load(Acquire) != sleeping {
                continue;
            }
            looks += 1;
            launch::have_go_on();
            if optional && looks >= TRANSFER_LOOKS && self.take_back() {
                break;
            }
            // A sidecar that is well makes a step for this.
            ring();
            let now = STEPS.load(Relaxed);
            idle = if now == steps { idle + 1 } else { 0 };
            steps = now;
            if idle >= if optional { IDLE_TRANSFER_LOOKS } else { IDLE_LOOKS } {
                idle = 0;
                launch::kill_both();
            }
        }
        if self.lost {
            // So that the slot is looked for.
            ring();
        }
        Some(Reason::Sidecar)
    }

    /// Can it be sent again? Not if its sidecar was killed before it took it.
    pub fn is_good(&self) -> bool {
        !self.lost
    }

    /// The sidecar that the request was meant for is gone. True if nobody will answer it, now or later.
    fn give_up(&mut self) -> bool {
        self.take_back()
            || self.slot.status.load(Acquire) & !SLEEPS == TAKEN
                && (!launch::alive() || self.slot.taken_by.load(Acquire) != launch::epoch())
    }

    /// Takes the request back if no sidecar has taken it. False: one has.
    fn take_back(&mut self) -> bool {
        loop {
            let status = self.slot.status.load(Acquire);
            if status & !SLEEPS != POSTED {
                return false;
            }
            if self.slot.status.compare_exchange(status, LOST, AcqRel, Acquire).is_ok() {
                self.lost = true;
                SOME_LOST.store(true, Release);
                return true;
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.lost {
            self.slot.status.store(FREE, Release);
        }
        task::restore_signals(self.mask);
    }
}

/// Puts a slot on the list.
fn post(slot: &Slot) {
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

/// Wakes the sidecar.
pub fn ring() {
    BELL.fetch_add(1, SeqCst);
    if ASLEEP.load(SeqCst) != 0 {
        task::futex_wake(&BELL);
    }
}

/// What has become of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Given,
    /// It was given, and requests that had to wait may have to no longer.
    GivenToAll,
    /// Not yet.
    Later,
}

/// In the sidecar: takes every waiting request, calls `taken`, then answers each, oldest first, and calls `answered`
/// after each answer was given. True if there were any.
pub(crate) fn answer_all<S>(
    state: &mut S,
    taken: fn(&mut S),
    answer: fn(&mut S, &mut Request) -> Answer,
    answered: fn(&mut S),
) -> bool {
    let lost = find_lost();
    let mut list = HEAD.swap(ptr::null_mut(), AcqRel);
    taken(state);
    let mut oldest: *mut Slot = ptr::null_mut();
    // SAFETY: the pointers on the list are to slots of POOL, which is static.
    while let Some(slot) = unsafe { list.as_ref() } {
        list = slot.next.swap(oldest, Relaxed);
        oldest = ptr::from_ref(slot).cast_mut();
    }
    let any = !oldest.is_null();
    // SAFETY: as above.
    while let Some(slot) = unsafe { oldest.as_ref() } {
        oldest = slot.next.load(Relaxed);
        if take(slot) {
            step();
            // SAFETY: taken.
            match answer(state, unsafe { &mut *slot.request.get() }) {
                Answer::Later => {
                    slot.next.store(HELD.load(Relaxed), Relaxed);
                    HELD.store(ptr::from_ref(slot).cast_mut(), Relaxed);
                    continue;
                }
                Answer::GivenToAll => put_back_held(),
                Answer::Given => (),
            }
            give_back(slot);
            answered(state);
        }
    }
    free_lost(lost);
    any
}

/// The slots that were given up, as bits. Those among them that are on the list are freed when they are taken from it.
fn find_lost() -> u32 {
    if !SOME_LOST.load(Relaxed) || !SOME_LOST.swap(false, Acquire) {
        return 0;
    }
    let lost = |slot: &Slot| slot.status.load(Acquire) & !SLEEPS == LOST;
    POOL.iter().zip(0..).filter(|(slot, _)| lost(slot)).fold(0, |bits, (_, at)| bits | 1 << at)
}

/// After the list has been gone through: those of them that were not on it. A sidecar had taken it that was killed.
fn free_lost(lost: u32) {
    for slot in POOL.iter().zip(0..).filter(|(_, at)| lost & 1 << at != 0).map(|(slot, _)| slot) {
        let _ = slot.status.compare_exchange(LOST, FREE, AcqRel, Relaxed);
    }
}

/// Puts what was held on the list again.
fn put_back_held() {
    let mut held = HELD.swap(ptr::null_mut(), Relaxed);
    // SAFETY: as in `answer_all`.
    while let Some(slot) = unsafe { held.as_ref() } {
        held = slot.next.load(Relaxed);
        put_back(slot);
    }
}

/// Puts a request that was taken on the list again.
fn put_back(slot: &Slot) {
    let sleeps = slot.status.fetch_sub(TAKEN - POSTED, AcqRel);
    debug_assert!(sleeps & !SLEEPS == TAKEN);
    post(slot);
}

/// In a sidecar that begins: what the last one held is none of its own. (Whose requests these were gives up.)
pub(crate) fn begin() {
    HELD.store(ptr::null_mut(), Relaxed);
}

/// In the sidecar, while it rests for a fork: tells whoever waits for something that can be said without changing
/// anything. The thread that forks may be waiting for him: in stdio, it takes locks that one who writes may hold.
/// There are no write leases at this time, so there is nothing to do before a write, and nothing to elide.
pub(crate) fn answer_at_rest() {
    step();
    let mut list = HEAD.swap(ptr::null_mut(), AcqRel);
    // SAFETY: as in `answer_all`.
    while let Some(slot) = unsafe { list.as_ref() } {
        list = slot.next.load(Relaxed);
        if !take(slot) {
            continue;
        }
        // SAFETY: taken.
        let request = unsafe { &mut *slot.request.get() };
        match request.op {
            Op::Ping | Op::BeforeWrite | Op::Closing | Op::Surrender => request.declined = None,
            Op::Associate | Op::Plan => request.declined = Some(Reason::Sidecar),
            _ => {
                put_back(slot);
                continue;
            }
        }
        give_back(slot);
    }
}

/// Makes the request of a slot from the list the sidecar's. False: its thread has given up.
fn take(slot: &Slot) -> bool {
    loop {
        let status = slot.status.load(Acquire);
        if status & !SLEEPS != POSTED {
            slot.status.store(FREE, Release);
            return false;
        }
        slot.taken_by.store(launch::epoch(), Release);
        if slot.status.compare_exchange(status, TAKEN | status & SLEEPS, AcqRel, Acquire).is_ok() {
            return true;
        }
    }
}

fn give_back(slot: &Slot) {
    if slot.status.swap(DONE, AcqRel) & SLEEPS != 0 {
        task::futex_wake(&slot.status);
    }
}

/// Is a request waiting?
pub(crate) fn waiting() -> bool {
    !HEAD.load(SeqCst).is_null()
}

/// In a forked child, which has none of the threads whose requests these were: all slots free again.
pub(crate) fn reset() {
    HEAD.store(ptr::null_mut(), Relaxed);
    HELD.store(ptr::null_mut(), Relaxed);
    for slot in &POOL {
        slot.status.store(FREE, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty-two sidecars that were killed just after they had taken the list left nobody a slot to ask with.
    #[test]
    fn what_a_killed_sidecar_had_taken_from_the_list_can_be_used_again() {
        let answer = |state: &mut u32, _: &mut Request| {
            *state += 1;
            Answer::Given
        };
        let claim = || {
            let slot = POOL.iter().find(|slot| slot.status.load(Acquire) == FREE).unwrap();
            slot.status.store(POSTED, Release);
            post(slot);
            Call { slot, mask: task::block_signals(), lost: false }
        };
        for killed in [true, false] {
            for _ in 0..3 * SLOTS {
                let (mut given_up, answered) = (claim(), claim());
                if killed {
                    HEAD.store(ptr::null_mut(), Release);
                    post(answered.slot);
                }
                assert!(given_up.give_up());
                drop(given_up);
                let mut answers = 0;
                assert!(answer_all(&mut answers, |_| (), answer, |_| ()));
                assert_eq!((answers, answered.slot.status.load(Acquire)), (1, DONE));
                drop(answered);
                assert!(POOL.iter().all(|slot| slot.status.load(Acquire) == FREE));
            }
        }
    }
}
