//! aarch64, where nothing is deferred yet: no helper is started.
//!
//! To stop threads takes more than registers here: the kernel decides whether a call is repeated before it tells a tracer, and the first
//! argument is gone by then. (`/proc/TID/syscall` shows it.)
#![allow(unsafe_code)] // Instructions.

use crate::raw::{Errno, Result};

/// Enters the kernel: a negative errno is an error.
///
/// # Safety
/// As [`crate::raw::syscall`].
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> isize {
    let returned: isize;
    // SAFETY: the calling convention of Linux. What the call does to memory is the caller's promise.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => returned,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    returned
}

/// Ends the process by an instruction that is none.
pub fn trap() -> ! {
    // SAFETY: it does not return.
    unsafe { core::arch::asm!("udf #0", options(noreturn)) }
}

core::arch::global_asm!(
    ".hidden elision_signal_restorer",
    ".globl elision_signal_restorer",
    "elision_signal_restorer:",
    "mov x8, #139", // rt_sigreturn
    "svc #0",
);

/// Where a signal handler returns to.
pub fn signal_restorer() -> usize {
    unsafe extern "C" {
        fn elision_signal_restorer();
    }
    elision_signal_restorer as *const () as usize
}

/// Refuses to start a helper.
///
/// # Safety
/// None is needed.
pub unsafe fn clone(_: usize, _: usize, _: usize, _: *mut u32, _: extern "C" fn() -> !) -> isize {
    -(libc::ENOSYS as isize)
}

/// An address that no other thread has.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: the register holds the address of a thread's control block.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, preserves_flags, pure, nomem));
    }
    pointer
}

/// Is this program run by Valgrind? It would make no difference.
pub fn on_valgrind() -> bool {
    false
}

/// The calls that wait for events, for the milliseconds in their fourth argument.
pub const EPOLL_WAITS: [i64; 1] = [libc::SYS_epoll_pwait];

/// The registers of a stopped thread: of no use without a helper.
#[derive(Clone, Copy, Debug)]
pub struct Registers;

impl Registers {
    /// There are none.
    pub fn of_thread(_: i32) -> Result<Registers> {
        Err(Errno(libc::ENOSYS))
    }

    /// There are none.
    pub fn set(&self, _: i32) -> Result<()> {
        Err(Errno(libc::ENOSYS))
    }

    /// In no call.
    pub fn call(&self) -> i64 {
        -1
    }

    /// None.
    pub fn arguments(&self) -> [u64; 6] {
        [0; 6]
    }

    /// Nothing.
    pub fn result(&self) -> i64 {
        0
    }

    /// Does nothing.
    pub fn restart(&mut self) {}

    /// Does nothing.
    pub fn set_result(&mut self, _: i64) {}

    /// None.
    pub fn note(&self) -> u32 {
        0
    }

    /// Does nothing.
    pub fn set_note(&mut self, _: u32) {}
}
