//! Starting the helper, and another when it was killed.
#![allow(unsafe_code)] // Starts a process that shares this memory.

use crate::helper::{state, takeover};
use crate::shared::control::{
    self, END_VALUE, END_WORD, HARMLESS, IDLE, LAST_HELPER, PROGRAM, RUNNING, START, STARTING, TRIES,
    UNAVAILABLE, alive, anybody, block, supervisor,
};
use crate::shared::live::any_or_leases;
use crate::shared::processes::{self, each_child, each_thread, is_supervisor};
use crate::shared::{fault, forks, stack};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};
use elision_sys::{limits, task};

/// The last child of the program that was a supervisor.
static LAST_SUPERVISOR: AtomicI32 = AtomicI32::new(0);

/// Waits while a helper is being started. (Not for the end of a change of credentials: every thread takes part in that by a signal, and
/// this one has signals blocked.)
pub(crate) fn wait_started() {
    while START.load(Acquire) == STARTING {
        task::nap_us(100);
    }
}

/// Where Yama is, the right to stop this program's threads was the supervisor's, and is lost if that is killed.
fn allow_orphan() {
    static ALLOWED: AtomicU32 = AtomicU32::new(0);
    let helper = control::helper();
    if supervisor() == 0 && ALLOWED.swap(helper, AcqRel) != helper {
        task::allow_tracer(helper as i32);
    }
}

/// The helper has not answered for a while: if it or the supervisor was stopped (SIGSTOP), it goes on now. No harm otherwise.
pub(crate) fn have_go_on() {
    signal_both(libc::SIGCONT);
}

/// A helper or a supervisor that has done nothing for so long, though it was needed, is killed.
pub(crate) const IDLE_MS: u64 = 60_000;

/// The helper does nothing any more, nor does the supervisor: others are to take over.
pub(crate) fn kill_both() {
    signal_both(libc::SIGKILL);
}

fn signal_both(signal: i32) {
    for pid in [supervisor(), control::helper()].into_iter().filter(|&pid| pid != 0) {
        let _ = task::send_signal(pid as i32, signal);
    }
}

/// Waits until the helper is ready, or cannot be; or for a little while, since both may be killed without a word.
fn wait_for_word() {
    let Some(block) = block() else { return };
    task::futex_wait(&block.ready, block.ready.load(Acquire), 10);
}

/// Waits until the next of them is gone, or for a little while: the kernel wakes one of those who wait.
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

/// Makes sure that the helper runs. False: do without. Signals must be blocked.
pub fn ensure() -> bool {
    if alive() && supervisor() != 0 {
        return true;
    }
    let pid = task::pid();
    let _ = PROGRAM.compare_exchange(0, pid, AcqRel, Acquire);
    // A vfork child must not start a helper that would serve it instead of its parent.
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
    // Some 40 MiB are what it takes.
    let started = if limits::memory_is_limited() { Some(false) } else { start(0) };
    START.store(next_start(started), Release);
    started == Some(true)
}

/// Is the helper there? If it was killed and something depends on it, another is now. Signals must be blocked.
pub fn present() -> bool {
    // More than once, since the next one may be killed as well; not for ever, since one may always be.
    for _ in 0..TRIES {
        // Asked once each time: a helper that dies between two questions would be neither there nor missed.
        if alive() {
            return true;
        }
        if task::pid() != PROGRAM.load(Acquire) {
            return false;
        }
        let tried = START.load(Acquire) != RUNNING || lost();
        // Another thread may have noticed first. Until its helper has been at work, extents depend on it.
        if !tried || !any_or_leases() {
            break;
        }
        wait_started();
    }
    alive()
}

/// The same before a call of the program in which the kernel waits for the helper: also if that was stopped.
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

