//! What the helper knows.
//!
//! It is in memory shared with the program, so that a forked child finds a consistent copy. Only the helper writes it.
#![allow(unsafe_code)] // One value, in memory that is shared.

use crate::helper::files::Files;
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use crate::helper::reserve::Reserve;
use crate::helper::stop_world::StopWorld;
use crate::transfer::PAGE;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::*};
use elision_sys::file::FileKey;
use elision_sys::memory;

pub(crate) struct State {
    pub program: i32,
    /// A change shows in the ctime (Linux 6.13).
    pub fine_ctime: bool,
    /// Mapped extents, so that `vm.max_map_count` is out of danger.
    pub map_limit: usize,
    pub map: Map,
    pub files: Files,
    pub tables: PageTables,
    pub world: StopWorld,
    pub reserve: Reserve,
    /// A page to compare with, or in hand.
    pub page: [u8; PAGE],
    /// The file of a write lease being taken: no entry tells of it.
    pub taking: FileKey,
    pub stats: i32,
    /// See [`crate::helper::closing`]; 0: never.
    pub look_at_ms: u64,
    /// The fork for which to quiesce, or 0.
    pub fork: u32,
    pub retiring: bool,
}

static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

/// Zeroes are valid but for descriptors and the map's order, which the helper sets.
pub(crate) fn prepare() -> bool {
    let state = memory::allocate(size_of::<State>().next_multiple_of(PAGE), false);
    STATE.store(state.unwrap_or(0) as *mut State, Release);
    state.is_ok()
}

/// For the helper, and for a client that has none.
///
/// # Safety
/// The caller must be the state's only user.
pub(crate) unsafe fn state() -> Option<&'static mut State> {
    // SAFETY: null or by `prepare`; exclusive by the caller's promise.
    unsafe { STATE.load(Acquire).as_mut() }
}
