//! Pages: page tables, write tracking.
#![allow(unsafe_code)] // ioctls on local structs.

use crate::file;
use crate::maps::mapping;
use crate::raw::{Errno, Result, syscall};
use linux_raw_sys::general::*;
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_WRITEPROTECT};
use rustix::fd::IntoRawFd;
use rustix::mm::UserfaultfdFlags;

const PAGEMAP_SCAN: u32 = 0xC060_6610;

/// # Safety: `T` must be the request's struct.
unsafe fn ioctl<T>(fd: i32, request: u32, argument: &mut T) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_ioctl, [fd as usize, request as usize, argument as *mut T as usize, 0, 0, 0]) }
}

pub mod category {
    #![allow(missing_docs)]
    use linux_raw_sys::general::*;
    /// The page's mapping is write-tracked. Elsewhere [`WRITTEN`] says nothing: since Linux 7.3 it is missing there.
    pub const TRACKED: u64 = PAGE_IS_WPALLOWED as u64;
    pub const WRITTEN: u64 = PAGE_IS_WRITTEN as u64;
    pub const FILE: u64 = PAGE_IS_FILE as u64;
    pub const PRESENT: u64 = PAGE_IS_PRESENT as u64;
    pub const SWAPPED: u64 = PAGE_IS_SWAPPED as u64;
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// All of these…
    pub all: u64,
    /// …of which these must not hold…
    pub inverted: u64,
    /// …and any of these.
    pub any: u64,
    /// Write-protects them, in the same step.
    pub protect: bool,
}

/// PAGEMAP_SCAN: the number of runs, and where it stopped for want of room.
pub fn scan(
    pagemap: i32,
    start: usize,
    end: usize,
    wanted: Wanted,
    runs: &mut [Run],
) -> Result<(usize, usize)> {
    let mut argument = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: if wanted.protect { u64::from(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC) } else { 0 },
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        vec: runs.as_mut_ptr() as u64,
        vec_len: runs.len() as u64,
        max_pages: 0,
        category_inverted: wanted.inverted,
        category_mask: wanted.all,
        category_anyof_mask: wanted.any,
        return_mask: category::TRACKED
            | category::WRITTEN
            | category::FILE
            | category::PRESENT
            | category::SWAPPED,
    };
    // SAFETY: the request's struct; runs with their number.
    let count = unsafe { ioctl(pagemap, PAGEMAP_SCAN, &mut argument)? };
    Ok((count, argument.walk_end as usize))
}

/// Have a mapping's pages moved to untouched memory? `false` if unknown.
pub fn have_moved(from: usize, to: usize, len: usize) -> bool {
    // A file's mapping has moved, or the old place is unreadable; else the pages tell. (In this order: a file's pages may become
    // anonymous.)
    let seen = file::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0).is_ok_and(|maps| {
        let of_a_file = mapping(maps, to).is_ok_and(|there| there.start <= to && there.ino != 0);
        let gone = mapping(maps, from).is_ok_and(|left| left.start > from || !left.readable);
        file::close(maps);
        of_a_file || gone
    });
    seen || any_in(to, len)
}

/// Is any page in memory or swap? False if unknown.
fn any_in(addr: usize, len: usize) -> bool {
    let wanted = Wanted { any: category::PRESENT | category::SWAPPED, ..Wanted::default() };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    file::open(c"/proc/self/pagemap", flags, 0).is_ok_and(|pagemap| {
        let found = scan(pagemap, addr, addr + len, wanted, &mut [Run::default()]);
        file::close(pagemap);
        found.is_ok_and(|(count, _)| count > 0)
    })
}

/// A userfaultfd that only write-protects, asynchronously: no handler, no privilege.
pub fn tracker() -> Result<i32> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let flags = flags | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
    // SAFETY: no memory.
    let fd = match unsafe { rustix::mm::userfaultfd(flags) } {
        Ok(fd) => fd.into_raw_fd(),
        Err(error) => from_device(flags).map_err(|_| error)?,
    };
    let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
    let mut api = uffdio_api { api: UFFD_API.into(), features: features.into(), ioctls: 0 };
    // SAFETY: the request's struct.
    match unsafe { ioctl(fd, UFFDIO_API, &mut api) } {
        Ok(_) => Ok(fd),
        Err(error) => {
            file::close(fd);
            Err(error)
        }
    }
}

/// Where a filter refuses the system call, a container may have the device (Linux 6.1).
fn from_device(flags: UserfaultfdFlags) -> Result<i32> {
    let device = file::open(c"/dev/userfaultfd", libc::O_RDWR | libc::O_CLOEXEC, 0)?;
    let arguments = [device as usize, USERFAULTFD_IOC_NEW as usize, flags.bits() as usize, 0, 0, 0];
    // SAFETY: no memory.
    let made = unsafe { syscall(libc::SYS_ioctl, arguments) };
    file::close(device);
    made.map(|fd| fd as i32)
}

/// `_IO(0xAA, 0)`.
const USERFAULTFD_IOC_NEW: u32 = 0xaa00;

pub fn track(tracker: i32, addr: usize, len: usize) -> Result<()> {
    let range = uffdio_range { start: addr as u64, len: len as u64 };
    let mut register = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_WP.into(), ioctls: 0 };
    // SAFETY: the request's struct.
    unsafe { ioctl(tracker, UFFDIO_REGISTER, &mut register).map(drop) }
}

/// Its pages count as written again.
pub fn unprotect(tracker: i32, addr: usize, len: usize) -> Result<()> {
    let range = uffdio_range { start: addr as u64, len: len as u64 };
    let mut protect = uffdio_writeprotect { range, mode: 0 };
    loop {
        // SAFETY: the request's struct.
        match unsafe { ioctl(tracker, UFFDIO_WRITEPROTECT, &mut protect) } {
            Err(Errno(libc::EAGAIN)) => continue,
            other => return other.map(drop),
        }
    }
}
