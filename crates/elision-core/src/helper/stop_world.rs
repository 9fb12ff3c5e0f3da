//! Stops the program's threads while memory changes hands.
//!
//! Only ptrace does so unseen. An interrupted call is handed back to the kernel ([`task::trace_release`],
//! [`crate::helper::waits`]); one that had done a part returns that. A thread inside vfork cannot stop: its child, which shares
//! the memory, is held instead.

use crate::helper::waits;
use crate::shared::control;
use crate::shared::hot::HOT;
use crate::shared::processes::{each_child, each_thread, is_dead};
use crate::shared::requests;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::*};
use elision_sys::task::{self, CallStop, Onward, SignalInfo, Stop, Traced};

/// Threads that can be held: more, with guard pages, exceed the usual `vm.max_map_count`.
const THREADS: usize = 1 << 16;

/// How long the others are held while one does not stop, and how much longer for each.
const PATIENCE_US: u64 = 20_000;
const PATIENCE_EACH_US: u64 = 50;

const TRIES: u32 = 30;

/// How long to wait for a thread that does not stop (device, processor), before pages are copied in place.
const STUCK_MS: u64 = 10_000;

const REAP_MS: u64 = 20;

static SEIZING: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy)]
struct Held {
    tid: i32,
    stopped: Option<Stop>,
    /// Inside vfork: the thread will not run before its child, which is held.
    lends: bool,
}

