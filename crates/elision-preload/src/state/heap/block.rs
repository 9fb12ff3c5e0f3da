//! Large blocks, placed by us.
//!
//! A window of the address space is divided into regions, one for each power of two, and a region into slots
//! of that size. A block is an anonymous private mapping at the start of a slot, always at least a page
//! shorter than the slot, so that a guard page follows it:
//!
//! ```text
//!   slot (2^k bytes, aligned to 2^k)
//!   ├ phase ┬ payload ───────────────────────┬─ room to grow ─┬ guard ┤
//!   └───────┴── pages of the block ──────────┴─ spare ┴───────┴───────┘
//! ```
//!
//! What is freed is kept for later, as much as glibc would keep ([`super::threshold`]), because mapping and touching a megabyte again costs
//! far more than the free and malloc of a heap that keeps it. A kept block may be made longer, or serve for a smaller one: what is too much
//! is *spare* then, and still counted as kept, as is what a block that shrinks leaves. It is used when the block grows, and is kept with it when
//! it is freed.
//!
//! From any address the slot follows by arithmetic, so an address inside a block leads to its record (one
//! word in a table) without a search and without touching the block: the question may be about memory that is
//! gone. There is no header, a freed slot's address serves again, a large alignment costs nothing, and a growing
//! block keeps its place, and its extents, until it reaches the next power of two.
//!
//! A block's life, as the state in its word. Whoever exchanges the word owns the slot:
//!
//! ```text
//!   Free ──claim──▶ Busy ──mapped──▶ Live ──free──▶ Busy ──unmapped──▶ Free
//!                    ▲                                ├────────kept──▶ Cached
//!                    └───────────taken or evicted─────────────────────────┘
//! ```
#![allow(unsafe_code)] // Mapping and unmapping memory that the program was given, or gave back.

use super::threshold::THRESHOLD;
use super::{PAGE, page_offset, whole_pages};
use crate::abi::raw::raw_call;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use elision_core::client;
use elision_sys::limits;
use elision_sys::raw::{Errno, Result};

/// Far from where the kernel puts programs, stacks and mappings of its own choice; and above the first of these: that the program
/// itself is the first in /proc/self/maps is taken for granted (by CPython's `_testexternalinspection`, for one).
const WINDOW: usize = 0x6000_0000_0000;
const REGION_SHIFT: u32 = 40;
/// The smallest and the largest slot, as powers of two.
const SMALLEST: u32 = 13;
const LARGEST: u32 = REGION_SHIFT;
const CLASSES: usize = (LARGEST - SMALLEST + 1) as usize;
const SLOTS: usize = 1 << 13;
const WINDOW_LEN: usize = CLASSES << REGION_SHIFT;

/// Blocks at one time: a quarter of the mappings that a process may have by default.
const MOST_BLOCKS: usize = 16384;

/// How far a search for a free slot goes before the next malloc has to serve.
const PROBES: usize = 64;

static TABLE: [[AtomicU64; SLOTS]; CLASSES] = [const { [const { AtomicU64::new(0) }; SLOTS] }; CLASSES];

/// Where each class looks first: one slot (its index plus one) that was freed, then the slot after the last one found.
static FREED: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];
static CURSOR: [AtomicUsize; CLASSES] = [const { AtomicUsize::new(0) }; CLASSES];

/// Slots that are not free.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are spare, in all live blocks together.
static SPARE: AtomicUsize = AtomicUsize::new(0);

/// Threads that are giving back what is spare. One that has taken it from a block unmaps it a moment later, and until then it lies in the block's
/// slot, whose ever that is.
static GIVING: AtomicUsize = AtomicUsize::new(0);

/// Is the address one of ours to answer for? All that a small `free` pays.
#[inline(always)]
pub fn in_window(addr: usize) -> bool {
    addr.wrapping_sub(WINDOW) < WINDOW_LEN
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Busy,
    Live,
    Cached,
}

/// What a slot's word says: bits 1..0 the state, 2 reshaped, 3 apart, 11..4 the phase in sixteenths, 39..12 pages, 63..40 spare pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    state: State,
    /// See [`super`].
    reshaped: bool,
    /// A mapping of its own to glibc, which would unmap it when it is freed.
    apart: bool,
    /// Bytes from the start of the slot to the payload; a multiple of 16, below a page.
    phase: usize,
    /// Bytes that are the program's, or kept; whole pages.
    len: usize,
    /// Bytes that are mapped behind them; whole pages.
    spare: usize,
}

const BUSY: u64 = Block { state: State::Busy, ..Block::cached(0) }.word();

impl Block {
    /// For a request that glibc would have made a mapping of its own, or not.
    const fn live(phase: usize, len: usize, apart: bool) -> Self {
        Block { state: State::Live, apart, phase, ..Block::cached(len) }
    }

    const fn cached(len: usize) -> Self {
        Block { state: State::Cached, reshaped: false, apart: false, phase: 0, len, spare: 0 }
    }

    const fn mapped(self) -> usize {
        self.len + self.spare
    }

