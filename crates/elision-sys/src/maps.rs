//! A program's mappings, as /proc/PID/maps has them.
#![allow(unsafe_code)] // An ioctl on a local struct.

use crate::file;
use crate::raw::{Errno, Result, syscall};
use linux_raw_sys::general::procmap_query;
use linux_raw_sys::general::procmap_query_flags::*;

const PROCMAP_QUERY: u32 = 0xC068_6611;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    pub start: usize,
    pub end: usize,
    pub readable: bool,
    pub writable: bool,
    pub shared: bool,
    pub dev: u64,
    /// 0: anonymous.
    pub ino: u64,
    pub offset: u64,
}

/// The mapping at or above `addr`, in /proc/PID/maps.
pub fn mapping(maps: i32, addr: usize) -> Result<Mapping> {
    find(maps, addr, 0)
}

/// The same for readable and writable files.
pub fn mapping_like_ours(maps: i32, addr: usize) -> Result<Mapping> {
    find(maps, addr, OF_A_FILE | READABLE | WRITABLE)
}

/// The same for memory that is writable and shared.
pub fn mapping_shared(maps: i32, addr: usize) -> Result<Mapping> {
    find(maps, addr, WRITABLE | SHARED)
}

/// True if unknown.
pub fn is_mapped(maps: i32, ino: u64) -> bool {
    let mut at = 0;
    loop {
        match find(maps, at, OF_A_FILE) {
            Ok(mapping) if mapping.ino == ino => return true,
            Ok(mapping) => at = mapping.end,
            Err(Errno(errno)) => return errno != libc::ENOENT,
        }
    }
}

const READABLE: u64 = PROCMAP_QUERY_VMA_READABLE as u64;
const WRITABLE: u64 = PROCMAP_QUERY_VMA_WRITABLE as u64;
const SHARED: u64 = PROCMAP_QUERY_VMA_SHARED as u64;
const COVERING_OR_NEXT: u64 = PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64;
const OF_A_FILE: u64 = PROCMAP_QUERY_FILE_BACKED_VMA as u64;

fn find(maps: i32, addr: usize, wanted: u64) -> Result<Mapping> {
    match ask(maps, addr, wanted) {
        // Before Linux 6.11.
        Err(Errno(libc::ENOTTY)) => read(maps, addr, wanted),
        found => found,
    }
}

fn ask(maps: i32, addr: usize, wanted: u64) -> Result<Mapping> {
    let size = size_of::<procmap_query>() as u64;
    let query_flags = COVERING_OR_NEXT | wanted;
    // SAFETY: plain numbers.
    let blank: procmap_query = unsafe { core::mem::zeroed() };
    let mut query = procmap_query { size, query_flags, query_addr: addr as u64, ..blank };
    let arguments = [maps as usize, PROCMAP_QUERY as usize, (&raw mut query) as usize, 0, 0, 0];
    // SAFETY: the request's struct, without a name.
    unsafe { syscall(libc::SYS_ioctl, arguments)? };
    let is = |flag: u64| query.vma_flags & flag != 0;
    Ok(Mapping {
        start: query.vma_start as usize,
        end: query.vma_end as usize,
        readable: is(READABLE),
        writable: is(WRITABLE),
        shared: is(SHARED),
        dev: libc::makedev(query.dev_major, query.dev_minor),
        ino: query.inode,
        offset: query.vma_offset,
    })
}

/// What [`ask`] answers, from the text: 50 µs for 200 mappings.
fn read(maps: i32, addr: usize, wanted: u64) -> Result<Mapping> {
    // Of each line the numbers, which are at its beginning.
    let (mut line, mut len) = ([0u8; 100], 0);
    let (mut chunk, mut offset) = ([0u8; 4096], 0);
    loop {
        // SAFETY: a local.
        let got = unsafe { file::pread(maps, chunk.as_mut_ptr() as usize, chunk.len(), offset)? };
        if got == 0 {
            return Err(Errno(libc::ENOENT));
        }
        offset += got as u64;
        for &byte in &chunk[..got] {
            if byte == b'\n' {
                let mapping = parse(&line[..len]).ok_or(Errno(libc::EBADMSG))?;
                if mapping.end > addr && mapping.has(wanted) {
                    return Ok(mapping);
                }
                len = 0;
            } else if len < line.len() {
                line[len] = byte;
                len += 1;
            }
        }
    }
}

