//! Files' status.
#![allow(unsafe_code)] // Pointers to locals.

use super::descriptor::set_len;
use crate::raw::{Result, borrow, syscall};
use linux_raw_sys::general::FS_SYNC_FL;
use linux_raw_sys::ioctl::FS_IOC_GETFLAGS;
use rustix::fs::{AtFlags, StatFs, Statx, StatxAttributes, StatxFlags, StatxTimestamp};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Without times: a query makes the next change's time fine-grained, which a journal must store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    pub id: FileKey,
    pub mode: u32,
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub links: u32,
    /// fs-verity: nobody can open it for writing any more.
    pub verity: bool,
    /// Of a file system that knows "no dump", as ext4, XFS, btrfs and tmpfs do, and none over a network or in user space. An overlay answers
    /// as the file's layer does.
    pub local: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileKey {
    pub dev: u64,
    pub ino: u64,
}

impl Stat {
    /// Without holes, where the file system counts blocks as they are used (tmpfs).
    pub fn is_solid(&self) -> bool {
        self.blocks * 512 >= self.size
    }

    pub fn is_regular(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

fn statx(fd: i32, mask: StatxFlags) -> Result<Statx> {
    Ok(rustix::fs::statx(borrow(fd)?, c"", AtFlags::EMPTY_PATH, mask)?)
}

pub fn stat(fd: i32) -> Result<Stat> {
    statx(fd, STAT).map(to_stat)
}

pub fn stat_and_ctime(fd: i32) -> Result<(Stat, (i64, u32))> {
    statx(fd, STAT | StatxFlags::CTIME).map(|answer| (to_stat(answer), pair(answer.stx_ctime)))
}

const STAT: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::INO)
    .union(StatxFlags::NLINK)
    .union(StatxFlags::SIZE)
    .union(StatxFlags::BLOCKS);

fn to_stat(answer: Statx) -> Stat {
    let dev = libc::makedev(answer.stx_dev_major, answer.stx_dev_minor);
    Stat {
        id: FileKey { dev, ino: answer.stx_ino },
        mode: answer.stx_mode.into(),
        size: answer.stx_size,
        blocks: answer.stx_blocks,
        links: answer.stx_nlink,
        verity: answer.stx_attributes.contains(StatxAttributes::VERITY),
        local: answer.stx_attributes_mask.contains(StatxAttributes::NODUMP),
    }
}

/// Cuts a file that is longer.
pub fn cut(fd: i32, len: u64) {
    if stat(fd).is_ok_and(|stat| stat.size > len) {
        let _ = set_len(fd, len);
    }
}

pub fn is_append_only(fd: i32) -> Result<bool> {
    statx(fd, StatxFlags::empty()).map(|answer| answer.stx_attributes.contains(StatxAttributes::APPEND))
}

/// By permissions, attributes and mount. `false` if unknown.
pub fn may_be_written(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let (directory, path) = (libc::AT_FDCWD as usize, path.as_ptr() as usize);
    let arguments = [directory, path, libc::W_OK as usize, libc::AT_EACCESS as usize, 0, 0];
    // SAFETY: a C string. (rustix would fall back to other calls.)
    unsafe { syscall(libc::SYS_faccessat2, arguments) }.is_ok()
}

/// Seconds, nanoseconds. The next change gets another time.
pub fn ctime(fd: i32) -> Result<(i64, u32)> {
    statx(fd, StatxFlags::CTIME).map(|answer| pair(answer.stx_ctime))
}

fn pair(time: StatxTimestamp) -> (i64, u32) {
    (time.tv_sec, time.tv_nsec)
}

/// Would a read move the access time? `true` if unknown.
pub fn shows_access(fd: i32) -> bool {
    const DAY: i64 = 24 * 60 * 60;
    let (Ok(flags), Ok(mount), Ok(times)) = (
        super::descriptor::flags(fd),
        mount_flags(fd),
        statx(fd, StatxFlags::ATIME | StatxFlags::MTIME | StatxFlags::CTIME),
    ) else {
        return true;
    };
    if flags & libc::O_NOATIME != 0 || mount & (libc::ST_NOATIME | libc::ST_RDONLY) != 0 {
        return false;
    }
    let accessed = pair(times.stx_atime);
    mount & libc::ST_RELATIME == 0
        || accessed <= pair(times.stx_mtime)
        || accessed <= pair(times.stx_ctime)
        || crate::time::seconds() - accessed.0 >= DAY - 60
}

fn statfs(fd: i32) -> Result<StatFs> {
    Ok(rustix::fs::fstatfs(borrow(fd)?)?)
}

fn mount_flags(fd: i32) -> Result<u64> {
    statfs(fd).map(|answer| answer.f_flags as u64)
}

pub fn filesystem(fd: i32) -> Result<i64> {
    statfs(fd).map(|answer| answer.f_type)
}

/// Are all writes synchronous (`mount -o sync`, `chattr +S`)?
pub fn writes_synchronously(fd: i32) -> bool {
    let mut attributes = 0u32;
    let arguments = [fd as usize, FS_IOC_GETFLAGS as usize, (&raw mut attributes) as usize, 0, 0, 0];
    // SAFETY: the kernel fills an `int`, against the request's declaration.
    let asked = unsafe { syscall(libc::SYS_ioctl, arguments) };
    mount_flags(fd).is_ok_and(|flags| flags & libc::ST_SYNCHRONOUS != 0)
        || asked.is_ok() && attributes & FS_SYNC_FL != 0
}

/// Of the file system.
pub fn block_size(fd: i32) -> Result<u64> {
    statfs(fd).map(|answer| answer.f_bsize as u64)
}

pub fn room(fd: i32) -> Result<u64> {
    statfs(fd).map(|answer| answer.f_bavail.saturating_mul(answer.f_bsize as u64))
}
