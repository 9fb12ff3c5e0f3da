//! Stopping threads of another process (ptrace).
#![allow(unsafe_code)] // Pointers to locals.

use super::process::wait;
use crate::arch::Registers;
use crate::raw::{Result, syscall};
use core::mem::MaybeUninit;

/// Where a thread has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// In user code, or after a system call.
    Midway,
    /// Before it takes this signal, which [`trace_release`] delivers.
    Signal(i32),
    /// Already stopped with its process (SIGSTOP).
    Group,
}

/// A traced thread's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traced {
    Stopped(Stop),
    Running,
    Gone,
}

/// Attaches without stopping.
pub fn trace_seize(tid: i32) -> Result<()> {
    trace(libc::PTRACE_SEIZE, tid, 0).map(drop)
}

pub fn trace_interrupt(tid: i32) -> Result<()> {
    trace(libc::PTRACE_INTERRUPT, tid, 0).map(drop)
}

/// Reaps a traced thread if it is dead. (A wait for its end alone would consume its stop.)
pub fn reap_if_dead(tid: i32) {
    let mut told = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID as usize, tid as usize, told.as_mut_ptr() as usize, options as usize, 0, 0];
    // SAFETY: the kernel fills the local, plain data; without an event, code is 0.
    let code = unsafe { syscall(libc::SYS_waitid, arguments).map_or(0, |_| told.assume_init().si_code) };
    if tid > 0 && [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&code) {
        let _ = trace_poll(tid);
    }
}

pub fn trace_poll(tid: i32) -> Traced {
    match wait(tid, libc::WNOHANG | libc::__WALL) {
        Ok((0, _)) => Traced::Running,
        // The upper half tells interrupt stops and group stops; it is 0 for a signal on its way.
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

/// How an interrupted call goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is repeated, by the registers.
    Again,
    /// It returns this.
    Over(i64),
}

/// Lets a stopped thread go. `false`: it has been killed, and is the caller's to reap.
///
/// A call that the stop made return EINTR goes on, or fails with EINTR if a handler of the program's runs first; `interrupted`
/// may change or end it. Not close, which has closed already, nor after [`Stop::Group`], where the program would see EINTR.
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
    // SAFETY: at most one struct at `data`, which the caller owns.
    unsafe { syscall(libc::SYS_ptrace, [request as usize, tid as usize, 0, data, 0, 0]) }
}
