//! Who the calling task is, and what it is to others.
#![allow(unsafe_code)] // Pointers to locals.

use crate::raw::{Result, syscall};
use core::ffi::CStr;

/// getpid(2), always asked: a forked child must not see its parent's answer. (Not by rustix, for which it cannot be refused.)
pub fn pid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.unwrap_or(0) as i32
}

/// gettid(2).
pub fn tid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) }.unwrap_or(0) as i32
}

/// A session of our own: no terminal, no signals to our group.
pub fn new_session() {
    // SAFETY: no arguments.
    let _ = unsafe { syscall(libc::SYS_setsid, [0; 6]) };
}

/// chdir(2).
pub fn change_directory(path: &CStr) -> Result<()> {
    Ok(rustix::process::chdir(path)?)
}

/// chdir("/"), so that no directory of the program's is kept busy.
pub fn leave_directory() {
    let _ = change_directory(c"/");
}

/// Names the calling task, as `ps` shows it.
pub fn set_name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

fn prctl(option: i32, argument: usize) -> Result<usize> {
    // SAFETY: the options used below take a number, or a pointer to a local.
    unsafe { syscall(libc::SYS_prctl, [option as usize, argument, 0, 0, 0, 0]) }
}

/// Has `signal` sent to the calling process whenever the thread that it is the child of ends. (Its next parent is another thread of
/// the same process while there is one, and so on.)
pub fn signal_at_parents_end(signal: i32) {
    let _ = prctl(libc::PR_SET_PDEATHSIG, signal as usize);
}

/// Lets `tracer` attach to this process where Yama would allow only ancestors. (Without Yama it fails, and is not needed.)
pub fn allow_tracer(tracer: i32) {
    let _ = prctl(libc::PR_SET_PTRACER, tracer as usize);
}

/// Where the kernel will write zero when the calling thread is gone (`set_tid_address`), or 0 if it does not tell.
pub fn thread_end_word() -> usize {
    let mut address = 0usize;
    let asked = prctl(linux_raw_sys::prctl::PR_GET_TID_ADDRESS as i32, (&raw mut address) as usize);
    if asked.is_ok() { address } else { 0 }
}
