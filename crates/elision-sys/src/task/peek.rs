//! Memory that may be absent.
#![allow(unsafe_code)] // Pointers for the kernel.

use super::identity::pid;
use crate::file::{self, ProcPath};
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
    match unsafe { syscall(libc::SYS_process_vm_readv, arguments) } {
        // Containers' filters before Docker 23.
        Err(refused @ Errno(libc::EPERM | libc::ENOSYS)) => {
            // SAFETY: as above.
            unsafe { copy_by_file(pid, from, to, len) }.map_err(|_| refused)?
        }
        done => done,
    }
}

/// The outer error: there is no such file.
///
/// # Safety: `to` must be the caller's to overwrite.
unsafe fn copy_by_file(pid: i32, from: usize, to: usize, len: usize) -> Result<Result<usize>> {
    let memory = file::open(ProcPath::new(pid, "mem", None).as_c_str(), libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    // SAFETY: the caller's promise.
    let copied = unsafe { file::pread(memory, to, len, from as u64) };
    file::close(memory);
    Ok(match copied {
        Err(Errno(libc::EIO)) => Err(Errno(libc::EFAULT)),
        done => done,
    })
}
