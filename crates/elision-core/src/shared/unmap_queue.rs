//! Unmapped ranges, on their way to the helper.
//!
//! No answer is needed: a stale record does no harm, because the helper asks the kernel what is mapped before it acts. A range
//! must not be forgotten *after* a new association, so the helper empties this queue between taking requests and answering them.

use core::sync::atomic::{AtomicUsize, Ordering::*};

const ROOM: usize = 256;

struct Entry {
    /// 0 free, 1 being filled (no page-aligned length is 1), otherwise the length.
    len: AtomicUsize,
    addr: AtomicUsize,
}

static RING: [Entry; ROOM] = [const { Entry { len: AtomicUsize::new(0), addr: AtomicUsize::new(0) } }; ROOM];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// False: no room, send a request instead.
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

/// In a forked child: a slot that another thread was filling stays lost.
pub(crate) fn reset() {
    for entry in &RING {
        if entry.len.load(Relaxed) == 1 {
            entry.len.store(0, Relaxed);
        }
    }
}
