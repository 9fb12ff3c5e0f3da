//! A client's part of a fork: see [`crate::shared::forks`].
#![allow(unsafe_code)] // A mask that whoever holds a lock may touch.

use crate::client::call::Call;
use crate::client::launch;
use crate::helper::takeover;
use crate::shared::control::PROGRAM;
use crate::shared::hot::HOT;
use crate::shared::requests::Op;
use crate::shared::{forks, live, processes, requests, unmap_queue};
use crate::stats::COUNTERS;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use elision_sys::task::{self, Mask};

static FORKING: AtomicU32 = AtomicU32::new(0);
/// A helper has said that no memory depends on it. False if there was none, or none could be started.
static SETTLED: AtomicBool = AtomicBool::new(false);

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
    // SAFETY: FORKING is held.
    unsafe { *FORK_MASK.0.get() = Some(mask) };
    forks::begin();
    launch::wait_started();
    let mut settled = false;
    // Even if nothing depends on a lease yet: another thread may change that meanwhile.
    while !settled && let Some(mut call) = Call::new(Op::Fork, false) {
        // If the helper was killed, the next one is asked.
        settled = call.send().is_none();
    }
    SETTLED.store(settled, Release);
}

pub extern "C" fn after_fork_parent() {
    end_fork();
}

pub extern "C" fn after_fork_child() {
    launch::begin_in_child();
    requests::reset();
    unmap_queue::reset();
    processes::begin();
    COUNTERS.reset();
    let depends = live::LIVE.load(Acquire) > 0 && !SETTLED.load(Acquire);
    // SAFETY: there is no helper, and no other thread.
    unsafe { takeover::begin_in_child(depends) };
    HOT.writers.store(0, Release);
    end_fork();
}

fn end_fork() {
    // SAFETY: this thread, or the one it was copied from, holds FORKING.
    let mask = unsafe { (*FORK_MASK.0.get()).take() };
    forks::end();
    FORKING.store(0, Release);
    task::futex_wake(&FORKING);
    if let Some(mask) = mask {
        task::restore_signals(mask);
    }
}
