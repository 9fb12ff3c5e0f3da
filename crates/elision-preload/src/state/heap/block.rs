//! Large blocks, placed by the drop-in.
//!
//! A window of the address space has one region for each power of two, and a region has slots of that size. A block is an
//! anonymous private mapping at the start of a slot, at least a page shorter than the slot, so that a guard page follows:
//!
//! ```text
//!   slot (2^k bytes, aligned to 2^k)
//!   ├ offset ┬ payload ────────────────────────┬─ room to grow ─┬ guard ┤
//!   └────────┴── pages of the block ───────────┴────────────────┴───────┘
//! ```
//!
//! The slot follows from any address by arithmetic, and its word in a table says what is there: a question about memory
//! that is gone can be answered. There is no header, and a block that grows keeps its place, and its extents, up to the next power of two.
//!
//! ```text
//!   Idle (empty, or with a freed block's memory) ⇄ Busy ⇄ Live
//! ```
//!
//! The thread that makes a word Busy owns the slot.
//!
//! A freed block's memory stays in its slot for the next block of that class, where glibc's heap would have kept it, too: to map and touch
//! it anew costs far more than malloc and free.
#![allow(unsafe_code)] // Maps and unmaps memory that the program is given, or gave back.

use super::{PAGE, page_offset, whole_pages};
use crate::abi::raw::raw_call;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, AtomicUsize};
use elision_core::client::memory;
use elision_sys::limits;
use elision_sys::raw::{Errno, Result};

/// Far from where the kernel puts mappings of its own choice, and above the program: some (CPython's `_testexternalinspection`) take
/// the program for the first in /proc/self/maps.
const WINDOW: usize = 0x6000_0000_0000;
const REGION_SHIFT: u32 = 40;
/// The smallest and the largest slot, as powers of two.
const SMALLEST: u32 = 13;
const LARGEST: u32 = REGION_SHIFT;
const CLASSES: usize = (LARGEST - SMALLEST + 1) as usize;
/// Slots of a class: an eighth of the mappings that a process may have by default.
const SLOTS: usize = 1 << 13;
const WINDOW_LEN: usize = CLASSES << REGION_SHIFT;

static TABLE: [[AtomicU64; SLOTS]; CLASSES] = [const { [const { AtomicU64::new(0) }; SLOTS] }; CLASSES];

/// Of each class: how many slots were ever used, and where a search begins (the last that became idle).
static USED: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];
static NEXT: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];

/// glibc makes a request of so many bytes a mapping of its own, unmaps that when it is freed, and raises the threshold to its length
/// (mallopt(3), M_MMAP_THRESHOLD). 0: nothing is kept.
static THRESHOLD: AtomicUsize = AtomicUsize::new(0);
const FIRST_THRESHOLD: usize = 128 << 10;
pub const HIGHEST_THRESHOLD: usize = 32 << 20;

/// Bytes of freed blocks that are kept; and bytes of live blocks that nobody asked for. Of each there may be [`most`].
static KEPT: AtomicUsize = AtomicUsize::new(0);
static EXCESS: AtomicUsize = AtomicUsize::new(0);

/// The slots where something is kept: class and index plus one, or 0. A slot is entered after it is released, and the thread that removes
/// the entry takes the slot.
static KEPT_IN: [AtomicUsize; 32] = [const { AtomicUsize::new(0) }; 32];

/// Is the address in the window? All that a small `free` pays.
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

/// What a slot's word says: bits 1..0 the state, 2 reshaped, 3 separate, 11..4 the offset in sixteenths, 39..12 pages, 63..40 pages of excess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    state: State,
    /// See [`crate::state::memory`].
    reshaped: bool,
    /// In glibc it would be a mapping of its own.
    separate: bool,
    /// Bytes from the start of the slot to the payload; a multiple of 16, below a page.
    offset: usize,
    /// Bytes of the block, or bytes kept; whole pages.
    len: usize,
    /// Bytes that are mapped behind it, because a kept block was longer than what was asked for.
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

    /// The slot that an address lies in.
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

    /// The slot has this block. What is mapped beyond it is excess, if there may be so much and glibc's heap would keep it, or goes.
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

    /// Makes the slot Busy if its word still says `block`.
    fn take(self, block: Block) -> bool {
        self.word.compare_exchange(block.word(), BUSY, AcqRel, Relaxed).is_ok()
    }

    /// Makes the Busy slot idle. What it has was added to [`KEPT`] before.
    fn release(self, len: usize) {
        self.set(Block::idle(len));
        if let Some(next) = NEXT.get(self.class) {
            next.store(self.index, Relaxed);
        }
    }

    /// Gives back what the Busy slot has, and makes it idle.
    fn empty(self, len: usize) {
        discard(self.base(), len);
        self.release(0);
    }

    /// A Busy slot without memory that is aligned to `align` and holds `len` bytes.
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

