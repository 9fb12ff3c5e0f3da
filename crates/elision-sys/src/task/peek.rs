//! Memory that may be absent.
#![allow(unsafe_code)] // Pointers for the kernel.

use super::identity::pid;
use crate::raw::{Errno, Result, syscall};

pub fn peek(addr: usize) -> Option<[i64; 2]> {
    Some(peek_at(pid(), addr).ok()?.map(|word| word as i64))
}

pub fn peek_at(pid: i32, addr: usize) -> Result<[u64; 2]> {
    let mut words = [0u64; 2];
    let len = size_of_val(&words);
    // SAFETY: a local.
    match unsafe { copy_of(pid, addr, words.as_mut_ptr() as usize, len)? } == len {
        true => Ok(words),
        false => Err(Errno(libc::EFAULT)),
    }
}

/// Copies the readable beginning and returns its length. An error: the kernel refuses such copies.
///
/// # Safety
/// `to` must be the caller's to overwrite.
pub unsafe fn copy_own(from: usize, to: usize, len: usize) -> Result<usize> {
    // SAFETY: the caller's promise.
    match unsafe { copy_of(pid(), from, to, len) } {
        Err(Errno(libc::EFAULT)) => Ok(0),
        done => done,
    }
}

/// # Safety: `to` must be the caller's to overwrite.
unsafe fn copy_of(pid: i32, from: usize, to: usize, len: usize) -> Result<usize> {
    let part = |at| libc::iovec { iov_base: core::ptr::without_provenance_mut(at), iov_len: len };
    let (ours, theirs) = (part(to), part(from));
    let arguments = [pid as usize, (&raw const ours) as usize, 1, (&raw const theirs) as usize, 1, 0];
    // SAFETY: the caller's promise; the kernel checks `from`.
    unsafe { syscall(libc::SYS_process_vm_readv, arguments) }
}
