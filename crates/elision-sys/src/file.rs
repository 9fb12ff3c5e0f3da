//! Descriptors, files and leases.
#![allow(unsafe_code)] // Pointers handed to the kernel: all are to locals or slices that outlive the call.

use crate::raw::{Errno, Result, syscall};
use core::ffi::CStr;
use core::mem::MaybeUninit;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What of a file's status anybody here asks on every call. Not its times: asking for ctime or mtime makes the kernel
/// give the next change a fine-grained one, which a journal then has to keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// Device and inode: which file this is.
    pub id: FileKey,
    /// Type and permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Names.
    pub links: u32,
}

/// Which file: device and inode number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileKey {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Stat {
    /// Has it no holes? (As far as its file system counts blocks as they are used: tmpfs does.)
    pub fn is_solid(&self) -> bool {
        self.blocks * 512 >= self.size
    }

    /// Is it a regular file?
    pub fn is_regular(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

fn statx(fd: i32, mask: u32) -> Result<libc::statx> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let path = c"";
    // SAFETY: a constant path; the kernel fills the struct, which is plain data and lives until we have read it.
    unsafe {
        syscall(
            libc::SYS_statx,
            [
                fd as usize,
                path.as_ptr() as usize,
                libc::AT_EMPTY_PATH as usize,
                mask as usize,
                answer.as_mut_ptr() as usize,
                0,
            ],
        )?;
        Ok(answer.assume_init())
    }
}

/// What file a descriptor is of, its type and size. By statx(2).
pub fn stat(fd: i32) -> Result<Stat> {
    statx(fd, STAT_MASK).map(Stat::from)
}

const STAT_MASK: u32 = libc::STATX_TYPE
    | libc::STATX_MODE
    | libc::STATX_INO
    | libc::STATX_SIZE
    | libc::STATX_BLOCKS
    | libc::STATX_NLINK;

impl From<libc::statx> for Stat {
    fn from(answer: libc::statx) -> Stat {
        let dev = libc::makedev(answer.stx_dev_major, answer.stx_dev_minor);
        Stat {
            id: FileKey { dev, ino: answer.stx_ino },
            mode: answer.stx_mode.into(),
            size: answer.stx_size,
            blocks: answer.stx_blocks,
            links: answer.stx_nlink,
        }
    }
}

/// May only be appended to, whoever writes (`chattr +a`).
pub fn is_append_only(fd: i32) -> Result<bool> {
    statx(fd, 0).map(|answer| answer.stx_attributes & libc::STATX_ATTR_APPEND as u64 != 0)
}

/// Would the file at `path` be opened for writing, by its permissions, its attributes and its mount? False where the kernel cannot say.
pub fn may_be_written(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a C string that lives for the call.
    let asked = unsafe {
        let (directory, path) = (libc::AT_FDCWD as usize, path.as_ptr() as usize);
        syscall(libc::SYS_faccessat2, [directory, path, libc::W_OK as usize, libc::AT_EACCESS as usize, 0, 0])
    };
    asked.is_ok()
}

/// When the inode last changed: seconds, nanoseconds. Asking makes the next change tell itself from this one.
pub fn ctime(fd: i32) -> Result<(i64, u32)> {
    let time = statx(fd, libc::STATX_CTIME)?.stx_ctime;
    Ok((time.tv_sec, time.tv_nsec))
}

/// Would a read through the descriptor move the file's access time? `true` where it cannot be told.
pub fn shows_access(fd: i32) -> bool {
    const DAY: i64 = 24 * 60 * 60;
    let (Ok(flags), Ok((_, mount, _)), Ok(times)) =
        (flags(fd), statfs(fd), statx(fd, libc::STATX_ATIME | libc::STATX_MTIME | libc::STATX_CTIME))
    else {
        return true;
    };
    if flags & libc::O_NOATIME != 0 || mount & (libc::ST_NOATIME | libc::ST_RDONLY) != 0 {
        return false;
    }
    let time = |time: libc::statx_timestamp| (time.tv_sec, time.tv_nsec);
    let accessed = time(times.stx_atime);
    mount & libc::ST_RELATIME == 0
        || accessed <= time(times.stx_mtime)
        || accessed <= time(times.stx_ctime)
        || crate::task::seconds() - accessed.0 >= DAY - 60
}

