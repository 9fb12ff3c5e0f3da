//! What wrappers ask the kernel and the program's arguments, past libc and past the wrapped names.
#![allow(unsafe_code)] // System calls with pointers to locals.

use core::mem::MaybeUninit;

use libc::{c_int, iovec};

use crate::abi::arch::NAMEABLE_LIMIT;
use crate::abi::raw::raw_call;
use elision_sys::PAGE;
use elision_sys::file::{self, ProcPath};
use elision_sys::raw::syscall;

/// The most that one read or write transfers.
pub(crate) const MOST: usize = 0x7fff_f000;

/// What fstat says.
pub(crate) fn status(fd: i32) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure when it reports success.
    unsafe {
        syscall(libc::SYS_fstat, [fd as usize, status.as_mut_ptr() as usize, 0, 0, 0, 0]).ok()?;
        Some(status.assume_init())
    }
}

/// Is it a regular file?
pub(crate) fn regular(fd: i32) -> bool {
    file::stat(fd).is_ok_and(|stat| stat.is_regular())
}

/// Is it a device that always has more to give (/dev/zero, /dev/random, /dev/urandom)?
pub(crate) fn is_endless(fd: i32) -> bool {
    status(fd).is_some_and(|status| {
        status.st_mode & libc::S_IFMT == libc::S_IFCHR
            && libc::major(status.st_rdev) == 1
            && matches!(libc::minor(status.st_rdev), 5 | 8 | 9)
    })
}

/// Does the file system let no write come into the middle of a read?
pub(crate) fn reads_are_atomic(fd: i32) -> bool {
    use elision_sys::file::{XFS, filesystem};
    filesystem(fd) == Ok(XFS)
}

/// The flags of the open file description.
pub(crate) fn status_flags(fd: i32) -> Option<i32> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]) }
        .ok()
        .map(|flags| flags as i32)
}

/// Is every write through the descriptor synchronous?
pub(crate) fn writes_synchronously(fd: i32) -> bool {
    status_flags(fd).is_some_and(|flags| flags & libc::O_DSYNC != 0)
        || elision_core::client::write::is_synchronous(fd)
}

/// The file position.
pub(crate) fn position(fd: i32) -> Option<u64> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_lseek, [fd as usize, 0, libc::SEEK_CUR as usize, 0, 0, 0]) }
        .ok()
        .map(|position| position as u64)
}

/// Is the size of files that this process writes without limit?
pub(crate) fn unlimited_file_size() -> bool {
    let mut limit = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: the kernel fills the structure when it reports success.
    unsafe {
        syscall(libc::SYS_prlimit64, [0, libc::RLIMIT_FSIZE as usize, 0, limit.as_mut_ptr() as usize, 0, 0])
            .is_ok()
            && limit.assume_init().rlim_cur == libc::RLIM64_INFINITY
    }
}

/// This process.
pub(crate) fn process() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.map_or(0, |process| process as i32)
}

/// Lets other threads run for a tenth of a millisecond.
pub(crate) fn sleep_briefly() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 100_000 };
    // SAFETY: the kernel reads the structure; a signal cuts the pause short.
    let _ = unsafe { syscall(libc::SYS_nanosleep, [&raw const time as usize, 0, 0, 0, 0, 0]) };
}

