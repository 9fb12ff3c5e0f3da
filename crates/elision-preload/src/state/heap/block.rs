//! Large blocks, placed by the drop-in.
//!
//! A window of the address space has a region of slots for each power of two. A block is an anonymous private mapping at the
//! start of a slot, at least a page shorter, so that a guard page follows:
//!
//! ```text
//!   slot (2^k bytes, aligned to 2^k)
//!   ├ offset ┬ payload ────────────────────────┬─ room to grow ─┬ guard ┤
//!   └────────┴── pages of the block ───────────┴────────────────┴───────┘
//! ```
//!
//! An address gives the slot by arithmetic, and the slot's word in a table its state, also for memory that is gone. Growth up to
//! the slot's size keeps place and extents.
//!
//! ```text
//!   Idle (empty, or with a freed block's memory) ⇄ Busy ⇄ Live
//! ```
//!
//! The thread that makes a word Busy owns the slot. A freed block's memory may stay for the next block, as in glibc's heap:
//! mapping and touching anew costs far more.
#![allow(unsafe_code)] // Maps and unmaps memory that the program is given, or gave back.

use super::{PAGE, expected, whole_pages};
use crate::abi::raw::raw_call;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, AtomicUsize};
use elision_core::client::memory;
use elision_sys::limits;
use elision_sys::raw::{Errno, Result};

/// Above the program: some (CPython's `_testexternalinspection`) look for it first in /proc/self/maps.
const WINDOW: usize = 0x6000_0000_0000;
const REGION_SHIFT: u32 = 40;
/// Smallest and largest slot, as powers of two.
const SMALLEST: u32 = 13;
const LARGEST: u32 = REGION_SHIFT;
const CLASSES: usize = (LARGEST - SMALLEST + 1) as usize;
/// For each class: an eighth of the default limit of mappings.
const SLOTS: usize = 1 << 13;
const WINDOW_LEN: usize = CLASSES << REGION_SHIFT;

static TABLE: [[AtomicU64; SLOTS]; CLASSES] = [const { [const { AtomicU64::new(0) }; SLOTS] }; CLASSES];

static USED: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];
static NEXT: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];

/// glibc's M_MMAP_THRESHOLD (mallopt(3)), which the free of a mapping raises to its length. 0: nothing is kept.
static THRESHOLD: AtomicUsize = AtomicUsize::new(0);
const FIRST_THRESHOLD: usize = 128 << 10;
pub const HIGHEST_THRESHOLD: usize = 32 << 20;

/// What an object may have before its bytes: CPython's `bytes` have 32.
const MOST_WORDS: usize = 64;

/// Bytes of kept blocks, and excess bytes of live ones; each at most [`most`].
static KEPT: AtomicUsize = AtomicUsize::new(0);
static EXCESS: AtomicUsize = AtomicUsize::new(0);

/// Slots with kept memory: class and index plus one, or 0. An entry's remover takes the slot.
static KEPT_IN: [AtomicUsize; 32] = [const { AtomicUsize::new(0) }; 32];

/// The whole cost of a small `free`.
#[inline(always)]
pub fn in_window(addr: usize) -> bool {
    addr.wrapping_sub(WINDOW) < WINDOW_LEN
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Busy,
    Live,
}

/// A slot's word: bits 1..0 state, 2 reshaped, 3 separate, 11..4 offset / 16, 39..12 pages, 63..40 excess pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    state: State,
    /// See [`crate::state::memory`].
    reshaped: bool,
    /// glibc would map it separately.
    separate: bool,
    /// From the slot to the payload; a multiple of 16, below a page.
    offset: usize,
    /// Bytes of the block, or bytes kept; whole pages.
    len: usize,
    /// Bytes mapped behind it, of a longer kept block.
    excess: usize,
}

const BUSY: u64 = Block { state: State::Busy, ..Block::idle(0) }.word();

impl Block {
    const fn idle(len: usize) -> Self {
        Block { state: State::Idle, reshaped: false, separate: false, offset: 0, len, excess: 0 }
    }

