//! Writers in flight: which thread is changing which file.
//!
//! Looked at rarely (when a read of a file open for writing is about to be deferred), noted on every write, however small.
//! So each thread has a slot of its own and stores into it without an instruction that locks a cache line. A thread that
//! looks at the slots has the kernel run a barrier on every processor where this process runs (membarrier, Linux 4.14).
//! After that, either the looking thread sees the note, or the noting thread sees what was published before the barrier.
//!
//! Where the kernel has no such barrier, where there are more threads than slots, and for a signal handler's call within a
//! call, the table of descriptions has a counter instead.
//!
//! A thread that is cancelled, or jumps out of a signal handler, in the middle of a write leaves it noted. Reads of that
//! file are then no longer deferred under a write lease, which is harmless.
#![allow(unsafe_code)] // A system call.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use elision_sys::raw::syscall;
use libc::{c_int, c_long, c_uint};

use crate::abi::arch::thread_pointer;
use crate::abi::raw::set_errno;

/// What one thread is changing. A cache line of its own.
#[repr(align(64))]
struct Slot {
    /// Its thread pointer; 0 while no thread has the slot. A thread that has ended leaves it to the next of that address.
    thread: AtomicUsize,
    /// The number of the file; 0 for none.
    file: AtomicU64,
}

const SLOTS: usize = 256;

/// Places that a thread may have, from the one that its pointer names.
const PROBES: usize = 4;

static TABLE: [Slot; SLOTS] =
    [const { Slot { thread: AtomicUsize::new(0), file: AtomicU64::new(0) } }; SLOTS];

/// Does the kernel run barriers for this process?
static BARRIERS: AtomicBool = AtomicBool::new(false);

const PRIVATE_EXPEDITED: usize = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;

const REGISTER_SYNC_CORE: usize = 1 << 6;
const REGISTER_RSEQ: usize = 1 << 8;
const GET_REGISTRATIONS: usize = 1 << 9;
const REGISTRATIONS: usize = REGISTER_PRIVATE_EXPEDITED | REGISTER_SYNC_CORE | REGISTER_RSEQ;

/// What the program itself has registered for, of [`REGISTRATIONS`].
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

fn membarrier(command: usize) -> Option<usize> {
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]) }.ok()
}

/// Asks the kernel for barriers.
pub(crate) fn prepare() {
    let already = membarrier(GET_REGISTRATIONS).unwrap_or(0);
    REGISTERED.store(already & REGISTRATIONS, Ordering::Relaxed);
    BARRIERS.store(membarrier(REGISTER_PRIVATE_EXPEDITED).is_some(), Ordering::Relaxed);
}

/// The program's own membarrier, which must not show the registration made here.
pub(crate) fn membarrier_of_program(command: c_int, flags: c_uint, call: impl FnOnce() -> c_long) -> c_long {
    let registered = || REGISTERED.load(Ordering::Relaxed);
    let ours = BARRIERS.load(Ordering::Relaxed) && flags == 0;
    match command as usize {
        PRIVATE_EXPEDITED if ours && registered() & REGISTER_PRIVATE_EXPEDITED == 0 => {
            set_errno(libc::EPERM);
            -1
        }
        // Each registration of these says the plain one, too.
        GET_REGISTRATIONS if ours && registered() == 0 => match call() {
            failed @ ..0 => failed,
            seen => seen & !(REGISTER_PRIVATE_EXPEDITED as c_long),
        },
        one if one & REGISTRATIONS != 0 => {
            let result = call();
            if result == 0 {
                REGISTERED.fetch_or(one, Ordering::Relaxed);
            }
            result
        }
        _ => call(),
    }
}

/// Where a thread's slot may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where its pointer says, as it mostly is.
    First,
    /// There, or in one of the places behind. A thread that has none is given one of these.
    Any,
}

/// The slot of the calling thread, if it has one.
#[inline(always)]
fn mine(place: Place) -> Option<&'static Slot> {
    let thread = thread_pointer();
    // Control blocks lie at multiples of 64; stacks, at whose ends they mostly are, at multiples of pages.
    let first = (thread >> 6 ^ thread >> 12) % SLOTS;
    let slot = TABLE.get(first)?;
    match slot.thread.load(Ordering::Relaxed) == thread {
        true => Some(slot),
        false if place == Place::First => None,
        false => find(thread, first),
    }
}

