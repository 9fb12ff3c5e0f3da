//! Clocks and sleeps.
#![allow(unsafe_code)] // A pointer to a local.

use crate::raw::syscall;
use rustix::thread::Timespec;

pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

pub fn now_ns() -> u64 {
    let now = clock(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub fn ms_since(moment: u64) -> u64 {
    now_ms().saturating_sub(moment)
}

pub fn seconds() -> i64 {
    clock(libc::CLOCK_REALTIME).tv_sec
}

/// rustix would look for the vDSO.
pub(crate) fn clock(which: i32) -> Timespec {
    let mut now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a local.
    let _ =
        unsafe { syscall(libc::SYS_clock_gettime, [which as usize, (&raw mut now) as usize, 0, 0, 0, 0]) };
    now
}

pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Yields; late rounds sleep: a real-time thread that only yields keeps its processor for ever.
pub fn give_way(round: u32) {
    match round {
        0..64 => yield_now(),
        _ => nap_us(50),
    }
}

pub fn nap_us(us: u64) {
    let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: us as i64 * 1000 });
}
