//! For which file a large block is, and what blocks of its kind were read into.
//!
//! Atomics without order: threads that race only misplace a block.

use super::placement::{self, Habit, Source};
use super::{PAGE, listed};
use crate::abi::{arch, kernel};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize};
use elision_core::client;
use elision_sys::file;

/// The file that a thread used last, and the one before. Bits 63..32 a thread's mark, mostly distinct and never 0; 31..0 the
/// descriptor.
struct Used {
    now: AtomicU64,
    before: AtomicU64,
    /// One more than the position that the program last sought in the stream `now`, or 0.
    sought: AtomicU64,
    /// What the program last sought in a descriptor.
    trailer: AtomicU64,
    /// The file of the last big read (as `now`), and where it ended.
    read: AtomicU64,
    end: AtomicU64,
    /// Where the last block of that file would end in it, or 0.
    last: AtomicU64,
}

static USED: [Used; 16] = [const {
    Used {
        now: AtomicU64::new(0),
        before: AtomicU64::new(0),
        sought: AtomicU64::new(0),
        trailer: AtomicU64::new(0),
        read: AtomicU64::new(0),
        end: AtomicU64::new(0),
        last: AtomicU64::new(0),
    }
}; 16];

/// For less the file is not asked where it has the bytes.
const LISTED: usize = 1 << 20;

const DESCRIPTOR: u64 = 0xffff_ffff;

fn of_thread() -> (&'static Used, u64) {
    let mark = (arch::thread_pointer() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 | 1;
    let [first, ..] = &USED;
    (USED.get(mark as usize >> 1 & 15).unwrap_or(first), mark << 32)
}

/// The thread has opened, measured, sought or read a file: its next large block may be for that.
#[inline]
pub fn used(fd: i32) {
    used_at(fd, None);
}

/// The same through a stream, which may have read beyond the program's own position.
#[inline]
pub fn used_at(fd: i32, position: Option<u64>) {
    let (used, mark) = of_thread();
    let word = mark | u64::from(fd as u32);
    let last = used.now.load(Relaxed);
    if last != word {
        used.before.store(last, Relaxed);
        used.now.store(word, Relaxed);
    }
    used.sought.store(position.map_or(0, |position| position.wrapping_add(1)), Relaxed);
}

/// The same by a seek from the file's begin.
#[inline]
pub fn sought(fd: i32, position: u64) {
    used(fd);
    of_thread().0.trailer.store(position, Relaxed);
}

/// A big read, which ends at `end`.
pub fn reads(fd: i32, end: u64) {
    let (used, mark) = of_thread();
    let word = mark | u64::from(fd as u32);
    if used.read.load(Relaxed) != word {
        used.last.store(0, Relaxed);
        used.read.store(word, Relaxed);
    }
    used.end.store(end, Relaxed);
}

/// Where the file says that it has so many bytes. The thread has read what says so, mostly.
#[inline(never)] // The stack is free again.
fn listed(fd: i32, bytes: usize, size: u64, after: u64) -> Option<u64> {
    let read = |at: u64, room: &mut [u8]| file::read_at(fd, room, at).unwrap_or(0);
    let some = bytes >= LISTED && (bytes as u64) < size && client::life::min_bytes() != usize::MAX;
    if some { listed::find(&read, bytes as u64, size, after) } else { None }
}

/// The file for a block of `bytes`, if it is long enough. The next block is not for that, unless the file is used again.
fn take(bytes: usize) -> Option<Source> {
    let (used, mark) = of_thread();
    let sought = used.sought.load(Relaxed).checked_sub(1);
    let look = |word: &AtomicU64, sought: Option<u64>| {
        let word = word.load(Relaxed);
        let fd = (word & !DESCRIPTOR == mark).then_some((word & DESCRIPTOR) as i32)?;
        let stat = file::stat(fd).ok().filter(|stat| stat.is_regular())?;
        placement::fits(bytes as u64, stat.size).then_some(())?;
        let trailer = Some(used.trailer.load(Relaxed)).filter(|&trailer| trailer != 0 && trailer < stat.size);
        let trailer = trailer.unwrap_or(stat.size);
        let of_this =
            |place: &AtomicU64| if used.read.load(Relaxed) == word { place.load(Relaxed) } else { 0 };
        let (after, last) = (of_this(&used.end), Some(of_this(&used.last)).filter(|&last| last != 0));
        let listed = if sought.is_none() { listed(fd, bytes, stat.size, after) } else { None };
        Some(Source { position: kernel::position(fd)?, sought, trailer, size: stat.size, listed, last })
    };
    let found = look(&used.now, sought).or_else(|| look(&used.before, None));
    if found.is_some() {
        used.now.store(0, Relaxed);
        used.before.store(0, Relaxed);
    }
    found
}

/// A block that nothing was read into yet.
struct Placed {
    payload: AtomicUsize,
    bytes: AtomicUsize,
    /// The program's, as far as is known.
    position: AtomicU64,
    trailer: AtomicU64,
    /// 0: unknown.
    last: AtomicU64,
    /// 0: no file.
    size: AtomicU64,
}

static PLACED: [Placed; 16] = [const {
    Placed {
        payload: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        position: AtomicU64::new(0),
        trailer: AtomicU64::new(0),
        last: AtomicU64::new(0),
        size: AtomicU64::new(0),
    }
}; 16];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// For powers of two, and requests modulo 16, which tells objects with a header from bare arrays.
static HABITS: [[AtomicU16; 5]; 64 * 16] = [const { [const { AtomicU16::new(0) }; 5] }; 64 * 16];

fn habit(bytes: usize) -> Option<&'static [AtomicU16; 5]> {
    HABITS.get(bytes.checked_ilog2()? as usize * 16 + bytes % 16)
}

