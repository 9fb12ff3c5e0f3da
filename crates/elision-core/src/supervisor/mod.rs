//! The sidecar's parent, which does nothing but start another when it is killed.
//!
//! The program would see that it is gone at its next big call, which may be hours away; who wants to change a file in the meantime would
//! wait for as long as the kernel lets him, and then change what buffers here show. It keeps the rules of the sidecar, and
//! has as little as it can: no descriptors, no state but what is in [`launch`]. If it is killed itself, the program starts both
//! anew at its next big call.
#![allow(unsafe_code)] // A signal handler.

use crate::client::fork;
use crate::client::launch::{self, Gate, PROGRAM, TRIES};
use crate::helper::fault;
use crate::helper::processes;
use crate::helper::serve::{self, PARENTS_END};
use core::sync::atomic::Ordering::*;
use elision_sys::file::{self, ProcPath};
use elision_sys::task;

/// One that is killed sooner is one of [`TRIES`].
const SHORT_MS: u64 = 1_000;

/// Where a supervisor begins.
pub(crate) extern "C" fn main() -> ! {
    let Some(gate) = launch::gate() else { task::exit() };
    task::block_all_but(&[PARENTS_END]);
    task::set_name(crate::helper::SUPERVISORS_NAME);
    task::leave_no_core();
    launch::mark(gate);
    let (mut tries, mut settled) = (0, false);
    loop {
        let begun = task::now_ms();
        let Ok(pid) = launch::start_sidecar(gate) else { give_up(gate) };
        // It has begun in the program's directory, which its statistics may be relative to.
        task::leave_directory();
        // (Not before: somebody waits for the sidecar.)
        if !settled && !settle() {
            task::exit();
        }
        settled = true;
        let Some(signal) = task::wait_killed(pid) else { task::exit() };
        // By a system call filter: the next one would be, too.
        if signal == libc::SIGSYS {
            give_up(gate);
        }
        tries = if task::ms_since(begun) < SHORT_MS { tries + 1 } else { 0 };
        // What is noted of /proc was that one's.
        processes::begin();
        fault::sidecar_died(signal);
        // From here on a fork waits for the next one; or it has begun before, and that one for it.
        launch::begin_epoch(-1);
        fork::wait_for_fork();
        let program = PROGRAM.load(Acquire);
        if tries > TRIES || !launch::wants_successor() || !processes::program_lives(program) {
            task::exit();
        }
        // For the statistics; to do without them is better than to do without a sidecar.
        let _ = task::change_directory(ProcPath::new(program, "cwd", None).as_c_str());
    }
}

/// No sidecar can work here.
fn give_up(gate: &Gate) -> ! {
    gate.ready.store(2, Release);
    task::futex_wake(&gate.ready);
    task::exit()
}

/// Leaves to the program what is the program's alone. False: that cannot be, and the sidecar has to do without a parent.
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
