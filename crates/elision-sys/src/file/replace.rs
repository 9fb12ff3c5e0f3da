//! New files that take the place of others. Only programs that ask for that make these calls (but for the ioctl), so no filter is tried.
#![allow(unsafe_code)] // A pointer to a local.

use super::ProcPath;
use crate::raw::{Errno, Result, borrow, syscall};
use core::ffi::CStr;
use linux_raw_sys::general::file_clone_range;
use linux_raw_sys::ioctl::FICLONERANGE;
use rustix::fd::IntoRawFd;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, XattrFlags};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A directory in which names are to be made; `synced`: [`sync`](super::sync) is to follow.
pub fn open_directory(path: &Path, synced: bool) -> Result<i32> {
    let how = if synced { OFlags::RDONLY } else { OFlags::PATH };
    let flags = how | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, &*c_path(path)?, flags, Mode::empty())?.into_raw_fd())
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))
}

/// A new file without a name, or with this one.
pub fn create_in(directory: i32, name: Option<&CStr>, mode: u32) -> Result<i32> {
    let how = if name.is_some() { OFlags::CREATE | OFlags::EXCL } else { OFlags::TMPFILE };
    let (flags, name) = (OFlags::RDWR | OFlags::CLOEXEC | how, name.unwrap_or(c"."));
    Ok(rustix::fs::openat(borrow(directory)?, name, flags, Mode::from_bits_retain(mode))?.into_raw_fd())
}

/// Names a file; `EEXIST` if the name is taken.
pub fn link_in(fd: i32, directory: i32, name: &CStr) -> Result<()> {
    let from = ProcPath::own(fd);
    Ok(rustix::fs::linkat(CWD, from.as_c_str(), borrow(directory)?, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Replaces what has the name `to`.
pub fn rename_in(directory: i32, from: &CStr, to: &CStr) -> Result<()> {
    let directory = borrow(directory)?;
    Ok(rustix::fs::renameat(directory, from, directory, to)?)
}

pub fn remove_in(directory: i32, name: &CStr) -> Result<()> {
    Ok(rustix::fs::unlinkat(borrow(directory)?, name, AtFlags::empty())?)
}

/// At `place`, `to` shares the blocks that `from` has at `start`, for `len` bytes (0: up to the end). All of them, or an error, and then
/// perhaps some. Whole blocks, but for the end of `from`.
pub fn clone_range(to: i32, place: u64, from: i32, start: u64, len: u64) -> Result<()> {
    let range =
        file_clone_range { src_fd: from.into(), src_offset: start, src_length: len, dest_offset: place };
    let arguments = [to as usize, FICLONERANGE as usize, (&raw const range) as usize, 0, 0, 0];
    // SAFETY: a local.
    unsafe { syscall(libc::SYS_ioctl, arguments).map(drop) }
}

/// Owner and group, as far as rights allow. Says whether each is as wanted.
pub fn give_to(fd: i32, owner: u32, group: u32) -> Result<[bool; 2]> {
    let fd = borrow(fd)?;
    let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
    if rustix::fs::fchown(fd, Some(owner), Some(group)).is_ok() {
        return Ok([true; 2]);
    }
    let stat = rustix::fs::fstat(fd)?;
    let grouped = stat.st_gid == group.as_raw() || rustix::fs::fchown(fd, None, Some(group)).is_ok();
    Ok([stat.st_uid == owner.as_raw(), grouped])
}

/// Copies extended attributes (ACLs are some) that may be set; not those that stand for the old contents. `from` is not opened, and no
/// link is followed.
pub fn copy_attributes(from: &Path, to: i32) -> Result<()> {
    const OF_CONTENTS: [&CStr; 3] = [c"security.capability", c"security.ima", c"security.evm"];
    let from = c_path(from)?;
    let to = borrow(to)?;
    // The most that Linux allows.
    let (mut names, mut value) = (vec![0u8; 1 << 16], vec![0u8; 1 << 16]);
    let Ok(length) = rustix::fs::llistxattr(&*from, &mut names[..]) else { return Ok(()) };
    for name in names[..length].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if OF_CONTENTS.contains(&name) {
            continue;
        }
        let Ok(length) = rustix::fs::lgetxattr(&*from, name, &mut value[..]) else { continue };
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Err(rustix::io::Errno::NOSPC) => return Err(Errno(libc::ENOSPC)),
            Err(rustix::io::Errno::DQUOT) => return Err(Errno(libc::EDQUOT)),
            _ => (),
        }
    }
    Ok(())
}
