//! Sending the helper away: before credentials change, before exec, and at the end of the program.

use crate::client::call::Call;
use crate::client::launch::{
    have_go_on, kill_both, lost, start_again, supervisor_is_reaped, wait_for_end, wait_started,
};
use crate::shared::control::{IDLE, PROGRAM, RETIRED, RUNNING, START, STARTING, UNAVAILABLE, alive, anybody};
use crate::shared::report::report_alone;
use crate::shared::requests::Op;
use core::sync::atomic::Ordering::*;
use elision_sys::task;

/// Has the helper, if there is one, materialise everything and go; none is started until [`retired`], which is to be called if this says true.
pub fn retire() -> bool {
    if task::pid() != PROGRAM.load(Acquire) {
        return false;
    }
    // A helper that is just being started has the old credentials, too. (The thread that starts it has signals blocked: it is not this one.)
    let running = loop {
        let now = START.load(Acquire);
        let next = match now {
            STARTING => {
                wait_started();
                continue;
            }
            IDLE | RUNNING => RETIRED,
            UNAVAILABLE => {
                report_alone();
                return false;
            }
            others => others + 1,
        };
        if START.compare_exchange(now, next, SeqCst, Acquire).is_ok() {
            break now == RUNNING;
        }
    };
    let reported = if running { send_away(Op::Retire) } else { wait_gone() };
    if !reported {
        // Afterwards the program may have lost the right to.
        report_alone();
    }
    true
}

/// Waits until the helper and the supervisor are gone, which another thread has told to go, or kills. False: there was none.
fn wait_gone() -> bool {
    let there = anybody();
    // However long that takes: what they still do, they do with the old credentials.
    while anybody() {
        wait_for_end();
    }
    there
}

/// How long a helper that was told to go, or is only about to come, is waited for.
const PATIENCE_MS: u64 = 2_000;

/// Has the helper do this and go, and the supervisor, and waits until both are gone. False: it was killed before it could.
fn send_away(how: Op) -> bool {
    let mut done = false;
    let mut asked_ms = task::now_ms();
    // Credentials do not change while a helper has the old ones. (One that is killed does nothing more, even if its end takes longer.)
    let kills = how == Op::Retire;
    while anybody() && task::ms_since(asked_ms) < PATIENCE_MS << u32::from(kills) {
        if kills && task::ms_since(asked_ms) >= PATIENCE_MS {
            kill_both();
        }
        have_go_on();
        // More than once if it is killed, and another was being started when START changed.
        if !done && let Some(mut call) = Call::new(how, false) {
            done = call.send().is_none();
            if done {
                asked_ms = task::now_ms();
            }
        } else {
            wait_for_end();
        }
    }
    // What remains is a process, though no wait() of the program sees it, and has little left to do.
    let mut round = 0;
    while !supervisor_is_reaped() && task::ms_since(asked_ms) < PATIENCE_MS {
        task::give_way(round);
        round += 1;
    }
    done
}

/// Before exec: has the statistics written, write leases given up and the helper go. Other leases stay with their mappings, and go with this
/// program's memory. No helper is started until [`retired`], which is to be called if this says true and exec fails.
pub fn leave() -> bool {
    go(Op::Leave)
}

/// Before the program ends by itself: has the statistics written and the helper go, which would keep the program's memory, and all that
/// goes with it (mappings, locks, the executable), after the parent was told of the end. No other is started.
pub fn finish() {
    go(Op::End);
}

fn go(how: Op) -> bool {
    if task::pid() != PROGRAM.load(Acquire) {
        return false;
    }
    let mask = task::block_signals();
    let left = loop {
        let now = START.load(Acquire);
        match now {
            STARTING => wait_started(),
            // The helper was killed: the next one gives up the leases that it has left on descriptions of the program's.
            RUNNING if !alive() && lost() => (),
            IDLE | RUNNING => {
                if START.compare_exchange(now, RETIRED, SeqCst, Acquire).is_ok() {
                    break Some(now == RUNNING);
                }
            }
            // Another thread's, and not ours to end.
            _ => break None,
        }
    };
    if left != Some(true) || !send_away(how) {
        report_alone();
    }
    task::restore_signals(mask);
    left.is_some()
}

/// After [`retire`] or [`leave`]: another helper may be started, with the credentials that the process has now; and is at once if anything
/// depends on one.
pub fn retired() {
    let mask = task::block_signals();
    let less = |now: u32| Some(if now > RETIRED { now - 1 } else { STARTING });
    if START.fetch_update(AcqRel, Acquire, less) == Ok(RETIRED) {
        start_again();
    }
    task::restore_signals(mask);
}