    const fn word(self) -> u64 {
        let flags = (self.reshaped as u64) << 2 | (self.separate as u64) << 3;
        let pages = ((self.excess / PAGE) as u64) << 40 | ((self.len / PAGE) as u64) << 12;
        pages | ((self.offset / 16) as u64) << 4 | flags | self.state as u64
    }

    fn from_word(word: u64) -> Self {
        Block {
            state: match word & 3 {
                0 => State::Idle,
                1 => State::Busy,
                _ => State::Live,
            },
            reshaped: word & 4 != 0,
            separate: word & 8 != 0,
            offset: (word >> 4 & 0xff) as usize * 16,
            len: (word >> 12 & 0xfff_ffff) as usize * PAGE,
            excess: (word >> 40) as usize * PAGE,
        }
    }
}

#[derive(Clone, Copy)]
struct Slot {
    class: usize,
    index: usize,
    word: &'static AtomicU64,
}

impl Slot {
    fn new(class: usize, index: usize) -> Option<Self> {
        let word = TABLE.get(class)?.get(index)?;
        (index < slots_of(class)).then_some(Slot { class, index, word })
    }

    fn at(addr: usize) -> Option<Self> {
        let offset = addr.checked_sub(WINDOW)?;
        let class = offset >> REGION_SHIFT;
        let index = (offset & ((1 << REGION_SHIFT) - 1)) >> (class as u32 + SMALLEST).min(LARGEST);
        Slot::new(class, index)
    }

    fn base(self) -> usize {
        WINDOW + (self.class << REGION_SHIFT) + (self.index << (self.class as u32 + SMALLEST))
    }

    fn size(self) -> usize {
        1 << (self.class as u32 + SMALLEST)
    }

    fn block(self) -> Block {
        Block::from_word(self.word.load(Acquire))
    }

    fn set(self, block: Block) {
        self.word.store(block.word(), Release);
    }

    /// Memory beyond the block becomes excess where glibc would keep it and the limit allows.
    fn set_live(self, block: Block, mapped: usize) {
        let (end, excess) = (self.base() + block.len, mapped - block.len);
        let heaps = !block.separate && !block.reshaped && !memory::touched(end, excess);
        let kept = heaps && EXCESS.fetch_add(excess, Relaxed) + excess <= most();
        self.set(Block { excess: if kept { excess } else { 0 }, ..block });
        if !kept && excess != 0 {
            if heaps {
                EXCESS.fetch_sub(excess, Relaxed);
            }
            discard(end, excess);
        }
    }

    fn take(self, block: Block) -> bool {
        self.word.compare_exchange(block.word(), BUSY, AcqRel, Relaxed).is_ok()
    }

    /// Makes the Busy slot idle; [`KEPT`] already counts its memory.
    fn release(self, len: usize) {
        self.set(Block::idle(len));
        if let Some(next) = NEXT.get(self.class) {
            next.store(self.index, Relaxed);
        }
    }

    fn empty(self, len: usize) {
        discard(self.base(), len);
        self.release(0);
    }

    fn claim(len: usize, align: usize) -> Option<Self> {
        let class = class_for(len, align)?;
        let (used, next) = (USED.get(class)?, NEXT.get(class)?.load(Relaxed));
        let take = |index: usize| Slot::new(class, index).filter(|slot| slot.take(Block::idle(0)));
        let seen = used.load(Acquire).min(slots_of(class));
        let found = (0..seen).find_map(|step| take((next + step) % seen));
        found.or_else(|| take(used.fetch_add(1, AcqRel)))
    }
}

fn slots_of(class: usize) -> usize {
    SLOTS.min(1 << (REGION_SHIFT - SMALLEST).saturating_sub(class as u32))
}

fn used_slots() -> impl Iterator<Item = Slot> {
    let classes = USED.iter().map(|used| used.load(Acquire)).enumerate();
    classes.flat_map(|(class, used)| (0..used.min(SLOTS)).map_while(move |index| Slot::new(class, index)))
}

