//! Stopping the program's threads, unseen, for the microseconds in which memory changes hands.
//!
//! Only ptrace stops a thread in user code and in the kernel alike without a signal, an error or a trap that the program could see. A system
//! call whose sleep it interrupts is handed back to the kernel ([`task::trace_release`]; [`crate::helper::waits`] says for how long). One
//! that had done a part returns that: the drop-in makes some such calls again.
//!
//! A thread inside vfork cannot stop before its child calls exec. The child shares the memory, and may be the one that waits for the lease:
//! it is held in its parent's place.

use crate::helper::waits;
use crate::shared::control;
use crate::shared::hot::HOT;
use crate::shared::processes::{each_child, each_thread, is_dead};
use crate::shared::requests;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::*};
use elision_sys::task::{self, SignalInfo, Stop, Traced};

/// Threads that can be held at a time. (With their guard pages, they need twice as many mappings as `vm.max_map_count` usually is.)
const THREADS: usize = 1 << 16;

/// For how long the others are held while one does not stop, and how much longer for each of them.
const PATIENCE_US: u64 = 20_000;
const PATIENCE_EACH_US: u64 = 50;

/// How often it is tried before giving up: about a second. Somebody waits for the file meanwhile.
const TRIES: u32 = 30;

/// For how long a thread is waited for that does not stop: it waits for a device, or for a processor. After that pages are copied in place,
/// where a truncation would take them away; but meanwhile no other request is answered.
const STUCK_MS: u64 = 10_000;

/// How often, while threads are being seized, dead ones are reaped (see [`on_timer`]).
const REAP_MS: u64 = 20;

/// Threads are being seized.
static SEIZING: AtomicBool = AtomicBool::new(false);

/// A thread that was seized.
#[derive(Clone, Copy)]
struct Held {
    /// 0: gone.
    tid: i32,
    /// What its stop has come upon, if it has stopped.
    stopped: Option<Stop>,
    /// Inside vfork: it cannot stop, but will not run before its child, which is held.
    lends: bool,
}

/// The threads held.
pub struct StopWorld {
    threads: [Held; THREADS],
    count: usize,
    /// While they are being seized: the one that the kernel, which keeps an order, is expected to name next.
    next: usize,
    /// In a client that has no helper: no thread is stopped.
    pub alone: bool,
    /// The thread that did not stop. `None` if it may be in vfork.
    stuck: Option<i32>,
}

/// Why no child was held in a thread's place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Borrowed {
    ByNobody,
    /// The kernel keeps no list of children, or one may not be traced.
    Perhaps,
}

/// Could every thread be seized?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seized {
    All,
    /// One does not stop for now.
    Slow,
    /// One may not be traced at all.
    Refused,
}

impl StopWorld {
    /// Begins anew, in a helper that holds nobody yet: what a killed helper has left in the list runs.
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

    /// Seizes a thread and asks it to stop. False: it may not be.
    fn seize(&mut self, process: i32, tid: i32) -> bool {
        let next = self.next;
        if self.held().get(next).is_some_and(|held| held.tid == tid) {
            self.next = next + 1;
            return true;
        }
        let at = self.count;
        // (The kernel refuses one that is ours already. To look for each would take as long as there are threads, squared.)
        if let Some(slot) = self.threads.get_mut(at)
            && task::trace_seize(tid).is_ok()
        {
            *slot = Held { tid, stopped: None, lends: false };
            self.count = at + 1;
            self.show_from(at);
            // It may have died meanwhile; then the wait will tell.
            let _ = task::trace_interrupt(tid);
            return true;
        }
        if let Some(at) = self.place_of(tid) {
            self.next = at + 1;
            return true;
        }
        is_dead(process, tid)
    }

    /// Shows [`on_timer`] the threads from this one on.
    fn show_from(&self, at: usize) {
        let shown = SEIZED.iter().zip(&self.threads).take(self.count).skip(at);
        shown.for_each(|(shown, held)| shown.store(held.tid, Relaxed));
        SEIZED_COUNT.store(self.count, Release);
    }

    /// Seizes every thread of `program`, those included that are made meanwhile, and waits until they have stopped.
    fn seize_all(&mut self, program: i32) -> Seized {
        loop {
            let before = self.count;
            // A thread in exec waits for its siblings to be reaped, by the helper if they are seized already, and the next seize would wait
            // for the exec: a timer reaps them.
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

    /// Waits until every seized thread has stopped, is gone, or lends its memory to a child that has stopped.
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

    /// Has the thread stopped, or ended, by now? If so, it stays as it is.
    fn stuck_has_stopped(&mut self, tid: i32) -> bool {
        let Some(at) = self.place_of(tid) else { return true };
        let outcome = task::trace_poll(tid);
        self.note(at, outcome);
        outcome != Traced::Running
    }

    /// Seizes the children of a thread that share this memory: what vfork makes.
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

    /// Lets all of them go. Those that have not stopped yet, or have been killed since, are remembered for [`StopWorld::release_late`]. (A
    /// dead thread is its tracer's to reap, and an exec waits for that.)
    fn release_all(&mut self, program: i32) {
        // Before any thread goes on that could look.
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

    /// Lets threads go that have stopped too late, and reaps those that were killed. True if there are others left.
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
    /// Stops all of the program's threads, wherever they are. True: they are held, until [`StopWorld::resume`].
    pub(crate) fn stop(&mut self, program: i32) -> bool {
        self.stop_within(program, STUCK_MS)
    }

    /// The same, with less patience for threads that cannot be stopped.
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
                // The others go on meanwhile.
                self.release_late(program);
                requests::step();
                task::nap_us(10_000);
            }
        }
        false
    }

    /// Lets the program's threads go on.
    pub(crate) fn resume(&mut self, program: i32) {
        self.release_all(program);
    }
}

/// The threads that were seized, for [`on_timer`]: the code that it interrupts may be changing the list itself.
static SEIZED: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];
static SEIZED_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Called by a timer: while threads are being seized, reaps those that have died. It touches nothing else, and leaves stops to be polled.
pub(crate) extern "C" fn on_timer(_: i32, _: &SignalInfo) {
    if SEIZING.load(SeqCst) {
        for tid in SEIZED.iter().take(SEIZED_COUNT.load(Acquire)) {
            task::reap_if_dead(tid.load(Relaxed));
        }
        // Not every so often by itself: with very many threads this may take longer than that.
        task::ring_in_ms(REAP_MS);
    }
}