/// Every slot that was ever used.
fn used_slots() -> impl Iterator<Item = Slot> {
    let classes = USED.iter().map(|used| used.load(Acquire)).enumerate();
    classes.flat_map(|(class, used)| (0..used.min(SLOTS)).map_while(move |index| Slot::new(class, index)))
}

/// The smallest class whose slots hold `len` bytes and a guard page, and are aligned to `align`.
fn class_for(len: usize, align: usize) -> Option<usize> {
    let size = len.checked_add(PAGE)?.checked_next_power_of_two()?.max(align).max(1 << SMALLEST);
    (size <= 1 << LARGEST).then(|| (size.trailing_zeros() - SMALLEST) as usize)
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Anonymous private memory at exactly this address, where nothing was.
fn map(addr: usize, len: usize, prot: i32) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: with NOREPLACE the kernel maps nothing over what is there.
    let got =
        unsafe { raw_call(libc::SYS_mmap, &[addr, len, prot as usize, flags as usize, usize::MAX, 0]) }?;
    if got != addr {
        // A kernel before 4.17 takes the address for a mere wish.
        unmap(got, len);
        return Err(Errno(libc::EEXIST));
    }
    Ok(())
}

/// Unmaps pages that this thread owns: of a Busy slot, or behind a block that it makes shorter.
fn unmap(addr: usize, len: usize) {
    if len != 0 {
        // A failure leaves address space in use, and nothing else.
        // SAFETY: nobody else has the pages.
        let _ = unsafe { raw_call(libc::SYS_munmap, &[addr, len]) };
    }
}

/// The same where something may be deferred.
fn discard(addr: usize, len: usize) {
    if memory::touched(addr, len) {
        // SAFETY: the program gave the pages back.
        unsafe { memory::forget(addr, len) };
    }
    unmap(addr, len);
}

/// Bytes of a block for a payload of `request` bytes. Behind the payload there is at least as much as in glibc, which maps two words in front
/// and counts a third: a program that goes a byte too far (one of the Linux Test Project's does) must not meet the guard.
fn len_for(request: usize, offset: usize) -> Option<usize> {
    let chunk = request.checked_add(8)?.checked_next_multiple_of(16)?;
    let payload = whole_pages(chunk.checked_add(8)?)? - 16;
    whole_pages(payload.checked_add(offset)?)
}

/// As much as glibc leaves at the end of its heap (M_TRIM_THRESHOLD). What lies amid others it leaves in any amount.
fn most() -> usize {
    2 * THRESHOLD.load(Relaxed)
}

/// From now on freed blocks are kept as in glibc's heap.
pub fn begin_keeping() {
    THRESHOLD.store(FIRST_THRESHOLD, Relaxed);
}

/// From now on no freed block is kept.
pub fn keep_nothing() {
    THRESHOLD.store(0, Relaxed);
    give_back();
}

/// A payload of `request` bytes at a multiple of `align` (a power of two), and whether it is fresh, that is,
/// all zero. `None`: let another malloc serve.
pub fn allocate(request: usize, align: usize) -> Option<(usize, bool)> {
    let offset = page_offset::take(request);
    let offset = if offset.is_multiple_of(align) { offset } else { 0 };
    let len = len_for(request, offset)?;
    // glibc makes mappings only of what its heap has not.
    let separate = request.saturating_add(size_of::<usize>()) >= THRESHOLD.load(Relaxed);
    let kept = take_kept(len, align, !separate).and_then(|(slot, had)| fit(slot, had, len, align));
    let (slot, mapped) = kept.or_else(|| Some((map_new(len, align)?, len)))?;
    let separate = separate && kept.is_none();
    slot.set_live(Block { state: State::Live, separate, offset, ..Block::idle(len) }, mapped);
    Some((slot.base() + offset, kept.is_none()))
}

/// Of what is kept the block that fits best, or else (`or_longest`) the longest, which can be made longer: its slot, now Busy, and its length.
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

/// Removes an entry and makes its slot Busy, if the entry still has this name.
fn take_out(entry: &AtomicUsize, name: usize) -> Option<(Slot, usize)> {
    let slot = slot_named(name)?;
    entry.compare_exchange(name, 0, AcqRel, Relaxed).ok()?;
    let block = slot.block();
    KEPT.fetch_sub(block.len, Relaxed);
    slot.take(block).then_some((slot, block.len))
}

/// Makes what was kept in a Busy slot at least `len` bytes long. `None` if that cannot be; it is gone then.
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

