//! Waits on words.
#![allow(unsafe_code)] // The program's addresses.

use super::peek::copy_own;
use crate::raw::{Errno, Result, syscall};
use crate::time::clock;
use core::ptr::without_provenance_mut;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use rustix::thread::futex::{Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::thread::{ClockId, Timespec};

/// Waits for a change of `word`, a wake or the timeout; or ends spuriously.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout_ms: u64) {
    wait_on(word, value, timeout_ms, Flags::PRIVATE);
}

/// The same for a word that the kernel clears at a thread's end. (It wakes one waiter.)
pub fn futex_wait_end(word: &AtomicU32, value: u32, timeout_ms: u64) {
    wait_on(word, value, timeout_ms, Flags::empty());
}

fn wait_on(word: &AtomicU32, value: u32, timeout_ms: u64, flags: Flags) {
    let _ = rustix::thread::futex::wait(word, flags, value, Some(&timespec(timeout_ms)));
}

fn timespec(ms: u64) -> Timespec {
    Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000) as i64 * 1_000_000 }
}

pub fn futex_wake(word: &AtomicU32) {
    let _ = rustix::thread::futex::wake(word, Flags::PRIVATE, i32::MAX as u32);
}

/// Wakes all waiters on the program's word, as the kernel does at a thread's end.
pub fn futex_wake_shared(address: usize) {
    let arguments = [address, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0];
    // SAFETY: only the address counts.
    let _ = unsafe { syscall(libc::SYS_futex, arguments) };
}

/// Waits for a word of ours, or a shared one that the kernel clears at a thread's end; without futex_waitv for ours alone, 200 ms
/// at most. `true`: the other has changed or is gone.
pub fn futex_wait_either(
    ours: &AtomicU32,
    value: u32,
    other: usize,
    other_value: u32,
    timeout_ms: u64,
) -> bool {
    if other == 0 {
        futex_wait(ours, value, timeout_ms.min(200));
        return false;
    }
    match wait_for_both([(ours.as_ptr() as usize, value), (other, other_value)], timeout_ms) {
        Err(Errno(libc::EFAULT)) => true,
        Err(Errno(libc::EAGAIN)) => ours.load(SeqCst) == value,
        Err(Errno(libc::ENOSYS | libc::EPERM | libc::EINVAL)) => {
            futex_wait(ours, value, timeout_ms.min(200));
            !holds(other, other_value)
        }
        Ok(1) => !holds(other, other_value),
        _ => false,
    }
}

/// A private and a shared word: which was woken?
fn wait_for_both([ours, other]: [(usize, u32); 2], timeout_ms: u64) -> Result<usize> {
    let wait_for = |(address, value): (usize, u32), flags| {
        let mut waiter = Wait::new();
        waiter.val = value.into();
        waiter.uaddr = WaitPtr::new(without_provenance_mut(address));
        waiter.flags = flags;
        waiter
    };
    let waiters =
        [wait_for(ours, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE), wait_for(other, WaitFlags::SIZE_U32)];
    let (now, left) = (clock(libc::CLOCK_MONOTONIC), timespec(timeout_ms));
    let nanoseconds = now.tv_nsec + left.tv_nsec;
    let until = Timespec {
        tv_sec: now.tv_sec + left.tv_sec + nanoseconds / 1_000_000_000,
        tv_nsec: nanoseconds % 1_000_000_000,
    };
    let flags = WaitvFlags::empty();
    Ok(rustix::thread::futex::waitv(&waiters, flags, Some(&until), ClockId::Monotonic)?)
}

/// Does the word hold `value`? Not if it cannot be read.
fn holds(addr: usize, value: u32) -> bool {
    let mut word = 0u32;
    // SAFETY: a local.
    let copied = unsafe { copy_own(addr, (&raw mut word) as usize, size_of::<u32>()) };
    copied == Ok(size_of::<u32>()) && word == value
}
