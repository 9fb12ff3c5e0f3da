//! Where in its first page a large block starts.
//!
//! A read is deferrable if address and file position agree modulo the page size; `malloc` promises 16 bytes only. Most programs
//! read from a file's start, or allocate after they have read a header: the last known position serves the thread's next large
//! block. A wrong guess only costs a deferral.

use super::PAGE;
use crate::abi::arch;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where a CPython bytes object keeps its bytes.
const BYTES_HEADER: usize = 32;

const ALIGNMENT: usize = 16;

/// The last hint: bits 63..52 thread mark, 51..12 remaining bytes, 11..0 position modulo the page size. 0: none.
static HINT: AtomicU64 = AtomicU64::new(0);

const REMAINING: u64 = (1 << 40) - 1;

/// The offset for `request` bytes after the hint. `None`: the block is not for that file.
fn offset_for(request: usize, position: u64, remaining: u64) -> Option<usize> {
    let request = request as u64;
    let within = (position % PAGE as u64) as usize;
    // CPython's `read()` makes a bytes object of the remaining bytes plus one, with header and terminator.
    let object = remaining.saturating_add(BYTES_HEADER as u64 + 1);
    let offset = if request == object || request == object + 1 {
        (within + PAGE - BYTES_HEADER) % PAGE
    } else {
        (request <= remaining.saturating_add(PAGE as u64)).then_some(within)?
    };
    Some(if offset.is_multiple_of(ALIGNMENT) { offset } else { 0 })
}

/// A regular file was opened, measured, seeked or read: the thread's next large block may be for the rest.
pub fn hint_file(position: u64, remaining: u64) {
    HINT.store(thread_mark() | remaining.min(REMAINING) << 12 | (position % PAGE as u64), Relaxed);
}

pub(super) fn take(request: usize) -> usize {
    let hint = HINT.load(Relaxed);
    if hint >> 52 != thread_mark() >> 52 {
        return 0;
    }
    let offset = offset_for(request, hint % PAGE as u64, hint >> 12 & REMAINING);
    if offset.is_some() {
        // Another thread's newer hint stays.
        let _ = HINT.compare_exchange(hint, 0, Relaxed, Relaxed);
    }
    offset.unwrap_or(0)
}

/// Twelve upper bits, mostly distinct between threads, never 0.
fn thread_mark() -> u64 {
    ((arch::thread_pointer() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52 | 1) << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_the_programs_surveyed() {
        const MIB: usize = 1 << 20;
        for (request, position, remaining, offset) in [
            // The whole file (C, perl, numpy.fromfile).
            (MIB, 0, 1 << 20, Some(0)),
            // CPython's read(); bytearray: one byte more, no header.
            (MIB + 34, 0, 1 << 20, Some(0xfe0)),
            (MIB + 33, 0, 1 << 20, Some(0xfe0)),
            (MIB + 34, 64, 1 << 20, Some(32)),
            (MIB + 1, 0, 1 << 20, Some(0)),
            // Behind a header (.npy, torch).
            (MIB, 0x80, 1 << 20, Some(0x80)),
            (1 << 16, 0x2180, 1 << 20, Some(0x180)),
            // Positions that malloc cannot match.
            (MIB, 77, 1 << 20, Some(0)),
            (MIB + 34, 8, 1 << 20, Some(0)),
            // Larger than the file.
            (1 << 30, 0x80, 1 << 20, None),
            (usize::MAX, u64::MAX, u64::MAX, Some(0)),
        ] {
            assert_eq!(offset_for(request, position, remaining), offset, "{request} {position}");
        }
    }

    #[test]
    fn every_offset_is_one_that_malloc_may_give() {
        for position in (0..8192).step_by(7) {
            for request in [0, 1, 4096, 4129, 4130, 8192] {
                let offset = offset_for(request, position, 4096).unwrap_or(0);
                assert!(offset < PAGE && offset.is_multiple_of(ALIGNMENT));
            }
        }
    }

    #[test]
    fn a_hint_is_for_one_block_of_its_own_thread() {
        hint_file(0x80, 1 << 20);
        assert_eq!(std::thread::spawn(|| take(1 << 20)).join().unwrap(), 0);
        assert_eq!(take(1 << 22), 0); // not for this file; the hint waits on
        assert_eq!([take(1 << 20), take(1 << 20)], [0x80, 0]);
    }
}
