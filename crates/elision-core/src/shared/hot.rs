//! What every call looks at before it goes its way, however small it is: on one cache line, since each line more is felt.

use core::sync::atomic::{AtomicU32, AtomicUsize};

/// See [`HOT`].
#[repr(align(64))]
pub struct HotFlags {
    /// The least length of a transfer that the drop-in offers: none until its constructor has seen the environment.
    pub min_bytes: AtomicUsize,
    /// Files under write leases, or more than there are: published before a write lease is put to use.
    pub writers: AtomicU32,
    /// How often all threads were stopped, and let go again.
    pub pauses: AtomicU32,
}

/// The one there is.
pub static HOT: HotFlags = HotFlags {
    min_bytes: AtomicUsize::new(usize::MAX),
    writers: AtomicU32::new(0),
    pauses: AtomicU32::new(0),
};