/// A Busy slot with `len` fresh bytes.
fn map_new(len: usize, align: usize) -> Option<Slot> {
    for _ in 0..4 {
        let slot = Slot::claim(len, align)?;
        match map(slot.base(), len, READ_WRITE) {
            Ok(()) => return Some(slot),
            // Somebody else's mapping is in the slot, which stays Busy.
            Err(Errno(libc::EEXIST)) => {}
            Err(_) => {
                slot.release(0);
                // What is kept may be what is missing now.
                if !give_back() {
                    return None;
                }
            }
        }
    }
    None
}

/// The slot and block whose payload starts at `payload`.
fn find(payload: usize) -> Option<(Slot, Block)> {
    let slot = Slot::at(payload)?;
    let block = slot.block();
    (block.state == State::Live && slot.base() + block.offset == payload).then_some((slot, block))
}

/// Bytes that may be used from `payload` on; `None` if no block starts there.
pub fn usable(payload: usize) -> Option<usize> {
    find(payload).map(|(_, block)| block.len - block.offset)
}

/// Gives a block back; false if none starts there. Without `may_unmap` no call is made that glibc's heap would not make, so what that would
/// have kept stays where it is.
pub fn free(payload: usize, may_unmap: bool) -> bool {
    loop {
        let Some((slot, block)) = find(payload) else { return false };
        // The exchange fails if the block was freed meanwhile, or only marked: look again.
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

/// A block was freed that was a mapping of its own.
fn raise_threshold(len: usize) {
    let higher = |now| (now != 0 && now < len && len <= HIGHEST_THRESHOLD).then_some(len);
    let _ = THRESHOLD.fetch_update(Relaxed, Relaxed, higher);
}

/// Keeps a Busy slot's memory, if there may be so much; what was kept before may have to go.
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
        // Nobody else takes a slot that has memory and no entry.
        slot.word.store(BUSY, Release);
        KEPT.fetch_sub(len, Relaxed);
    }
    kept
}

/// Gives back what is kept. False if nothing was.
pub fn give_back() -> bool {
    let taken = KEPT_IN.iter().filter_map(|entry| take_out(entry, entry.load(Acquire)));
    taken.map(|(slot, len)| slot.empty(len)).count() != 0
}

/// Makes the block at `payload` hold `request` bytes, in place or by moving its pages. `None`: nothing was changed, and the bytes
/// have to be copied.
pub fn resize(payload: usize, request: usize) -> Option<usize> {
    let (slot, block) = find(payload)?;
    let len = len_for(request, block.offset)?;
    let mapped = block.len + block.excess;
    let to = if len <= mapped { slot } else { grow(slot, mapped, len, PAGE, !block.reshaped)? };
    EXCESS.fetch_sub(block.excess, Relaxed);
    to.set_live(Block { len, ..block }, mapped.max(len));
    Some(to.base() + block.offset)
}

/// Makes `old` mapped bytes at `addr` `new` bytes, in place. One mapping stays one: a second beside one that was moved would not be joined with
/// it, and then they could not be moved together.
fn extend(addr: usize, old: usize, new: usize) -> Result<()> {
    // What is deferred is a mapping of its file, of which there is no more.
    if memory::touched(addr, old) {
        return map(addr + old, new - old, READ_WRITE);
    }
    // SAFETY: a slot or block of the caller's; without MAYMOVE nothing is moved, and nothing mapped over.
    match unsafe { raw_call(libc::SYS_mremap, &[addr, old, new, 0]) } {
        // Several mappings, because of what was deferred there once.
        Err(Errno(libc::EFAULT)) => map(addr + old, new - old, READ_WRITE),
        result => result.map(drop),
    }
}

