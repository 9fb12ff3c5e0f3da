//! Signals.
#![allow(unsafe_code)] // Pointers and handlers.

use crate::raw::{Errno, Result, syscall};

pub fn send_signal(process: i32, signal: i32) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_kill, [process as usize, signal as usize, 0, 0, 0, 0]).map(drop) }
}

pub fn exists(pid: i32) -> bool {
    // Signal 0 only checks.
    send_signal(pid, 0) != Err(Errno(libc::ESRCH))
}

#[derive(Clone, Copy)]
pub struct Mask(u64);

/// Blocks every signal, libc's own, too; returns the mask before.
pub fn block_signals() -> Mask {
    let (all, mut before) = (u64::MAX, 0u64);
    set_mask(libc::SIG_BLOCK, &all, Some(&mut before));
    Mask(before)
}

pub fn restore_signals(mask: Mask) {
    set_mask(libc::SIG_SETMASK, &mask.0, None);
}

pub fn block_all_but(signals: &[i32]) {
    let open = signals.iter().fold(0, |open, signal| open | 1u64 << (signal - 1));
    set_mask(libc::SIG_SETMASK, &!open, None);
}

/// SIGALRM once, after `ms`; 0 cancels.
pub fn ring_in_ms(ms: u64) {
    let value = libc::timeval { tv_sec: 0, tv_usec: ms as i64 * 1000 };
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: never, it_value: value };
    // SAFETY: a local struct.
    let _ = unsafe {
        syscall(libc::SYS_setitimer, [libc::ITIMER_REAL as usize, (&raw const timer) as usize, 0, 0, 0, 0])
    };
}

fn set_mask(how: i32, set: &u64, old: Option<&mut u64>) {
    let old = old.map_or(0, |old| old as *mut u64 as usize);
    // SAFETY: kernel sets have eight bytes; both pointers outlive the call.
    let _ = unsafe {
        syscall(libc::SYS_rt_sigprocmask, [how as usize, set as *const u64 as usize, old, 8, 0, 0])
    };
}

/// `siginfo_t` for a file's signal.
#[repr(C)]
pub struct SignalInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    band: i64,
    fd: i32,
}

impl SignalInfo {
    /// `None`: a process sent the signal.
    pub fn descriptor(&self) -> Option<i32> {
        (self.code > 0).then_some(self.fd)
    }
}

/// The helper's handler, without libc.
///
/// # Safety
/// `handler` must be safe at any point of the helper.
pub unsafe fn handle_signal(signal: i32, handler: extern "C" fn(i32, &SignalInfo)) -> Result<()> {
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: usize,
        restorer: usize,
        mask: u64,
    }
    const SA_SIGINFO: usize = 4;
    const SA_RESTORER: usize = 0x0400_0000;
    let action = Action {
        handler: handler as *const () as usize,
        flags: SA_SIGINFO | SA_RESTORER,
        restorer: crate::arch::signal_restorer(),
        mask: u64::MAX,
    };
    // SAFETY: a local struct; the handler is the caller's promise.
    unsafe { syscall(libc::SYS_rt_sigaction, [signal as usize, (&raw const action) as usize, 0, 8, 0, 0])? };
    Ok(())
}
