//! The control block: who serves this memory, whom, and whether one may be started.
#![allow(unsafe_code)] // A page that is set up once.

use crate::transfer::PAGE;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::task;

/// What must vanish at fork: it is on a page that the kernel wipes then.
#[repr(C)]
pub(crate) struct ControlBlock {
    /// Pid of the helper; the kernel stores 0 and wakes waiters when it is gone.
    pub helper: AtomicU32,
    /// Pid of the supervisor, likewise.
    pub supervisor: AtomicU32,
    /// 0: the helper is starting; 1: it is ready; 2: it cannot work here.
    pub ready: AtomicU32,
    /// 1: the helper may begin, since the tracer is allowed by now.
    pub go: AtomicU32,
    /// What no other memory has at this address: see [`shares_memory`].
    cookie: [AtomicU64; 2],
}

static BLOCK: AtomicPtr<ControlBlock> = AtomicPtr::new(ptr::null_mut());

/// Nothing was started, or nothing is needed any more.
pub(crate) const IDLE: u32 = 0;
/// One thread is starting a helper.
pub(crate) const STARTING: u32 = 1;
/// The helper is there.
pub(crate) const RUNNING: u32 = 2;
/// It was tried: no helper can work here.
pub(crate) const UNAVAILABLE: u32 = 3;
/// The process changes its credentials, or ends: no helper is started. Each more is another thread that does so.
pub(crate) const RETIRED: u32 = 4;
/// One of these.
pub(crate) static START: AtomicU32 = AtomicU32::new(IDLE);

/// The process that the helper serves.
pub(crate) static PROGRAM: AtomicI32 = AtomicI32::new(0);
/// The address where the kernel stores 0 when the program's main thread is gone, and what is there until then. (It may be unmapped by then.)
pub(crate) static END_WORD: AtomicUsize = AtomicUsize::new(0);
pub(crate) static END_VALUE: AtomicU32 = AtomicU32::new(0);
/// The helper from which a new one takes over; −1: it is lost; 0: there was none.
pub(crate) static PREDECESSOR: AtomicI32 = AtomicI32::new(0);
/// A helper has made every system call of the library, and no filter has killed it. Until then clients make as few as they can
/// (docs/ENTRANCES.md has a list).
pub(crate) static HARMLESS: AtomicBool = AtomicBool::new(false);
/// The last helper.
pub(crate) static LAST_HELPER: AtomicI32 = AtomicI32::new(0);
/// How many helpers are started that are killed, one after the other, before it is given up for now.
pub(crate) const TRIES: u32 = 40;
/// Counts helpers.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Allocates the block.
pub(crate) fn prepare() -> bool {
    const MADV_WIPEONFORK: i32 = 18;
    let Ok(block) = memory::allocate(PAGE, false) else { return false };
    // SAFETY: the page is fresh and ours.
    if unsafe { memory::advise(block, PAGE, MADV_WIPEONFORK) }.is_err() {
        return false;
    }
    BLOCK.store(block as *mut ControlBlock, Release);
    true
}

/// The block, once it is prepared.
pub(crate) fn block() -> Option<&'static ControlBlock> {
    // SAFETY: null, or a page that is never unmapped; it holds atomics only.
    unsafe { BLOCK.load(Acquire).as_ref() }
}

impl ControlBlock {
    /// In the supervisor, once: makes this memory known from any other.
    pub(crate) fn set_cookie(&self) {
        for (word, value) in self.cookie.iter().zip([task::now_ns(), task::pid() as u64]) {
            word.store(value, Release);
        }
    }

    /// Tells who waits for the helper what it is (see [`ControlBlock::ready`]).
    pub(crate) fn say(&self, ready: u32) {
        self.ready.store(ready, Release);
        task::futex_wake(&self.ready);
    }
}

/// In the helper or the supervisor: does process `pid` use this memory? Not after exec, nor in a forked child, whose page is wiped.
pub(crate) fn shares_memory(pid: i32) -> bool {
    block().is_some_and(|block| {
        let cookie = block.cookie.each_ref().map(|word| word.load(Acquire));
        task::peek_at(pid, block.cookie.as_ptr() as usize) == Ok(cookie)
    })
}

/// Which helper it is, now.
pub(crate) fn epoch() -> u32 {
    EPOCH.load(SeqCst)
}

/// The next helper is another, and takes over from this one (see [`PREDECESSOR`]).
pub(crate) fn begin_epoch(predecessor: i32) {
    PREDECESSOR.store(predecessor, Release);
    EPOCH.fetch_add(1, SeqCst);
}

/// Is the helper there and ready?
pub fn alive() -> bool {
    block().is_some_and(|block| block.helper.load(Acquire) != 0 && block.ready.load(Acquire) == 1)
}

/// The helper's pid, or 0.
pub(crate) fn helper() -> u32 {
    block().map_or(0, |block| block.helper.load(SeqCst))
}

/// The supervisor's pid, or 0.
pub(crate) fn supervisor() -> u32 {
    block().map_or(0, |block| block.supervisor.load(SeqCst))
}

/// Is there a helper, ready or not, or a supervisor that may start one? (Asked in this order: what is gone starts none.)
pub(crate) fn anybody() -> bool {
    supervisor() != 0 || helper() != 0
}

/// Is the calling process the helper, or its parent?
pub(crate) fn is_helper() -> bool {
    [helper(), supervisor()].contains(&(task::pid() as u32))
}

/// Is the helper neither about to come nor to go?
pub(crate) fn running() -> bool {
    START.load(SeqCst) == RUNNING
}

/// Was a helper ever started, here or in a process that this one was forked from?
pub(crate) fn ever_started() -> bool {
    !BLOCK.load(Acquire).is_null()
}

/// Was a helper ever asked for?
pub(crate) fn begun() -> bool {
    START.load(Acquire) != IDLE
}

/// Is the helper there, or could it be started? False where it was tried, and this kernel or sandbox does not allow it.
pub fn possible() -> bool {
    START.load(Acquire) != UNAVAILABLE
}

/// May every system call that the library needs be made?
pub(crate) fn harmless() -> bool {
    HARMLESS.load(Acquire)
}
