//! The helper's parent, which does nothing but start another helper when one is killed.
//!
//! The program would find that out at its next big call, perhaps hours later; whoever wants to change a file meanwhile would wait for as long
//! as the kernel lets him, and then change what buffers show. The supervisor keeps the helper's rules, and has no descriptors and no state but
//! the control block. If it is killed itself, the program starts both anew at its next big call.
#![allow(unsafe_code)] // Starts a process that shares this memory, and sets a signal handler.

use crate::helper::serve::{self, PARENTS_END};
use crate::shared::control::{self, ControlBlock, PROGRAM, TRIES};
use crate::shared::live::any_or_leases;
use crate::shared::{fault, forks, processes, stack};
use core::sync::atomic::Ordering::*;
use elision_sys::file::{self, ProcPath};
use elision_sys::{limits, task};

/// A helper that is killed sooner is one of [`TRIES`].
const SHORT_MS: u64 = 1_000;

/// Where a supervisor begins.
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
        // SAFETY: no other helper of this memory is running; `main` keeps the rules.
        let started = unsafe { stack::HELPER.start(&block.helper, serve::main) };
        let Ok(pid) = started else { give_up(block) };
        // The helper has begun in the program's directory, which the path of the statistics may be relative to.
        task::leave_directory();
        // (Not before: a client waits for the helper.)
        if !settled && !settle() {
            task::exit();
        }
        settled = true;
        let Some(signal) = task::wait_killed(pid) else { task::exit() };
        // By a system call filter: the next one would be, too.
        if signal == libc::SIGSYS {
            give_up(block);
        }
        tries = if task::ms_since(begun) < SHORT_MS { tries + 1 } else { 0 };
        // The descriptor of /proc was that one's.
        processes::begin();
        fault::helper_died(signal);
        // From here on a fork waits for the next helper; or it has begun before, and the helper waits for it.
        control::begin_epoch(-1);
        forks::wait_for_quiesced();
        let program = PROGRAM.load(Acquire);
        // (If a thread is about to start a helper, that thread waits until both are gone.)
        let wanted = control::running() && any_or_leases();
        if tries > TRIES || !wanted || !processes::program_lives(program) {
            task::exit();
        }
        // For the statistics, without which the next helper can do.
        let _ = task::change_directory(ProcPath::new(program, "cwd", None).as_c_str());
    }
}

/// No helper can work here.
fn give_up(block: &ControlBlock) -> ! {
    block.say(2);
    task::exit()
}

/// Leaves to the program what is the program's alone. False: that cannot be, and the helper has to do without a supervisor.
fn settle() -> bool {
    let isolated = file::unshare_and_close_all().is_ok();
    task::new_session();
    // SAFETY: the handler notes something in atomics and rings a bell, which is safe anywhere.
    let handled = unsafe { task::handle_signal(PARENTS_END, serve::on_parents_end).is_ok() };
    if handled {
        task::signal_at_parents_end(PARENTS_END);
    }
    isolated && handled
}
