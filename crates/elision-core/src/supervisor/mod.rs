//! The helper's parent: starts another helper when one is killed.
//!
//! Without it, whoever wants to change a file would wait for the program's next large call, or for the kernel to break the lease.
//! The supervisor keeps the helper's rules, without state. The program's next large call replaces a killed one.
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
    // The helper shares this table. So a killed one leaves its descriptors to the next, which thus reaches the program's descriptions.
    if file::unshare_and_close_all().is_err() {
        give_up(block);
    }
    let (mut tries, mut settled) = (0, false);
    loop {
        let begun = task::now_ms();
        block.ready.store(0, Release);
        // SAFETY: no other helper runs; `main` keeps the rules.
        let started = unsafe { stack::HELPER.start(&block.helper, serve::main) };
        let Ok(pid) = started else { give_up(block) };
        // Only now: a helper starts in the program's directory (relative statistics path).
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
        processes::begin();
        fault::helper_died(signal);
        // From here on forks wait for the next helper; the supervisor waits for earlier ones.
        control::begin_epoch(-1);
        forks::wait_for_quiesced();
        let program = PROGRAM.load(Acquire);
        // A thread about to start a helper waits until both are gone.
        let wanted = control::running() && any_or_leases();
        if tries > TRIES || !wanted || !processes::program_lives(program) {
            task::exit();
        }
        // For the statistics' path, which the next helper can do without.
        let _ = task::change_directory(ProcPath::new(program, "cwd", None).as_c_str());
    }
}

fn give_up(block: &ControlBlock) -> ! {
    block.say(2);
    task::exit()
}

/// Leaves the program's own things to it. False: there can be no supervisor.
fn settle() -> bool {
    task::new_session();
    // SAFETY: the handler is async-signal-safe.
    let handled = unsafe { task::handle_signal(PARENTS_END, serve::on_parents_end).is_ok() };
    if handled {
        task::signal_at_parents_end(PARENTS_END);
    }
    handled
}
