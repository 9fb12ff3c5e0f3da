//! Starts the helper, and another when it was killed.
#![allow(unsafe_code)] // Starts a process that shares this memory.

use crate::helper::{guard, state, takeover};
use crate::shared::control::{
    self, END_VALUE, END_WORD, HARMLESS, IDLE, LAST_HELPER, PROGRAM, RUNNING, START, STARTING, TRIES,
    UNAVAILABLE, alive, anybody, block, supervisor,
};
use crate::shared::live::any_or_leases;
use crate::shared::processes::{self, each_child, each_thread, is_supervisor};
use crate::shared::{fault, forks, stack};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};
use elision_sys::{limits, task};

static LAST_SUPERVISOR: AtomicI32 = AtomicI32::new(0);

/// Does not wait for a change of credentials: that signals every thread, and signals are blocked here.
pub(crate) fn wait_started() {
    while START.load(Acquire) == STARTING {
        task::nap_us(100);
    }
}

/// With Yama, the right to trace this program's threads dies with the supervisor.
fn allow_orphan() {
    static ALLOWED: AtomicU32 = AtomicU32::new(0);
    let helper = control::helper();
    if supervisor() == 0 && ALLOWED.swap(helper, AcqRel) != helper {
        task::allow_tracer(helper as i32);
    }
}

/// Continues a helper or supervisor that was stopped (SIGSTOP); otherwise harmless.
pub(crate) fn have_go_on() {
    signal_both(libc::SIGCONT);
}

/// A helper or supervisor that is needed and idle for so long is killed.
pub(crate) const IDLE_MS: u64 = 60_000;

pub(crate) fn kill_both() {
    signal_both(libc::SIGKILL);
}

fn signal_both(signal: i32) {
    for pid in [supervisor(), control::helper()].into_iter().filter(|&pid| pid != 0) {
        let _ = task::send_signal(pid as i32, signal);
    }
}

fn wait_for_word() {
    let Some(block) = block() else { return };
    task::futex_wait(&block.ready, block.ready.load(Acquire), 10);
}

/// Waits briefly for an end: the kernel wakes only one of the waiters.
pub(crate) fn wait_for_end() {
    let Some(block) = block() else { return };
    let there = |word: &&AtomicU32| word.load(Acquire) != 0;
    if let Some(word) = [&block.supervisor, &block.helper].into_iter().find(there) {
        let pid = word.load(Acquire);
        if pid != 0 {
            task::futex_wait_end(word, pid, 10);
        }
    }
}

/// False: do without. Signals must be blocked.
pub fn ensure() -> bool {
    if alive() && supervisor() != 0 {
        return true;
    }
    let pid = task::pid();
    let _ = PROGRAM.compare_exchange(0, pid, AcqRel, Acquire);
    // In a vfork child the helper would serve the child instead of the parent.
    if PROGRAM.load(Acquire) != pid {
        return false;
    }
    if present() {
        allow_orphan();
        return true;
    }
    if START.compare_exchange(IDLE, STARTING, AcqRel, Acquire).is_err() {
        return false;
    }
    // A helper takes some 40 MiB.
    let started = if limits::memory_is_limited() { Some(false) } else { start(0) };
    START.store(next_start(started), Release);
    started == Some(true)
}

/// Starts another helper if it was killed and something depends on it. Signals must be blocked.
pub fn present() -> bool {
    for _ in 0..TRIES {
        // One question: a helper that dies between two would be neither there nor missed.
        if alive() {
            return true;
        }
        if task::pid() != PROGRAM.load(Acquire) {
            return false;
        }
        let tried = START.load(Acquire) != RUNNING || lost();
        // Another thread may have noticed first. Extents depend on its helper until that has worked.
        if !tried || !any_or_leases() {
            break;
        }
        wait_started();
    }
    alive()
}

/// Before a call that the kernel delays until the helper releases a guard: as [`present`], and a stopped helper is continued.
pub fn look_after() {
    if !any_or_leases() {
        return;
    }
    if alive() {
        return have_go_on();
    }
    let mask = task::block_signals();
    present();
    task::restore_signals(mask);
}

/// The helper was killed, and its leases are gone: the next one first materialises. False: too early to try again.
pub(crate) fn lost() -> bool {
    // Checked again: two helpers of one memory would destroy each other.
    if task::now_ms() < AGAIN_MS.load(Acquire) {
        return false;
    }
    if START.compare_exchange(RUNNING, STARTING, SeqCst, Acquire).is_err() {
        return true;
    }
    // The supervisor starts the next one, unless it is gone or nothing depends on a helper.
    let begun = task::now_ms();
    while !alive() && anybody() {
        wait_for_word();
        have_go_on();
        if task::ms_since(begun) > IDLE_MS {
            kill_both();
        }
    }
    if alive() {
        START.store(RUNNING, Release);
    } else {
        reap();
        start_again();
    }
    true
}