/// Makes `old` bytes of a slot `new` bytes, where they are (if they may be made longer there) or in a larger slot. `None`: nothing was changed.
fn grow(slot: Slot, old: usize, new: usize, align: usize, in_place: bool) -> Option<Slot> {
    let from = slot.base();
    if in_place && align.max(new + PAGE) <= slot.size() && extend(from, old, new).is_ok() {
        return Some(slot);
    }
    let to = Slot::claim(new, align)?;
    let touched = memory::touched(from, old);
    let reserved = map(to.base(), new, if touched { READ_WRITE } else { libc::PROT_NONE });
    // mremap replaces what is there, hence the reservation. Where a limit leaves no room for both it is enough that nothing is there, which the
    // kernel looks at before the limit.
    let limited = reserved == Err(Errno(libc::ENOMEM)) && !touched && limits::memory_is_limited();
    match reserved {
        // (The slot stays Busy.)
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

/// Moves `old` bytes to a place that is this thread's, and makes them `new` bytes there. False: nothing was changed.
fn remap(from: usize, old: usize, to: usize, new: usize) -> bool {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: a block that the caller is resizing, and a slot that it made Busy.
    unsafe { raw_call(libc::SYS_mremap, &[from, old, new, flags as usize, to]) }.is_ok()
}

/// Moves a block of which something is deferred, and stays so.
fn move_deferred(from: usize, len: usize, to: usize) {
    // SAFETY: a live block that the caller is resizing, hence nobody else's; and one that nobody knows of yet.
    unsafe {
        let done = memory::relocate(from, len, to).min(len);
        let rest: *const u8 = core::ptr::with_exposed_provenance(from + done);
        core::ptr::copy_nonoverlapping(rest, core::ptr::with_exposed_provenance_mut(to + done), len - done);
        memory::forget(from, len);
    }
    unmap(from, len);
}

/// Does the address lie in a block, live or kept?
pub fn holds(addr: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    block.state != State::Busy && addr < slot.base() + block.len
}

/// Does `addr..end` lie in one live block that nothing has reshaped?
pub fn eligible(addr: usize, end: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    block.state == State::Live && !block.reshaped && end <= slot.base() + block.len
}

/// Bytes of every live block, and whether it would be a mapping of its own in glibc.
pub fn live() -> impl Iterator<Item = (usize, bool)> {
    let live = used_slots().map(Slot::block).filter(|block| block.state == State::Live);
    live.map(|block| (block.len, block.separate))
}

/// Marks every live block that has a page in `addr..end`.
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
        // Larger than what it would ever take from its heap.
        for request in
            [33 << 20, (33 << 20) + 1, (34 << 20) - 32, (34 << 20) - 24, (34 << 20) - 16, (34 << 20) - 1]
        {
            // SAFETY: nobody else's, and given back.
            let usable = unsafe {
                let memory = libc::malloc(request);
                let usable = libc::malloc_usable_size(memory);
                libc::free(memory);
                usable
            };
            // Up to the end of its mapping: glibc 2.43 maps as much as ever, and keeps the last word of it to itself.
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

    /// A second mapping beside the first would keep the two from being moved.
    #[test]
    fn a_block_that_has_grown_in_place_after_a_move_can_be_moved_again() {
        let (mut payload, _) = allocate(1 << 20, 16).unwrap();
        let mut moves = 0;
        for size in (1..40).map(|step| (1 << 20) + step * (256 << 10)) {
            // SAFETY: a block of at least so many bytes, which nobody else has.
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
        // SAFETY: within the live block's usable bytes.
        unsafe { core::ptr::write_bytes(start as *mut u8, 7, 5 << 20) };
        assert_eq!(resize(start, 7 << 20), Some(start));
        let moved = resize(start, 9 << 20).unwrap();
        assert!(moved != start && !eligible(start, start + 1) && !free(start, true));
        // SAFETY: the block at its new place, whose pages moved with it.
        let bytes = unsafe { core::slice::from_raw_parts(moved as *const u8, 9 << 20) };
        assert!(bytes[..5 << 20].iter().all(|b| *b == 7) && bytes[5 << 20..].iter().all(|b| *b == 0));
        assert_eq!(resize(moved, 2 << 20), Some(moved));
        assert_eq!(usable(moved), Some((2 << 20) + PAGE));
        reshape(moved + PAGE, moved + PAGE + 1);
        assert!(!eligible(moved, moved + 1));
        assert!(!free(moved + 16, true) && free(moved, true) && !free(moved, true));
        // Questions about memory that is gone, or never was, are answered.
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
        // None is long enough, so the longest becomes so.
        let (long, fresh) = get(31);
        assert!(!fresh && long == kept[1] && excess() == 0);
        // The one that is nearest, and the rest of it when it grows.
        let (short, fresh) = get(5);
        assert!(!fresh && short == kept[0] && excess() == 15 << 8);
        assert_eq!((resize(short, 18 << 20), usable(short)), (Some(short), Some((18 << 20) + PAGE)));
        assert_eq!(excess(), 2 << 8);
        // What it leaves when it shrinks. It is kept together with what is freed.
        assert_eq!((resize(short, 2 << 20), excess()), (Some(short), 18 << 8));
        assert!(free(short, true) && excess() == 0 && KEPT.load(Relaxed) > 20 << 20);
        // There is never more than the limit, and what is excess leaves room for what is kept.
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

    /// Against a list of what each block holds. Whatever was asked for, there is no more than there may be, and in the end nothing.
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
        // SAFETY: of blocks that are live here, of that many bytes.
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

    /// Threads that take, keep and give back at the same time lose nothing, and never have the same block.
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