fn class_for(len: usize, align: usize) -> Option<usize> {
    let size = len.checked_add(PAGE)?.checked_next_power_of_two()?.max(align).max(1 << SMALLEST);
    (size <= 1 << LARGEST).then(|| (size.trailing_zeros() - SMALLEST) as usize)
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn map(addr: usize, len: usize, prot: i32) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: with NOREPLACE the kernel maps over nothing.
    let got =
        unsafe { raw_call(libc::SYS_mmap, &[addr, len, prot as usize, flags as usize, usize::MAX, 0]) }?;
    if got != addr {
        // Before 4.17 the kernel takes the address for a hint.
        unmap(got, len);
        return Err(Errno(libc::EEXIST));
    }
    Ok(())
}

fn unmap(addr: usize, len: usize) {
    if len != 0 {
        // A failure only leaves address space in use. SAFETY: this thread owns the pages.
        let _ = unsafe { raw_call(libc::SYS_munmap, &[addr, len]) };
    }
}

fn discard(addr: usize, len: usize) {
    if memory::touched(addr, len) {
        // SAFETY: the program gave the pages back.
        unsafe { memory::forget(addr, len) };
    }
    unmap(addr, len);
}

/// At least as much follows the payload as in glibc: some programs go a byte too far.
fn len_for(request: usize, offset: usize) -> Option<usize> {
    let chunk = request.checked_add(8)?.checked_next_multiple_of(16)?;
    let payload = whole_pages(chunk.checked_add(8)?)? - 16;
    whole_pages(payload.checked_add(offset)?)
}

/// glibc's M_TRIM_THRESHOLD.
fn most() -> usize {
    2 * THRESHOLD.load(Relaxed)
}

pub fn begin_keeping() {
    THRESHOLD.store(FIRST_THRESHOLD, Relaxed);
}

pub fn keep_nothing() {
    THRESHOLD.store(0, Relaxed);
    give_back();
}

/// The payload, and whether it is all zero. `None`: another malloc serves.
pub fn allocate(request: usize, align: usize) -> Option<(usize, bool)> {
    let (offset, source) = expected::place(request);
    let offset = if offset.is_multiple_of(align) { offset } else { 0 };
    let len = len_for(request, offset)?;
    // glibc maps only what its heap lacks.
    let separate = request.saturating_add(size_of::<usize>()) >= THRESHOLD.load(Relaxed);
    let kept = take_kept(len, align, !separate).and_then(|(slot, had)| fit(slot, had, len, align));
    let (slot, mapped) = kept.or_else(|| Some((map_new(len, align)?, len)))?;
    let separate = separate && kept.is_none();
    slot.set_live(Block { state: State::Live, separate, offset, ..Block::idle(len) }, mapped);
    expected::placed(slot.base() + offset, request, source);
    Some((slot.base() + offset, kept.is_none()))
}

/// A read of the file's bytes from `position` on to `addr` is considered.
pub fn read_into(addr: usize, position: u64) {
    let Some(slot) = Slot::at(addr) else { return };
    let block = slot.block();
    let payload = slot.base() + block.offset;
    if block.state == State::Live && payload <= addr {
        expected::read_into(payload, position.wrapping_sub((addr - payload) as u64));
    }
}

/// The best fitting kept block, or (`or_longest`) the longest: its Busy slot, and length.
fn take_kept(want: usize, align: usize, or_longest: bool) -> Option<(Slot, usize)> {
    for _ in 0..4 {
        let kept = KEPT_IN.iter().filter_map(|entry| {
            let name = entry.load(Acquire);
            let (slot, had) = (slot_named(name)?, slot_named(name)?.block().len);
            (align <= slot.size() && (or_longest || had >= want)).then_some((entry, name, had))
        });
        let (entry, name, _) = kept.min_by_key(|(_, _, had)| (*had < want, had.abs_diff(want)))?;
        if let Some(taken) = take_out(entry, name) {
            return Some(taken);
        }
    }
    None
}

