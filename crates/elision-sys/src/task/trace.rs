//! Stops of another process's threads (ptrace).
#![allow(unsafe_code)] // Pointers to locals.

use super::process::wait;
use crate::arch::Registers;
use crate::raw::{Result, syscall};
use core::mem::MaybeUninit;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// In user code or after a system call.
    Midway,
    /// Where a system call begins or ends, after [`Onward::ToCall`].
    Call,
    /// At its end, after [`Onward::ToCall`].
    Exiting,
    /// Before this signal, which [`trace_release`] delivers.
    Signal(i32),
    /// With its process (SIGSTOP), before.
    Group,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traced {
    Stopped(Stop),
    Running,
    Gone,
}

/// How the kernel reports [`Stop::Call`].
const AT_CALL: i32 = libc::SIGTRAP | 0x80;

pub fn trace_seize(tid: i32) -> Result<()> {
    trace(libc::PTRACE_SEIZE, tid, 0).map(drop)
}

pub fn trace_interrupt(tid: i32) -> Result<()> {
    trace(libc::PTRACE_INTERRUPT, tid, 0).map(drop)
}

/// Reaps a dead thread. (A wait for exits alone would consume a stop.)
pub fn reap_if_dead(tid: i32) {
    let mut told = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID as usize, tid as usize, told.as_mut_ptr() as usize, options as usize, 0, 0];
    // SAFETY: the kernel fills plain data; without an event, code is 0.
    let code = unsafe { syscall(libc::SYS_waitid, arguments).map_or(0, |_| told.assume_init().si_code) };
    if tid > 0 && [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&code) {
        let _ = trace_poll(tid);
    }
}

pub fn trace_poll(tid: i32) -> Traced {
    match wait(tid, libc::WNOHANG | libc::__WALL) {
        Ok((0, _)) => Traced::Running,
        // The upper half is 0 for a signal on its way.
        Ok((_, status)) if status & 0xff == 0x7f => {
            Traced::Stopped(match ((status >> 8) & 0xff, status >> 16) {
                (AT_CALL, 0) => Stop::Call,
                (signal, 0) => Stop::Signal(signal),
                (libc::SIGTRAP, libc::PTRACE_EVENT_EXIT) => Stop::Exiting,
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
    Again,
    Over(i64),
}

/// How far a stopped thread runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Onward {
    /// It is no longer traced.
    Free,
    /// To the next begin or end of a system call, another stop, or its end, of which the tracer hears first.
    ToCall,
    /// As [`Onward::ToCall`], system calls apart.
    Past,
}

/// Lets a stopped thread go. `false`: it was killed, and is the caller's to reap.
#[must_use]
pub fn trace_release(tid: i32, stop: Stop, interrupted: impl FnOnce(&mut Registers) -> Then) -> bool {
    trace_onward(tid, stop, Onward::Free, interrupted)
}

/// Lets a stopped thread run on. `false`: it was killed, and is the caller's to reap.
///
/// A call that returns EINTR for the stop goes on, or fails if a handler runs first; `interrupted` may change or end it. Not
/// close, which has closed, nor in [`Stop::Group`], where the program would see EINTR.
#[must_use]
pub fn trace_onward(
    tid: i32,
    stop: Stop,
    onward: Onward,
    interrupted: impl FnOnce(&mut Registers) -> Then,
) -> bool {
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
    let (request, options) = match onward {
        Onward::Free => (libc::PTRACE_DETACH, None),
        Onward::ToCall => {
            (libc::PTRACE_SYSCALL, Some(libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXIT))
        }
        Onward::Past => (libc::PTRACE_CONT, None),
    };
    options.is_none_or(|options| trace(libc::PTRACE_SETOPTIONS, tid, options as usize).is_ok())
        && trace(request, tid, signal as usize).is_ok()
}

/// What a thread in [`Stop::Call`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallStop {
    Begin { number: i64, arguments: [u64; 6] },
    End { result: i64 },
}

pub fn trace_call(tid: i32) -> Option<CallStop> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    let arguments =
        [libc::PTRACE_GET_SYSCALL_INFO as usize, tid as usize, size, info.as_mut_ptr() as usize, 0, 0];
    // SAFETY: the kernel fills plain data, at most `size` bytes; `op` says which part of the union.
    unsafe {
        syscall(libc::SYS_ptrace, arguments).ok()?;
        let info = info.assume_init();
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                Some(CallStop::Begin { number: info.u.entry.nr as i64, arguments: info.u.entry.args })
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => Some(CallStop::End { result: info.u.exit.sval }),
            _ => None,
        }
    }
}

fn trace(request: u32, tid: i32, data: usize) -> Result<usize> {
    // SAFETY: at most one struct at `data`, the caller's.
    unsafe { syscall(libc::SYS_ptrace, [request as usize, tid as usize, 0, data, 0, 0]) }
}
