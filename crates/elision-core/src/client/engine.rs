//! What the crate asks of the engine: of this copy of it, or of another copy in the same program.
//!
//! A program may hold several copies: a Rust crate, the C library, a Python module, the drop-in. Only one may start a helper. Two
//! helpers would each stop threads that the other has stopped, and under Yama only the one named last may stop any.
//! So the copy that comes first serves the others (`meeting.rs`).
#![allow(unsafe_code)] // Calls into another copy, through its table.

use crate::client::meeting::{self, Served};
use crate::client::offer::{FileFacts, Judged, TransferOptions};
use crate::client::read::{self, DeferredRead};
use crate::client::write::{self, Track};
use crate::client::{changes, clone, fork, life, memory};
use crate::page_state::PageState;
use crate::stats::{self, COUNTERS, Reason, Stats, WORDS};
use core::ffi::{CStr, c_void};
use elision_sys::file::{self, FileKey};
use elision_sys::raw::{Errno, Result};

/// Under this name the drop-in exports its table.
pub const SYMBOL: &CStr = c"elision_engine";

/// Changes with the meaning of what is in an [`Engine`], its size, and what is counted.
const VERSION: u64 = 1 << 32 | (WORDS as u64) << 16 | size_of::<Engine>() as u64;

/// A transfer at an offset.
#[repr(C)]
struct Offer {
    addr: usize,
    len: usize,
    offset: u64,
    forks: u64,
    least: usize,
    fd: i32,
    owned: bool,
    /// A [`Track`], for writes.
    track: u8,
}

type Context = *const c_void;
type Alone = extern "C" fn(Context) -> bool;
type Run = extern "C" fn(Context, addr: usize, len: usize, state: u8);

/// The functions of one copy, for the others. A negative result is an errno.
#[repr(C)]
pub struct Engine {
    version: u64,
    forks: extern "C" fn() -> u64,
    /// Twice the bytes; 1 more if there were fragments. −1: make the traditional call.
    associate: unsafe extern "C" fn(&Offer) -> isize,
    write: extern "C" fn(&Offer, Alone, Context) -> isize,
    /// 1: nothing was done.
    fill: extern "C" fn(fd: i32, addr: usize, len: usize) -> isize,
    forget: unsafe extern "C" fn(addr: usize, len: usize),
    relocate: unsafe extern "C" fn(addr: usize, len: usize, to: usize) -> usize,
    duplicate: unsafe extern "C" fn(addr: usize, len: usize, to: usize, copy: Run, Context),
    unload: unsafe extern "C" fn(addr: usize, len: usize) -> usize,
    query: extern "C" fn(addr: usize, len: usize, Run, Context) -> usize,
    release: extern "C" fn(dev: u64, ino: u64),
    closing: extern "C" fn(fd: i32),
    has_write_lease: extern "C" fn(fd: i32) -> bool,
    count_exactly: extern "C" fn(bool),
    counters: extern "C" fn(&mut [u64; WORDS]),
}

impl Engine {
    /// The drop-in serves the copies in its program for as long as it is on.
    pub const fn of_the_drop_in() -> Engine {
        Engine::new(associate_while_on, write_while_on, fill_while_on)
    }

    const fn new(
        associate: unsafe extern "C" fn(&Offer) -> isize,
        write: extern "C" fn(&Offer, Alone, Context) -> isize,
        fill: extern "C" fn(i32, usize, usize) -> isize,
    ) -> Engine {
        Engine {
            version: VERSION,
            forks: own_forks,
            associate,
            write,
            fill,
            forget: own_forget,
            relocate: own_relocate,
            duplicate: own_duplicate,
            unload: own_unload,
            query: own_query,
            release: own_release,
            closing: own_closing,
            has_write_lease: own_has_write_lease,
            count_exactly: own_count_exactly,
            counters: own_counters,
        }
    }
}

static OF_THE_CRATE: Engine = Engine::new(own_associate, own_write, own_fill);

fn is_off() -> bool {
    life::min_bytes() == usize::MAX
}

unsafe extern "C" fn associate_while_on(offer: &Offer) -> isize {
    // SAFETY: the caller's promise.
    if is_off() { -1 } else { unsafe { own_associate(offer) } }
}

extern "C" fn write_while_on(offer: &Offer, alone: Alone, context: Context) -> isize {
    if is_off() { 0 } else { own_write(offer, alone, context) }
}

extern "C" fn fill_while_on(fd: i32, addr: usize, len: usize) -> isize {
    if is_off() { 1 } else { own_fill(fd, addr, len) }
}

extern "C" fn own_forks() -> u64 {
    fork::forks()
}

impl Offer {
    fn new(fd: i32, addr: usize, len: usize, options: &TransferOptions, track: Track) -> Option<Offer> {
        let &TransferOptions { offset, owned, forks, least, .. } = options;
        Some(Offer { addr, len, offset: offset?, forks, least, fd, owned, track: track as u8 })
    }

    fn options(&self) -> TransferOptions {
        TransferOptions {
            offset: Some(self.offset),
            owned: self.owned,
            forks: self.forks,
            exclusive: true,
            least: self.least,
            judged: Judged::BySize,
            placed: false,
        }
    }
}