fn known(habit: &[AtomicU16; 5]) -> Habit {
    Habit(habit.each_ref().map(|relation| relation.load(Relaxed)))
}

/// The place of a block in its first page, and the file it is for.
pub(super) fn place(bytes: usize) -> (usize, Option<Source>) {
    let source = take(bytes);
    let habit = habit(bytes).map(known).unwrap_or_default();
    (habit.place(bytes, source), source)
}

pub(super) fn placed(payload: usize, bytes: usize, source: Option<Source>) {
    let next = NEXT.fetch_add(1, Relaxed) % PLACED.len();
    let Some(entry) = PLACED.get(next) else { return };
    entry.bytes.store(bytes, Relaxed);
    entry.position.store(source.map_or(0, Source::at), Relaxed);
    entry.trailer.store(source.map_or(0, |source| source.trailer), Relaxed);
    entry.last.store(source.and_then(|source| source.last).unwrap_or(0), Relaxed);
    entry.size.store(source.map_or(0, |source| source.size), Relaxed);
    entry.payload.store(payload, Relaxed);
}

/// By the first big read into it, a block is for what begins at `begin` of the file (below 0, modulo 2^64, if headers come first).
pub(super) fn read_into(payload: usize, begin: u64) {
    let Some(entry) = PLACED.iter().find(|entry| entry.payload.load(Relaxed) == payload) else { return };
    entry.payload.store(0, Relaxed);
    let (bytes, position) = (entry.bytes.load(Relaxed), entry.position.load(Relaxed));
    let source = match entry.size.load(Relaxed) {
        0 => None,
        size => {
            let (trailer, last) = (entry.trailer.load(Relaxed), entry.last.load(Relaxed));
            let last = Some(last).filter(|&last| last != 0);
            Some(Source { position, sought: None, trailer, size, listed: None, last })
        }
    };
    of_thread().0.last.store(begin.wrapping_add(bytes as u64), Relaxed);
    let needed = (begin % PAGE as u64) as usize;
    if needed.is_multiple_of(16)
        && let Some(habit) = habit(bytes)
    {
        let learnt = known(habit).learn(bytes, source, needed).0;
        habit.iter().zip(learnt).for_each(|(relation, learnt)| relation.store(learnt, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_is_for_one_block_of_the_thread_that_used_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; 1 << 20]).unwrap();
        file.seek(SeekFrom::Start(0x80)).unwrap();
        used(file.as_raw_fd());
        assert_eq!(std::thread::spawn(|| take(1 << 19)).join().unwrap(), None);
        assert_eq!(take(1 << 22), None); // longer than the file, which waits on
        let source = Source {
            position: 0x80,
            sought: None,
            trailer: 1 << 20,
            size: 1 << 20,
            listed: None,
            last: None,
        };
        assert_eq!([take(1 << 19), take(1 << 19)], [Some(source), None]);
        used_at(file.as_raw_fd(), Some(0x40));
        assert_eq!(take(1 << 19), Some(Source { sought: Some(0x40), ..source }));
    }

    #[test]
    fn a_file_that_is_too_short_leaves_the_block_to_the_one_before() {
        let long = tempfile::tempfile().unwrap();
        long.set_len(1 << 20).unwrap();
        sought(long.as_raw_fd(), 0x80);
        let short = tempfile::tempfile().unwrap();
        used_at(short.as_raw_fd(), Some(0x40));
        assert_eq!(
            take(1 << 19),
            Some(Source {
                position: 0,
                sought: None,
                trailer: 0x80,
                size: 1 << 20,
                listed: None,
                last: None
            })
        );
    }

    #[test]
    fn the_place_that_a_read_needed_is_that_of_the_next_block() {
        assert_eq!(place(12_345_680), (0, None));
        placed(0x7000, 12_345_680, None);
        read_into(0x8000, 96); // another block
        assert_eq!(place(12_345_680).0, 0);
        read_into(0x7000, 96);
        assert_eq!([place(12_345_680).0, place(12_345_680 + 1).0], [96, 0]);
        read_into(0x7000, 128); // only the first read of a block tells
        assert_eq!(place(12_345_680).0, 96);
    }
}
