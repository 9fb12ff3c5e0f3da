//! The flags that every call reads, on one cache line.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

#[repr(align(64))]
pub struct HotFlags {
    /// The smallest transfer that the drop-in offers: none before its constructor.
    pub min_bytes: AtomicUsize,
    /// An upper bound of the files under write leases, published before one is used.
    pub writers: AtomicU32,
    pub pauses: AtomicU32,
    /// The program has asked for huge pages.
    pub huge: AtomicBool,
}

pub static HOT: HotFlags = HotFlags {
    min_bytes: AtomicUsize::new(usize::MAX),
    writers: AtomicU32::new(0),
    pauses: AtomicU32::new(0),
    huge: AtomicBool::new(false),
};
