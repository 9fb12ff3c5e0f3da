//! May a write share the blocks of another file, and from how many bytes on?

use crate::shared::hot::HOT;
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

static ALLOWED: AtomicBool = AtomicBool::new(true);

pub(crate) fn allow(allowed: bool) {
    ALLOWED.store(allowed, Relaxed);
}

pub(crate) fn allowed() -> bool {
    ALLOWED.load(Relaxed)
}

/// Less is copied nearly as soon (to share takes 20 µs), and would leave the file in small pieces.
pub(crate) fn least() -> usize {
    const LEAST: usize = 256 << 10;
    (HOT.min_bytes.load(Relaxed) / 8).clamp(PAGE, LEAST)
}