unsafe extern "C" fn own_associate(offer: &Offer) -> isize {
    let Ok(facts) = FileFacts::of(offer.fd, 0) else { return -1 };
    // SAFETY: the caller's promise.
    let read = unsafe { read::associate(offer.fd, &facts, offer.addr, offer.len, offer.options()) };
    read.map_or(-1, |read| (read.bytes() << 1) as isize | read.has_fragments() as isize)
}

extern "C" fn own_write(offer: &Offer, alone: Alone, context: Context) -> isize {
    let track = if offer.track == Track::Now as u8 { Track::Now } else { Track::Never };
    let done = write_here(offer.fd, offer.addr, offer.len, offer.options(), track, &|| alone(context));
    done.map_or_else(|Errno(errno)| -(errno as isize), |done| done as isize)
}

fn write_here(
    fd: i32,
    addr: usize,
    len: usize,
    options: TransferOptions,
    track: Track,
    alone: &dyn Fn() -> bool,
) -> Result<usize> {
    let stat = file::stat(fd).unwrap_or_default();
    let Some(write) = write::plan(fd, &stat, addr, len, options, track) else { return Ok(0) };
    let done = write.carry_out(alone())?;
    if !alone() {
        memory::untrack(addr, len);
    }
    Ok(done)
}

extern "C" fn own_fill(fd: i32, addr: usize, len: usize) -> isize {
    match clone::fill(fd, addr, len) {
        None => 1,
        Some(Ok(())) => 0,
        Some(Err(Errno(errno))) => -(errno as isize),
    }
}

unsafe extern "C" fn own_forget(addr: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { memory::forget(addr, len) }
}

unsafe extern "C" fn own_relocate(addr: usize, len: usize, to: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { memory::relocate(addr, len, to) }
}

unsafe extern "C" fn own_duplicate(addr: usize, len: usize, to: usize, copy: Run, context: Context) {
    // SAFETY: the caller's promise.
    unsafe { memory::duplicate(addr, len, to, |at, len| copy(context, at, len, 0)) }
}

unsafe extern "C" fn own_unload(addr: usize, len: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { memory::unload(addr, len) }
}

extern "C" fn own_query(addr: usize, len: usize, run: Run, context: Context) -> usize {
    memory::query(addr, len, |found| run(context, found.addr, found.len, found.state))
}

extern "C" fn own_release(dev: u64, ino: u64) {
    changes::release(FileKey { dev, ino });
}

extern "C" fn own_closing(fd: i32) {
    changes::closing(fd, true);
}

extern "C" fn own_has_write_lease(fd: i32) -> bool {
    changes::write_lease_on(fd)
}

extern "C" fn own_count_exactly(on: bool) {
    stats::count_exactly(on);
}

extern "C" fn own_counters(counters: &mut [u64; WORDS]) {
    *counters = COUNTERS.words();
}

/// The copy that serves this one. The first call decides; not for signal handlers.
fn served() -> Served<Engine> {
    meeting::served(&OF_THE_CRATE, VERSION, SYMBOL)
}

/// The same, if it was decided: before that no memory of this copy stands for a file.
fn known() -> Option<&'static Engine> {
    // SAFETY: `served` above passes an `Engine`.
    unsafe { meeting::known() }
}

/// A file that was opened at another count may be shared with a child.
pub fn forks() -> u64 {
    served().engine().map_or(0, |engine| (engine.forks)())
}

/// See [`read::associate`].
///
/// # Safety
/// As there, of the whole pages around the range, too.
pub unsafe fn associate(
    fd: i32,
    facts: &FileFacts,
    addr: usize,
    len: usize,
    options: TransferOptions,
) -> Option<DeferredRead> {
    match served() {
        // SAFETY: the caller's promise.
        Served::Here(_) => unsafe { read::associate(fd, facts, addr, len, options) },
        Served::By(engine) => {
            let offer = Offer::new(fd, addr, len, &options, Track::Never)?;
            // SAFETY: the caller's promise; the other copy wrote its table.
            let answer = unsafe { (engine.associate)(&offer) };
            let bytes = usize::try_from(answer).ok()? >> 1;
            Some(DeferredRead::by_another(fd, addr, bytes, offer.offset, answer & 1 != 0))
        }
        Served::Nobody => {
            crate::decline_read(Reason::AnotherCopy, len);
            None
        }
    }
}

/// Writes from the beginning of the range, and says how much: what the file does not have already. `alone`: does no other thread of
/// the caller change the file?
///
/// # Errors
/// As the traditional call.
pub fn write(
    fd: i32,
    addr: usize,
    len: usize,
    options: TransferOptions,
    track: Track,
    alone: impl Fn() -> bool,
) -> Result<usize> {
    extern "C" fn ask<F: Fn() -> bool>(context: Context) -> bool {
        // SAFETY: `write` below passed its closure, which outlives the call.
        unsafe { (*context.cast::<F>())() }
    }
    fn offer_to<F: Fn() -> bool>(engine: &Engine, offer: &Offer, alone: &F) -> isize {
        (engine.write)(offer, ask::<F>, core::ptr::from_ref(alone).cast())
    }
    match served() {
        Served::Here(_) => write_here(fd, addr, len, options, track, &alone),
        Served::By(engine) => match Offer::new(fd, addr, len, &options, track) {
            Some(offer) => or_errno(offer_to(engine, &offer, &alone)),
            None => Ok(0),
        },
        Served::Nobody => Ok(0),
    }
}

