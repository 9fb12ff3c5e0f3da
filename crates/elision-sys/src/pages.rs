//! What the kernel knows about pages: mappings (PROCMAP_QUERY), page tables (PAGEMAP_SCAN), write tracking
//! (userfaultfd in asynchronous write-protect mode).
#![allow(unsafe_code)] // ioctls on structs of ours; what they do to memory is said at each function.

use crate::raw::{Errno, Result, syscall};

fn ioctl(fd: i32, request: usize, argument: usize) -> Result<usize> {
    // SAFETY: called below with pointers to structs of the right form, which outlive the call.
    unsafe { syscall(libc::SYS_ioctl, [fd as usize, request, argument, 0, 0, 0]) }
}

/// Page categories of PAGEMAP_SCAN.
pub mod category {
    #![allow(missing_docs)]
    pub const WRITTEN: u64 = 1 << 1;
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    pub const SWAPPED: u64 = 1 << 4;
}

/// A run of pages that are alike.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Run {
    /// Address of the first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Categories.
    pub categories: u64,
}

/// Which pages a scan returns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// All of these categories…
    pub all: u64,
    /// …of which these are inverted (must not hold)…
    pub inverted: u64,
    /// …and at least one of these.
    pub any: u64,
    /// Write-protect what is returned, in the same step.
    pub protect: bool,
}

/// PAGEMAP_SCAN over `[start, end)`: fills `runs`, says how many, and where it stopped for want of room.
pub fn scan(
    pagemap: i32,
    start: usize,
    end: usize,
    wanted: Wanted,
    runs: &mut [Run],
) -> Result<(usize, usize)> {
    #[repr(C)]
    struct Argument {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        inverted: u64,
        mask: u64,
        any: u64,
        returned: u64,
    }
    const PAGEMAP_SCAN: usize = 0xC060_6610;
    let mut argument = Argument {
        size: size_of::<Argument>() as u64,
        flags: if wanted.protect { 1 | 2 } else { 0 },
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        vec: runs.as_mut_ptr() as u64,
        vec_len: runs.len() as u64,
        max_pages: 0,
        inverted: wanted.inverted,
        mask: wanted.all,
        any: wanted.any,
        returned: category::WRITTEN | category::FILE | category::PRESENT | category::SWAPPED,
    };
    let count = ioctl(pagemap, PAGEMAP_SCAN, (&raw mut argument) as usize)?;
    Ok((count, argument.walk_end as usize))
}

/// Have the pages of one mapping been moved, to where there was fresh memory that nobody has touched? The mapping itself shows it if it is a
/// file's, and what it has left behind if that cannot be read any more; else its pages do. False where that cannot be told.
pub fn have_moved(from: usize, to: usize, len: usize) -> bool {
    // In this order: meanwhile the pages of a file may become memory of their own.
    let seen = crate::file::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0).is_ok_and(|maps| {
        let of_a_file = mapping(maps, to).is_ok_and(|there| there.start <= to && there.ino != 0);
        let gone = mapping(maps, from).is_ok_and(|left| left.start > from || !left.readable);
        crate::file::close(maps);
        of_a_file || gone
    });
    seen || any_in(to, len)
}

/// Is any page of the range in memory or in swap? False where that cannot be told.
fn any_in(addr: usize, len: usize) -> bool {
    let wanted = Wanted { any: category::PRESENT | category::SWAPPED, ..Wanted::default() };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    crate::file::open(c"/proc/self/pagemap", flags, 0).is_ok_and(|pagemap| {
        let found = scan(pagemap, addr, addr + len, wanted, &mut [Run::default()]);
        crate::file::close(pagemap);
        found.is_ok_and(|(count, _)| count > 0)
    })
}

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Address of the first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Readable.
    pub readable: bool,
    /// Writable.
    pub writable: bool,
    /// Shared.
    pub shared: bool,
    /// Device of the file mapped, as mappings show it.
    pub dev: u64,
    /// Inode number of the file mapped, 0 if anonymous.
    pub ino: u64,
    /// File position of the first byte.
    pub offset: u64,
}

/// The mapping that covers `addr`, or the next one above (PROCMAP_QUERY, Linux 6.11). `maps` is /proc/self/maps.
pub fn mapping(maps: i32, addr: usize) -> Result<Mapping> {
    query_mapping(maps, addr, COVERING_OR_NEXT, &mut [])
}

