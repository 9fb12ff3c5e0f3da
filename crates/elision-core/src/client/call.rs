//! A client's half of a request: claim a slot, fill it in, post it, wait for the answer.
#![allow(unsafe_code)] // The slots are shared with another process: see [`crate::shared::requests`].

use crate::client::launch;
use crate::shared::control;
use crate::shared::requests::{
    self, CLAIMED, DONE, FREE, LOST, Op, POOL, POSTED, Request, SLEEPS, Slot, TAKEN,
};
use crate::stats::Reason;
use core::sync::atomic::Ordering::*;
use elision_sys::file::FileKey;
use elision_sys::hand_over::hand_over;
use elision_sys::task;

/// Rounds of polling before the thread sleeps: some hundred microseconds, as long as a woken helper takes.
const ROUNDS: u32 = 40;
const POLLS: u32 = 100;

const LOOK_MS: u64 = 100;
/// Looks to wait for the helper to take a transfer, before the plain call.
const TRANSFER_LOOKS: u32 = 2;
/// Looks without progress after which the helper is killed: with a transfer taken, and otherwise.
const IDLE_TRANSFER_LOOKS: u32 = 50;
const IDLE_LOOKS: u32 = (launch::IDLE_MS / LOOK_MS) as u32;

pub struct Call {
    slot: &'static Slot,
    mask: task::Mask,
    /// The thread no longer owns the slot: see [`LOST`].
    lost: bool,
}

impl Call {
    /// Claims a slot, and starts the helper if `start` and possible. `None`: do without.
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
            // A transfer may go without. Other requests must be sent.
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
        // Stale runs stay: `count` says how many are valid.
        request.op = op;
        request.pid = task::pid();
        request.fd = -1;
        (request.meet, request.sender) = (None, 0);
        request.key = FileKey::default();
        (request.addr, request.len, request.offset, request.tried) = (0, 0, 0, 0);
        (request.head, request.tail) = (0, 0);
        (request.owned, request.exclusive, request.track, request.more) = (false, false, false, false);
        (request.deferred, request.immutable, request.shares) = (false, false, false);
        (request.declined, request.handled, request.count, request.known) = (None, 0, 0, 0);
        Some(call)
    }

    pub fn request(&mut self) -> &mut Request {
        // SAFETY: the slot is claimed, and posted only within `send`, which has `self` to itself.
        unsafe { &mut *self.slot.request.get() }
    }

    /// Hands the helper the descriptor if it cannot take it.
    pub fn send(&mut self) -> Option<Reason> {
        let declined = self.exchange();
        if self.lost || declined.is_none() {
            return declined;
        }
        let request = self.request();
        let Some(address) = request.meet.take() else { return declined };
        match hand_over(request.fd, address, control::helper() as i32) {
            Ok(sender) => {
                request.sender = sender;
                let declined = self.exchange();
                if !self.lost {
                    self.request().sender = 0;
                }
                declined
            }
            Err(_) => declined,
        }
    }

    fn exchange(&mut self) -> Option<Reason> {
        if self.lost {
            return Some(Reason::Helper);
        }
        let epoch = control::epoch();
        self.slot.status.store(POSTED, Release);
        requests::post(self.slot);
        requests::ring();
        for _ in 0..ROUNDS {
            for _ in 0..POLLS {
                if self.slot.status.load(Acquire) == DONE {
                    return self.request().declined;
                }
                core::hint::spin_loop();
            }
            task::yield_now();
        }
        // Until this is sent the helper keeps others from the file.
        let request = self.request();
        let optional = request.op == Op::Associate || request.op == Op::Plan && !request.more;
        let (mut looks, mut idle, mut steps) = (0, 0, requests::STEPS.load(Relaxed));
        loop {
            let status = self.slot.status.load(Acquire);
            if status == DONE {
                return self.request().declined;
            }
            let sleeping = status | SLEEPS;
            if self.slot.status.compare_exchange(status, sleeping, AcqRel, Acquire).is_err() {
                continue;
            }
            // The time-out is for a killed or stopped helper.
            task::futex_wait(&self.slot.status, sleeping, LOOK_MS);
            if (!control::alive() || control::epoch() != epoch) && self.give_up() {
                // Waits for the next helper to have worked, if anything depends on one.
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
            requests::ring();
            let now = requests::STEPS.load(Relaxed);
            idle = if now == steps { idle + 1 } else { 0 };
            steps = now;
            if idle >= if optional { IDLE_TRANSFER_LOOKS } else { IDLE_LOOKS } {
                idle = 0;
                launch::kill_both();
            }
        }
        if self.lost {
            requests::ring();
        }
        Some(Reason::Helper)
    }

    pub fn is_good(&self) -> bool {
        !self.lost
    }

    fn give_up(&mut self) -> bool {
        self.take_back()
            || self.slot.status.load(Acquire) & !SLEEPS == TAKEN
                && (!control::alive() || self.slot.taken_by.load(Acquire) != control::epoch())
    }

    /// Takes the request back. False: a helper has taken it.
    fn take_back(&mut self) -> bool {
        loop {
            let status = self.slot.status.load(Acquire);
            if status & !SLEEPS != POSTED {
                return false;
            }
            if self.slot.status.compare_exchange(status, LOST, AcqRel, Acquire).is_ok() {
                self.lost = true;
                requests::SOME_LOST.store(true, Release);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::requests::{Answer, answer_all};
    use crate::shared::requests::{HEAD, SLOTS, post};
    use core::ptr;

    /// Helpers killed just after they take the list use up no slots.
    #[test]
    fn what_a_killed_helper_had_taken_from_the_list_can_be_used_again() {
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