fn slot_named(name: usize) -> Option<Slot> {
    Slot::new(name / (2 * SLOTS), (name % (2 * SLOTS)).checked_sub(1)?)
}

fn take_out(entry: &AtomicUsize, name: usize) -> Option<(Slot, usize)> {
    let slot = slot_named(name)?;
    entry.compare_exchange(name, 0, AcqRel, Relaxed).ok()?;
    let block = slot.block();
    KEPT.fetch_sub(block.len, Relaxed);
    slot.take(block).then_some((slot, block.len))
}

/// Extends kept memory to `len` bytes. `None`: impossible, and the memory is gone.
fn fit(slot: Slot, had: usize, len: usize, align: usize) -> Option<(Slot, usize)> {
    if had >= len {
        return Some((slot, had));
    }
    let grown = grow(slot, had, len, align, true);
    if grown.is_none() {
        slot.empty(had);
    }
    Some((grown?, len))
}

fn map_new(len: usize, align: usize) -> Option<Slot> {
    for _ in 0..4 {
        let slot = Slot::claim(len, align)?;
        match map(slot.base(), len, READ_WRITE) {
            Ok(()) => return Some(slot),
            // Another mapping is in the slot, which stays Busy.
            Err(Errno(libc::EEXIST)) => {}
            Err(_) => {
                slot.release(0);
                // Kept memory may be what is missing.
                if !give_back() {
                    return None;
                }
            }
        }
    }
    None
}

fn find(payload: usize) -> Option<(Slot, Block)> {
    let slot = Slot::at(payload)?;
    let block = slot.block();
    (block.state == State::Live && slot.base() + block.offset == payload).then_some((slot, block))
}

pub fn usable(payload: usize) -> Option<usize> {
    find(payload).map(|(_, block)| block.len - block.offset)
}

/// Without `may_unmap` only calls are made that glibc's heap would make.
pub fn free(payload: usize, may_unmap: bool) -> bool {
    loop {
        let Some((slot, block)) = find(payload) else { return false };
        // The exchange fails if the block was freed, or only marked: look again.
        if slot.take(block) {
            let mapped = block.len + block.excess;
            EXCESS.fetch_sub(block.excess, Relaxed);
            if block.separate {
                raise_threshold(block.len);
            } else if !may_unmap {
                return true;
            }
            let keeps = !block.separate && !block.reshaped && !memory::touched(slot.base(), mapped);
            if !(keeps && keep(slot, mapped)) {
                slot.empty(mapped);
            }
            return true;
        }
    }
}

fn raise_threshold(len: usize) {
    let higher = |now| (now != 0 && now < len && len <= HIGHEST_THRESHOLD).then_some(len);
    let _ = THRESHOLD.fetch_update(Relaxed, Relaxed, higher);
}

/// Keeps a Busy slot's memory within the limit; older memory may go.
fn keep(slot: Slot, len: usize) -> bool {
    if KEPT.load(Relaxed) + len > most() {
        give_back();
    }
    let name = slot.class * 2 * SLOTS + slot.index + 1;
    let enter = |entry: &AtomicUsize| entry.compare_exchange(0, name, AcqRel, Relaxed).is_ok();
    let fits = KEPT.fetch_add(len, Relaxed) + len <= most();
    slot.release(len);
    let kept = fits && KEPT_IN.iter().any(enter);
    if !kept {
        // No other thread takes a slot with memory and no entry.
        slot.word.store(BUSY, Release);
        KEPT.fetch_sub(len, Relaxed);
    }
    kept
}

pub fn give_back() -> bool {
    let taken = KEPT_IN.iter().filter_map(|entry| take_out(entry, entry.load(Acquire)));
    taken.map(|(slot, len)| slot.empty(len)).count() != 0
}

