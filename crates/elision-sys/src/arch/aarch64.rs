//! aarch64: no helper starts, so nothing is deferred.
//!
//! Stopping threads takes more than registers here: before the ptrace stop, the kernel decides about a repetition and hides the
//! first argument (but in `/proc/TID/syscall`).
#![allow(unsafe_code)] // Instructions.

/// Enters the kernel; a negative result is an errno.
///
/// # Safety
/// As [`crate::raw::syscall`].
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> isize {
    let returned: isize;
    // SAFETY: Linux's calling convention; memory is the caller's promise.
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

pub fn trap() -> ! {
    // SAFETY: no return.
    unsafe { core::arch::asm!("udf #0", options(noreturn)) }
}

core::arch::global_asm!(
    ".hidden elision_signal_restorer",
    ".globl elision_signal_restorer",
    "elision_signal_restorer:",
    "mov x8, #139", // rt_sigreturn
    "svc #0",
);

pub fn signal_restorer() -> usize {
    unsafe extern "C" {
        fn elision_signal_restorer();
    }
    elision_signal_restorer as *const () as usize
}

/// # Safety
/// None.
pub unsafe fn clone(_: usize, _: usize, _: usize, _: *mut u32, _: extern "C" fn() -> !) -> isize {
    -(libc::ENOSYS as isize)
}

/// An address that no other thread has.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: the register holds the thread's address.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, preserves_flags, pure, nomem));
    }
    pointer
}

pub fn on_valgrind() -> bool {
    false
}

/// The calls that wait for events; their fourth argument is the timeout.
pub const EPOLL_WAITS: [i64; 1] = [libc::SYS_epoll_pwait];

pub enum Registers {}

impl Registers {
    pub fn of_thread(_: i32) -> Option<Registers> {
        None
    }

    pub fn set(self, _: i32) {}

    pub fn call(&self) -> i64 {
        match *self {}
    }

    pub fn arguments(&self) -> [u64; 6] {
        match *self {}
    }

    pub fn result(&self) -> i64 {
        match *self {}
    }

    pub fn restart(&mut self) {}

    pub fn set_result(&mut self, _: i64) {}

    pub fn note(&self) -> u32 {
        match *self {}
    }

    pub fn set_note(&mut self, _: u32) {}
}