/// What fstatfs(2) says of type, flags and free room. (As the words that they are on x86-64: the libc crate has no name for the flags.)
fn statfs(fd: i32) -> Result<(i64, u64, u64)> {
    let mut words = [0u64; size_of::<libc::statfs>() / 8];
    // SAFETY: the kernel fills as many words as its struct has.
    unsafe { syscall(libc::SYS_fstatfs, [fd as usize, words.as_mut_ptr() as usize, 0, 0, 0, 0])? };
    let [kind, block, _, _, available, _, _, _, _, _, flags, ..] = words;
    Ok((kind as i64, flags, available.saturating_mul(block)))
}

/// The file system's magic number, by fstatfs(2).
pub fn filesystem(fd: i32) -> Result<i64> {
    statfs(fd).map(|(kind, ..)| kind)
}

/// Is every write to the file synchronous, however it was opened (`mount -o sync`, `chattr +S`)?
pub fn writes_synchronously(fd: i32) -> bool {
    const MOUNTED_SO: u64 = 0x10;
    const FS_SYNC_FL: u32 = 0x8;
    let mut attributes = 0u32;
    let argument = (&raw mut attributes) as usize;
    // SAFETY: the kernel fills an `int`, whatever the request's name says.
    let asked = unsafe { syscall(libc::SYS_ioctl, [fd as usize, FS_IOC_GETFLAGS, argument, 0, 0, 0]) };
    statfs(fd).is_ok_and(|(_, flags, _)| flags & MOUNTED_SO != 0)
        || asked.is_ok() && attributes & FS_SYNC_FL != 0
}

const FS_IOC_GETFLAGS: usize = 0x8008_6601;

/// Bytes that its file system has room for.
pub fn room(fd: i32) -> Result<u64> {
    statfs(fd).map(|(_, _, room)| room)
}

/// open(2) relative to the working directory.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<i32> {
    // SAFETY: the path is a C string borrowed for the call.
    let fd = unsafe {
        syscall(
            libc::SYS_openat,
            [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags as usize, mode as usize, 0, 0],
        )?
    };
    Ok(fd as i32)
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: no memory is involved. An error leaves nothing to do.
    let _ = unsafe { syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// close_range(2) from `first` up, in a descriptor table of the caller's own.
pub fn unshare_and_close_all() -> Result<()> {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_close_range, [0, u32::MAX as usize, CLOSE_RANGE_UNSHARE, 0, 0, 0])? };
    Ok(())
}

/// fcntl(2) with an integer argument.
pub fn fcntl(fd: i32, command: i32, argument: usize) -> Result<i32> {
    // SAFETY: only commands that take an integer are used with this function.
    Ok(unsafe { syscall(libc::SYS_fcntl, [fd as usize, command as usize, argument, 0, 0, 0])? } as i32)
}

/// Status flags of the open file description.
pub fn flags(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETFL, 0)
}

/// Takes (`F_RDLCK`, `F_WRLCK`) or gives up (`F_UNLCK`) a lease. Refused as well for files that are [`nameless`].
pub fn set_lease(fd: i32, lease: i32) -> Result<()> {
    if lease != libc::F_UNLCK && nameless(filesystem(fd)?, &stat(fd)?) {
        return Err(Errno(libc::EAGAIN));
    }
    set_lease_of_named(fd, lease)
}

/// Is it a file of tmpfs that has no name? memfd_create makes descriptions that can write and that the kernel does not
/// count as open for writing, so it would grant a lease that they never break.
pub fn nameless(filesystem: i64, stat: &Stat) -> bool {
    filesystem == TMPFS && stat.links == 0
}

/// The same for a file that is known to have a name, or not to be on tmpfs.
pub fn set_lease_of_named(fd: i32, lease: i32) -> Result<()> {
    fcntl(fd, libc::F_SETLEASE, lease as usize).map(drop)
}

/// Has the breaking of a lease on this description announced by that real-time signal, which names the descriptor that the
/// lease was taken with; and by SIGIO only if it cannot be queued.
pub fn set_lease_signal(fd: i32, signal: i32) -> Result<()> {
    const F_SETSIG: i32 = 10;
    fcntl(fd, F_SETSIG, signal as usize).map(drop)
}

/// What [`filesystem`] says of tmpfs.
pub const TMPFS: i64 = 0x0102_1994;

/// `statfs.f_type` of XFS, on which a read and a write of the same file never mix.
pub const XFS: i64 = 0x5846_5342;

/// The lease that is held, or, while it is being broken, the one it has to become.
pub fn lease(fd: i32) -> Result<i32> {
    fcntl(fd, libc::F_GETLEASE, 0)
}