/// Resizes in place or by moving pages. `None`: nothing changed, copy instead.
pub fn resize(payload: usize, request: usize) -> Option<usize> {
    let (slot, block) = find(payload)?;
    let len = len_for(request, block.offset)?;
    let mapped = block.len + block.excess;
    let to = if len <= mapped { slot } else { grow(slot, mapped, len, PAGE, !block.reshaped)? };
    EXCESS.fetch_sub(block.excess, Relaxed);
    to.set_live(Block { len, ..block }, mapped.max(len));
    Some(to.base() + block.offset)
}

/// The mapping must stay one: two could not move together.
fn extend(addr: usize, old: usize, new: usize) -> Result<()> {
    // A deferred mapping cannot grow beyond its file.
    if memory::touched(addr, old) {
        return map(addr + old, new - old, READ_WRITE);
    }
    // SAFETY: the caller's memory; without MAYMOVE nothing moves or is replaced.
    match unsafe { raw_call(libc::SYS_mremap, &[addr, old, new, 0]) } {
        // Several mappings, left by deferral.
        Err(Errno(libc::EFAULT)) => map(addr + old, new - old, READ_WRITE),
        result => result.map(drop),
    }
}

/// Grows in place (if allowed) or into a larger slot. `None`: nothing changed.
fn grow(slot: Slot, old: usize, new: usize, align: usize, in_place: bool) -> Option<Slot> {
    let from = slot.base();
    if in_place && align.max(new + PAGE) <= slot.size() && extend(from, old, new).is_ok() {
        return Some(slot);
    }
    let to = Slot::claim(new, align)?;
    let touched = memory::touched(from, old);
    let reserved = map(to.base(), new, if touched { READ_WRITE } else { libc::PROT_NONE });
    // The reservation keeps mremap from replacing other mappings. Where a limit has no room for both, an empty target suffices.
    let limited = reserved == Err(Errno(libc::ENOMEM)) && !touched && limits::memory_is_limited();
    match reserved {
        Err(Errno(libc::EEXIST)) => return None,
        Ok(()) if touched => move_deferred(from, old, to.base()),
        _ if (reserved.is_ok() || limited) && remap(from, old, to.base(), new) => {}
        _ => {
            to.empty(if reserved.is_ok() { new } else { 0 });
            return None;
        }
    }
    slot.release(0);
    Some(to)
}

fn remap(from: usize, old: usize, to: usize, new: usize) -> bool {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller resizes the block, and owns the Busy slot.
    unsafe { raw_call(libc::SYS_mremap, &[from, old, new, flags as usize, to]) }.is_ok()
}

fn move_deferred(from: usize, len: usize, to: usize) {
    // SAFETY: the caller resizes the live block, and the other is not published yet.
    unsafe {
        let done = memory::relocate(from, len, to).min(len);
        let rest: *const u8 = core::ptr::with_exposed_provenance(from + done);
        core::ptr::copy_nonoverlapping(rest, core::ptr::with_exposed_provenance_mut(to + done), len - done);
        memory::forget(from, len);
    }
    unmap(from, len);
}

pub fn holds(addr: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    block.state != State::Busy && addr < slot.base() + block.len
}

pub fn eligible(addr: usize, end: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    block.state == State::Live && !block.reshaped && end <= slot.base() + block.len
}

/// Bytes of each live block, and would glibc map it separately?
pub fn live() -> impl Iterator<Item = (usize, bool)> {
    let live = used_slots().map(Slot::block).filter(|block| block.state == State::Live);
    live.map(|block| (block.len, block.separate))
}

/// A block that may hold a whole file of this size: where the file's first byte would be.
pub fn like_a_file(size: u64) -> Option<usize> {
    let size = usize::try_from(size).ok()?;
    used_slots().find_map(|slot| {
        let block = slot.block();
        let payload = slot.base() + block.offset;
        let begin = payload.next_multiple_of(PAGE);
        let end = slot.base() + block.len;
        // Objects begin with a few words of their own, and may have room to grow.
        let fits = begin - payload <= MOST_WORDS && (size..=size + size / 8 + PAGE).contains(&(end - begin));
        (block.state == State::Live && !block.reshaped && fits).then_some(begin)
    })
}

