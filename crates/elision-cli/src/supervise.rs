//! Standing in for a program while it runs: signals pass through, stops and endings are mirrored.
//!
//! Only `--stats` needs this, because there is something to do after the program; otherwise the command execs.
//! The program runs in our process group, so the terminal's keys reach it directly. What the kernel sends to
//! that group is therefore dropped here, and what a process sent to *us* is passed on.

use std::ffi::c_int;
use std::io;
use std::process::Command;

use rustix::process::{Pid, WaitOptions, waitpid};

use crate::signals::{self, Held};

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// By exiting.
    Exited(i32),
    /// By a signal.
    Killed(c_int),
}

/// Everything that somebody may send on purpose. The others are faults of our own making, or cannot be held.
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

/// Runs `command` to its end.
///
/// # Errors
/// What the operating system said when it could not be started.
pub fn supervise(command: &mut Command) -> io::Result<Fate> {
    // Held before the program exists, so that a signal that comes in between waits for it.
    let held = Held::new(passed_on().chain([libc::SIGCHLD]));
    held.hand_down_before(command);
    let program = command.spawn()?.id();
    loop {
        let arrival = held.next();
        if arrival.signal == libc::SIGCHLD {
            // One SIGCHLD may stand for several changes.
            while let Some(change) = next_change(program)? {
                match change {
                    Change::Ended(fate) => return Ok(fate),
                    Change::Stopped(signal) => mirror_stop(signal),
                }
            }
        } else if arrival.by_process {
            signals::send(program, arrival.signal);
        }
    }
}

enum Change {
    Stopped(c_int),
    Ended(Fate),
}

fn next_change(program: u32) -> io::Result<Option<Change>> {
    let pid = Pid::from_raw(program as i32);
    let Some((_, status)) = waitpid(pid, WaitOptions::NOHANG | WaitOptions::UNTRACED)? else {
        return Ok(None);
    };
    Ok(match (status.exit_status(), status.terminating_signal(), status.stopping_signal()) {
        (Some(code), ..) => Some(Change::Ended(Fate::Exited(code))),
        (_, Some(signal), _) => Some(Change::Ended(Fate::Killed(signal))),
        (.., Some(signal)) => Some(Change::Stopped(signal)),
        _ => None,
    })
}

/// The shell watches us, not the program: when its terminal stopped the program, we stop too, and the shell
/// prompts. The SIGCONT that ends this is held, and passed on by the loop. A plain SIGSTOP is not mirrored:
/// whoever sends that to the program by number will wake it by number, and would leave us asleep.
fn mirror_stop(signal: c_int) {
    if [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
        signals::send(std::process::id(), libc::SIGSTOP);
    }
}
