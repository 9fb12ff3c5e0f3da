//! Where in its first page a large block starts.
//!
//! A read can be deferred when the address and the file offset agree modulo the page size. `malloc` promises
//! only 16 bytes, so the phase is ours to choose. A page boundary is right most often, because most
//! programs read a file from its start; a program that has read a header allocates for what follows, and
//! then the position of the file is right. What was last learnt about a file's position waits in one word for the
//! next large allocation of the same thread. A wrong guess costs a deferral, never a wrong byte.

use super::PAGE;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where a CPython bytes object keeps its bytes, behind its header.
const BYTES_HEADER: usize = 32;

/// The alignment that malloc promises.
const ALIGNMENT: usize = 16;

/// What was last learnt: bits 63..52 a mark of the thread, 51..12 the bytes that remain in the file,
/// 11..0 the position modulo the page size. 0: nothing.
static HINT: AtomicU64 = AtomicU64::new(0);

const REMAINING_BITS: u32 = 40;
const POSITION_BITS: u32 = 12;

/// The phase for a block of `request` bytes, when the thread was last at `position` in a file with
/// `remaining` bytes from there to its end. `None`: the block is not for that file.
pub fn phase_for(request: usize, position: u64, remaining: u64) -> Option<usize> {
    let request = request as u64;
    let within = (position % PAGE as u64) as usize;
    // CPython's `read()` makes a bytes object of what remains, plus one byte to see the end of the file by, and
    // bytes objects have a header and a terminating byte.
    let object = remaining.saturating_add(BYTES_HEADER as u64 + 1);
    let phase = if request == object || request == object + 1 {
        (within + PAGE - BYTES_HEADER) % PAGE
    } else if request <= remaining.saturating_add(PAGE as u64) {
        within
    } else {
        return None;
    };
    Some(if phase.is_multiple_of(ALIGNMENT) { phase } else { 0 })
}

/// A regular file was opened, measured, seeked or read, and is now at `position` with `remaining` bytes to
/// come: the next large block of this thread may be for them.
pub fn hint_file(position: u64, remaining: u64) {
    HINT.store(pack(thread_mark(), position, remaining), Ordering::Relaxed);
}

/// The phase for a block of `request` bytes that this thread is about to get.
pub(crate) fn take(request: usize) -> usize {
    let hint = HINT.load(Ordering::Relaxed);
    if hint == 0 || hint >> (REMAINING_BITS + POSITION_BITS) != thread_mark() {
        return 0;
    }
    let position = hint & ((1 << POSITION_BITS) - 1);
    let remaining = (hint >> POSITION_BITS) & ((1 << REMAINING_BITS) - 1);
    match phase_for(request, position, remaining) {
        Some(phase) => {
            // Another thread's newer hint stays.
            let _ = HINT.compare_exchange(hint, 0, Ordering::Relaxed, Ordering::Relaxed);
            phase
        }
        None => 0,
    }
}

fn pack(mark: u64, position: u64, remaining: u64) -> u64 {
    let remaining = remaining.min((1 << REMAINING_BITS) - 1);
    (mark << (REMAINING_BITS + POSITION_BITS)) | (remaining << POSITION_BITS) | (position % PAGE as u64)
}

/// Twelve bits that tell threads apart well enough to place a block by, never 0.
fn thread_mark() -> u64 {
    // (An address of this thread's own, without asking the kernel and without thread-local storage of ours.)
    ((crate::abi::arch::thread_pointer() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_the_programs_surveyed() {
        // A C program, perl, numpy.fromfile: the whole file, from its start.
        assert_eq!(phase_for(1 << 20, 0, 1 << 20), Some(0));
        // CPython's read().
        assert_eq!(phase_for((1 << 20) + 34, 0, 1 << 20), Some(0xfe0));
        assert_eq!(phase_for((1 << 20) + 33, 0, 1 << 20), Some(0xfe0));
        assert_eq!(phase_for((1 << 20) + 34, 64, 1 << 20), Some(32));
        // bytearray: one byte more, no header.
        assert_eq!(phase_for((1 << 20) + 1, 0, 1 << 20), Some(0));
        // A .npy behind its header, torch behind its own.
        assert_eq!(phase_for(1 << 20, 0x80, 1 << 20), Some(0x80));
        assert_eq!(phase_for(1 << 16, 0x2180, 1 << 20), Some(0x180));
    }

    #[test]
    fn positions_that_malloc_cannot_match_start_a_page() {
        assert_eq!(phase_for(1 << 20, 77, 1 << 20), Some(0));
        assert_eq!(phase_for((1 << 20) + 34, 8, 1 << 20), Some(0));
    }

    #[test]
    fn a_block_larger_than_the_file_is_for_something_else() {
        assert_eq!(phase_for(1 << 30, 0x80, 1 << 20), None);
    }

    #[test]
    fn every_phase_is_one_that_malloc_may_give() {
        for position in (0..8192).step_by(7) {
            for request in [0, 1, 4096, 4129, 4130, 8192] {
                if let Some(phase) = phase_for(request, position, 4096) {
                    assert!(phase < PAGE && phase % ALIGNMENT == 0);
                }
            }
        }
        assert_eq!(phase_for(usize::MAX, u64::MAX, u64::MAX), Some(0));
    }

    #[test]
    fn a_hint_is_for_one_block_of_its_own_thread() {
        hint_file(0x80, 1 << 20);
        assert_eq!(std::thread::spawn(|| take(1 << 20)).join().unwrap(), 0);
        assert_eq!(take(1 << 22), 0); // not for this file; the hint waits on
        assert_eq!(take(1 << 20), 0x80);
        assert_eq!(take(1 << 20), 0);
    }
}
