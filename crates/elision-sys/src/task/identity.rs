//! The calling task's identity.
#![allow(unsafe_code)] // Pointers to locals.

use crate::raw::{Result, syscall};
use core::ffi::CStr;

/// Uncached, for forked children. (rustix assumes that it cannot be refused.)
pub fn pid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.unwrap_or(0) as i32
}

pub fn tid() -> i32 {
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) }.unwrap_or(0) as i32
}

/// No terminal, and no group's signals.
pub fn new_session() {
    // SAFETY: as above.
    let _ = unsafe { syscall(libc::SYS_setsid, [0; 6]) };
}

pub fn change_directory(path: &CStr) -> Result<()> {
    Ok(rustix::process::chdir(path)?)
}

/// Keeps no directory of the program's busy.
pub fn leave_directory() {
    let _ = change_directory(c"/");
}

pub fn set_name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

fn prctl(option: i32, argument: usize) -> Result<usize> {
    // SAFETY: numbers, or pointers to locals.
    unsafe { syscall(libc::SYS_prctl, [option as usize, argument, 0, 0, 0, 0]) }
}

/// The kernel sends `signal` when the thread that made this process ends, and for each next parent.
pub fn signal_at_parents_end(signal: i32) {
    let _ = prctl(libc::PR_SET_PDEATHSIG, signal as usize);
}

/// Without this, Yama may let only ancestors trace.
pub fn allow_tracer(tracer: i32) {
    let _ = prctl(libc::PR_SET_PTRACER, tracer as usize);
}

/// The word that the kernel clears at the calling thread's end, or 0 if unknown.
pub fn thread_end_word() -> usize {
    let mut address = 0usize;
    let asked = prctl(linux_raw_sys::prctl::PR_GET_TID_ADDRESS as i32, (&raw mut address) as usize);
    if asked.is_ok() { address } else { 0 }
}
