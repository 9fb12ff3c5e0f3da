//! Files in memory that processes share.
#![allow(unsafe_code)] // A pointer to a local.

use super::descriptor::{close, pwrite};
use crate::raw::{Errno, Result, syscall};
use rustix::fd::IntoRawFd;
use rustix::fs::MemfdFlags;

/// A memory file of `len` bytes, all holes but the last page.
///
/// # Errors
/// `EFBIG` where file sizes are limited: the kernel would raise SIGXFSZ.
pub fn memory_file(len: u64) -> Result<i32> {
    if crate::limits::file_size() < len {
        return Err(Errno(libc::EFBIG));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let fd = rustix::fs::memfd_create(c"elision", flags)?.into_raw_fd();
    let last = 0u8;
    match pwrite(fd, (&raw const last) as usize, 1, len - 1) {
        Ok(1) => Ok(fd),
        other => {
            close(fd);
            Err(other.err().unwrap_or(Errno(libc::ENOSPC)))
        }
    }
}

fn lock(fd: i32, command: i32, kind: i32) -> Result<i32> {
    // SAFETY: zeroes are a lock of all bytes.
    let mut lock: libc::flock64 = unsafe { core::mem::zeroed() };
    lock.l_type = kind as i16;
    let pointer = (&raw mut lock) as usize;
    // SAFETY: the kernel reads and fills the local.
    unsafe { syscall(libc::SYS_fcntl, [fd as usize, command as usize, pointer, 0, 0, 0]) }?;
    Ok(i32::from(lock.l_type))
}

/// Notes that this description uses the file.
pub fn begin_to_share(fd: i32) -> Result<()> {
    lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK).map(drop)
}

/// Does another description use the file, as [`begin_to_share`] notes? False if unknown.
pub fn is_shared(fd: i32) -> bool {
    lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK).is_ok_and(|found| found != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{ProcPath, open};

    #[test]
    fn a_memory_file_knows_whether_another_uses_it() {
        let fd = memory_file(1 << 61).unwrap();
        begin_to_share(fd).unwrap();
        assert!(!is_shared(fd));
        let other = open(ProcPath::own(fd).as_c_str(), libc::O_RDWR | libc::O_CLOEXEC, 0).unwrap();
        assert!(!is_shared(fd) && is_shared(other));
        begin_to_share(other).unwrap();
        assert!(is_shared(fd) && is_shared(other));
        close(other);
        assert!(!is_shared(fd));
        close(fd);
    }
}
