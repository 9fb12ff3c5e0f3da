//! What the helper knows.
//!
//! It is in memory shared with the program, so that a forked child finds a consistent copy. Only the helper writes it.
#![allow(unsafe_code)] // One value, in memory that is shared.

use crate::extent::TargetId;
use crate::helper::files::Files;
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use crate::helper::prefetch::Prefetch;
use crate::helper::reserve::Reserve;
use crate::helper::stop_world::StopWorld;
use crate::helper::strips::Journal;
use crate::quiet::Meaning;
use crate::transfer::PAGE;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::hand_over::Listener;
use elision_sys::memory;

pub(crate) struct State {
    pub program: i32,
    /// Every change of a file shows in its ctime (Linux 6.13).
    pub fine_ctime: bool,
    /// The most mapped extents that leave `vm.max_map_count` alone.
    pub map_limit: usize,
    pub map: Map,
    pub files: Files,
    pub tables: PageTables,
    pub world: StopWorld,
    pub reserve: Reserve,
    pub prefetch: Prefetch,
    pub pending: Pending,
    /// A page to compare with, or in hand while nothing is in its place.
    pub page: [u8; PAGE],
    /// The file of a write lease that is being taken, before there is an entry.
    pub taking: FileKey,
    /// Where the program's thread is about to hand over a descriptor.
    pub listener: Option<Listener>,
    /// Whose description was handed over in vain, and when.
    pub in_vain: (FileKey, u64),
    pub stats: i32,
    pub journal: Journal,
    /// When to look which files are closed (see [`crate::helper::closing`]), or 0.
    pub look_at_ms: u64,
    /// The fork that was just answered, or 0.
    pub fork: u32,
    pub retiring: bool,
}

/// A truncation that is put off (see [`crate::helper::pending`]).
pub(crate) struct Pending {
    /// The saving thread. 0: no truncation is put off.
    pub tid: i32,
    pub id: TargetId,
    /// The description's descriptors. −1: none.
    pub fds: [i32; DUPLICATES],
    /// What the call that has begun means.
    pub call: Meaning,
    /// Where that call, a write, ends at most; or 0.
    pub until: u64,
    pub writes: u32,
    /// Bytes that saves have written.
    pub written: usize,
    /// When it began, and when the saving thread was last seen at a call.
    pub begun_ns: u64,
    pub since_ns: u64,
}

const DUPLICATES: usize = 4;

pub(crate) const NO_PENDING: Pending = Pending {
    tid: 0,
    id: TargetId(0),
    fds: [-1; DUPLICATES],
    call: Meaning::Quiet,
    until: 0,
    writes: 0,
    written: 0,
    begun_ns: 0,
    since_ns: 0,
};

impl Pending {
    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.tid != 0
    }
}

static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

/// Zeroes are valid but for descriptors and the map's order, which the helper sets first.
pub(crate) fn prepare() -> bool {
    let state = memory::allocate(size_of::<State>().next_multiple_of(PAGE), false);
    STATE.store(state.unwrap_or(0) as *mut State, Release);
    state.is_ok()
}

///
/// # Safety
/// The caller must be the state's only user.
pub(crate) unsafe fn state() -> Option<&'static mut State> {
    // SAFETY: null or set up by `prepare`; exclusive by the caller's promise.
    unsafe { STATE.load(Acquire).as_mut() }
}