/// With START at STARTING: starts a helper if anything depends on one, or does its first work in this thread.
pub(crate) fn start_again() {
    let mut next = IDLE;
    if any_or_leases() {
        // SAFETY: there is no helper, and START keeps other threads out.
        unsafe { takeover::truncate_alone() };
        let started = start(-1);
        if started == Some(false) && !anybody() {
            // SAFETY: there is no helper, and START keeps other threads out.
            unsafe { takeover::take_over_alone() };
        } else {
            next = next_start(started);
        }
        guard::give_up_own_orphans();
    }
    START.store(next, Release);
}

static AGAIN_MS: AtomicU64 = AtomicU64::new(0);

/// While something depends on a helper, START stays RUNNING, so that the next thread tries again.
fn next_start(started: Option<bool>) -> u32 {
    match started {
        Some(true) => return RUNNING,
        _ if !any_or_leases() => return UNAVAILABLE,
        Some(false) => AGAIN_MS.store(task::now_ms() + 100, Release),
        None => (),
    }
    RUNNING
}

/// Reaps the last helper and supervisor: a dying helper may still trace threads, which the next one could not stop.
fn reap() {
    if task::pid() != PROGRAM.load(Acquire) {
        return;
    }
    // The dead helper's /proc descriptor may be another file here.
    processes::begin();
    let begun = task::now_ms();
    let helper = LAST_HELPER.load(Acquire);
    while !supervisor_is_reaped() || helper != 0 && !processes::is_gone(helper) {
        if task::ms_since(begun) > 5_000 {
            return;
        }
        task::nap_us(100);
    }
}

pub(crate) fn supervisor_is_reaped() -> bool {
    let pid = LAST_SUPERVISOR.load(Acquire);
    let gone = pid == 0 || task::trace_poll(pid) == task::Traced::Gone;
    if gone {
        let _ = LAST_SUPERVISOR.compare_exchange(pid, 0, AcqRel, Relaxed);
    }
    gone
}

pub(crate) fn begin_in_child() -> i32 {
    PROGRAM.store(task::pid(), Release);
    find_end_word();
    START.store(IDLE, Release);
    control::forget_helpers()
}

pub(crate) fn start_in_child(predecessor: i32) -> bool {
    START.store(STARTING, Release);
    let started = start(predecessor) == Some(true);
    START.store(if started { RUNNING } else { UNAVAILABLE }, Release);
    started
}

pub(crate) fn find_end_word() {
    let address = task::thread_end_word();
    END_WORD.store(address, Release);
    END_VALUE.store(task::tid() as u32, Release);
}

/// `predecessor`: see [`control::PREDECESSOR`]. False: none can work here. `None`: all are killed.
fn start(mut predecessor: i32) -> Option<bool> {
    for _ in 0..TRIES {
        let started = start_once(predecessor);
        if started == Some(true) || !HARMLESS.load(Acquire) {
            return started;
        }
        // A supervisor that could not start its helper would stay as a zombie.
        reap();
        if started.is_some() {
            return started;
        }
        predecessor = -1;
    }
    None
}

/// Waits for the helper's first word: some ten seconds. Reading a clock may not be harmless yet.
const TIMES: u32 = 1_000;

/// False: the helper cannot work. `None`: both died silently.
fn start_once(predecessor: i32) -> Option<bool> {
    if task::on_valgrind() || !prepare() || anybody() {
        return Some(false);
    }
    let Some(block) = block() else { return Some(false) };
    control::begin_epoch(predecessor);
    block.ready.store(0, Relaxed);
    block.go.store(0, Relaxed);
    // SAFETY: no other supervisor of this memory runs, and `main` keeps the rules.
    let started = unsafe { stack::SUPERVISOR.start(&block.supervisor, crate::supervisor::main) };
    let Ok(pid) = started else { return Some(false) };
    LAST_SUPERVISOR.store(pid, Release);
    task::allow_tracer(pid);
    block.go.store(1, Release);
    task::futex_wake(&block.go);
    let harmless = HARMLESS.load(Acquire);
    for _ in 0..TIMES {
        if block.ready.load(Acquire) != 0 {
            break;
        }
        if !anybody() {
            // Unless the helper said so last, or died of a forbidden call.
            return (block.ready.load(Acquire) == 2 || !HARMLESS.load(Acquire)).then_some(false);
        }
        wait_for_word();
    }
    let said = block.ready.load(Acquire);
    let ready = said == 1;
    if said == 0 && predecessor == 0 {
        // A helper that cannot work here exits by itself, and a filter may forbid this call.
        kill_both();
    }
    if ready && !harmless {
        reap_forerunners();
    }
    Some(ready)
}

/// Reaps supervisors of the programs that this one replaced by exec: nobody else waits for them.
fn reap_forerunners() {
    let program = task::pid();
    each_thread(program, |tid| {
        each_child(program, tid, |child| {
            if is_supervisor(child) {
                task::reap_clone(child);
            }
            true
        });
        true
    });
}

fn prepare() -> bool {
    let storage = fault::watched();
    block().is_some()
        || state::prepare()
            && forks::prepare()
            && stack::HELPER.prepare(storage)
            && stack::SUPERVISOR.prepare(storage)
            && control::prepare()
}