pub fn reshape(addr: usize, end: usize) {
    let (mut at, end) = (addr.max(WINDOW), end.min(WINDOW + WINDOW_LEN));
    while at < end {
        let Some(slot) = Slot::at(at) else {
            at = (at | ((1 << REGION_SHIFT) - 1)) + 1; // the next region
            continue;
        };
        let mark = |word| {
            let block = Block::from_word(word);
            let within = block.state == State::Live && at < slot.base() + block.len;
            within.then(|| Block { reshaped: true, ..block }.word())
        };
        let _ = slot.word.fetch_update(AcqRel, Acquire, mark);
        at = slot.base() + slot.size();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_blocks_are_the_same_thing() {
        for state in [State::Idle, State::Busy, State::Live] {
            for (offset, len) in [(0, 0), (16, PAGE), (0xfe0, 1 << 30), (0xff0, (1 << 40) - PAGE)] {
                for (reshaped, separate, excess) in
                    [(false, false, 0), (false, true, PAGE), (true, false, 64 << 20)]
                {
                    let block = Block { state, reshaped, separate, offset, len, excess };
                    assert_eq!(Block::from_word(block.word()), block);
                }
            }
        }
    }

    #[test]
    fn every_address_of_a_slot_leads_to_it_and_slots_do_not_overlap() {
        for class in 0..CLASSES {
            let last = slots_of(class) - 1;
            assert!(Slot::new(class, last + 1).is_none());
            for slot in [0, 1, last / 2, last].into_iter().filter_map(|index| Slot::new(class, index)) {
                assert!(slot.base().is_multiple_of(slot.size()));
                for addr in [slot.base(), slot.base() + slot.size() / 2, slot.base() + slot.size() - 1] {
                    let found = Slot::at(addr).unwrap();
                    assert!((found.class, found.index) == (class, slot.index) && in_window(addr));
                }
            }
        }
        for addr in [WINDOW + WINDOW_LEN, WINDOW - 1, usize::MAX] {
            assert!(Slot::at(addr).is_none() && !in_window(addr));
        }
    }

    #[test]
    fn a_class_holds_block_and_guard() {
        let class = |power: u32| Some((power - SMALLEST) as usize);
        assert_eq!([class_for(PAGE, 16), class_for(2 * PAGE, 16)], [class(13), class(14)]);
        assert_eq!([class_for(1 << 30, 16), class_for((1 << 30) - PAGE, 16)], [class(31), class(30)]);
        assert_eq!(class_for(PAGE, 1 << 21), class(21));
        assert_eq!([class_for(1 << 40, 16), class_for(usize::MAX, 16), class_for(PAGE, 1 << 41)], [None; 3]);
    }

    #[test]
    fn there_is_as_much_behind_a_payload_as_with_glibc() {
        for request in
            [33 << 20, (33 << 20) + 1, (34 << 20) - 32, (34 << 20) - 24, (34 << 20) - 16, (34 << 20) - 1]
        {
            // SAFETY: allocated and freed here.
            let usable = unsafe {
                let memory = libc::malloc(request);
                let usable = libc::malloc_usable_size(memory);
                libc::free(memory);
                usable
            };
            // glibc 2.43 keeps the last word of its mapping.
            let theirs = whole_pages(usable + 16).unwrap() - 16;
            for offset in [0, 16, 32, 2048, 4080] {
                assert!(len_for(request, offset).unwrap() - offset >= theirs, "{request} {offset}");
            }
            assert_eq!(len_for(request, 16).unwrap() - 16, theirs);
        }
        assert_eq!(len_for(usize::MAX - 10, 0), None);
    }

    #[test]
    fn the_threshold_grows_with_what_is_freed_unless_it_is_set() {
        let separate = |request: usize| {
            let (payload, _) = allocate(request, 16).unwrap();
            let separate = find(payload).unwrap().1.separate;
            assert!(free(payload, true));
            separate
        };
        begin_keeping();
        assert!(separate(20 << 20) && !separate(20 << 20) && !separate(1 << 20));
        assert_eq!(most(), 2 * len_for(20 << 20, 0).unwrap());
        assert!(separate(33 << 20) && separate(33 << 20) && separate(30 << 20) && !separate(30 << 20));
        keep_nothing();
        assert!(separate(1 << 20) && separate(1 << 20) && KEPT.load(Relaxed) == 0);
    }

    /// A second mapping would keep the two from moving.
    #[test]
    fn a_block_that_has_grown_in_place_after_a_move_can_be_moved_again() {
        let (mut payload, _) = allocate(1 << 20, 16).unwrap();
        let mut moves = 0;
        for size in (1..40).map(|step| (1 << 20) + step * (256 << 10)) {
            // SAFETY: an unshared block of at least so many bytes.
            unsafe { core::ptr::write_bytes(payload as *mut u8, 1, size - (256 << 10)) };
            let grown = resize(payload, size).expect("the bytes have to be copied");
            moves += usize::from(grown != payload);
            payload = grown;
        }
        assert!(moves >= 3 && free(payload, true));
    }

    #[test]
    fn a_block_lives_grows_moves_and_goes() {
        let (start, fresh) = allocate((5 << 20) + 3, 16).unwrap();
        assert!(fresh && start.is_multiple_of(PAGE));
        assert_eq!(usable(start), Some((5 << 20) + PAGE));
        assert!(eligible(start + 77, start + (5 << 20)));
        assert!(!eligible(start + 77, start + (5 << 20) + PAGE + 1));
        // SAFETY: within the live block.
        unsafe { core::ptr::write_bytes(start as *mut u8, 7, 5 << 20) };
        assert_eq!(resize(start, 7 << 20), Some(start));
        let moved = resize(start, 9 << 20).unwrap();
        assert!(moved != start && !eligible(start, start + 1) && !free(start, true));
        // SAFETY: the block at its new place, with its pages.
        let bytes = unsafe { core::slice::from_raw_parts(moved as *const u8, 9 << 20) };
        assert!(bytes[..5 << 20].iter().all(|b| *b == 7) && bytes[5 << 20..].iter().all(|b| *b == 0));
        assert_eq!(resize(moved, 2 << 20), Some(moved));
        assert_eq!(usable(moved), Some((2 << 20) + PAGE));
        reshape(moved + PAGE, moved + PAGE + 1);
        assert!(!eligible(moved, moved + 1));
        assert!(!free(moved + 16, true) && free(moved, true) && !free(moved, true));
        for addr in [moved, WINDOW, WINDOW + 12345, WINDOW + WINDOW_LEN - 1, WINDOW + WINDOW_LEN] {
            assert!(!eligible(addr + (1 << 20), addr + (1 << 21)) && usable(addr).is_none());
        }
        reshape(0, usize::MAX);
    }

    #[test]
    fn kept_blocks_are_made_to_fit() {
        begin_keeping();
        raise_threshold(32 << 20);
        let get = |mib: usize| allocate(mib << 20, 16).unwrap();
        let excess = || EXCESS.load(Relaxed) / PAGE;
        let kept = [20, 21].map(|mib| get(mib).0);
        assert!(kept.into_iter().all(|payload| free(payload, true)));
        let (long, fresh) = get(31);
        assert!(!fresh && long == kept[1] && excess() == 0);
        let (short, fresh) = get(5);
        assert!(!fresh && short == kept[0] && excess() == 15 << 8);
        assert_eq!((resize(short, 18 << 20), usable(short)), (Some(short), Some((18 << 20) + PAGE)));
        assert_eq!(excess(), 2 << 8);
        assert_eq!((resize(short, 2 << 20), excess()), (Some(short), 18 << 8));
        assert!(free(short, true) && excess() == 0 && KEPT.load(Relaxed) > 20 << 20);
        let held: Vec<usize> = (0..4)
            .map(|_| {
                let (payload, _) = get(30);
                assert_eq!(resize(payload, 1 << 20), Some(payload));
                payload
            })
            .collect();
        assert!(excess() * PAGE <= most() && excess() >= 29 << 8);
        let (payload, _) = get(30);
        assert!(free(payload, true) && !get(30).1);
        assert!(held.into_iter().all(|payload| free(payload, true)) && excess() == 0);
        assert!(give_back() && !give_back());
    }

    #[test]
    fn random_blocks_keep_their_bytes() {
        begin_keeping();
        raise_threshold(4 << 20);
        let mut random = 1u64;
        let mut below = |most: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % most
        };
        let mut live: Vec<(usize, usize, u8)> = Vec::new();
        // SAFETY: live blocks of that many bytes.
        let bytes = |at: usize, len: usize| unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) };
        for step in 0..3000 {
            let (size, byte) = (1 + below(5 << 20), step as u8);
            match below(if live.len() < 12 { 4 } else { 3 }) {
                0 if !live.is_empty() => {
                    let (at, _, _) = live.swap_remove(below(live.len()));
                    assert!(free(at, true));
                }
                1 if !live.is_empty() => {
                    let one = below(live.len());
                    let (at, len, old) = live[one];
                    let Some(now) = resize(at, size) else { continue };
                    assert!(bytes(now, len.min(size)).iter().all(|is| *is == old));
                    bytes(now, size).fill(byte);
                    live[one] = (now, size, byte);
                }
                2 if below(50) == 0 => {
                    give_back();
                }
                _ => {
                    let (at, fresh) = allocate(size, 16).unwrap();
                    assert!(
                        usable(at).unwrap() >= size && (!fresh || bytes(at, size).iter().all(|is| *is == 0))
                    );
                    bytes(at, size).fill(byte);
                    live.push((at, size, byte));
                }
            }
            assert!(KEPT.load(Relaxed) <= most() && EXCESS.load(Relaxed) <= most());
        }
        for (at, len, byte) in live {
            assert!(bytes(at, len).iter().all(|is| *is == byte) && free(at, true));
        }
        give_back();
        assert_eq!((KEPT.load(Relaxed), EXCESS.load(Relaxed)), (0, 0));
        assert!(used_slots().all(|slot| slot.block() == Block::idle(0)));
    }

    #[test]
    fn a_slot_with_anothers_mapping_is_left_alone() {
        let (payload, _) = allocate(7 << 20, 16).unwrap();
        let slot = Slot::at(payload).unwrap();
        assert!(free(payload, true));
        assert_eq!(map(slot.base() + (5 << 20), PAGE, READ_WRITE), Ok(()));
        let (elsewhere, _) = allocate(7 << 20, 16).unwrap();
        assert!(elsewhere != payload && free(elsewhere, true) && slot.block().state == State::Busy);
        unmap(slot.base() + (5 << 20), PAGE);
    }

    #[test]
    fn threads_share_what_is_kept() {
        begin_keeping();
        raise_threshold(2 << 20);
        std::thread::scope(|scope| {
            for thread in 1..5usize {
                scope.spawn(move || {
                    for step in 0..2000 {
                        let (payload, _) = allocate((1 + (step * thread) % 4) << 18, 16).unwrap();
                        let word = payload as *mut usize;
                        // SAFETY: a block of this thread's.
                        unsafe { word.write_volatile(thread) };
                        std::thread::yield_now();
                        // SAFETY: as above.
                        assert_eq!(unsafe { word.read_volatile() }, thread);
                        assert!(free(payload, true));
                        if step % 100 == 0 {
                            give_back();
                        }
                    }
                });
            }
        });
        give_back();
        assert!(used_slots().all(|slot| slot.block() == Block::idle(0)) && KEPT.load(Relaxed) == 0);
    }
}