impl Mapping {
    fn has(&self, wanted: u64) -> bool {
        let lacks = |flag: u64, is: bool| wanted & flag != 0 && !is;
        let kernels = self.start > isize::MAX as usize;
        !(kernels
            || lacks(READABLE, self.readable)
            || lacks(WRITABLE, self.writable)
            || lacks(SHARED, self.shared)
            || lacks(OF_A_FILE, self.ino != 0))
    }
}

/// `START-END rwxp OFFSET MAJOR:MINOR INODE`
fn parse(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = || fields.next();
    let (start, end) = pair(next()?, b'-')?;
    let &[readable, writable, _, shared] = next()? else { return None };
    let offset = number(next()?, 16)?;
    let (major, minor) = pair(next()?, b':')?;
    Some(Mapping {
        start: start as usize,
        end: end as usize,
        readable: readable == b'r',
        writable: writable == b'w',
        shared: shared == b's',
        dev: libc::makedev(major as u32, minor as u32),
        ino: number(next()?, 10)?,
        offset,
    })
}

fn pair(text: &[u8], between: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|&byte| byte == between)?;
    Some((number(&text[..at], 16)?, number(&text[at + 1..], 16)?))
}

fn number(text: &[u8], base: u32) -> Option<u64> {
    text.iter().try_fold(0u64, |value, &digit| {
        value.checked_mul(base.into())?.checked_add((digit as char).to_digit(base)?.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    const FILTERS: [u64; 4] = [0, OF_A_FILE, OF_A_FILE | READABLE | WRITABLE, WRITABLE | SHARED];

    /// A mapping of each kind, with holes between them.
    fn map_all_kinds() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let some = |protection: i32, flags: i32, fd: i32, offset: i64| {
            // SAFETY: new memory, that nobody uses.
            let made = unsafe { libc::mmap(std::ptr::null_mut(), 8192, protection, flags, fd, offset) };
            assert_ne!(made, libc::MAP_FAILED);
            // SAFETY: the same.
            unsafe { libc::munmap(made.wrapping_byte_add(4096), 4096) };
        };
        for protection in [libc::PROT_NONE, libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
            for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
                some(protection, flags | libc::MAP_ANONYMOUS, -1, 0);
                some(protection, flags, file.as_raw_fd(), 0x3000);
            }
        }
    }

    /// Other threads may map and unmap: so until both say the same, three times at most.
    #[test]
    fn the_text_says_what_the_query_answers() {
        map_all_kinds();
        let maps = File::open("/proc/self/maps").unwrap();
        let fd = maps.as_raw_fd();
        if let Err(error) = ask(fd, 0, 0) {
            return println!("skipped: PROCMAP_QUERY (Linux 6.11): {error:?}");
        }
        for wanted in FILTERS {
            let (mut at, mut found) = (0, 0);
            loop {
                let answered = ask(fd, at, wanted);
                let same = (0..3).any(|_| read(fd, at, wanted) == ask(fd, at, wanted));
                assert!(same, "{at:#x} {wanted}: {:?} {answered:?}", read(fd, at, wanted));
                let Ok(mapping) = answered else { break };
                for within in [mapping.start, mapping.start + 1, mapping.end - 1] {
                    let same = (0..3).any(|_| read(fd, within, wanted) == ask(fd, within, wanted));
                    assert!(same, "{within:#x} {wanted}");
                }
                (at, found) = (mapping.end, found + 1);
            }
            assert!(found >= 2, "{wanted}: {found}");
        }
    }

    #[test]
    fn lines_that_are_none() {
        for line in [
            "",
            "1-2",
            "1-2 rw-p",
            "1-2 rw-p 0 0:0",
            "1-2 rw-p 0 0:0 ",
            "1-2 rw-p 0 0:0 x",
            "12 rw-p 0 0:0 1",
        ] {
            let expected = line.ends_with(' ');
            assert_eq!(parse(line.as_bytes()).is_some(), expected, "{line}");
        }
    }
}
