//! Stopping threads of another process (ptrace).
#![allow(unsafe_code)] // Pointers to locals.

use super::process::wait;
use crate::arch::Registers;
use crate::raw::{Result, syscall};
use core::mem::MaybeUninit;

/// What a stop of ours has come upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The thread in user code, or in a system call, which it has ended.
    Midway,
    /// The thread about to take this signal, which it gets when it is let go.
    Signal(i32),
    /// The thread stopped already, with its process (SIGSTOP).
    Group,
}

/// How a wait for a traced thread ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traced {
    /// In a ptrace-stop.
    Stopped(Stop),
    /// Not yet.
    Running,
    /// There is no such thread any more.
    Gone,
}

/// Attaches to a thread without stopping it.
pub fn trace_seize(tid: i32) -> Result<()> {
    trace(libc::PTRACE_SEIZE, tid, 0).map(drop)
}

/// Asks a seized thread to stop.
pub fn trace_interrupt(tid: i32) -> Result<()> {
    trace(libc::PTRACE_INTERRUPT, tid, 0).map(drop)
}

/// Reaps a traced thread if it is dead. (A wait for its end alone would take a stop of it away.)
pub fn reap_if_dead(tid: i32) {
    let mut told = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID as usize, tid as usize, told.as_mut_ptr() as usize, options as usize, 0, 0];
    // SAFETY: the kernel fills the local, which is plain data; without an event it says code 0.
    let code = unsafe { syscall(libc::SYS_waitid, arguments).map_or(0, |_| told.assume_init().si_code) };
    if tid > 0 && [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&code) {
        let _ = trace_poll(tid);
    }
}

/// Has the seized thread stopped?
pub fn trace_poll(tid: i32) -> Traced {
    match wait(tid, libc::WNOHANG | libc::__WALL) {
        Ok((0, _)) => Traced::Running,
        // A stop that was asked for, and a group stop, say so above; a signal on its way says nothing there.
        Ok((_, status)) if status & 0xff == 0x7f => {
            Traced::Stopped(match ((status >> 8) & 0xff, status >> 16) {
                (signal, 0) => Stop::Signal(signal),
                (libc::SIGTRAP, _) => Stop::Midway,
                _ => Stop::Group,
            })
        }
        Ok(_) | Err(_) => Traced::Gone,
    }
}

/// How a call goes on that the stop made return EINTR.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is made again, as the registers say.
    Again,
    /// It is over, with this result.
    Over(i64),
}

/// Lets a stopped thread go. `false`: it has been killed since it stopped, and is the caller's to reap.
///
/// A system call that the stop made return EINTR goes on, as if nothing had been; or fails with EINTR if a handler of the program's runs
/// first, as it would have. `interrupted` may change or end such a call. Not close, which has closed already; and not if the whole process was
/// stopped before ([`Stop::Group`]): then EINTR is what the program would see.
#[must_use]
pub fn trace_release(tid: i32, stop: Stop, interrupted: impl FnOnce(&mut Registers) -> Then) -> bool {
    let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
    if stop != Stop::Group
        && let Some(mut registers) = Registers::of_thread(tid)
        && registers.call() >= 0
        && registers.call() != libc::SYS_close
        && registers.result() == -i64::from(libc::EINTR)
    {
        match interrupted(&mut registers) {
            Then::Again => registers.restart(),
            Then::Over(result) => registers.set_result(result),
        }
        registers.set(tid);
    }
    trace(libc::PTRACE_DETACH, tid, signal as usize).is_ok()
}

fn trace(request: u32, tid: i32, data: usize) -> Result<usize> {
    // SAFETY: the requests used here read or fill one struct at `data`, which the callers own.
    unsafe { syscall(libc::SYS_ptrace, [request as usize, tid as usize, 0, data, 0, 0]) }
}
