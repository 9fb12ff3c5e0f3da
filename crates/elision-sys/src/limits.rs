//! Resource limits.
#![allow(unsafe_code)] // Pointers to locals.

use crate::raw::{Result, syscall};
use core::ptr::null_mut;

/// rustix assumes that prlimit cannot be refused.
fn limit(resource: u32, new: Option<&libc::rlimit64>, old: *mut libc::rlimit64) -> Result<()> {
    let new = new.map_or(0, |new| new as *const libc::rlimit64 as usize);
    // SAFETY: null, or the callers' locals.
    unsafe { syscall(libc::SYS_prlimit64, [0, resource as usize, new, old as usize, 0, 0]).map(drop) }
}

fn of(resource: u32) -> Result<libc::rlimit64> {
    let mut answer = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    limit(resource, None, &raw mut answer)?;
    Ok(answer)
}

/// Elision's mappings count against these limits.
pub fn memory_is_limited() -> bool {
    let unlimited = |which| of(which).is_ok_and(|limit| limit.rlim_cur == libc::RLIM64_INFINITY);
    !(unlimited(libc::RLIMIT_AS) && unlimited(libc::RLIMIT_DATA))
}

/// Raises the soft limit to the hard one, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let Ok(before) = of(libc::RLIMIT_NOFILE) else { return 0 };
    let raised = libc::rlimit64 { rlim_cur: before.rlim_max, ..before };
    let done = limit(libc::RLIMIT_NOFILE, Some(&raised), null_mut()).is_ok();
    if done { raised.rlim_cur } else { before.rlim_cur }
}

/// A dump would show the program's memory. (Limit 0 has no effect where dumps are piped to a program.)
pub fn leave_no_core() {
    let _ = limit(libc::RLIMIT_CORE, Some(&libc::rlimit64 { rlim_cur: 1, rlim_max: 1 }), null_mut());
}

/// The kernel's version. Empty if a filter refuses to tell.
pub fn release() -> [u8; 65] {
    // SAFETY: letters alone.
    let mut names: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: a local.
    let _ = unsafe { syscall(libc::SYS_uname, [(&raw mut names) as usize, 0, 0, 0, 0, 0]) };
    names.release.map(|letter| letter as u8)
}

/// 0 if unknown.
pub fn file_size() -> u64 {
    of(libc::RLIMIT_FSIZE).map_or(0, |limit| limit.rlim_cur)
}
