//! Which pages of a big write the file has already, where no extent tells: they are compared with the page cache.
//!
//! Compared in pieces that stay in the processor's cache, under the write's guard, and never from the device. A few places are compared
//! before all else, without a guard: most writes bring other bytes.
#![allow(unsafe_code)] // Compares the program's memory.

use crate::client::call::Call;
use crate::client::launch;
use crate::client::offer::{self, check_lease};
use crate::shared::requests::Op;
use crate::shared::{control, write_guarded};
use crate::transfer::{PAGE, Transfer};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::file::Stat;
use elision_sys::{file, task};

/// Bytes compared at a time.
const PIECE: usize = 32 * PAGE;

/// Fewer equal pages between others are written, too: a call costs as much as so many pages.
const GAP: usize = 32 * PAGE;

/// Compared before it is judged.
const TRIAL: usize = 512 << 10;

/// Holds bytes while they are compared. Only one comparison is under way at a time.
struct Room(UnsafeCell<[u8; PIECE]>);

// SAFETY: only who has set `BUSY` uses it.
unsafe impl Sync for Room {}

static OF_FILE: Room = Room(UnsafeCell::new([0; PIECE]));
static OF_MEMORY: Room = Room(UnsafeCell::new([0; PIECE]));
static BUSY: AtomicBool = AtomicBool::new(false);

/// Memory of this size and more is compared. Below, asking the helper takes longer than the write.
pub fn least(threshold: usize) -> usize {
    (16 << 20).min(threshold.saturating_mul(16))
}

/// From this size on a helper is started for it.
const WORTH_A_HELPER: usize = 32 << 20;

/// May the write be compared, and does it look as if most were equal?
pub(crate) fn likely(fd: i32, number: u64, whole: Transfer) -> bool {
    const PLACES: usize = 8;
    // Around a page boundary: the end of one page and the beginning of the next.
    const LEN: usize = 512;
    if !(control::harmless() || whole.len >= WORTH_A_HELPER && launch::ensure())
        || !is_time(number, whole.len)
    {
        return false;
    }
    let end = whole.offset + whole.len as u64;
    if !is_cached(fd, whole.offset, end) {
        return false;
    }
    let step = whole.len / PLACES;
    let equal = (0..PLACES).filter(|place| {
        let at = (whole.offset as usize + place * step + step / 2).next_multiple_of(PAGE);
        let skip = at - whole.offset as usize - LEN / 2;
        let (mut here, mut there) = ([0u8; LEN], [1u8; LEN]);
        // The memory may be absent. SAFETY: a local.
        let copied = unsafe { task::copy_own(whole.addr + skip, here.as_mut_ptr() as usize, LEN) };
        copied == Ok(LEN)
            && file::read_cached(fd, &mut there, whole.offset + skip as u64) == Ok(LEN)
            && here == there
    });
    let likely = equal.count() > PLACES / 2;
    if !likely {
        learn(number, whole.len, false);
    }
    likely
}

fn is_cached(fd: i32, start: u64, end: u64) -> bool {
    let page = PAGE as u64;
    let (start, end) = (start / page * page, end.next_multiple_of(page));
    file::cached(fd, start, end).is_ok_and(|cached| cached.pages == (end - start) / page)
}

/// Memory that has a file's bytes, as a comparison found.
static RECOGNISED: AtomicUsize = AtomicUsize::new(0);

/// Has the memory from `addr` on the bytes of the whole file that `fd` can read? If most of it, its altered pages are known from now
/// on. The memory may be freed meanwhile.
pub fn recognise(fd: i32, stat: &Stat, addr: usize, threshold: usize) {
    let whole = Transfer { addr, len: stat.size as usize / PAGE * PAGE, offset: 0 };
    let number = write_guarded::number(stat.id);
    if whole.len < least(threshold) || !likely(fd, number, whole) {
        return;
    }
    // Until a write of this memory shows that it was worth it.
    learn(number, whole.len, false);
    let Ok(fs) = check_lease(fd, offer::fs(fd), stat, false) else { return };
    let Some(mut comparison) = Comparison::begin(fd, true) else { return };
    let Some(mut call) = Call::new(Op::Recognise, false) else { return };
    let request = call.request();
    (request.fd, request.flags, request.key, request.fs) = (fd, libc::O_RDONLY, stat.id, Some(fs));
    (request.addr, request.len, request.offset) = (whole.addr, whole.len, whole.offset);
    if call.send().is_some() {
        return;
    }
    let request = call.request();
    let mut good = true;
    comparison.each_other(whole, |from, len| good &= request.push_run(addr + from, addr + from + len, 0, 0));
    (request.more, request.track) = (true, good && comparison.pays());
    if call.send().is_none() && call.is_good() {
        RECOGNISED.store(addr, Relaxed);
    }
}

/// The memory from `addr` on was written over its file: that it was compared was worth it.
pub(crate) fn saved(number: u64, addr: usize, len: usize) {
    if RECOGNISED.load(Relaxed) == addr {
        learn(number, len, true);
    }
}

/// A comparison under way.
pub(crate) struct Comparison {
    fd: i32,
    /// The memory may be freed meanwhile.
    may_go: bool,
    compared: usize,
    /// What was to be written of that.
    others: usize,
}

impl Comparison {
    pub(crate) fn begin(fd: i32, may_go: bool) -> Option<Comparison> {
        let free = BUSY.compare_exchange(false, true, Acquire, Relaxed).is_ok();
        free.then_some(Comparison { fd, may_go, compared: 0, others: 0 })
    }