    const fn word(self) -> u64 {
        let (pages, spare) = ((self.len / PAGE) as u64, (self.spare / PAGE) as u64);
        let phase = (self.phase / 16) as u64;
        let (apart, reshaped) = (self.apart as u64, self.reshaped as u64);
        (spare << 40) | (pages << 12) | (phase << 4) | (apart << 3) | (reshaped << 2) | self.state as u64
    }

    fn from_word(word: u64) -> Self {
        let state = match word & 3 {
            0 => State::Free,
            1 => State::Busy,
            2 => State::Live,
            _ => State::Cached,
        };
        Block {
            state,
            reshaped: word & 4 != 0,
            apart: word & 8 != 0,
            phase: (word >> 4 & 0xff) as usize * 16,
            len: (word >> 12 & 0xfff_ffff) as usize * PAGE,
            spare: (word >> 40) as usize * PAGE,
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
        Block::from_word(self.word.load(Ordering::Acquire))
    }

    fn set(self, block: Block) {
        self.word.store(block.word(), Ordering::Release);
    }

    /// The slot has this block, of which so many bytes are mapped: what is more than its own is spare.
    fn set_with_spare(self, block: Block, mapped: usize) {
        let spare = mapped - block.len;
        SPARE.fetch_add(spare, Ordering::Relaxed);
        self.set(Block { spare, ..block });
    }

    /// Exchanges the word if it still says `block`. The exchange is what confers the slot.
    fn take(self, block: Block) -> bool {
        self.word.compare_exchange(block.word(), BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// What is spare behind a live block becomes the caller's: its address, and how much it is. He unmaps it, or makes it the block's again.
    /// (Until then it is where it was, so nothing else can come there, whatever becomes of the block.)
    fn take_spare(self) -> (usize, usize) {
        let without = |word| {
            let block = Block::from_word(word);
            (block.state == State::Live && block.spare != 0).then(|| Block { spare: 0, ..block }.word())
        };
        let Ok(word) = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, without) else {
            return (0, 0);
        };
        let block = Block::from_word(word);
        SPARE.fetch_sub(block.spare, Ordering::Relaxed);
        (self.base() + block.len, block.spare)
    }

    /// A slot for `len` mapped bytes, aligned to `align`. It is Busy, and nothing is mapped there by us.
    fn claim(len: usize, align: usize) -> Option<Self> {
        let class = class_for(len, align)?;
        if BLOCKS.fetch_add(1, Ordering::Relaxed) >= MOST_BLOCKS {
            BLOCKS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let claimed = |index: usize| {
            let slot = Slot::new(class, index)?;
            slot.word.compare_exchange(0, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok().then_some(slot)
        };
        let found =
            FREED.get(class).and_then(|freed| claimed(freed.swap(0, Ordering::Relaxed).wrapping_sub(1)));
        let found = found.or_else(|| {
            let cursor = CURSOR.get(class)?;
            (0..PROBES.min(slots_of(class)))
                .find_map(|_| claimed(cursor.fetch_add(1, Ordering::Relaxed) % slots_of(class)))
        });
        if found.is_none() {
            BLOCKS.fetch_sub(1, Ordering::Relaxed);
        }
        found
    }

    /// Nothing of ours is mapped in the slot any more; it may serve again.
    fn release(self) {
        self.leave();
        if let Some(freed) = FREED.get(self.class) {
            freed.store(self.index + 1, Ordering::Relaxed);
        }
    }

    /// The same, where others are to be tried first.
    fn leave(self) {
        self.word.store(0, Ordering::Release);
        BLOCKS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn slots_of(class: usize) -> usize {
    SLOTS.min(1 << (REGION_SHIFT - SMALLEST).saturating_sub(class as u32))
}

/// The smallest class whose slots hold `len` bytes and a guard page, and are aligned to `align`.
fn class_for(len: usize, align: usize) -> Option<usize> {
    let size = len.checked_add(PAGE)?.checked_next_power_of_two()?.max(align).max(1 << SMALLEST);
    (size <= 1 << LARGEST).then(|| (size.trailing_zeros() - SMALLEST) as usize)
}

const READ_WRITE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;

/// Anonymous private memory at exactly this address, where nothing was.
fn map(addr: usize, len: usize, prot: usize) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: with NOREPLACE the kernel maps nothing over what is there.
    let got = unsafe { raw_call(libc::SYS_mmap, &[addr, len, prot, flags as usize, usize::MAX, 0]) }?;
    if got != addr {
        // A kernel before 4.17 takes the address for a mere wish.
        unmap(got, len);
        return Err(Errno(libc::EEXIST));
    }
    Ok(())
}

/// Unmaps pages of a block that this thread owns: a slot it made Busy, or a live block's part past the payload.
fn unmap(addr: usize, len: usize) {
    if len == 0 {
        return;
    }
    // A failure leaves address space in use, and nothing else.
    // SAFETY: the pages are in no other hands, by the caller's ownership of the slot.
    let _ = unsafe { raw_call(libc::SYS_munmap, &[addr, len]) };
}

/// Bytes of a block for a payload of `request`: behind it there is at least as much as behind glibc's, which is a mapping of its own with
/// two words in front, and a third counted in. A program that goes a byte too far there, and finds most of a page, must not meet the
/// guard here. (One of the Linux Test Project's does.)
fn len_for(request: usize, phase: usize) -> Option<usize> {
    let chunk = request.checked_add(8)?.checked_next_multiple_of(16)?;
    let payload = whole_pages(chunk.checked_add(8)?)? - 16;
    whole_pages(payload.checked_add(phase)?)
}

/// A payload of `request` bytes at a multiple of `align` (a power of two), and whether it is fresh, that is,
/// all zero. `None`: let another malloc serve.
pub fn allocate(request: usize, align: usize) -> Option<(usize, bool)> {
    let phase = page_offset::take(request);
    let phase = if phase.is_multiple_of(align) { phase } else { 0 };
    let len = len_for(request, phase)?;
    let apart = THRESHOLD.maps(request);
    // (Like glibc, which makes mappings only of what its heap has not.)
    let block = |apart| Block::live(phase, len, apart);
    let kept = cache::take(len, align, !apart);
    let (slot, fresh) = match kept.and_then(|(slot, had)| fit(slot, had, block(false), align)) {
        Some(slot) => (slot, false),
        None => (map_new(len, align, block(apart))?, true),
    };
    Some((slot.base() + phase, fresh))
}

/// Makes `block` of what was kept in a slot that is Busy: what that has too much is spare, what is missing is added. `None` if that cannot be; it
/// is gone then.
fn fit(slot: Slot, had: usize, block: Block, align: usize) -> Option<Slot> {
    let longer = match block.len {
        len if len <= had => Some(slot),
        len if align.max(len + PAGE) <= slot.size() => extend(slot.base(), had, len).ok().map(|()| slot),
        len => move_mapping(slot, had, len, align),
    };
    if let Some(slot) = longer {
        slot.set_with_spare(block, had.max(block.len));
    } else {
        unmap(slot.base(), had);
        slot.release();
    }
    longer
}

/// A slot with `len` fresh bytes, which is what `block` says.
fn map_new(len: usize, align: usize, block: Block) -> Option<Slot> {
    let (slot, _) = claim_mapped(len, align, READ_WRITE, |_| false)?;
    slot.set(block);
    Some(slot)
}

/// A Busy slot with `len` fresh bytes of protection `prot`, and true; or false, where these cannot be had and it `will_do` without.
fn claim_mapped(
    len: usize,
    align: usize,
    prot: usize,
    will_do: impl Fn(Errno) -> bool,
) -> Option<(Slot, bool)> {
    for _ in 0..4 {
        let slot = Slot::claim(len, align)?;
        let giving = GIVING.load(Ordering::Acquire) != 0;
        match map(slot.base(), len, prot) {
            Ok(()) => return Some((slot, true)),
            // It may be ours, and about to go.
            Err(Errno(libc::EEXIST)) if giving => slot.leave(),
            // Somebody else's mapping is in the slot. It stays Busy: nothing will ever be placed there.
            Err(Errno(libc::EEXIST)) => {}
            Err(errno) if will_do(errno) => return Some((slot, false)),
            Err(_) => {
                slot.release();
                // What is kept for later may be what is missing now.
                if !cache::empty() {
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
    (block.state == State::Live && slot.base() + block.phase == payload).then_some((slot, block))
}

/// Bytes that may be used from `payload` on; `None` if no block starts there.
pub fn usable(payload: usize) -> Option<usize> {
    find(payload).map(|(_, block)| block.len - block.phase)
}

/// Gives a block back: one of more than `least` bytes may be kept for later. `None`: no call may be made that glibc's heap would not make; so
/// what it would have kept stays where it is. False if no block starts there.
pub fn free(payload: usize, least: Option<usize>) -> bool {
    loop {
        let Some((slot, block)) = find(payload) else { return false };
        // The exchange fails if the block was freed meanwhile, or if its word was only marked: look again.
        if slot.take(block) {
            retire(slot, block, least);
            return true;
        }
    }
}

/// The block's slot is Busy: its memory is kept for later, or unmapped.
fn retire(slot: Slot, block: Block, least: Option<usize>) {
    SPARE.fetch_sub(block.spare, Ordering::Relaxed);
    if block.apart {
        THRESHOLD.freed(block.len);
    }
    if client::memory::touched(slot.base(), block.len) {
        // SAFETY: the block was freed.
        unsafe { client::memory::forget(slot.base(), block.len) };
    } else if !block.apart {
        let keeps = |least| block.len > least && !block.reshaped && cache::put(slot, block.mapped());
        if least.is_none_or(keeps) {
            return;
        }
    }
    unmap(slot.base(), block.mapped());
    slot.release();
}

/// Makes the block at `payload` hold `request` bytes, in place or by moving its pages; what it no longer needs may be kept (`keeps`). `None`:
/// nothing was changed, and the bytes will have to be copied.
pub fn resize(payload: usize, request: usize, keeps: bool) -> Option<usize> {
    let (slot, block) = find(payload)?;
    let len = len_for(request, block.phase)?;
    if len <= block.len {
        shrink(slot, block, len, keeps);
        return Some(payload);
    }
    let (_, spare) = slot.take_spare();
    let (block, mapped) = (Block { spare: 0, ..block }, block.len + spare);
    let grows = || len <= mapped || len + PAGE <= slot.size() && extend(slot.base(), mapped, len).is_ok();
    if !block.reshaped && grows() {
        slot.set_with_spare(Block { len, ..block }, mapped.max(len));
        return Some(payload);
    }
    unmap(slot.base() + block.len, spare);
    move_pages(slot, block, len)
}

/// Makes `old` mapped bytes at `addr` so many as `new`, where they are. One mapping stays one: a second beside it would not become one with
/// it if its pages have been elsewhere before, and then could not be moved along.
fn extend(addr: usize, old: usize, new: usize) -> Result<()> {
    // What is deferred is a mapping of its file, and there may be no more of that.
    if client::memory::touched(addr, old) {
        return map(addr + old, new - old, READ_WRITE);
    }
    // SAFETY: a block that the caller is resizing, hence nobody else's; without MAYMOVE nothing is moved, and nothing mapped over.
    match unsafe { raw_call(libc::SYS_mremap, &[addr, old, new, 0]) } {
        // Several mappings, because of what was deferred there once.
        Err(Errno(libc::EFAULT)) => map(addr + old, new - old, READ_WRITE),
        result => result.map(drop),
    }
}

/// What a shrunken block no longer needs, if that is worth anything: spare, where glibc would have kept it and that may be (`keeps`), or given
/// back.
fn shrink(slot: Slot, block: Block, len: usize, keeps: bool) {
    let excess = block.len - len;
    if excess == 0 || (block.len <= 1 << 20 && excess < block.len / 2) {
        return;
    }
    let (tail, (_, spare)) = (slot.base() + len, slot.take_spare());
    let (shrunken, mapped) = (Block { len, spare: 0, ..block }, block.len + spare);
    let touched = client::memory::touched(tail, excess);
    let keeps = keeps && !touched && !block.apart && !block.reshaped;
    if keeps && cache::has_room(mapped - len) {
        return slot.set_with_spare(shrunken, mapped);
    }
    // The word first: whatever becomes of the tail, it is not the block's.
    slot.set(shrunken);
    if touched {
        // SAFETY: the tail is nobody's any more.
        unsafe { client::memory::forget(tail, excess) };
    }
    unmap(tail, mapped - len);
}

/// Moves a block's pages to a larger slot without copying a byte, unless they are several mappings.
fn move_pages(slot: Slot, block: Block, len: usize) -> Option<usize> {
    if client::memory::touched(slot.base(), block.len) {
        return move_deferred(slot, block, len);
    }
    let to = move_mapping(slot, block.len, len, PAGE)?;
    to.set(Block { len, ..block });
    Some(to.base() + block.phase)
}

/// Moves the first `old` bytes of a slot to another, and makes them `new` there. That one is Busy, and the first released. `None`: nothing was
/// changed.
fn move_mapping(slot: Slot, old: usize, new: usize, align: usize) -> Option<Slot> {
    let (to, reserved) = reserve(new, align)?;
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
    // SAFETY: the source is a block that the caller is resizing, or one that was kept and is his, hence nobody else's; the destination
    // is in a slot that this thread just made Busy, and nothing is there but what it was reserved with.
    let moved = unsafe { raw_call(libc::SYS_mremap, &[slot.base(), old, new, flags, to.base()]) };
    if moved.is_err() {
        if reserved {
            unmap(to.base(), new);
        }
        to.release();
        return None;
    }
    slot.release();
    Some(to)
}

/// The same where something is deferred, which stays so.
fn move_deferred(slot: Slot, block: Block, len: usize) -> Option<usize> {
    let to = map_new(len, PAGE, Block { len, ..block })?;
    // SAFETY: a live block that the caller is resizing, hence nobody else's; and one that nobody knows of yet.
    unsafe {
        let done = client::memory::relocate(slot.base(), block.len, to.base()).min(block.len);
        let from: *const u8 = core::ptr::with_exposed_provenance(slot.base() + done);
        let rest = core::ptr::with_exposed_provenance_mut(to.base() + done);
        core::ptr::copy_nonoverlapping(from, rest, block.len - done);
        client::memory::forget(slot.base(), block.len);
    }
    unmap(slot.base(), block.len);
    slot.release();
    Some(to.base() + block.phase)
}

/// A Busy slot to which pages can be moved: that replaces whatever is there, so the place is reserved first. (True.) If a limit leaves no
/// room for both (RLIMIT_AS), it is enough that nothing is there: whether something is, the kernel looks at before it looks at the
/// limit; and where so little may be mapped, it has no reason to put anything so far away.
fn reserve(len: usize, align: usize) -> Option<(Slot, bool)> {
    let limited = |errno| errno == Errno(libc::ENOMEM) && limits::memory_is_limited();
    claim_mapped(len, align, libc::PROT_NONE as usize, limited)
}

/// Gives back what is kept for later, and what is spare. False if nothing was.
pub fn give_back() -> bool {
    cache::empty() | give_back_spare()
}

/// Gives back what is spare. False if nothing was.
fn give_back_spare() -> bool {
    let mut any = false;
    if SPARE.load(Ordering::Relaxed) != 0 {
        GIVING.fetch_add(1, Ordering::Relaxed);
        each_live(|slot, _| {
            let (addr, spare) = slot.take_spare();
            unmap(addr, spare);
            any |= spare != 0;
        });
        GIVING.fetch_sub(1, Ordering::Release);
    }
    any
}

/// Does the address lie in a block, live or kept?
pub fn holds(addr: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    matches!(block.state, State::Live | State::Cached) && addr < slot.base() + block.len
}

/// Does `addr..end` lie in one live block that nothing has reshaped?
pub fn eligible(addr: usize, end: usize) -> bool {
    let Some(slot) = Slot::at(addr) else { return false };
    let block = slot.block();
    block.state == State::Live && !block.reshaped && end <= slot.base() + block.len
}

/// Bytes of every live block, one after the other, and whether it would be a mapping of its own.
pub fn each_len(mut each: impl FnMut(usize, bool)) {
    each_live(|_, block| each(block.len, block.apart));
}

fn each_live(mut each: impl FnMut(Slot, Block)) {
    for (class, cursor) in CURSOR.iter().enumerate() {
        // Beyond where a search has come, no slot was ever used.
        let tried = cursor.load(Ordering::Relaxed).min(slots_of(class));
        for slot in (0..tried).filter_map(|index| Slot::new(class, index)) {
            let block = slot.block();
            if block.state == State::Live {
                each(slot, block);
            }
        }
    }
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
        let _ = slot.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, mark);
        at = slot.base() + slot.size();
    }
}

/// Blocks that were freed and are kept mapped. See above.
mod cache {
    use super::{AtomicU64, AtomicUsize, Block, Ordering, PAGE, SPARE, Slot, THRESHOLD, client, unmap};

    const ENTRIES: usize = 64;

    /// One block each: bits 63..48 the class, 47..32 the slot, 31..0 pages. 0: none.
    static KEPT: [AtomicU64; ENTRIES] = [const { AtomicU64::new(0) }; ENTRIES];
    /// No entry at or beyond this index was ever used: most programs keep one or two, and look at no more.
    static USED: AtomicUsize = AtomicUsize::new(0);
    /// The entry that is evicted next.
    static HAND: AtomicUsize = AtomicUsize::new(0);

    fn pack(slot: Slot, len: usize) -> u64 {
        ((slot.class as u64) << 48) | ((slot.index as u64) << 32) | (len / PAGE) as u64
    }

    fn unpack(entry: u64) -> Option<(Slot, usize)> {
        let slot = Slot::new((entry >> 48) as usize, (entry >> 32 & 0xffff) as usize)?;
        Some((slot, bytes(entry)))
    }

    fn bytes(entry: u64) -> usize {
        (entry & 0xffff_ffff) as usize * PAGE
    }

    fn align_of(entry: u64) -> usize {
        1 << ((entry >> 48) as u32 + super::SMALLEST).min(super::LARGEST)
    }

    /// The entry that holds `len` bytes with the least to spare.
    pub(super) fn best_fit(entries: &[u64], len: usize, align: usize) -> Option<usize> {
        let fits = |entry: u64| entry != 0 && len <= bytes(entry) && align <= align_of(entry);
        let candidates = entries.iter().enumerate().filter(|(_, entry)| fits(**entry));
        candidates.min_by_key(|(_, entry)| bytes(**entry)).map(|(index, _)| index)
    }

    fn longest(entries: &[u64]) -> Option<usize> {
        let kept = entries.iter().enumerate().filter(|(_, entry)| **entry != 0);
        kept.max_by_key(|(_, entry)| bytes(**entry)).map(|(index, _)| index)
    }

    /// How many bytes are kept.
    pub(super) fn kept() -> usize {
        let used = KEPT.iter().take(USED.load(Ordering::Acquire));
        used.map(|entry| bytes(entry.load(Ordering::Relaxed))).sum()
    }

    /// May so many bytes be kept besides those that are?
    pub(super) fn has_room(more: usize) -> bool {
        kept() + SPARE.load(Ordering::Relaxed) + more <= THRESHOLD.keeps()
    }

    /// A kept block of `len` bytes, or else (`or_longest`) the longest, which can be made longer, so that only the difference is memory that has
    /// to be got, and had besides; its slot is Busy. (To get all of it anew, and keep the short ones for others, takes more of either: with blocks
    /// of random sizes a quarter more page faults than glibc's heap in place of a quarter less.)
    pub(super) fn take(len: usize, align: usize, or_longest: bool) -> Option<(Slot, usize)> {
        for _ in 0..4 {
            let mut seen = [0; ENTRIES];
            let used = USED.load(Ordering::Acquire).min(ENTRIES);
            for (copy, entry) in seen.iter_mut().zip(&KEPT).take(used) {
                *copy = entry.load(Ordering::Acquire);
            }
            let seen_used = seen.get(..used)?;
            let other = || if or_longest { longest(seen_used) } else { None };
            let index = best_fit(seen_used, len, align).or_else(other)?;
            let (entry, kept) = (*seen.get(index)?, KEPT.get(index)?);
            if kept.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return take_out(entry);
            }
        }
        None
    }

    /// The entry is this thread's; now its slot is, too.
    fn take_out(entry: u64) -> Option<(Slot, usize)> {
        let (slot, len) = unpack(entry)?;
        slot.take(Block::cached(len)).then_some((slot, len))
    }

    /// Keeps a Busy slot's block; false if there is no room for so much. Room is made by all that is spare, if it takes up more than half of the
    /// rest: it is of no use to anybody while its blocks do not grow, and they may never be freed. Else by what was kept longest.
    pub(super) fn put(slot: Slot, len: usize) -> bool {
        let Some(rest) = THRESHOLD.keeps().checked_sub(len) else { return false };
        if SPARE.load(Ordering::Relaxed) > rest / 2 && !has_room(len) {
            super::give_back_spare();
        }
        for _ in 0..ENTRIES {
            if has_room(len) {
                // Before anybody can find it by the entry.
                slot.set(Block::cached(len));
                for (index, kept) in KEPT.iter().enumerate() {
                    // Before the entry, so that whoever could see it looks as far.
                    if index >= USED.load(Ordering::Relaxed) {
                        USED.fetch_max(index + 1, Ordering::Release);
                    }
                    if kept.load(Ordering::Relaxed) == 0
                        && kept
                            .compare_exchange(0, pack(slot, len), Ordering::AcqRel, Ordering::Relaxed)
                            .is_ok()
                    {
                        return true;
                    }
                }
            }
            if let Some(kept) = KEPT.get(HAND.fetch_add(1, Ordering::Relaxed) % ENTRIES) {
                give_back(kept.swap(0, Ordering::AcqRel));
            }
        }
        false
    }

    fn give_back(entry: u64) -> bool {
        let Some((slot, len)) = (entry != 0).then(|| take_out(entry)).flatten() else { return false };
        if client::memory::touched(slot.base(), len) {
            // SAFETY: nobody has the slot.
            unsafe { client::memory::forget(slot.base(), len) };
        }
        unmap(slot.base(), len);
        slot.release();
        true
    }

    /// Gives back all that is kept. False if nothing was.
    pub(super) fn empty() -> bool {
        KEPT.iter().filter(|kept| give_back(kept.swap(0, Ordering::AcqRel))).count() != 0
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn the_best_fit_is_the_one_a_plain_search_finds(
                pages in prop::collection::vec((0u64..8, 0u64..40), 0..64), need in 1usize..40, shift in 12u32..22,
            ) {
                let entries: Vec<u64> = pages
                    .iter()
                    .map(|(class, pages)| if *pages == 0 { 0 } else { (class << 48) | (5 << 32) | pages })
                    .collect();
                let (len, align) = (need * PAGE, 1usize << shift);
                let mut best = None;
                for (class, pages) in &pages {
                    let have = *pages as usize * PAGE;
                    if have != 0 && have >= len && align <= 1 << (class + 13) {
                        best = Some(best.map_or(have, |b: usize| b.min(have)));
                    }
                }
                prop_assert_eq!(best_fit(&entries, len, align).map(|i| bytes(entries[i])), best);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_blocks_are_the_same_thing() {
        for state in [State::Free, State::Busy, State::Live, State::Cached] {
            for phase in [0, 16, 0xfe0, 0xff0] {
                for len in [0, PAGE, 1 << 30, (1 << 40) - PAGE] {
                    for (reshaped, apart, spare) in
                        [(false, false, 0), (false, true, PAGE), (true, false, 64 << 20)]
                    {
                        let block = Block { state, reshaped, apart, phase, len, spare };
                        assert_eq!(Block::from_word(block.word()), block);
                    }
                }
            }
        }
    }

    #[test]
    fn every_address_of_a_slot_leads_to_it_and_slots_do_not_overlap() {
        for class in 0..CLASSES {
            let last = slots_of(class) - 1;
            assert!(Slot::new(class, last + 1).is_none());
            for index in [0, 1, last / 2, last] {
                let Some(slot) = Slot::new(class, index) else { continue };
                assert!(slot.base().is_multiple_of(slot.size()));
                for addr in [slot.base(), slot.base() + slot.size() / 2, slot.base() + slot.size() - 1] {
                    let found = Slot::at(addr).unwrap();
                    assert_eq!((found.class, found.index), (class, index));
                    assert!(in_window(addr));
                }
            }
        }
        assert!(Slot::at(WINDOW + WINDOW_LEN).is_none() && !in_window(WINDOW + WINDOW_LEN));
        assert!(Slot::at(WINDOW - 1).is_none() && !in_window(WINDOW - 1));
        assert!(Slot::at(usize::MAX).is_none() && !in_window(usize::MAX));
    }

    /// Every second move was refused, and the bytes copied: what was added in place after a move was a mapping of its own.
    #[test]
    fn a_block_that_has_grown_in_place_after_a_move_can_be_moved_again() {
        let (mut payload, _) = allocate(1 << 20, 16).unwrap();
        let mut moves = 0;
        for size in (1..40).map(|step| (1 << 20) + step * (256 << 10)) {
            // SAFETY: a block of at least so many bytes, which nobody else has.
            unsafe { core::ptr::write_bytes(payload as *mut u8, 1, size - (256 << 10)) };
            let grown = resize(payload, size, true).expect("the bytes have to be copied");
            moves += usize::from(grown != payload);
            payload = grown;
        }
        assert!(moves >= 3);
        assert!(free(payload, Some(0)));
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
            for phase in [0, 16, 32, 2048, 4080] {
                assert!(len_for(request, phase).unwrap() - phase >= theirs, "{request} {phase}");
            }
            assert_eq!(len_for(request, 16).unwrap() - 16, theirs);
        }
        assert_eq!(len_for(usize::MAX - 10, 0), None);
    }

    /// Sizes that vary would each have taken the place of another that is kept, and all their memory had to be got anew.
    #[test]
    fn kept_blocks_are_made_to_fit() {
        let written = |mib: usize| {
            let (payload, fresh) = allocate(mib << 20, 16).unwrap();
            assert_eq!(usable(payload), Some((mib << 20) + PAGE));
            // SAFETY: a block of so many bytes, nobody else's.
            unsafe { core::ptr::write_bytes(payload as *mut u8, mib as u8, mib << 20) };
            (payload, fresh)
        };
        let spare = || SPARE.load(Ordering::Relaxed) / PAGE;
        THRESHOLD.freed(32 << 20);
        let kept = [20, 21].map(|mib| written(mib).0);
        assert!(kept.into_iter().all(|payload| free(payload, Some(0))));
        // None is long enough, so the longest becomes so, though there would be room for another.
        let (long, fresh) = written(31);
        assert!(!fresh && long == kept[1] && spare() == 0);
        // The one that is nearest, and the rest of it when it grows.
        let (short, fresh) = written(5);
        assert!(!fresh && short == kept[0] && spare() == 15 << 8);
        assert_eq!((resize(short, 18 << 20, true), usable(short)), (Some(short), Some((18 << 20) + PAGE)));
        assert_eq!(spare(), 2 << 8);
        // What it leaves when it shrinks.
        assert_eq!((resize(short, 2 << 20, true), spare()), (Some(short), 18 << 8));
        assert_eq!((resize(long, 30 << 20, false), spare()), (Some(long), 18 << 8));
        assert_eq!((resize(long, 31 << 20, true), spare()), (Some(long), 18 << 8));
        assert!(free(long, Some(0)) && free(short, Some(0)));
        // What is spare is kept together with what is freed, and given back with what is kept.
        let (one, fresh) = written(10);
        assert!(!fresh && spare() > 0 && free(one, Some(0)) && spare() == 0);
        let (one, other) = (written(10).0, written(1).0);
        assert!(spare() > 0 && give_back() && spare() == 0 && !give_back());
        assert_eq!(resize(one, 11 << 20, true), Some(one));
        // SAFETY: the block's bytes.
        let bytes = unsafe { core::slice::from_raw_parts(one as *const u8, 10 << 20) };
        assert!(bytes.iter().all(|byte| *byte == 10));
        assert!(free(one, Some(usize::MAX)) && free(other, Some(usize::MAX)));
    }

    /// Blocks that live long, and had got more than they asked for, left no room for anything to be kept; each block after that was got anew.
    #[test]
    fn what_is_spare_does_not_keep_others_from_being_kept() {
        THRESHOLD.freed(32 << 20);
        let get = |mib: usize| allocate(mib << 20, 16).unwrap();
        let spare = || SPARE.load(Ordering::Relaxed) >> 20;
        let kept = [30, 31].map(|mib| get(mib).0);
        assert!(kept.into_iter().all(|payload| free(payload, Some(0))));
        let long_lived = [1, 2].map(|mib| get(mib).0);
        assert_eq!(spare(), 58);
        for mib in [20, 19, 20] {
            let (payload, _) = get(mib);
            assert!(free(payload, Some(0)));
        }
        let (payload, fresh) = get(20);
        assert!(!fresh && spare() == 0);
        for payload in long_lived.into_iter().chain([payload]) {
            assert!(free(payload, Some(usize::MAX)));
        }
    }

    /// A slot in which another thread has yet to unmap what was spare would have been lost for ever.
    #[test]
    fn a_slot_is_not_lost_while_what_was_spare_in_it_goes() {
        for giving in [true, false] {
            let (payload, _) = allocate(7 << 20, 16).unwrap();
            let slot = Slot::at(payload).unwrap();
            assert!(free(payload, Some(usize::MAX)));
            // What the other thread has still to unmap, in the slot that is looked at first.
            assert_eq!(map(slot.base() + (5 << 20), PAGE, READ_WRITE), Ok(()));
            GIVING.fetch_add(usize::from(giving), Ordering::Relaxed);
            let (elsewhere, _) = allocate(7 << 20, 16).unwrap();
            GIVING.fetch_sub(usize::from(giving), Ordering::Relaxed);
            unmap(slot.base() + (5 << 20), PAGE);
            assert!(elsewhere != payload && free(elsewhere, Some(usize::MAX)));
            assert_eq!(slot.block().state, if giving { State::Free } else { State::Busy });
        }
    }

    /// Against a list of what each block holds. Whatever was asked for, there is no more kept and spare than there may be, and in the end nothing.
    #[test]
    fn random_blocks_keep_their_bytes() {
        THRESHOLD.freed(4 << 20);
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
                    assert!(free(at, Some(if below(8) == 0 { usize::MAX } else { 0 })));
                }
                1 if !live.is_empty() => {
                    let one = below(live.len());
                    let (at, len, old) = live[one];
                    let Some(now) = resize(at, size, true) else { continue };
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
            let kept = cache::kept() + SPARE.load(Ordering::Relaxed);
            assert!(kept <= THRESHOLD.keeps() + PAGE, "{step}: {kept}");
        }
        for (at, len, byte) in live {
            assert!(bytes(at, len).iter().all(|is| *is == byte) && free(at, Some(0)));
        }
        give_back();
        assert_eq!((cache::kept(), SPARE.load(Ordering::Relaxed), BLOCKS.load(Ordering::Relaxed)), (0, 0, 0));
    }

    /// A block that has shrunk below what blocks are asked for would lie there until it is in the way.
    #[test]
    fn what_no_request_could_use_is_not_kept() {
        THRESHOLD.freed(32 << 20);
        for (least, kept) in [((6 << 20) - 1, true), (6 << 20, false), (usize::MAX, false)] {
            let (payload, _) = allocate(12 << 20, 16).unwrap();
            assert_eq!(resize(payload, (6 << 20) - 32, true), Some(payload));
            assert!(free(payload, Some(least)));
            assert_eq!(holds(payload), kept, "{least}");
            assert_eq!(give_back(), kept);
        }
    }

    #[test]
    fn a_class_holds_block_and_guard() {
        assert_eq!(class_for(PAGE, 16), Some(0));
        assert_eq!(class_for(2 * PAGE, 16), Some(1));
        assert_eq!(class_for(1 << 30, 16), Some((31 - SMALLEST) as usize));
        assert_eq!(class_for((1 << 30) - PAGE, 16), Some((30 - SMALLEST) as usize));
        assert_eq!(class_for(PAGE, 1 << 21), Some((21 - SMALLEST) as usize));
        assert_eq!(class_for(1 << 40, 16), None);
        assert_eq!(class_for(usize::MAX, 16), None);
        assert_eq!(class_for(PAGE, 1 << 41), None);
    }

    #[test]
    fn a_block_lives_grows_moves_and_goes() {
        // Sizes that no other test here allocates, so that slots can be predicted.
        let (start, fresh) = allocate((5 << 20) + 3, 16).unwrap();
        assert!(fresh && start.is_multiple_of(PAGE));
        assert_eq!(usable(start), Some((5 << 20) + PAGE));
        assert!(eligible(start + 77, start + (5 << 20)));
        assert!(!eligible(start + 77, start + (5 << 20) + PAGE + 1));
        // SAFETY: within the live block's usable bytes.
        unsafe { core::ptr::write_bytes(start as *mut u8, 7, 5 << 20) };
        assert_eq!(resize(start, 7 << 20, true), Some(start));
        let moved = resize(start, 9 << 20, true).unwrap();
        assert_ne!(moved, start);
        assert!(!eligible(start, start + 1) && !free(start, Some(0)));
        // SAFETY: the block at its new place, whose pages moved with it.
        let bytes = unsafe { core::slice::from_raw_parts(moved as *const u8, 9 << 20) };
        assert!(bytes[..5 << 20].iter().all(|b| *b == 7) && bytes[5 << 20..].iter().all(|b| *b == 0));
        assert_eq!(resize(moved, 2 << 20, true), Some(moved));
        assert_eq!(usable(moved), Some((2 << 20) + PAGE));
        reshape(moved + PAGE, moved + PAGE + 1);
        assert!(!eligible(moved, moved + 1));
        assert!(!free(moved + 16, Some(0)) && free(moved, Some(0)) && !free(moved, Some(0)));
    }

    #[test]
    fn questions_about_memory_that_is_gone_are_answered() {
        let end = WINDOW + WINDOW_LEN;
        for addr in [WINDOW, WINDOW + 12345, end - 1, end, end + (1 << 39)] {
            assert!(!eligible(addr + (1 << 20), addr + (1 << 21)));
        }
        assert_eq!(usable(end), None);
        reshape(0, usize::MAX);
    }
}
