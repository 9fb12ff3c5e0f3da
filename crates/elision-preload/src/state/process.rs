//! Which process this is.

use core::sync::atomic::{AtomicI32, Ordering};

use crate::abi::kernel;

/// The process whose library this is. A vfork child runs in its parent's memory, and must not end what is the parent's.
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// It is this one. From the constructor, and in a forked child.
pub(crate) fn remember() {
    PROCESS.store(kernel::process(), Ordering::Relaxed);
}

/// Is it this one, and not a child that borrows its memory? True before the constructor.
pub(crate) fn is_this() -> bool {
    let known = PROCESS.load(Ordering::Relaxed);
    known == 0 || kernel::process() == known
}
