//! What the page cache holds of a file.
#![allow(unsafe_code)] // Pointers to locals.

use crate::raw::{Result, syscall};
use linux_raw_sys::general::{cachestat, cachestat_range};

#[allow(non_upper_case_globals)]
pub(crate) const SYS_cachestat: i64 = linux_raw_sys::general::__NR_cachestat as i64;

/// In pages. A page counts from the moment when it is asked of the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cached {
    pub pages: u64,
    pub dirty: u64,
    pub being_written: u64,
    /// Given back for want of memory.
    pub evicted: u64,
}

/// Linux 6.5. The caller owns the file, or may write to it.
pub fn cached(fd: i32, start: u64, end: u64) -> Result<Cached> {
    let range = cachestat_range { off: start, len: end - start };
    let mut counts =
        cachestat { nr_cache: 0, nr_dirty: 0, nr_writeback: 0, nr_evicted: 0, nr_recently_evicted: 0 };
    let arguments = [fd as usize, (&raw const range) as usize, (&raw mut counts) as usize, 0, 0, 0];
    // SAFETY: two local structs.
    unsafe { syscall(SYS_cachestat, arguments)? };
    Ok(Cached {
        pages: counts.nr_cache,
        dirty: counts.nr_dirty,
        being_written: counts.nr_writeback,
        evicted: counts.nr_evicted,
    })
}

/// Reads from the page cache only: the read ends at the first page that is not cached. (The kernel may then ask the device for that
/// page.)
pub fn read_cached(fd: i32, bytes: &mut [u8], offset: u64) -> Result<usize> {
    const RWF_NOWAIT: usize = 8;
    let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let arguments = [fd as usize, (&raw const part) as usize, 1, offset as usize, 0, RWF_NOWAIT];
    // SAFETY: a slice borrowed for writing.
    unsafe { syscall(libc::SYS_preadv2, arguments) }
}

/// Asks the device for pages, one by one in memory, and does not wait. The kernel may do less: one request's worth.
pub fn read_ahead(fd: i32, start: u64, len: usize) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_readahead, [fd as usize, start as usize, len, 0, 0, 0]).map(drop) }
}

/// Begins to read as a program that reads all in order and asks for so many bytes: the kernel asks the device for the page, or, if that
/// was the first of the last request, for the next request's, in large folios. `untouchable`: so many bytes that cannot be stored to, so
/// nothing is ever copied, and no access shows.
pub fn begin_to_read(fd: i32, start: u64, untouchable: usize, len: usize) {
    const RWF_NOWAIT: usize = 8;
    let part = libc::iovec { iov_base: core::ptr::without_provenance_mut(untouchable), iov_len: len };
    let arguments = [fd as usize, (&raw const part) as usize, 1, start as usize, 0, RWF_NOWAIT];
    // SAFETY: a local, and memory that nobody uses.
    let _ = unsafe { syscall(libc::SYS_preadv2, arguments) };
}