/// The next mapping of a file above `addr`, or the one that covers it, that is readable and writable.
pub fn mapping_like_ours(maps: i32, addr: usize) -> Result<Mapping> {
    const READABLE: u64 = 0x1;
    const WRITABLE: u64 = 0x2;
    query_mapping(maps, addr, COVERING_OR_NEXT | OF_A_FILE | READABLE | WRITABLE, &mut [])
}

/// Is a file of this inode number mapped anywhere? True where that cannot be told.
pub fn is_mapped(maps: i32, ino: u64) -> bool {
    let mut at = 0;
    loop {
        match query_mapping(maps, at, COVERING_OR_NEXT | OF_A_FILE, &mut []) {
            Ok(mapping) if mapping.ino == ino => return true,
            Ok(mapping) => at = mapping.end,
            Err(Errno(errno)) => return errno != libc::ENOENT,
        }
    }
}

const COVERING_OR_NEXT: u64 = 0x10;
const OF_A_FILE: u64 = 0x20;

fn query_mapping(maps: i32, addr: usize, flags: u64, path: &mut [u8]) -> Result<Mapping> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        size: u64,
        flags: u64,
        addr: u64,
        start: u64,
        end: u64,
        vma_flags: u64,
        page_size: u64,
        offset: u64,
        inode: u64,
        dev_major: u32,
        dev_minor: u32,
        name_size: u32,
        build_id_size: u32,
        name_addr: u64,
        build_id_addr: u64,
    }
    const PROCMAP_QUERY: usize = 0xC068_6611;
    let mut query = Query {
        size: size_of::<Query>() as u64,
        flags,
        addr: addr as u64,
        name_size: path.len() as u32,
        name_addr: if path.is_empty() { 0 } else { path.as_mut_ptr() as u64 },
        ..Query::default()
    };
    ioctl(maps, PROCMAP_QUERY, (&raw mut query) as usize)?;
    Ok(Mapping {
        start: query.start as usize,
        end: query.end as usize,
        readable: query.vma_flags & 1 != 0,
        writable: query.vma_flags & 2 != 0,
        shared: query.vma_flags & 8 != 0,
        dev: libc::makedev(query.dev_major, query.dev_minor),
        ino: query.inode,
        offset: query.offset,
    })
}

/// A userfaultfd that only write-protects, and resolves its faults in the kernel: no handler, no privilege.
pub fn tracker() -> Result<i32> {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    const UFFDIO_API: usize = 0xC018_AA3F;
    const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    const WP_UNPOPULATED: u64 = 1 << 13;
    const WP_ASYNC: u64 = 1 << 15;
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: no memory is involved.
    let fd = unsafe {
        syscall(
            libc::SYS_userfaultfd,
            [(libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY) as usize, 0, 0, 0, 0, 0],
        )?
    } as i32;
    let mut api = Api { api: 0xAA, features: PAGEFAULT_FLAG_WP | WP_UNPOPULATED | WP_ASYNC, ioctls: 0 };
    match ioctl(fd, UFFDIO_API, (&raw mut api) as usize) {
        Ok(_) => Ok(fd),
        Err(error) => {
            crate::file::close(fd);
            Err(error)
        }
    }
}

/// Puts `[addr, addr + len)` under the tracker; nothing is protected yet.
pub fn track(tracker: i32, addr: usize, len: usize) -> Result<()> {
    #[repr(C)]
    struct Register {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }
    const UFFDIO_REGISTER: usize = 0xC020_AA00;
    const MODE_WP: u64 = 1 << 1;
    let mut register = Register { start: addr as u64, len: len as u64, mode: MODE_WP, ioctls: 0 };
    ioctl(tracker, UFFDIO_REGISTER, (&raw mut register) as usize).map(drop)
}

/// Lifts the protection from `[addr, addr + len)`: its pages count as written again.
pub fn unprotect(tracker: i32, addr: usize, len: usize) -> Result<()> {
    #[repr(C)]
    struct Protect {
        start: u64,
        len: u64,
        mode: u64,
    }
    const UFFDIO_WRITEPROTECT: usize = 0xC018_AA06;
    let mut protect = Protect { start: addr as u64, len: len as u64, mode: 0 };
    loop {
        match ioctl(tracker, UFFDIO_WRITEPROTECT, (&raw mut protect) as usize) {
            Err(Errno(libc::EAGAIN)) => continue,
            other => return other.map(drop),
        }
    }
}
