//! Questions to the kernel, and checks of arguments.
#![allow(unsafe_code)] // Pointers to locals.

use core::mem::MaybeUninit;

use libc::{c_int, iovec};

use crate::abi::arch::NAMEABLE_LIMIT;
use crate::abi::raw::raw_call;
use elision_core::fs_traits::FsTraits;
use elision_sys::PAGE;
use elision_sys::file::{self, ProcPath};
use elision_sys::raw::syscall;

/// The kernel's limit of one read or write.
pub(crate) const MOST: usize = 0x7fff_f000;

pub(crate) fn status(fd: i32) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel has filled the structure on success.
    unsafe {
        syscall(libc::SYS_fstat, [fd as usize, status.as_mut_ptr() as usize, 0, 0, 0, 0]).ok()?;
        Some(status.assume_init())
    }
}

pub(crate) fn regular(fd: i32) -> bool {
    file::stat(fd).is_ok_and(|stat| stat.is_regular())
}

/// Is it /dev/zero, /dev/random or /dev/urandom?
pub(crate) fn is_endless(fd: i32) -> bool {
    status(fd).is_some_and(|status| {
        status.st_mode & libc::S_IFMT == libc::S_IFCHR
            && libc::major(status.st_rdev) == 1
            && matches!(libc::minor(status.st_rdev), 5 | 8 | 9)
    })
}

/// Are reads and writes of a file exclusive?
pub(crate) fn reads_are_atomic(fd: i32) -> bool {
    file::filesystem(fd).is_ok_and(|magic| FsTraits::of(magic).is_some_and(|fs| fs.reads_atomic))
}

pub(crate) fn status_flags(fd: i32) -> Option<i32> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]) }
        .ok()
        .map(|flags| flags as i32)
}

pub(crate) fn writes_synchronously(fd: i32) -> bool {
    status_flags(fd).is_some_and(|flags| flags & libc::O_DSYNC != 0)
        || elision_core::client::write::is_synchronous(fd)
}

pub(crate) fn position(fd: i32) -> Option<u64> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_lseek, [fd as usize, 0, libc::SEEK_CUR as usize, 0, 0, 0]) }
        .ok()
        .map(|position| position as u64)
}

pub(crate) fn unlimited_file_size() -> bool {
    let mut limit = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: as in `status`.
    unsafe {
        syscall(libc::SYS_prlimit64, [0, libc::RLIMIT_FSIZE as usize, 0, limit.as_mut_ptr() as usize, 0, 0])
            .is_ok()
            && limit.assume_init().rlim_cur == libc::RLIM64_INFINITY
    }
}

pub(crate) fn process() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.map_or(0, |process| process as i32)
}

pub(crate) fn sleep_briefly() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 100_000 };
    // SAFETY: the kernel reads the structure.
    let _ = unsafe { syscall(libc::SYS_nanosleep, [&raw const time as usize, 0, 0, 0, 0, 0]) };
}