pub struct StopWorld {
    threads: [Held; THREADS],
    count: usize,
    /// The thread that /proc is expected to list next.
    next: usize,
    pub alone: bool,
    /// The thread that did not stop; `None` if it may be in vfork.
    stuck: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Borrowed {
    ByNobody,
    Perhaps,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seized {
    All,
    Slow,
    Refused,
}

impl StopWorld {
    pub(crate) fn begin(&mut self) {
        (self.count, self.alone, self.stuck) = (0, false, None);
        SEIZING.store(false, SeqCst);
    }

    fn held(&mut self) -> &mut [Held] {
        self.threads.get_mut(..self.count).unwrap_or_default()
    }

    fn place_of(&mut self, tid: i32) -> Option<usize> {
        self.held().iter().position(|held| held.tid == tid)
    }

    fn seize(&mut self, process: i32, tid: i32) -> bool {
        let next = self.next;
        if self.held().get(next).is_some_and(|held| held.tid == tid) {
            self.next = next + 1;
            return true;
        }
        let at = self.count;
        // The kernel refuses a seized thread. Searching the list first would be quadratic.
        if let Some(slot) = self.threads.get_mut(at)
            && task::trace_seize(tid).is_ok()
        {
            *slot = Held { tid, stopped: None, lends: false };
            self.count = at + 1;
            self.show_from(at);
            let _ = task::trace_interrupt(tid);
            return true;
        }
        if let Some(at) = self.place_of(tid) {
            self.next = at + 1;
            return true;
        }
        is_dead(process, tid)
    }

    fn show_from(&self, at: usize) {
        let shown = SEIZED.iter().zip(&self.threads).take(self.count).skip(at);
        shown.for_each(|(shown, held)| shown.store(held.tid, Relaxed));
        SEIZED_COUNT.store(self.count, Release);
    }

    fn seize_all(&mut self, program: i32) -> Seized {
        loop {
            let before = self.count;
            // A thread in exec waits for the helper to reap its seized siblings, and the next seize for that exec: a timer reaps.
            self.show_from(0);
            SEIZING.store(true, SeqCst);
            task::ring_in_ms(REAP_MS);
            self.next = 0;
            let complete = each_thread(program, |tid| self.seize(program, tid));
            SEIZING.store(false, SeqCst);
            task::ring_in_ms(0);
            if !complete {
                return Seized::Refused;
            }
            if !self.wait_stopped(program) {
                return Seized::Slow;
            }
            if self.count == before {
                return Seized::All;
            }
        }
    }

    fn wait_stopped(&mut self, program: i32) -> bool {
        let mut waited = 0;
        let patience = PATIENCE_US + PATIENCE_EACH_US * self.count as u64;
        let mut at = 0;
        while let Some(&Held { tid, stopped, lends, .. }) = self.held().get(at) {
            if tid == 0 || stopped.is_some() || lends {
                at += 1;
                continue;
            }
            match task::trace_poll(tid) {
                Traced::Running if waited < patience => {
                    let nap = if waited < 200 { 5 } else { 100 };
                    task::nap_us(nap);
                    waited += nap + 50;
                }
                Traced::Running => {
                    if let Err(borrowed) = self.hold_borrowers(program, tid) {
                        self.stuck = (borrowed == Borrowed::ByNobody).then_some(tid);
                        return false;
                    }
                    if let Some(held) = self.held().get_mut(at) {
                        held.lends = true;
                    }
                    waited = 0;
                }
                outcome => self.note(at, outcome),
            }
        }
        true
    }

    fn note(&mut self, at: usize, outcome: Traced) {
        if let Some(held) = self.held().get_mut(at) {
            match outcome {
                Traced::Stopped(stop) => held.stopped = Some(stop),
                Traced::Gone => held.tid = 0,
                Traced::Running => (),
            }
        }
    }

    fn stuck_has_stopped(&mut self, tid: i32) -> bool {
        let Some(at) = self.place_of(tid) else { return true };
        let outcome = task::trace_poll(tid);
        self.note(at, outcome);
        outcome != Traced::Running
    }

    /// Seizes children that share this memory (vfork).
    fn hold_borrowers(&mut self, program: i32, tid: i32) -> Result<(), Borrowed> {
        let mut found = false;
        let ours = control::supervisor() as i32;
        let listed = each_child(program, tid, |child| {
            if child == ours || !control::shares_memory(child) {
                return true;
            }
            found = true;
            self.seize(child, child)
        });
        match (listed, found) {
            (true, true) => Ok(()),
            (true, false) => Err(Borrowed::ByNobody),
            (false, _) => Err(Borrowed::Perhaps),
        }
    }

    /// Keeps threads that did not stop or were killed for [`StopWorld::release_late`]: an exec waits until they are reaped.
    fn release_all(&mut self, program: i32) {
        // Before any thread runs that could look.
        if self.count > 0 {
            HOT.pauses.fetch_add(1, Release);
        }
        let mut kept = 0;
        for at in 0..self.count {
            let Some(&Held { tid, stopped, .. }) = self.threads.get(at) else { break };
            let release =
                |stop| task::trace_release(tid, stop, |registers| waits::interrupted(program, registers));
            if tid == 0 || stopped.is_some_and(release) {
                continue;
            }
            if let Some(slot) = self.threads.get_mut(kept) {
                *slot = Held { tid, stopped: None, lends: false };
                kept += 1;
            }
        }
        self.count = kept;
    }

    pub(crate) fn release_late(&mut self, program: i32) -> bool {
        for at in 0..self.count {
            if let Some(&Held { tid, stopped: None, .. }) = self.threads.get(at)
                && tid != 0
            {
                self.note(at, task::trace_poll(tid));
            }
        }
        self.release_all(program);
        self.count != 0
    }
    pub(crate) fn stop(&mut self, program: i32) -> bool {
        self.stop_within(program, STUCK_MS)
    }

    pub(crate) fn stop_within(&mut self, program: i32, stuck_ms: u64) -> bool {
        if self.alone {
            return true;
        }
        let begun = task::now_ms();
        for _ in 0..TRIES {
            let seized = self.seize_all(program);
            if seized == Seized::All {
                return true;
            }
            self.release_all(program);
            if seized == Seized::Refused {
                return false;
            }
            requests::step();
            task::nap_us(10_000);
            let stuck = self.stuck.take();
            while stuck.is_some_and(|tid| !self.stuck_has_stopped(tid)) && task::ms_since(begun) < stuck_ms {
                self.release_late(program);
                requests::step();
                task::nap_us(10_000);
            }
        }
        false
    }

    /// As [`StopWorld::stop`], of at most so many threads, without patience for one that waits for a device.
    pub(crate) fn try_to_stop(&mut self, program: i32, most: usize) -> bool {
        const TRIES: usize = 4;
        for _ in 0..if self.alone || self.count > 0 { 0 } else { TRIES } {
            let seized = self.seize_all(program);
            if seized == Seized::All && self.count <= most {
                return true;
            }
            self.release_all(program);
            if seized != Seized::Slow || self.count > 0 {
                return false;
            }
            requests::step();
        }
        false
    }

    /// Lets one of the stopped threads run on. False: it does not, being killed or stopped by a signal.
    pub(crate) fn let_run(&mut self, program: i32, tid: i32, onward: Onward) -> bool {
        let Some(at) = self.place_of(tid) else { return false };
        let Some(held) = self.held().get_mut(at) else { return false };
        let Some(stop @ (Stop::Midway | Stop::Call)) = held.stopped else { return false };
        HOT.pauses.fetch_add(1, Release);
        let runs = task::trace_onward(tid, stop, onward, |registers| waits::interrupted(program, registers));
        if runs {
            held.stopped = None;
        }
        runs
    }

    pub(crate) fn poll(&mut self, tid: i32) -> Traced {
        let Some(at) = self.place_of(tid) else { return Traced::Gone };
        let outcome = task::trace_poll(tid);
        self.note(at, outcome);
        outcome
    }

    pub(crate) fn holds_others(&self) -> bool {
        self.count > 1
    }

    /// What the thread does, if it has stopped where a call begins or ends.
    pub(crate) fn call_of(&mut self, tid: i32) -> Option<CallStop> {
        let at = self.place_of(tid)?;
        let at_call = self.held().get(at)?.stopped == Some(Stop::Call);
        if at_call { task::trace_call(tid) } else { None }
    }

    /// Was it killed?
    pub(crate) fn is_ending(&mut self, tid: i32) -> bool {
        match self.place_of(tid).and_then(|at| self.held().get(at)) {
            Some(held) => held.stopped == Some(Stop::Exiting),
            None => true,
        }
    }

    /// Stops a thread that was let run.
    pub(crate) fn catch(&mut self, program: i32, tid: i32) -> bool {
        let runs = self.held().iter().any(|held| held.tid == tid && held.stopped.is_none());
        if runs {
            let _ = task::trace_interrupt(tid);
        }
        self.wait_stopped(program)
    }

    pub(crate) fn resume(&mut self, program: i32) {
        self.release_all(program);
    }
}

/// For [`on_timer`], which may interrupt a change of the list.
static SEIZED: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];
static SEIZED_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Only reaps dead threads: the code that it interrupts polls the stops.
pub(crate) extern "C" fn on_timer(_: i32, _: &SignalInfo) {
    if SEIZING.load(SeqCst) {
        for tid in SEIZED.iter().take(SEIZED_COUNT.load(Acquire)) {
            task::reap_if_dead(tid.load(Relaxed));
        }
        // Not periodic: one pass over very many threads takes longer.
        task::ring_in_ms(REAP_MS);
    }
}
