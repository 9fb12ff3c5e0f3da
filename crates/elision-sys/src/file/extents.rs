//! Which bytes of a file are on its file system.
#![allow(unsafe_code)] // Pointers to locals.

use super::page_cache::cached;
use crate::raw::syscall;
use linux_raw_sys::ioctl::{FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_UNWRITTEN, FS_IOC_FIEMAP};

/// Is there a hole, or unwritten room, in `[start, end)`? `None` if unknown. (Seeking would move the program's position.)
pub fn has_hole(fd: i32, start: u64, end: u64) -> Option<bool> {
    const AT_A_TIME: usize = 32;
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct FileExtent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [FileExtent; AT_A_TIME],
    }
    let mut at = start;
    while at < end {
        let (length, count) = (end - at, AT_A_TIME as u32);
        let mut query = Query { start: at, length, count, ..Query::default() };
        // SAFETY: FIEMAP fills at most `count` extents of the local struct.
        unsafe {
            syscall(
                libc::SYS_ioctl,
                [fd as usize, FS_IOC_FIEMAP as usize, (&raw mut query) as usize, 0, 0, 0],
            )
            .ok()?
        };
        if query.mapped == 0 {
            return Some(true);
        }
        for extent in query.extents.iter().take(query.mapped as usize) {
            if extent.logical > at {
                return Some(true);
            }
            let to = extent.logical + extent.length;
            // Bytes under writeback are flagged unwritten, too.
            if extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0
                && at < to.min(end)
                && !being_written(fd, at, to.min(end))
            {
                return Some(true);
            }
            at = at.max(to);
            if extent.flags & FIEMAP_EXTENT_LAST != 0 {
                return Some(at < end);
            }
        }
    }
    Some(false)
}

/// Are all pages of `[start, end)` dirty, or all under writeback?
fn being_written(fd: i32, start: u64, end: u64) -> bool {
    let page = crate::PAGE as u64;
    let pages = end.div_ceil(page) - start / page;
    cached(fd, start, end).is_ok_and(|counts| counts.dirty == pages || counts.being_written == pages)
}
