//! Which process this is.

use core::sync::atomic::{AtomicI32, Ordering};

use crate::abi::kernel;

/// The process served: a vfork child, in the same memory, must not end what is its parent's.
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// For the constructor and forked children.
pub(crate) fn remember() {
    PROCESS.store(kernel::process(), Ordering::Relaxed);
}

/// True before the constructor; not in a child in this memory.
pub(crate) fn is_this() -> bool {
    let known = PROCESS.load(Ordering::Relaxed);
    known == 0 || kernel::process() == known
}