pub(crate) fn open_path(directory: i32, path: *const libc::c_char, flags: i32) -> Option<i32> {
    let flags = libc::O_PATH | libc::O_CLOEXEC | (flags & libc::O_NOFOLLOW);
    // SAFETY: the kernel refuses a bad path.
    unsafe { syscall(libc::SYS_openat, [directory as usize, path as usize, flags as usize, 0, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

/// Opens an O_PATH descriptor's file for reading, by /proc. It waits for nobody.
pub(crate) fn open_to_look(fd: i32) -> Option<i32> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let path = ProcPath::own(fd);
    let (here, path) = (libc::AT_FDCWD as usize, path.as_c_str().as_ptr() as usize);
    // SAFETY: a terminated path.
    unsafe { syscall(libc::SYS_openat, [here, path, flags as usize, 0, 0, 0]) }.ok().map(|fd| fd as i32)
}

pub(crate) fn open_path2(directory: i32, path: *const libc::c_char, mut how: libc::open_how) -> Option<i32> {
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64 | how.flags & libc::O_NOFOLLOW as u64;
    how.mode = 0;
    let (how, len) = (&raw const how as usize, size_of::<libc::open_how>());
    // SAFETY: as above, and a local structure.
    unsafe { syscall(libc::SYS_openat2, [directory as usize, path as usize, how, len, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

pub(crate) fn open_handle(mount: i32, handle: usize) -> Option<i32> {
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
    // SAFETY: the kernel refuses a bad handle.
    unsafe { syscall(libc::SYS_open_by_handle_at, [mount as usize, handle, flags, 0, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

/// May this thread truncate an O_PATH descriptor's file, by /proc? False if empty.
pub(crate) fn truncatable(fd: i32) -> bool {
    let path = ProcPath::own(fd);
    let arguments = [
        libc::AT_FDCWD as usize,
        path.as_c_str().as_ptr() as usize,
        libc::W_OK as usize,
        libc::AT_EACCESS as usize,
    ];
    let Ok(stat) = file::stat(fd) else { return false };
    stat.is_regular()
        && stat.size > 0
        // SAFETY: a C string.
        && unsafe { raw_call(libc::SYS_faccessat2, &arguments) }.is_ok()
        && open_path(libc::AT_FDCWD, path.as_c_str().as_ptr(), 0).is_some_and(|seen| {
            let same = file::stat(seen).is_ok_and(|seen| seen.id == stat.id);
            close(seen);
            same
        })
}

/// Truncates an open file by its path: whatever the open mode, with all leases ended and none granted meanwhile, and without a
/// close, which would drop the process's locks. False: nothing was done.
pub(crate) fn truncate(fd: i32) -> bool {
    let path = ProcPath::own(fd);
    loop {
        // SAFETY: a C string.
        match unsafe { raw_call(libc::SYS_truncate, &[path.as_c_str().as_ptr() as usize, 0]) } {
            // The replaced open would not be interrupted.
            Err(errno) if errno.0 == libc::EINTR => {}
            result => return result.is_ok(),
        }
    }
}

/// Would it execute the open file?
pub(crate) fn is_program(fd: i32, stat: &file::Stat) -> bool {
    let mut beginning = [0; 4];
    stat.mode & 0o111 != 0
        && file::read_at(fd, &mut beginning, 0).is_ok()
        && (beginning == *b"\x7fELF" || beginning.starts_with(b"#!"))
}

pub(crate) fn close(fd: i32) {
    // SAFETY: nothing else uses it.
    let _ = unsafe { syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Can the range be read? A bad pointer must give the program an EFAULT, not a fault here. Most arguments lie on the caller's
/// stack, just above this frame. For others, rt_sigprocmask with an invalid `how` reads eight bytes, then fails: EFAULT or
/// EINVAL.
#[inline]
pub(crate) fn readable(addr: usize, len: usize) -> bool {
    const NEAR: usize = 16 * 1024;
    let here = 0u8;
    let stack = &raw const here as usize;
    // The kernel reads nothing at null.
    let Some(end) = addr.checked_add(len).filter(|&end| end <= NAMEABLE_LIMIT && addr != 0) else {
        return false;
    };
    if addr > stack && end < stack + NEAR {
        return true;
    }
    let mut page = addr & !(PAGE - 1);
    while page < end {
        let at = page.max(addr).min(page + PAGE - 8);
        // SAFETY: the kernel reads at most eight bytes.
        let refused = unsafe { syscall(libc::SYS_rt_sigprocmask, [usize::MAX >> 33, at, 0, 8, 0, 0]) };
        if refused.is_err_and(|errno| errno.0 == libc::EFAULT) {
            return false;
        }
        page += PAGE;
    }
    true
}

const PIECES: c_int = 1024;

/// The program's vector; `None` if empty, too long or unreadable, which the kernel is to report.
pub(crate) fn pieces<'a>(iov: *const iovec, count: c_int) -> Option<&'a [iovec]> {
    if iov.is_null() || !iov.is_aligned() || !(1..=PIECES).contains(&count) {
        return None;
    }
    if !readable(iov as usize, count as usize * size_of::<iovec>()) {
        return None;
    }
    // SAFETY: not null, aligned, and readable just now; a concurrent unmap has no defined result without Elision either.
    Some(unsafe { core::slice::from_raw_parts(iov, count as usize) })
}

#[inline]
pub(crate) fn whole_pages(n: usize) -> Option<usize> {
    n.checked_next_multiple_of(PAGE)
}

/// Does the kernel accept the range? It checks a whole vector before it moves a byte.
pub(crate) fn nameable(addr: usize, len: usize) -> bool {
    addr.checked_add(len).is_some_and(|end| end <= NAMEABLE_LIMIT)
}
