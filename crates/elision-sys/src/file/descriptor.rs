//! Descriptors.
#![allow(unsafe_code)] // Pointers to locals or slices.

use crate::raw::{Result, borrow, syscall};
use core::ffi::CStr;
use rustix::fd::IntoRawFd;
use rustix::fs::{Mode, OFlags};

pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<i32> {
    let (flags, mode) = (OFlags::from_bits_retain(flags as u32), Mode::from_bits_retain(mode));
    Ok(rustix::fs::openat(rustix::fs::CWD, path, flags, mode)?.into_raw_fd())
}

pub fn open_at(directory: i32, name: &CStr, flags: i32) -> Result<i32> {
    let flags = OFlags::from_bits_retain(flags as u32);
    Ok(rustix::fs::openat(borrow(directory)?, name, flags, Mode::empty())?.into_raw_fd())
}

/// A symbolic link's target, cut off where `room` ends.
pub fn read_link_at<'a>(directory: i32, name: &CStr, room: &'a mut [u8]) -> Result<&'a [u8]> {
    let length = rustix::fs::readlinkat_raw(borrow(directory)?, name, &mut *room)?;
    Ok(room.get(..length).unwrap_or(&[]))
}

pub fn close(fd: i32) {
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Closes everything in a descriptor table of its own.
pub fn unshare_and_close_all() -> Result<()> {
    unshare_and_close_from(0)
}

pub fn close_all() {
    let _ = close_range(0, u32::MAX, 0);
}

/// In a descriptor table of its own, which has the descriptors below `fd` alone.
pub(crate) fn unshare_and_close_from(fd: i32) -> Result<()> {
    close_range(fd as u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE)
}

pub(crate) fn close_below(fd: i32) -> Result<()> {
    match (fd as u32).checked_sub(1) {
        Some(last) => close_range(0, last, 0),
        None => Ok(()),
    }
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    let arguments = [first as usize, last as usize, flags as usize, 0, 0, 0];
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_close_range, arguments).map(drop) }
}

pub fn fcntl(fd: i32, command: i32, argument: usize) -> Result<i32> {
    // SAFETY: no command used here takes a pointer.
    Ok(unsafe { syscall(libc::SYS_fcntl, [fd as usize, command as usize, argument, 0, 0, 0])? } as i32)
}

pub fn flags(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETFL, 0)
}

/// A memory file that can never be written to, nor be cut.
pub fn is_sealed(fd: i32) -> bool {
    const SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    fcntl(fd, libc::F_GET_SEALS, 0).is_ok_and(|seals| seals & SEALS == SEALS)
}

pub fn seek(fd: i32, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: as above.
    Ok(unsafe { syscall(libc::SYS_lseek, [fd as usize, offset as usize, whence as usize, 0, 0, 0])? } as u64)
}

/// # Safety
/// The range must be the caller's to overwrite.
pub unsafe fn pread(fd: i32, addr: usize, len: usize, offset: u64) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_pread64, [fd as usize, addr, len, offset as usize, 0, 0]) }
}

pub fn read_at(fd: i32, bytes: &mut [u8], offset: u64) -> Result<usize> {
    // SAFETY: a slice borrowed for writing.
    unsafe { pread(fd, bytes.as_mut_ptr() as usize, bytes.len(), offset) }
}

pub fn pwrite(fd: i32, addr: usize, len: usize, offset: u64) -> Result<usize> {
    // SAFETY: the kernel only reads.
    unsafe { syscall(libc::SYS_pwrite64, [fd as usize, addr, len, offset as usize, 0, 0]) }
}

pub fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    Ok(rustix::io::write(borrow(fd)?, bytes)?)
}

pub fn read(fd: i32, bytes: &mut [u8]) -> Result<usize> {
    Ok(rustix::io::read(borrow(fd)?, bytes)?)
}

/// Cuts a file, or extends it with zeroes.
pub fn set_len(fd: i32, len: u64) -> Result<()> {
    Ok(rustix::fs::ftruncate(borrow(fd)?, len)?)
}

pub fn sync(fd: i32, metadata: bool) -> Result<()> {
    let fd = borrow(fd)?;
    Ok(if metadata { rustix::fs::fsync(fd) } else { rustix::fs::fdatasync(fd) }?)
}

pub fn flock(fd: i32, operation: i32) -> Result<()> {
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_flock, [fd as usize, operation as usize, 0, 0, 0, 0]).map(drop) }
}

pub fn directory_entries(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: as above.
    unsafe {
        syscall(libc::SYS_getdents64, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
    }
}

/// A descriptor for the description of `pid`'s `fd`.
pub fn take_descriptor(pid: i32, fd: i32) -> Result<i32> {
    // SAFETY: no memory is involved.
    unsafe {
        let pidfd = syscall(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0, 0])?;
        let got = syscall(libc::SYS_pidfd_getfd, [pidfd, fd as usize, 0, 0, 0, 0]);
        close(pidfd as i32);
        Ok(got? as i32)
    }
}

/// A socket's SO_RCVTIMEO or SO_SNDTIMEO; `None` without one.
pub fn socket_timeout_ms(pid: i32, fd: i32, option: i32) -> Option<u64> {
    let ours = take_descriptor(pid, fd).ok()?;
    let mut time = [0i64; 2];
    let mut len = size_of_val(&time) as u32;
    let (level, value, len) =
        (libc::SOL_SOCKET as usize, time.as_mut_ptr() as usize, (&raw mut len) as usize);
    // SAFETY: the kernel fills locals.
    let got =
        unsafe { syscall(libc::SYS_getsockopt, [ours as usize, level, option as usize, value, len, 0]) };
    close(ours);
    let ms = time[0] as u64 * 1000 + (time[1] as u64).div_ceil(1000);
    (got.is_ok() && ms > 0).then_some(ms)
}
