//! A process in this memory: start, exit, and waits.
#![allow(unsafe_code)] // Rules that no type expresses.

use super::signals::send_signal;
use crate::arch;
use crate::raw::{Errno, Result, syscall};
use core::sync::atomic::AtomicU32;

/// Starts `entry` as a process that shares this memory and, until [`crate::file::unshare_and_close_all`], descriptors. No signal
/// marks its end; `wait` and tracers do not see it. `word` holds its pid until then.
///
/// # Safety
/// `stack`: the top of an unused one; `pointer`: to a page of its own. `entry` must not return, or use libc or thread-local
/// storage.
pub unsafe fn clone_helper(
    stack: usize,
    pointer: usize,
    word: &AtomicU32,
    entry: extern "C" fn() -> !,
) -> Result<i32> {
    let flags = libc::CLONE_VM
        | libc::CLONE_FILES // a copy would hold pipes open
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::CLONE_UNTRACED;
    // SAFETY: the caller's promise.
    let pid = unsafe { arch::clone(flags as usize, stack, pointer, word.as_ptr(), entry) };
    if pid < 0 { Err(Errno(-pid as i32)) } else { Ok(pid as i32) }
}

pub fn exit() -> ! {
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(libc::SYS_exit_group, [0; 6]) };
    // A filter has refused it.
    arch::trap()
}

pub(super) fn wait(child: i32, options: i32) -> Result<(usize, i32)> {
    let mut status = 0i32;
    let arguments = [child as usize, (&raw mut status) as usize, options as usize, 0, 0, 0];
    // SAFETY: a local.
    Ok((unsafe { syscall(libc::SYS_wait4, arguments)? }, status))
}

/// Reaps an ended child that sends no SIGCHLD.
pub fn reap_clone(child: i32) {
    let _ = wait(child, libc::WNOHANG | libc::__WCLONE);
}

/// Waits for one that is about to end.
pub fn wait_clone(child: i32) {
    while wait(child, libc::__WCLONE) == Err(Errno(libc::EINTR)) {}
}

/// Waits for a child of clone, continued if stopped. `Some`: the signal that killed it.
pub fn wait_killed(child: i32) -> Option<i32> {
    loop {
        match wait(child, libc::__WALL | libc::WUNTRACED) {
            Ok((_, status)) if libc::WIFSTOPPED(status) => drop(send_signal(child, libc::SIGCONT)),
            Ok((_, status)) => return libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            Err(Errno(libc::EINTR)) => (),
            Err(_) => return None,
        }
    }
}