#[cold]
#[inline(never)]
fn find(thread: usize, first: usize) -> Option<&'static Slot> {
    // Without barriers no thread has a slot: so this is the one place to ask.
    if !BARRIERS.load(Ordering::Relaxed) {
        return None;
    }
    (first..first + PROBES).filter_map(|place| TABLE.get(place % SLOTS)).find(|slot| {
        match slot.thread.compare_exchange(0, thread, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(now) => now == thread,
        }
    })
}

/// A call noted in its thread's slot.
#[derive(Clone, Copy)]
pub(crate) struct Noted(&'static Slot);

/// Notes that the calling thread is about to change `file`. `None`: the call has to be counted elsewhere.
#[inline(always)]
pub(crate) fn begin(file: NonZeroU64, place: Place) -> Option<Noted> {
    let slot = mine(place)?;
    if slot.file.load(Ordering::Relaxed) != 0 {
        return None;
    }
    slot.file.store(file.get(), Ordering::Release);
    compiler_fence(Ordering::SeqCst);
    Some(Noted(slot))
}

/// It is over.
#[inline(always)]
pub(crate) fn end(Noted(slot): Noted) {
    slot.file.store(0, Ordering::Release);
}

/// After this, what other threads have noted can be seen, and what they have yet to note comes after what was published by
/// now. False: the kernel refused, and nothing can be told.
pub(crate) fn barrier() -> bool {
    core::sync::atomic::fence(Ordering::SeqCst);
    !BARRIERS.load(Ordering::SeqCst) || membarrier(PRIVATE_EXPEDITED).is_some()
}

/// How many threads are changing `file`? To be asked after a [`barrier`].
pub(crate) fn under_way(file: NonZeroU64) -> u64 {
    TABLE.iter().filter(|slot| slot.file.load(Ordering::SeqCst) == file.get()).count() as u64
}

/// In a forked child, which has but one thread.
pub(crate) fn reset() {
    for slot in &TABLE {
        slot.file.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const fn file(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    #[test]
    fn a_thread_sees_what_another_is_at() {
        prepare();
        assert!(BARRIERS.load(Ordering::Relaxed), "this kernel has no membarrier");
        let (begun, wait_begun) = mpsc::channel();
        let (finish, wait_finish) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let noted = begin(file(77), Place::Any).unwrap();
            assert!(begin(file(78), Place::Any).is_none(), "a call within a call");
            begun.send(()).unwrap();
            let _ = wait_finish.recv();
            end(noted);
            end(begin(file(78), Place::Any).unwrap());
        });
        wait_begun.recv().unwrap();
        assert!(barrier());
        assert_eq!((under_way(file(77)), under_way(file(78))), (1, 0));
        end(begin(file(77), Place::Any).unwrap());
        drop(finish);
        other.join().unwrap();
        assert!(barrier());
        assert_eq!((under_way(file(77)), under_way(file(78))), (0, 0));
    }

    /// Dekker's promise, kept by one side's barrier alone: of two threads that each store and then look, one sees the other.
    #[test]
    fn one_of_two_sees_the_other() {
        use std::sync::{Barrier, atomic::AtomicBool};
        const ROUNDS: usize = 20_000;
        prepare();
        let published = AtomicBool::new(false);
        let start = Barrier::new(2);
        let (mut looked, mut missed) = (0, 0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut saw = Vec::with_capacity(ROUNDS);
                for _ in 0..ROUNDS {
                    start.wait();
                    let noted = begin(file(99), Place::Any).unwrap();
                    saw.push(published.load(Ordering::Acquire));
                    start.wait();
                    end(noted);
                    start.wait();
                }
                saw
            });
            let mut found = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                start.wait();
                published.store(true, Ordering::Release);
                assert!(barrier());
                found.push(under_way(file(99)) > 0);
                start.wait();
                published.store(false, Ordering::Release);
                start.wait();
            }
            for (saw, found) in writer.join().unwrap().into_iter().zip(found) {
                assert!(saw || found, "neither saw the other");
                looked += usize::from(saw);
                missed += usize::from(!saw);
            }
        });
        println!("the writer saw what was published {looked} times, and {missed} times it was seen");
    }
}
