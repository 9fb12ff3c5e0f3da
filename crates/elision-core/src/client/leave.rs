//! Stops the helper: before credentials change, before exec, and at the program's end.

use crate::client::call::Call;
use crate::client::launch::{
    have_go_on, kill_both, lost, start_again, supervisor_is_reaped, wait_for_end, wait_started,
};
use crate::shared::control::{IDLE, PROGRAM, RETIRED, RUNNING, START, STARTING, UNAVAILABLE, alive, anybody};
use crate::shared::report::report_alone;
use crate::shared::requests::Op;
use crate::shared::verbose;
use core::sync::atomic::Ordering::*;
use elision_sys::task;

/// Has the helper materialise everything and end. True: none is started until [`retired`].
pub fn retire() -> bool {
    if task::pid() != PROGRAM.load(Acquire) {
        return false;
    }
    // A helper being started has the old credentials, too; its starter is another thread.
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
        // Afterwards the program may lack the permission.
        report_alone();
    }
    true
}

fn wait_gone() -> bool {
    let there = anybody();
    // Without a time-out: until then they act with the old credentials.
    while anybody() {
        wait_for_end();
    }
    there
}

const PATIENCE_MS: u64 = 2_000;

fn send_away(how: Op) -> bool {
    let mut done = false;
    let mut asked_ms = task::now_ms();
    // Credentials must not change while a helper has the old ones.
    let kills = how == Op::Retire;
    while anybody() && task::ms_since(asked_ms) < PATIENCE_MS << u32::from(kills) {
        if kills && task::ms_since(asked_ms) >= PATIENCE_MS {
            kill_both();
        }
        have_go_on();
        // Again if it is killed while another was being started when START changed.
        if !done && let Some(mut call) = Call::new(how, false) {
            done = call.send().is_none();
            if done {
                asked_ms = task::now_ms();
            }
        } else {
            wait_for_end();
        }
    }
    let mut round = 0;
    while !supervisor_is_reaped() && task::ms_since(asked_ms) < PATIENCE_MS {
        task::give_way(round);
        round += 1;
    }
    done
}

/// Before exec: write leases go, other leases go with the mappings. True: none is started until [`retired`].
pub fn leave() -> bool {
    go(Op::Leave)
}

/// A helper would keep memory, locks and the executable in use.
pub fn finish() {
    verbose::say_sums();
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
            // The helper was killed: the next one gives up its leases on the program's descriptions.
            RUNNING if !alive() && lost() => (),
            IDLE | RUNNING => {
                if START.compare_exchange(now, RETIRED, SeqCst, Acquire).is_ok() {
                    break Some(now == RUNNING);
                }
            }
            _ => break None,
        }
    };
    if left != Some(true) || !send_away(how) {
        report_alone();
    }
    task::restore_signals(mask);
    left.is_some()
}

/// A helper may be started again, and is if anything depends on one.
pub fn retired() {
    let mask = task::block_signals();
    let less = |now: u32| Some(if now > RETIRED { now - 1 } else { STARTING });
    if START.fetch_update(AcqRel, Acquire, less) == Ok(RETIRED) {
        start_again();
    }
    task::restore_signals(mask);
}