/// The helper is gone though nobody told it to go, and with it its leases. The next one materialises what is mapped before it does anything
/// else. False: it is too early to try again.
pub(crate) fn lost() -> bool {
    // Other threads may have noticed as well. The first one looks again when no other can start a helper: two helpers of one memory would
    // destroy each other.
    if task::now_ms() < AGAIN_MS.load(Acquire) {
        return false;
    }
    if START.compare_exchange(RUNNING, STARTING, SeqCst, Acquire).is_err() {
        return true;
    }
    // The supervisor sees to the next one, unless it was killed as well, or nothing depends on a helper.
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

/// While START is STARTING: starts a helper if anything depends on it. Where that cannot be done, this thread does what it would do first.
pub(crate) fn start_again() {
    let mut next = IDLE;
    if any_or_leases() {
        let started = start(-1);
        if started == Some(false) && !anybody() {
            // SAFETY: no helper is there, and START keeps other threads from starting one, or from coming here.
            unsafe { takeover::take_over_alone() };
        } else {
            next = next_start(started);
        }
    }
    START.store(next, Release);
}

/// When a helper may be started that could not be before.
static AGAIN_MS: AtomicU64 = AtomicU64::new(0);

/// What START is to be after a start was tried. While something depends on a helper, it is RUNNING in any case: the next thread that finds
/// none tries again, though not at every call unless somebody killed it.
fn next_start(started: Option<bool>) -> u32 {
    match started {
        Some(true) => return RUNNING,
        _ if !any_or_leases() => return UNAVAILABLE,
        Some(false) => AGAIN_MS.store(task::now_ms() + 100, Release),
        None => (),
    }
    RUNNING
}

/// Waits for the end of the last helper and supervisor, which no wait() of the program sees. Until then the helper may still be closing its
/// files, and tracing threads, which the next one could not stop.
fn reap() {
    if task::pid() != PROGRAM.load(Acquire) {
        return;
    }
    // The number of a dead helper's descriptor of /proc may be another file's here.
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

/// Is nothing left of the last supervisor? (After that, the number may be another child's.)
pub(crate) fn supervisor_is_reaped() -> bool {
    let pid = LAST_SUPERVISOR.load(Acquire);
    let gone = pid == 0 || task::trace_poll(pid) == task::Traced::Gone;
    if gone {
        let _ = LAST_SUPERVISOR.compare_exchange(pid, 0, AcqRel, Relaxed);
    }
    gone
}

/// In a forked child, which is the program now and has no helper yet. The pid of its parent's helper.
pub(crate) fn begin_in_child() -> i32 {
    PROGRAM.store(task::pid(), Release);
    find_end_word();
    START.store(IDLE, Release);
    LAST_HELPER.swap(0, AcqRel)
}

/// The same child starts a helper; see [`start`].
pub(crate) fn start_in_child(predecessor: i32) -> bool {
    START.store(STARTING, Release);
    let started = start(predecessor) == Some(true);
    START.store(if started { RUNNING } else { UNAVAILABLE }, Release);
    started
}

/// Notes where the kernel tells of the calling thread's end.
pub(crate) fn find_end_word() {
    let address = task::thread_end_word();
    END_WORD.store(address, Release);
    END_VALUE.store(task::tid() as u32, Release);
}

/// Starts a helper and waits until it is ready; if it is killed before, another, since it may have begun to take over. `predecessor`: see
/// [`control::PREDECESSOR`]. False: none can work here. `None`: somebody kills them all.
fn start(mut predecessor: i32) -> Option<bool> {
    for _ in 0..TRIES {
        let started = start_once(predecessor);
        if started == Some(true) || !HARMLESS.load(Acquire) {
            return started;
        }
        // A supervisor that could not start its helper would stay, as a process that nobody waits for.
        reap();
        if started.is_some() {
            return started;
        }
        predecessor = -1;
    }
    None
}

/// How often a word of the helper is waited for: some ten seconds. (Before it has said one, to look at a clock may not be harmless.)
const TIMES: u32 = 1_000;

/// Prepares the memory, starts the supervisor, which starts the helper, and waits until that is ready, or says that it cannot work here.
/// `None`: both are gone without a word.
fn start_once(predecessor: i32) -> Option<bool> {
    // (Two helpers of one memory would destroy each other: one that will not go is the last.)
    if task::on_valgrind() || !prepare() || anybody() {
        return Some(false);
    }
    let Some(block) = block() else { return Some(false) };
    control::begin_epoch(predecessor);
    block.ready.store(0, Relaxed);
    block.go.store(0, Relaxed);
    // SAFETY: no other supervisor of this memory is running; `main` keeps the rules.
    let started = unsafe { stack::SUPERVISOR.start(&block.supervisor, crate::supervisor::main) };
    let Ok(pid) = started else { return Some(false) };
    LAST_SUPERVISOR.store(pid, Release);
    // And its children with it.
    task::allow_tracer(pid);
    block.go.store(1, Release);
    task::futex_wake(&block.go);
    let harmless = HARMLESS.load(Acquire);
    for _ in 0..TIMES {
        if block.ready.load(Acquire) != 0 {
            break;
        }
        if !anybody() {
            // Unless it said so last, or has died of a call that must not be made here, either.
            return (block.ready.load(Acquire) == 2 || !HARMLESS.load(Acquire)).then_some(false);
        }
        wait_for_word();
    }
    let said = block.ready.load(Acquire);
    let ready = said == 1;
    if said == 0 && predecessor == 0 {
        // Nobody would send it away any more. (A helper that cannot work here goes by itself, and a filter may kill the program for this.)
        kill_both();
    }
    if ready && !harmless {
        reap_forerunners();
    }
    Some(ready)
}

/// Reaps the supervisors of programs that were here before, and put this one in their place by exec: nobody else waits for these children.
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

/// Allocates what client, helper and supervisor share. True: it is there.
fn prepare() -> bool {
    let storage = fault::watched();
    // (The control block last: where it is, all is.)
    block().is_some()
        || state::prepare()
            && forks::prepare()
            && stack::HELPER.prepare(storage)
            && stack::SUPERVISOR.prepare(storage)
            && control::prepare()
}
