//! The helper's parent: starts another helper when one is killed.
//!
//! Without it, whoever wants to change a file would wait until the program's next large call, or until the kernel breaks the
//! lease and buffers change. It keeps the helper's rules, and has no descriptors and no state but the control block. If it is
//! killed, the program starts both anew at its next large call.
#![allow(unsafe_code)] // Starts a process that shares this memory, and sets a signal handler.

use crate::helper::serve::{self, PARENTS_END};
use crate::shared::control::{self, ControlBlock, PROGRAM, TRIES};
use crate::shared::live::any_or_leases;
use crate::shared::{fault, forks, processes, stack};
use core::sync::atomic::Ordering::*;
use elision_sys::file::{self, ProcPath};
use elision_sys::{limits, task};

/// A helper killed sooner counts as one of [`TRIES`].
const SHORT_MS: u64 = 1_000;

pub(crate) extern "C" fn main() -> ! {
    let Some(block) = control::block() else { task::exit() };
    task::block_all_but(&[PARENTS_END]);
    task::set_name(processes::SUPERVISORS_NAME);
    limits::leave_no_core();
    block.set_cookie();
    let (mut tries, mut settled) = (0, false);
    loop {
        let begun = task::now_ms();
        block.ready.store(0, Release);
        // SAFETY: no other helper of this memory runs; `main` keeps the rules.
        let started = unsafe { stack::HELPER.start(&block.helper, serve::main) };
        let Ok(pid) = started else { give_up(block) };
        // Only now: the helper starts in the program's directory for a relative statistics path.
        task::leave_directory();
        // Only now: a client waits for the helper.
        if !settled && !settle() {
            task::exit();
        }
        settled = true;
        let Some(signal) = task::wait_killed(pid) else { task::exit() };
        // A system call filter killed it, and would kill the next.
        if signal == libc::SIGSYS {
            give_up(block);
        }
        tries = if task::ms_since(begun) < SHORT_MS { tries + 1 } else { 0 };
        // The /proc descriptor was the dead helper's.
        processes::begin();
        fault::helper_died(signal);
        // From here on a fork waits for the next helper; one that began earlier, the supervisor waits for.
        control::begin_epoch(-1);
        forks::wait_for_quiesced();
        let program = PROGRAM.load(Acquire);
        // If a thread is about to start a helper, it waits until both are gone.
        let wanted = control::running() && any_or_leases();
        if tries > TRIES || !wanted || !processes::program_lives(program) {
            task::exit();
        }
        // For the statistics, which the next helper can do without.
        let _ = task::change_directory(ProcPath::new(program, "cwd", None).as_c_str());
    }
}

fn give_up(block: &ControlBlock) -> ! {
    block.say(2);
    task::exit()
}

/// Leaves what belongs to the program alone. False: not possible, so there is no supervisor.
fn settle() -> bool {
    let isolated = file::unshare_and_close_all().is_ok();
    task::new_session();
    // SAFETY: the handler only sets atomics and rings a bell: async-signal-safe.
    let handled = unsafe { task::handle_signal(PARENTS_END, serve::on_parents_end).is_ok() };
    if handled {
        task::signal_at_parents_end(PARENTS_END);
    }
    isolated && handled
}