    pub(crate) fn pays(&self) -> bool {
        self.others <= self.compared / 4
    }

    /// Calls with what has to be written of `part`: where it begins, and how long it is. The memory is readable, or may go.
    pub(crate) fn each_other(&mut self, part: Transfer, mut write: impl FnMut(usize, usize)) {
        // Others from `from` to `until`; equal pages from there on.
        let (mut from, mut until, mut at) = (0, 0, 0);
        while at < part.len && (self.compared < TRIAL || self.pays()) {
            let piece = part.part(at, PIECE.min(part.len - at));
            let equal = self.compare(piece);
            for page in (0..piece.len).step_by(PAGE) {
                if equal & 1 << (page / PAGE) != 0 {
                    continue;
                }
                let page = at + page;
                if page - until >= GAP || from == until {
                    write(from, until - from);
                    (from, until) = (page, page);
                }
                self.others += page + PAGE - until;
                until = page + PAGE;
            }
            self.compared += piece.len;
            at += piece.len;
        }
        write(from, until - from);
        write(at, part.len - at);
    }

    /// A bit for each page that the file has.
    fn compare(&self, piece: Transfer) -> u32 {
        if !is_cached(self.fd, piece.offset, piece.offset + piece.len as u64) {
            return 0;
        }
        // SAFETY: `BUSY` is this comparison's.
        let room = unsafe { &mut *OF_FILE.0.get() };
        let Some(there) = room.get_mut(..piece.len) else { return 0 };
        let got = file::read_cached(self.fd, there, piece.offset).unwrap_or(0);
        let mut memory = piece.addr;
        if self.may_go {
            memory = OF_MEMORY.0.get().expose_provenance();
            // SAFETY: a room of this comparison, at least as long as the piece.
            if unsafe { task::copy_own(piece.addr, memory, piece.len) } != Ok(piece.len) {
                return 0;
            }
        }
        let pages = there.chunks_exact(PAGE).take(got / PAGE).enumerate();
        pages.fold(0, |bits, (page, there)| {
            let here = core::ptr::with_exposed_provenance(memory + page * PAGE);
            // SAFETY: both are readable. A store by another thread comes before or after, byte by byte, as beside a copy.
            let same = unsafe { libc::memcmp(here, there.as_ptr().cast(), PAGE) } == 0;
            bits | u32::from(same) << page
        })
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        BUSY.store(false, Release);
    }
}

/// What came of comparing: for each file and size, a tag, how many writes are not to be compared, and how many were not the last time. Files
/// may evict each other.
static LEARNT: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

const MOST: u64 = 63;

fn with<T>(number: u64, len: usize, act: impl FnOnce(&mut (u64, u64)) -> T) -> T {
    let mixed = (number ^ u64::from(len.ilog2())).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (place, tag) = (LEARNT.get((mixed >> 58) as usize), mixed & !0xffff);
    let word = place.map_or(0, |place| place.load(Relaxed));
    let mut known = if word & !0xffff == tag { (word & 0xff, word >> 8 & 0xff) } else { (0, 0) };
    let result = act(&mut known);
    if let Some(place) = place {
        place.store(tag | known.0 | known.1 << 8, Relaxed);
    }
    result
}

fn is_time(number: u64, len: usize) -> bool {
    with(number, len, |(left, _)| {
        let now = *left == 0;
        *left = left.saturating_sub(1);
        now
    })
}

pub(crate) fn learn(number: u64, len: usize, paid: bool) {
    with(number, len, |(left, step)| {
        *step = if paid { 0 } else { (*step * 2 + 1).min(MOST) };
        *left = *step;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_whose_writes_bring_other_bytes_is_seldom_compared() {
        let (number, len) = (0x1234_5678 << 32, 5 << 20);
        let compared = |paid: bool| {
            (0..1000).filter(|_| is_time(number, len) && (learn(number, len, paid), true).1).count()
        };
        assert!((10..=25).contains(&compared(false)));
        assert!(is_time(number, 50 << 20) && is_time(number + (1 << 32), len));
        assert!(compared(true) > 900);
    }

    #[test]
    fn what_is_to_be_written_is_what_differs() {
        const PAGES: usize = 1000;
        let file = tempfile::tempfile().unwrap();
        let old: Vec<u8> = (0..PAGES * PAGE).map(|at| (at / PAGE * 7 + at) as u8).collect();
        file.write_all_at(&old, 0).unwrap();
        let mut number = 9u64;
        for round in 0..60 {
            let mut new = old.clone();
            let mut below = |n: usize| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                (number % n as u64) as usize
            };
            let others = if round % 3 == 0 { 300 } else { 9 };
            for _ in 0..below(others) {
                let (page, count) = (below(PAGES), below(20));
                new[page * PAGE..(page + count).min(PAGES) * PAGE].fill(1);
            }
            let Some(mut comparison) = Comparison::begin(file.as_raw_fd(), round % 2 == 1) else {
                panic!("busy")
            };
            assert!(Comparison::begin(file.as_raw_fd(), false).is_none());
            let (mut left, mut last) = (old.clone(), 0);
            let whole = Transfer { addr: new.as_ptr().expose_provenance(), len: new.len(), offset: 0 };
            comparison.each_other(whole, |from, len| {
                assert!(len == 0 || from >= last);
                last = last.max(from + len);
                left[from..from + len].copy_from_slice(&new[from..from + len]);
            });
            assert!(left == new, "round {round}");
        }
        assert!(Comparison::begin(file.as_raw_fd(), false).is_some());
    }
}
