//! Starting a process that shares this memory, ending, and waiting for its end.
#![allow(unsafe_code)] // Such a process keeps to rules that no type expresses.

use super::signals::send_signal;
use crate::arch;
use crate::raw::{Errno, Result, syscall};
use core::sync::atomic::AtomicU32;

/// Starts `entry` as a process that shares this memory and, until it calls [`crate::file::unshare_and_close_all`], descriptors. It sends no
/// signal at its end, and neither `wait` nor a tracer of this process sees it. `word` holds its pid while it lives; the kernel clears it.
///
/// # Safety
/// `stack` must be the top of a stack that nobody else uses, `pointer` the thread pointer, to a page of its own; `entry` must not return
/// and must stay clear of libc, and of thread-local storage.
pub unsafe fn clone_helper(
    stack: usize,
    pointer: usize,
    word: &AtomicU32,
    entry: extern "C" fn() -> !,
) -> Result<i32> {
    let flags = libc::CLONE_VM
        | libc::CLONE_FILES // until it has unshared them: a copy would hold every pipe open meanwhile
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::CLONE_UNTRACED;
    // SAFETY: the caller's promise.
    let pid = unsafe { arch::clone(flags as usize, stack, pointer, word.as_ptr(), entry) };
    if pid < 0 { Err(Errno(-pid as i32)) } else { Ok(pid as i32) }
}

/// Ends the calling process, at once.
pub fn exit() -> ! {
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(libc::SYS_exit_group, [0; 6]) };
    // A filter has refused it.
    arch::trap()
}

/// wait4(2): the child, or 0, and its status.
pub(super) fn wait(child: i32, options: i32) -> Result<(usize, i32)> {
    let mut status = 0i32;
    let arguments = [child as usize, (&raw mut status) as usize, options as usize, 0, 0, 0];
    // SAFETY: the kernel fills the local.
    Ok((unsafe { syscall(libc::SYS_wait4, arguments)? }, status))
}

/// Reaps a child that has ended, if it was made by clone and without SIGCHLD at its end.
pub fn reap_clone(child: i32) {
    let _ = wait(child, libc::WNOHANG | libc::__WCLONE);
}

/// Waits until a child made by clone is gone, and has it go on if it is stopped. Says which signal has killed it, if one has.
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