/// lseek(2).
pub fn seek(fd: i32, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: no memory is involved.
    Ok(unsafe { syscall(libc::SYS_lseek, [fd as usize, offset as usize, whence as usize, 0, 0, 0])? } as u64)
}

/// pread(2) to an address.
///
/// # Safety
/// `[addr, addr + len)` must be memory that may be overwritten: the program's own buffer, or memory of ours.
pub unsafe fn pread(fd: i32, addr: usize, len: usize, offset: u64) -> Result<usize> {
    // SAFETY: the caller's promise; memory that is not there gives EFAULT.
    unsafe { syscall(libc::SYS_pread64, [fd as usize, addr, len, offset as usize, 0, 0]) }
}

/// pread(2) into bytes of the caller's.
pub fn read_at(fd: i32, bytes: &mut [u8], offset: u64) -> Result<usize> {
    // SAFETY: the slice is borrowed for writing.
    unsafe { pread(fd, bytes.as_mut_ptr() as usize, bytes.len(), offset) }
}

/// pwrite(2) from an address. The kernel checks the range, so no promise is needed.
pub fn pwrite(fd: i32, addr: usize, len: usize, offset: u64) -> Result<usize> {
    // SAFETY: the kernel only reads, and answers EFAULT where there is nothing to read.
    unsafe { syscall(libc::SYS_pwrite64, [fd as usize, addr, len, offset as usize, 0, 0]) }
}

