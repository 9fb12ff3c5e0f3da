//! What the helper knows, in parts.
//!
//! One value, in memory that the program shares (so that a forked child finds a consistent copy), written by the helper alone. What the
//! program's threads ask on every call is in [`crate::shared::live`].
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

/// Everything the helper knows. Functions take the parts that they need, or all of it where that is nearly all.
pub(crate) struct State {
    /// The program.
    pub program: i32,
    /// Fine-grained ctimes: a file that changed shows it (Linux 6.13).
    pub fine_ctime: bool,
    /// Mapped extents that may exist before vm.max_map_count is in danger.
    pub map_limit: usize,
    /// The association map.
    pub map: Map,
    /// The files.
    pub files: Files,
    /// By which the kernel is asked of pages.
    pub tables: PageTables,
    /// The program's threads, while they are stopped.
    pub world: StopWorld,
    /// Mappings in reserve.
    pub reserve: Reserve,
    /// Room for a page: to compare it, or to have it while there is nothing in its place.
    pub page: [u8; PAGE],
    /// The file on a description of which a write lease is being taken: there may be one already that no entry tells of.
    pub taking: FileKey,
    /// Where statistics go at the end, or −1.
    pub stats: i32,
    /// When to look which files are closed (see [`crate::helper::closing`]), or 0.
    pub look_at_ms: u64,
    /// The fork that was just answered, and for which to quiesce; or 0.
    pub fork: u32,
    /// Asked to go.
    pub retiring: bool,
}

static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

/// Allocates it. All zeroes is a valid one but for the descriptors, and the order of the map, which the helper sees to before it uses them.
pub(crate) fn prepare() -> bool {
    let state = memory::allocate(size_of::<State>().next_multiple_of(PAGE), false);
    STATE.store(state.unwrap_or(0) as *mut State, Release);
    state.is_ok()
}

/// The state. For the helper, and for a client that has none.
///
/// # Safety
/// The caller must be the only one who uses it.
pub(crate) unsafe fn state() -> Option<&'static mut State> {
    // SAFETY: null or set up by `prepare`; exclusive by the caller's promise.
    unsafe { STATE.load(Acquire).as_mut() }
}
