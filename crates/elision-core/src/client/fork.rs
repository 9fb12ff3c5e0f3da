//! A client's part of a fork: see [`crate::shared::forks`].
#![allow(unsafe_code)] // A mask that whoever holds a lock may touch.

use crate::client::call::Call;
use crate::client::launch;
use crate::helper::takeover;
use crate::shared::control::PROGRAM;
use crate::shared::hot::HOT;
use crate::shared::requests::Op;
use crate::shared::{control, forks, live, processes, requests, unmap_queue};
use crate::stats::{COUNTERS, Reason};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering::*};
use elision_sys::task::{self, Mask};

static FORKING: AtomicU32 = AtomicU32::new(0);

struct ForkMask(UnsafeCell<Option<Mask>>);
// SAFETY: only the thread that holds FORKING touches it.
unsafe impl Sync for ForkMask {}
static FORK_MASK: ForkMask = ForkMask(UnsafeCell::new(None));

pub fn register() {
    static DONE: AtomicU32 = AtomicU32::new(0);
    // Callers ask for each file: the load first keeps the cache line shared.
    if DONE.load(Acquire) == 0 && DONE.swap(1, AcqRel) == 0 {
        let _ = PROGRAM.compare_exchange(0, task::pid(), AcqRel, Acquire);
        if task::pid() == task::tid() {
            launch::find_end_word();
        }
        // SAFETY: the handlers are safe around any fork.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
    }
}

/// A descriptor opened at an earlier count may be shared with a child.
pub fn forks() -> u64 {
    register();
    forks::count()
}

pub extern "C" fn before_fork() {
    let mask = task::block_signals();
    while FORKING.compare_exchange(0, 1, SeqCst, Acquire).is_err() {
        task::futex_wait(&FORKING, 1, 100);
    }
    forks::count_one();
    // SAFETY: FORKING is held.
    unsafe { *FORK_MASK.0.get() = Some(mask) };
    forks::no_mark();
    launch::wait_started();
    // Even if nothing depends on a lease yet: another thread may change that meanwhile.
    while launch::present() {
        let epoch = control::epoch();
        forks::begin();
        let answered = Call::new(Op::Fork, false).is_some_and(|mut call| call.send() != Some(Reason::Helper));
        if answered {
            forks::set_quiesced(epoch);
            if control::epoch() == epoch {
                break;
            }
            forks::set_quiesced(0);
        }
        // The next helper must be asked anew, without a mark of the killed one.
        forks::end();
        forks::remove_mark();
    }
    forks::sign_mark();
}

/// The result of the fork. Only the child could remove the mark otherwise, and it may fail or be killed.
pub fn forked(child: i32) {
    if forks::forked(child) {
        requests::ring();
    }
}

pub extern "C" fn after_fork_parent() {
    forks::set_quiesced(0);
    forks::end();
    end_fork();
}

pub extern "C" fn after_fork_child() {
    // Otherwise a helper may have been changing the copied memory at the fork.
    let quiesced = forks::quiesced() == control::epoch() && control::running();
    forks::reset();
    let predecessor = launch::begin_in_child();
    requests::reset();
    unmap_queue::reset();
    processes::begin();
    COUNTERS.reset();
    if live::LIVE.load(Acquire) > 0 {
        if !quiesced {
            // SAFETY: there is no helper, and no other thread.
            unsafe { takeover::distrust() };
        }
        if !launch::start_in_child(if quiesced { predecessor } else { -1 }) {
            // SAFETY: as above.
            unsafe { takeover::materialise_alone() };
        }
    } else {
        HOT.writers.store(0, Release);
    }
    forks::remove_mark();
    end_fork();
}

fn end_fork() {
    // SAFETY: this thread, or the one it was copied from, holds FORKING.
    let mask = unsafe { (*FORK_MASK.0.get()).take() };
    forks::count_one();
    FORKING.store(0, Release);
    task::futex_wake(&FORKING);
    if let Some(mask) = mask {
        task::restore_signals(mask);
    }
}