/// write(2).
pub fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the slice is borrowed for the call.
    unsafe { syscall(libc::SYS_write, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// read(2) into a slice.
pub fn read(fd: i32, bytes: &mut [u8]) -> Result<usize> {
    // SAFETY: the slice is borrowed for the call.
    unsafe { syscall(libc::SYS_read, [fd as usize, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// fdatasync(2), or fsync(2) where metadata counts.
pub fn sync(fd: i32, metadata: bool) -> Result<()> {
    let call = if metadata { libc::SYS_fsync } else { libc::SYS_fdatasync };
    // SAFETY: no memory is involved.
    unsafe { syscall(call, [fd as usize, 0, 0, 0, 0, 0])? };
    Ok(())
}

/// flock(2).
pub fn flock(fd: i32, operation: i32) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_flock, [fd as usize, operation as usize, 0, 0, 0, 0])? };
    Ok(())
}

/// Entries of a directory, in the kernel's form, into `buffer`; 0 at the end.
pub fn directory_entries(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the slice is borrowed for the call.
    unsafe {
        syscall(libc::SYS_getdents64, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
    }
}

/// Does the file have a hole in `[start, end)`, or room that was set aside and never written? Moves nothing: asks for extents
/// instead of seeking, since the position may be the program's. `None` where the file system does not say.
pub fn has_hole(fd: i32, start: u64, end: u64) -> Option<bool> {
    const FS_IOC_FIEMAP: usize = 0xC020_660B;
    const LAST: u32 = 1;
    const UNWRITTEN: u32 = 0x800;
    const AT_A_TIME: usize = 32;
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct FileExtent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    #[repr(C)]
    struct Query {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [FileExtent; AT_A_TIME],
    }
    let blank =
        FileExtent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let mut at = start;
    while at < end {
        let mut query = Query {
            start: at,
            length: end - at,
            flags: 0,
            mapped: 0,
            count: AT_A_TIME as u32,
            reserved: 0,
            extents: [blank; AT_A_TIME],
        };
        // SAFETY: FIEMAP reads the header and fills at most `count` extents, all inside the local struct.
        unsafe {
            syscall(libc::SYS_ioctl, [fd as usize, FS_IOC_FIEMAP, (&raw mut query) as usize, 0, 0, 0]).ok()?
        };
        if query.mapped == 0 {
            return Some(true);
        }
        for extent in query.extents.iter().take(query.mapped as usize) {
            if extent.logical > at {
                return Some(true);
            }
            let to = extent.logical + extent.length;
            // What is on its way to the disk is called unwritten as well, until it is there.
            if extent.flags & UNWRITTEN != 0 && at < to.min(end) && !being_written(fd, at, to.min(end)) {
                return Some(true);
            }
            at = at.max(to);
            if extent.flags & LAST != 0 {
                return Some(at < end);
            }
        }
    }
    Some(false)
}

/// Is every page of `[start, end)` in the page cache, and waiting for the disk? Says no where some wait to be taken there and some
/// are on their way.
fn being_written(fd: i32, start: u64, end: u64) -> bool {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = [start, end - start];
    // Pages that are cached, dirty, under writeback, evicted, lately evicted.
    let mut counts = [0u64; 5];
    // SAFETY: cachestat reads the one structure and fills the other; both are of these sizes.
    let asked = unsafe {
        let (range, counts) = ((&raw const range) as usize, (&raw mut counts) as usize);
        syscall(SYS_CACHESTAT, [fd as usize, range, counts, 0, 0, 0])
    };
    let page = crate::PAGE as u64;
    let pages = end.div_ceil(page) - start / page;
    let [_, dirty, writeback, ..] = counts;
    asked.is_ok() && (dirty == pages || writeback == pages)
}

/// What the symbolic link `name` below `directory` says.
pub fn read_link_at<'a>(directory: i32, name: &CStr, room: &'a mut [u8]) -> Result<&'a [u8]> {
    // SAFETY: a C string, and a buffer of that length.
    let length = unsafe {
        let (name, to) = (name.as_ptr() as usize, room.as_mut_ptr() as usize);
        syscall(libc::SYS_readlinkat, [directory as usize, name, to, room.len(), 0, 0])
    }?;
    Ok(room.get(..length).unwrap_or(&[]))
}

/// openat(2) of what is there.
pub fn open_at(directory: i32, name: &CStr, flags: i32) -> Result<i32> {
    // SAFETY: a C string.
    let fd = unsafe {
        syscall(libc::SYS_openat, [directory as usize, name.as_ptr() as usize, flags as usize, 0, 0, 0])
    };
    fd.map(|fd| fd as i32)
}

/// The path of descriptor `fd` of process `pid` under /proc, as a C string in a small buffer.
pub struct ProcPath([u8; 64]);

impl ProcPath {
    /// /proc/PID/TAIL, or /proc/PID/TAIL/N.
    pub fn new(pid: i32, tail: &str, number: Option<i32>) -> ProcPath {
        let mut path = ProcPath([0; 64]);
        let mut at = 0;
        path.push(&mut at, b"/proc/");
        path.push_number(&mut at, pid);
        path.push(&mut at, b"/");
        path.push(&mut at, tail.as_bytes());
        if let Some(number) = number {
            path.push(&mut at, b"/");
            path.push_number(&mut at, number);
        }
        path
    }

    /// The calling thread's descriptor.
    pub fn own(fd: i32) -> ProcPath {
        let mut path = ProcPath([0; 64]);
        let mut at = 0;
        path.push(&mut at, b"/proc/thread-self/fd/");
        path.push_number(&mut at, fd);
        path
    }

    /// The same with `tail` behind it.
    pub fn and(mut self, tail: &[u8]) -> ProcPath {
        let mut at = self.as_c_str().to_bytes().len();
        self.push(&mut at, tail);
        self
    }

    fn push(&mut self, at: &mut usize, bytes: &[u8]) {
        for &byte in bytes {
            // The last byte stays zero, whatever happens.
            if let Some(slot) = self.0.get_mut(*at).filter(|_| *at < 63) {
                *slot = byte;
                *at += 1;
            }
        }
    }

    fn push_number(&mut self, at: &mut usize, number: i32) {
        let mut digits = [0u8; 10];
        let text = decimal(number.max(0) as u64, &mut digits);
        self.push(at, text);
    }

    /// The path.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }

    /// The path from /proc on.
    pub fn below_proc(&self) -> &CStr {
        let below = self.0.get(b"/proc/".len()..).unwrap_or(&[]);
        CStr::from_bytes_until_nul(below).unwrap_or(c"")
    }
}

/// Writes `number` in decimal into the end of `buffer`; without the formatting machinery, which may panic.
pub fn decimal(mut number: u64, buffer: &mut [u8]) -> &[u8] {
    let mut at = buffer.len();
    while let Some(slot) = at.checked_sub(1).and_then(|i| buffer.get_mut(i)) {
        *slot = b'0' + (number % 10) as u8;
        at -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.get(at..).unwrap_or(&[])
}

/// Soft limit on file size (RLIMIT_FSIZE) of the calling process.
pub fn size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the local struct.
    let got = unsafe {
        syscall(libc::SYS_prlimit64, [0, libc::RLIMIT_FSIZE as usize, 0, (&raw mut limit) as usize, 0, 0])
    };
    if got.is_ok() { limit.rlim_cur } else { 0 }
}