fn or_errno(answer: isize) -> Result<usize> {
    usize::try_from(answer).map_err(|_| Errno(answer.unsigned_abs() as i32))
}

/// See [`clone::fill`].
pub fn fill(fd: i32, addr: usize, len: usize) -> Option<Result<()>> {
    match (served().engine()?.fill)(fd, addr, len) {
        1 => None,
        answer => Some(or_errno(answer).map(drop)),
    }
}

/// See [`memory::forget`].
///
/// # Safety
/// As there.
pub unsafe fn forget(addr: usize, len: usize) {
    if let Some(engine) = known() {
        // SAFETY: the caller's promise.
        unsafe { (engine.forget)(addr, len) }
    }
}

/// See [`memory::relocate`].
///
/// # Safety
/// As there.
pub unsafe fn relocate(addr: usize, len: usize, to: usize) -> usize {
    // SAFETY: the caller's promise.
    known().map_or(0, |engine| unsafe { (engine.relocate)(addr, len, to) })
}

/// See [`memory::duplicate`].
///
/// # Safety
/// As there.
pub unsafe fn duplicate<F: FnMut(usize, usize)>(addr: usize, len: usize, to: usize, mut copy: F) {
    extern "C" fn run<F: FnMut(usize, usize)>(context: Context, at: usize, len: usize, _: u8) {
        // SAFETY: `duplicate` below passed its closure, which outlives the call, and nobody else calls it.
        unsafe { (*context.cast::<core::cell::RefCell<F>>()).borrow_mut()(at, len) }
    }
    let Some(engine) = known() else { return copy(0, len) };
    let copy = core::cell::RefCell::new(copy);
    // SAFETY: the caller's promise.
    unsafe { (engine.duplicate)(addr, len, to, run::<F>, core::ptr::from_ref(&copy).cast()) }
}

/// See [`memory::unload`].
///
/// # Safety
/// As there.
pub unsafe fn unload(addr: usize, len: usize) -> usize {
    // SAFETY: the caller's promise.
    known().map_or(0, |engine| unsafe { (engine.unload)(addr, len) })
}

/// The runs of pages from `addr` on. Returns the bytes covered.
pub fn query<F: FnMut(usize, usize, PageState)>(addr: usize, len: usize, each: F) -> usize {
    extern "C" fn run<F: FnMut(usize, usize, PageState)>(
        context: Context,
        addr: usize,
        len: usize,
        state: u8,
    ) {
        let state = match state {
            1 => PageState::Deferred,
            2 => PageState::Loaded,
            3 => PageState::Tracked,
            4 => PageState::Altered,
            _ => PageState::Plain,
        };
        // SAFETY: `query` below passed its closure, which outlives the call, and nobody else calls it.
        unsafe { (*context.cast::<core::cell::RefCell<F>>()).borrow_mut()(addr, len, state) }
    }
    let each = core::cell::RefCell::new(each);
    let context = core::ptr::from_ref(&each).cast();
    known().map_or(0, |engine| (engine.query)(addr, len, run::<F>, context))
}

/// Everything that depends on the file gets memory of its own.
pub fn release(key: FileKey) {
    if let Some(engine) = known() {
        (engine.release)(key.dev, key.ino);
    }
}

/// [`release`] for `fd`.
pub fn release_behind(fd: i32) {
    if let (Some(engine), Ok(stat)) = (known(), file::stat(fd)) {
        (engine.release)(stat.id.dev, stat.id.ino);
    }
}

/// A descriptor that nobody else had is about to be closed.
pub fn closing(fd: i32) {
    if let Some(engine) = known() {
        (engine.closing)(fd);
    }
}

pub fn has_write_lease(fd: i32) -> bool {
    known().is_some_and(|engine| (engine.has_write_lease)(fd))
}

/// Counts loaded bytes of dropped buffers, too (off by default): a drop then waits for the helper to read page tables.
pub fn count_exactly(on: bool) {
    stats::count_exactly(on);
    if let Some(engine) = served().engine() {
        (engine.count_exactly)(on);
    }
}

/// Loaded bytes count when an extent ends (see [`count_exactly`]); `Buffer::ranges` has those of a live buffer. Where another copy of this
/// library serves the program (the drop-in, a C library), its counts are among these.
pub fn snapshot() -> Stats {
    let mut words = COUNTERS.words();
    if let Some(engine) = known().filter(|&engine| !core::ptr::eq(engine, &OF_THE_CRATE)) {
        let mut theirs = [0; WORDS];
        (engine.counters)(&mut theirs);
        words.iter_mut().zip(theirs).for_each(|(word, their)| *word += their);
    }
    Stats::of(&words)
}
