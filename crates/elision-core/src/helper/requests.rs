#![allow(unsafe_code)] // The slots are shared with another process: see [`crate::shared::requests`].

use crate::shared::control;
use crate::shared::requests::{
    DONE, FREE, HEAD, LOST, Op, POOL, POSTED, Request, SLEEPS, SOME_LOST, Slot, TAKEN, post, step,
};
use crate::stats::Reason;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::task;

/// Taken requests that wait for the end of another's write.
static HELD: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Given,
    /// Given, and held requests may go on.
    GivenToAll,
    Later,
}

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
    // SAFETY: the pointers are to slots of POOL, which is static.
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
            // SAFETY: the slot is taken.
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

/// Slots given up, as bits. Those on the list are freed when taken from it.
fn find_lost() -> u32 {
    if !SOME_LOST.load(Relaxed) || !SOME_LOST.swap(false, Acquire) {
        return 0;
    }
    let lost = |slot: &Slot| slot.status.load(Acquire) & !SLEEPS == LOST;
    POOL.iter().zip(0..).filter(|(slot, _)| lost(slot)).fold(0, |bits, (_, at)| bits | 1 << at)
}

/// Frees the slots not on the list, which a killed helper had taken.
fn free_lost(lost: u32) {
    for slot in POOL.iter().zip(0..).filter(|(_, at)| lost & 1 << at != 0).map(|(slot, _)| slot) {
        let _ = slot.status.compare_exchange(LOST, FREE, AcqRel, Relaxed);
    }
}

fn put_back_held() {
    let mut held = HELD.swap(ptr::null_mut(), Relaxed);
    // SAFETY: as in `answer_all`.
    while let Some(slot) = unsafe { held.as_ref() } {
        held = slot.next.load(Relaxed);
        put_back(slot);
    }
}

fn put_back(slot: &Slot) {
    slot.status.fetch_sub(TAKEN - POSTED, AcqRel);
    post(slot);
}

pub(crate) fn begin() {
    HELD.store(ptr::null_mut(), Relaxed);
}

/// Answers what changes nothing: the forking thread may wait for one that waits here (locks of stdio, of malloc, of a fork handler). No
/// write lease exists.
pub(crate) fn answer_quiesced(guarded: impl Fn(FileKey) -> bool) {
    step();
    let mut list = HEAD.swap(ptr::null_mut(), AcqRel);
    // SAFETY: as in `answer_all`.
    while let Some(slot) = unsafe { list.as_ref() } {
        list = slot.next.load(Relaxed);
        if !take(slot) {
            continue;
        }
        // SAFETY: the slot is taken.
        let request = unsafe { &mut *slot.request.get() };
        match request.op {
            Op::Ping | Op::BeforeWrite | Op::Closing | Op::Surrender => request.declined = None,
            Op::Release if !guarded(request.key) => request.declined = None,
            Op::Associate | Op::Plan | Op::Duplicate => request.declined = Some(Reason::Helper),
            _ => {
                put_back(slot);
                continue;
            }
        }
        give_back(slot);
    }
}

fn take(slot: &Slot) -> bool {
    loop {
        let status = slot.status.load(Acquire);
        if status & !SLEEPS != POSTED {
            slot.status.store(FREE, Release);
            return false;
        }
        slot.taken_by.store(control::epoch(), Release);
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

pub(crate) fn waiting() -> bool {
    !HEAD.load(SeqCst).is_null()
}
