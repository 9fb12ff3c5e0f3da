//! Standing in for a program while it runs: signals are passed on, stops and the end are mirrored.
//!
//! Only `--stats` and `--report` need this, because there is something to do after the program; otherwise the command execs. The program runs in the
//! command's process group, so the terminal's keys reach it directly. Signals that the kernel sends to that group are dropped here;
//! signals that a process sends to the command are passed on.
#![allow(unsafe_code)] // Masks have no safe wrapper, and handlers are unsafe by nature.

use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, waitid};

use crate::start;

/// All signals that somebody may send on purpose. The others are faults of this process, or cannot be handled.
fn passed_on() -> impl Iterator<Item = c_int> {
    const NAMED: [c_int; 10] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGCONT,
        libc::SIGTSTP,
        libc::SIGWINCH,
    ];
    NAMED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// The program's process; 0 once it has ended.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

/// Runs a command, which starts as `start::hand_down` says, to its end.
///
/// # Errors
/// It could not be started.
pub fn supervise(command: &mut Command) -> io::Result<ExitStatus> {
    // Blocked until there is a program to pass them on to. The handlers come after it, as it inherits what is ignored.
    change_mask(libc::SIG_BLOCK);
    start::keep_children();
    let mut program = command.spawn()?;
    PROGRAM.store(program.id() as i32, SeqCst);
    for signal in passed_on() {
        let pass_on = move |info: &libc::siginfo_t| {
            let program = PROGRAM.load(SeqCst);
            // Sent by a process (kill and its kin), not by the kernel.
            if info.si_code <= 0 && program != 0 {
                // SAFETY: takes two integers.
                unsafe { libc::kill(program, signal) };
            }
        };
        // SAFETY: `pass_on` makes one async-signal-safe call.
        let _ = unsafe { signal_hook_registry::register_sigaction(signal, pass_on) };
    }
    change_mask(libc::SIG_UNBLOCK);
    wait(&mut program)
}

fn change_mask(how: c_int) {
    // SAFETY: a set that is filled in here.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        passed_on().for_each(|signal| _ = libc::sigaddset(&mut set, signal));
        libc::sigprocmask(how, &set, ptr::null_mut());
    }
}

/// Waits for the end, and mirrors stops, unless waitid is refused.
fn wait(program: &mut Child) -> io::Result<ExitStatus> {
    let of_program = || WaitId::Pid(Pid::from_child(program));
    // NOWAIT: nobody else gets the program's number before PROGRAM is cleared.
    let change = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(of_program(), change) {
            Ok(Some(status)) if status.stopped() => {
                if let Ok(Some(stop)) = waitid(of_program(), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG) {
                    mirror_stop(stop.stopping_signal());
                }
            }
            Err(Errno::INTR) => {}
            Ok(_) => {
                PROGRAM.store(0, SeqCst);
                return program.wait();
            }
            Err(_) => return program.wait(),
        }
    }
}

/// The shell watches this process: when the terminal has stopped the program, this process stops as well, and the shell prompts. The
/// SIGCONT that ends the stop is passed on. A SIGSTOP is not mirrored: its sender wakes the program by number, and would leave this
/// process stopped.
fn mirror_stop(signal: Option<c_int>) {
    if [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].map(Some).contains(&signal) {
        let _ = kill_process(getpid(), Signal::STOP);
    }
}
