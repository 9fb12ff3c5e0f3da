//! Ranges of memory that are gone, on their way to the helper.
//!
//! These need no answer: a record that outlives its memory does no harm, because the helper asks the kernel what is mapped before it acts
//! on one. But a range must not be forgotten *after* it was associated anew. So the helper empties this queue after it has taken requests
//! and before it answers them: memory is reused after it was freed, and requested after that.

use core::sync::atomic::{AtomicUsize, Ordering::*};

const ROOM: usize = 256;

struct Entry {
    /// 0 free, 1 being filled, otherwise the length.
    len: AtomicUsize,
    addr: AtomicUsize,
}

static RING: [Entry; ROOM] = [const { Entry { len: AtomicUsize::new(0), addr: AtomicUsize::new(0) } }; ROOM];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Leaves a range for the helper. False: no room, it has to be said in a request. Page aligned, so that no
/// length is 1.
pub fn leave(addr: usize, len: usize) -> bool {
    let start = NEXT.fetch_add(1, Relaxed);
    for i in 0..8 {
        let Some(entry) = RING.get((start + i) % ROOM) else { continue };
        if entry.len.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
            entry.addr.store(addr, Relaxed);
            entry.len.store(len, Release);
            return true;
        }
    }
    false
}

/// In the helper: takes what was left, in no particular order (ranges that are gone do not depend on each other).
pub(crate) fn take_all(mut each: impl FnMut(usize, usize)) {
    for entry in &RING {
        let len = entry.len.load(Acquire);
        if len > 1 {
            let addr = entry.addr.load(Relaxed);
            entry.len.store(0, Release);
            each(addr, len);
        }
    }
}

/// In a forked child: a slot that another thread was filling stays lost with it.
pub(crate) fn reset() {
    for entry in &RING {
        if entry.len.load(Relaxed) == 1 {
            entry.len.store(0, Relaxed);
        }
    }
}
