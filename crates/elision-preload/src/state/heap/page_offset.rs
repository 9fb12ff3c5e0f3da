//! Where in its first page a large block starts.
//!
//! A read can be deferred when the address and the file offset agree modulo the page size. `malloc` promises only
//! 16 bytes. Most programs read a file from its start, so a block mostly starts a page; a program that has
//! read a header allocates for what follows, and then the position in the file is right. What was last learnt of a position waits for the next large
//! block of the same thread. A wrong guess costs a deferral, never a wrong byte.

use super::PAGE;
use crate::abi::arch;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where a CPython bytes object keeps its bytes, behind its header.
const BYTES_HEADER: usize = 32;

/// The alignment that malloc promises.
const ALIGNMENT: usize = 16;

/// What was last learnt: bits 63..52 a mark of the thread, 51..12 the bytes that remain in the file,
/// 11..0 the position modulo the page size. 0: nothing.
static HINT: AtomicU64 = AtomicU64::new(0);

const REMAINING: u64 = (1 << 40) - 1;

/// The offset of a block of `request` bytes, where the thread was last at `position` in a file with `remaining` bytes behind that. `None`: the
/// block is not for that file.
fn offset_for(request: usize, position: u64, remaining: u64) -> Option<usize> {
    let request = request as u64;
    let within = (position % PAGE as u64) as usize;
    // CPython's `read()` makes a bytes object of what remains, plus one byte to see the end of the file by, and
    // bytes objects have a header and a terminating byte.
    let object = remaining.saturating_add(BYTES_HEADER as u64 + 1);
    let offset = if request == object || request == object + 1 {
        (within + PAGE - BYTES_HEADER) % PAGE
    } else {
        (request <= remaining.saturating_add(PAGE as u64)).then_some(within)?
    };
    Some(if offset.is_multiple_of(ALIGNMENT) { offset } else { 0 })
}

/// A regular file was opened, measured, seeked or read, and is now at `position` with `remaining` bytes to
/// come: the next large block of this thread may be for them.
pub fn hint_file(position: u64, remaining: u64) {
    HINT.store(thread_mark() | remaining.min(REMAINING) << 12 | (position % PAGE as u64), Relaxed);
}

/// The offset of a block of `request` bytes that this thread is about to get.
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

/// Twelve upper bits that tell threads apart well enough to place a block by, never 0.
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
            // A C program, perl, numpy.fromfile: the whole file, from its start.
            (MIB, 0, 1 << 20, Some(0)),
            // CPython's read(); bytearray: one byte more, no header.
            (MIB + 34, 0, 1 << 20, Some(0xfe0)),
            (MIB + 33, 0, 1 << 20, Some(0xfe0)),
            (MIB + 34, 64, 1 << 20, Some(32)),
            (MIB + 1, 0, 1 << 20, Some(0)),
            // A .npy behind its header, torch behind its own.
            (MIB, 0x80, 1 << 20, Some(0x80)),
            (1 << 16, 0x2180, 1 << 20, Some(0x180)),
            // Positions that malloc cannot match start a page.
            (MIB, 77, 1 << 20, Some(0)),
            (MIB + 34, 8, 1 << 20, Some(0)),
            // A block larger than the file is for something else.
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
