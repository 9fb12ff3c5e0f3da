//! Resource limits of the calling process.
#![allow(unsafe_code)] // Pointers to locals.

use crate::raw::{Result, syscall};
use core::ptr::null_mut;

/// prlimit(2). (rustix assumes that it cannot be refused.)
fn limit(resource: u32, new: Option<&libc::rlimit64>, old: *mut libc::rlimit64) -> Result<()> {
    let new = new.map_or(0, |new| new as *const libc::rlimit64 as usize);
    // SAFETY: null, or pointers to locals of the callers.
    unsafe { syscall(libc::SYS_prlimit64, [0, resource as usize, new, old as usize, 0, 0]).map(drop) }
}

fn of(resource: u32) -> Result<libc::rlimit64> {
    let mut answer = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    limit(resource, None, &raw mut answer)?;
    Ok(answer)
}

/// Is this process's address space or data limited? Elision's mappings would count.
pub fn memory_is_limited() -> bool {
    let unlimited = |which| of(which).is_ok_and(|limit| limit.rlim_cur == libc::RLIM64_INFINITY);
    !(unlimited(libc::RLIMIT_AS) && unlimited(libc::RLIMIT_DATA))
}

/// Raises the soft limit on descriptors to the hard one, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let Ok(before) = of(libc::RLIMIT_NOFILE) else { return 0 };
    let raised = libc::rlimit64 { rlim_cur: before.rlim_max, ..before };
    let done = limit(libc::RLIMIT_NOFILE, Some(&raised), null_mut()).is_ok();
    if done { raised.rlim_cur } else { before.rlim_cur }
}

/// No core dump, which would show the program's memory, for this process and its children. (Limit 1, as 0 does not count where
/// dumps are piped to a program.)
pub fn leave_no_core() {
    let _ = limit(libc::RLIMIT_CORE, Some(&libc::rlimit64 { rlim_cur: 1, rlim_max: 1 }), null_mut());
}

/// The soft limit on file size, 0 if unknown.
pub fn file_size() -> u64 {
    of(libc::RLIMIT_FSIZE).map_or(0, |limit| limit.rlim_cur)
}
