//! Writers in flight: which thread is changing which file.
//!
//! Every write is noted; only a read of a file open for writing looks, before its deferral. So each thread stores into its own
//! slot without a locked instruction, and the looking thread has the kernel run a barrier on the process's processors
//! (membarrier, Linux 4.14): it then sees the note, or the noting thread sees what was published before.
//!
//! Without a barrier or a free slot, or in a handler's nested call, the description counts the change.
//!
//! A thread cancelled or jumping out of a write leaves its note: the file's reads are no longer deferred under a write lease,
//! which is harmless.
#![allow(unsafe_code)] // A system call.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use elision_sys::raw::syscall;
use libc::{c_int, c_long, c_uint};

use crate::abi::arch::thread_pointer;
use crate::abi::raw::set_errno;

/// In a cache line of its own.
#[repr(align(64))]
struct Slot {
    /// The thread pointer or 0. An ended thread leaves the slot to the next at that address.
    thread: AtomicUsize,
    file: AtomicU64,
}

const SLOTS: usize = 256;

const PROBES: usize = 4;

static TABLE: [Slot; SLOTS] =
    [const { Slot { thread: AtomicUsize::new(0), file: AtomicU64::new(0) } }; SLOTS];

static BARRIERS: AtomicBool = AtomicBool::new(false);

const PRIVATE_EXPEDITED: usize = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;

const REGISTER_SYNC_CORE: usize = 1 << 6;
const REGISTER_RSEQ: usize = 1 << 8;
const GET_REGISTRATIONS: usize = 1 << 9;
const REGISTRATIONS: usize = REGISTER_PRIVATE_EXPEDITED | REGISTER_SYNC_CORE | REGISTER_RSEQ;

/// The program's own.
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

fn membarrier(command: usize) -> Option<usize> {
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]) }.ok()
}

pub(crate) fn prepare() {
    let already = membarrier(GET_REGISTRATIONS).unwrap_or(0);
    REGISTERED.store(already & REGISTRATIONS, Ordering::Relaxed);
    BARRIERS.store(membarrier(REGISTER_PRIVATE_EXPEDITED).is_some(), Ordering::Relaxed);
}

/// The program's membarrier, which must not show this registration.
pub(crate) fn membarrier_of_program(command: c_int, flags: c_uint, call: impl FnOnce() -> c_long) -> c_long {
    let registered = || REGISTERED.load(Ordering::Relaxed);
    let ours = BARRIERS.load(Ordering::Relaxed) && flags == 0;
    match command as usize {
        PRIVATE_EXPEDITED if ours && registered() & REGISTER_PRIVATE_EXPEDITED == 0 => {
            set_errno(libc::EPERM);
            -1
        }
        // Each of these shows the plain one, too.
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

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// By the thread pointer.
    First,
    /// Or behind; a thread without a slot takes one.
    Any,
}

#[inline(always)]
fn mine(place: Place) -> Option<&'static Slot> {
    let thread = thread_pointer();
    // Control blocks are at multiples of 64, mostly at ends of stacks, which are at multiples of pages.
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
    // Asked here alone: no thread has a slot without barriers.
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

#[derive(Clone, Copy)]
pub(crate) struct Noted(&'static Slot);

/// Notes the calling thread's change of `file`. `None`: the caller counts it.
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

#[inline(always)]
pub(crate) fn end(Noted(slot): Noted) {
    slot.file.store(0, Ordering::Release);
}

/// After this, earlier notes are visible, and later ones follow what is published by now. False: the kernel refused.
pub(crate) fn barrier() -> bool {
    core::sync::atomic::fence(Ordering::SeqCst);
    !BARRIERS.load(Ordering::SeqCst) || membarrier(PRIVATE_EXPEDITED).is_some()
}

/// How many threads change `file`? Only after [`barrier`].
pub(crate) fn under_way(file: NonZeroU64) -> u64 {
    TABLE.iter().filter(|slot| slot.file.load(Ordering::SeqCst) == file.get()).count() as u64
}

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

    /// Two threads each store, then look: one sees the other, with a barrier on one side.
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
