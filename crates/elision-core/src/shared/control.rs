//! The control block: which process serves this memory, which is served, and may a helper be started.
#![allow(unsafe_code)] // A page that is set up once.

use crate::transfer::PAGE;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::task;

/// On a page that the kernel wipes at fork.
#[repr(C)]
pub(crate) struct ControlBlock {
    /// The helper's pid; the kernel stores 0 and wakes waiters at its end.
    pub helper: AtomicU32,
    pub supervisor: AtomicU32,
    /// 0: starting; 1: ready; 2: cannot work here.
    pub ready: AtomicU32,
    /// 1: the tracer is allowed, the helper may begin.
    pub go: AtomicU32,
    /// Unique to this memory: see [`shares_memory`].
    cookie: [AtomicU64; 2],
}

static BLOCK: AtomicPtr<ControlBlock> = AtomicPtr::new(ptr::null_mut());

/// Not started, or no longer needed.
pub(crate) const IDLE: u32 = 0;
pub(crate) const STARTING: u32 = 1;
pub(crate) const RUNNING: u32 = 2;
pub(crate) const UNAVAILABLE: u32 = 3;
/// Credentials change, or the process ends. Each number above is one more such thread.
pub(crate) const RETIRED: u32 = 4;
pub(crate) static START: AtomicU32 = AtomicU32::new(IDLE);

pub(crate) static PROGRAM: AtomicI32 = AtomicI32::new(0);
/// Where the kernel stores 0 at the main thread's end, and the value before. It may be unmapped.
pub(crate) static END_WORD: AtomicUsize = AtomicUsize::new(0);
pub(crate) static END_VALUE: AtomicU32 = AtomicU32::new(0);
/// The helper to take over from; −1: lost; 0: none.
pub(crate) static PREDECESSOR: AtomicI32 = AtomicI32::new(0);
/// A helper made every system call without a filter killing it. Until then clients make few (docs/ENTRANCES.md).
pub(crate) static HARMLESS: AtomicBool = AtomicBool::new(false);
pub(crate) static LAST_HELPER: AtomicI32 = AtomicI32::new(0);
/// How many helpers may be killed in a row before the client gives up for now.
pub(crate) const TRIES: u32 = 40;
/// This memory's latest helpers (more than [`TRIES`]), and how many there were.
static HELPERS: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// Killed helpers have left leases on the program's descriptions, where their successor cannot reach them.
static ORPHANS: AtomicBool = AtomicBool::new(false);
static EPOCH: AtomicU32 = AtomicU32::new(0);

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

pub(crate) fn block() -> Option<&'static ControlBlock> {
    // SAFETY: null, or atomics on a page that is never unmapped.
    unsafe { BLOCK.load(Acquire).as_ref() }
}

impl ControlBlock {
    pub(crate) fn set_cookie(&self) {
        for (word, value) in self.cookie.iter().zip([task::now_ns(), task::pid() as u64]) {
            word.store(value, Release);
        }
    }

    pub(crate) fn say(&self, ready: u32) {
        self.ready.store(ready, Release);
        task::futex_wake(&self.ready);
    }
}

/// In the helper or supervisor: does process `pid` use this memory? Not after exec or fork, which lose the page.
pub(crate) fn shares_memory(pid: i32) -> bool {
    block().is_some_and(|block| {
        let cookie = block.cookie.each_ref().map(|word| word.load(Acquire));
        task::peek_at(pid, block.cookie.as_ptr() as usize) == Ok(cookie)
    })
}

/// In a helper that begins.
pub(crate) fn enter_helper() {
    LAST_HELPER.store(task::pid(), Release);
    let number = STARTED.fetch_add(1, AcqRel);
    if let Some(entry) = HELPERS.get(number % HELPERS.len()) {
        entry.store(task::pid(), Release);
    }
}

/// In a forked child: the last helper, which is the parent's.
pub(crate) fn forget_helpers() -> i32 {
    HELPERS.iter().for_each(|entry| entry.store(0, Release));
    LAST_HELPER.swap(0, AcqRel)
}

pub(crate) fn was_helper(pid: i32) -> bool {
    pid != 0 && pid as u32 != helper() && HELPERS.iter().any(|entry| entry.load(Acquire) == pid)
}

pub(crate) fn leave_orphans() {
    ORPHANS.store(true, Release);
}

pub(crate) fn take_orphans() -> bool {
    ORPHANS.swap(false, AcqRel)
}

pub(crate) fn epoch() -> u32 {
    EPOCH.load(SeqCst)
}

pub(crate) fn begin_epoch(predecessor: i32) {
    PREDECESSOR.store(predecessor, Release);
    EPOCH.fetch_add(1, SeqCst);
}

pub fn alive() -> bool {
    block().is_some_and(|block| block.helper.load(Acquire) != 0 && block.ready.load(Acquire) == 1)
}

pub(crate) fn helper() -> u32 {
    block().map_or(0, |block| block.helper.load(SeqCst))
}

pub(crate) fn supervisor() -> u32 {
    block().map_or(0, |block| block.supervisor.load(SeqCst))
}

/// Is there a helper, or a supervisor that may start one? The supervisor is looked for first: once it is gone, it starts no helper.
pub(crate) fn anybody() -> bool {
    supervisor() != 0 || helper() != 0
}

pub(crate) fn is_helper() -> bool {
    [helper(), supervisor()].contains(&(task::pid() as u32))
}

pub(crate) fn running() -> bool {
    START.load(SeqCst) == RUNNING
}

pub(crate) fn ever_started() -> bool {
    !BLOCK.load(Acquire).is_null()
}

pub(crate) fn begun() -> bool {
    START.load(Acquire) != IDLE
}

pub fn possible() -> bool {
    START.load(Acquire) != UNAVAILABLE
}

pub(crate) fn harmless() -> bool {
    HARMLESS.load(Acquire)
}