/// An O_PATH descriptor of what `open` with these flags would open.
pub(crate) fn open_path(directory: i32, path: *const libc::c_char, flags: i32) -> Option<i32> {
    let flags = libc::O_PATH | libc::O_CLOEXEC | (flags & libc::O_NOFOLLOW);
    // SAFETY: the kernel refuses a bad path.
    unsafe { syscall(libc::SYS_openat, [directory as usize, path as usize, flags as usize, 0, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

/// The same for `openat2`.
pub(crate) fn open_path2(directory: i32, path: *const libc::c_char, mut how: libc::open_how) -> Option<i32> {
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64 | how.flags & libc::O_NOFOLLOW as u64;
    how.mode = 0;
    let (how, len) = (&raw const how as usize, size_of::<libc::open_how>());
    // SAFETY: a local structure; the kernel refuses a bad path.
    unsafe { syscall(libc::SYS_openat2, [directory as usize, path as usize, how, len, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

/// The same for a file handle.
pub(crate) fn open_handle(mount: i32, handle: usize) -> Option<i32> {
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
    // SAFETY: the kernel refuses a bad handle.
    unsafe { syscall(libc::SYS_open_by_handle_at, [mount as usize, handle, flags, 0, 0, 0]) }
        .ok()
        .map(|fd| fd as i32)
}

/// May this thread truncate, through /proc, the file of an O_PATH descriptor? False where there is nothing to cut off.
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

/// Truncates a file that is open, however it was opened. That breaks all leases on it and waits for their end, lets none
/// begin meanwhile, and closes no descriptor, which would drop the process's locks on the file. False: nothing was done.
pub(crate) fn truncate(fd: i32) -> bool {
    let path = ProcPath::own(fd);
    loop {
        // SAFETY: a C string.
        match unsafe { raw_call(libc::SYS_truncate, &[path.as_c_str().as_ptr() as usize, 0]) } {
            // The open that this stands for would not have been interrupted.
            Err(errno) if errno.0 == libc::EINTR => {}
            result => return result.is_ok(),
        }
    }
}

/// Closes a descriptor that [`open_path`] made.
pub(crate) fn close(fd: i32) {
    // SAFETY: nothing else uses it.
    let _ = unsafe { syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Can `len` bytes at `addr` be read without a fault? A bad pointer in the arguments of a system call must stay an EFAULT,
/// and not become a crash here.
///
/// Arguments are mostly on the caller's stack, above this frame, and need no asking. For the rest, rt_sigprocmask with a
/// senseless `how` copies eight bytes in before it refuses: EFAULT or EINVAL.
#[inline]
pub(crate) fn readable(addr: usize, len: usize) -> bool {
    const NEAR: usize = 16 * 1024;
    let here = 0u8;
    let stack = &raw const here as usize;
    // (The kernel reads nothing at null.)
    let Some(end) = addr.checked_add(len).filter(|&end| end <= NAMEABLE_LIMIT && addr != 0) else {
        return false;
    };
    if addr > stack && end < stack + NEAR {
        return true;
    }
    let mut page = addr & !(PAGE - 1);
    while page < end {
        let at = page.max(addr).min(page + PAGE - 8);
        // SAFETY: the kernel reads eight bytes, or finds that it cannot, and changes nothing.
        let refused = unsafe { syscall(libc::SYS_rt_sigprocmask, [usize::MAX >> 33, at, 0, 8, 0, 0]) };
        if refused.is_err_and(|errno| errno.0 == libc::EFAULT) {
            return false;
        }
        page += PAGE;
    }
    true
}

/// The longest vector that the kernel takes.
const PIECES: c_int = 1024;

/// The program's vector, unless it is empty, too long or unreadable: then the kernel is to say so.
pub(crate) fn pieces<'a>(iov: *const iovec, count: c_int) -> Option<&'a [iovec]> {
    if iov.is_null() || !iov.is_aligned() || !(1..=PIECES).contains(&count) {
        return None;
    }
    if !readable(iov as usize, count as usize * size_of::<iovec>()) {
        return None;
    }
    // SAFETY: not null, aligned, and just found to be readable. (A program that unmaps it meanwhile in another thread would
    // get as little sense from the kernel.)
    Some(unsafe { core::slice::from_raw_parts(iov, count as usize) })
}

/// `n` rounded up to whole pages; `None` past the end of the address space.
#[inline]
pub(crate) fn whole_pages(n: usize) -> Option<usize> {
    n.checked_next_multiple_of(PAGE)
}

/// May a system call be given these addresses at all? The kernel checks this of a whole vector before it moves a byte.
pub(crate) fn nameable(addr: usize, len: usize) -> bool {
    addr.checked_add(len).is_some_and(|end| end <= NAMEABLE_LIMIT)
}
