//! Mappings that carry their own lease (see [`crate::quick`]), on their way to the sidecar.
//!
//! Whoever makes one leaves word of it here and does not wait: until the sidecar takes the word, the lease that the mapping
//! carries holds the file, and its breaking wakes the sidecar, which looks here first.
//!
//! Word of a range, and word that the same range was forgotten, must not overtake each other. Therefore a buffer that goes takes
//! its word back, if it is still here, and waits for the moment in which the sidecar makes a record of it. And the sidecar,
//! when it has taken a word, empties the ring of [`crate::shared::unmap_queue`] before it makes the record: whatever is there of
//! that range by then was there before.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::file::FileKey;

const ROOM: usize = 256;

/// More than this, and the sidecar should take some.
pub const MANY: usize = ROOM / 4;

/// Places that a range may be left in, from the one that its address names.
const PROBES: usize = 8;

/// States of an entry; anything else is the address of its range. (So that only the owner of a range can take its word back:
/// no other entry ever says the same.)
const FREE: usize = 0;
const FILLING: usize = 1;

/// Added to the address while the sidecar makes a record of it.
const TAKEN: usize = 1;

struct Entry {
    state: AtomicUsize,
    len: AtomicUsize,
    dev: AtomicU64,
    ino: AtomicU64,
}

static RING: [Entry; ROOM] = [const {
    Entry {
        state: AtomicUsize::new(FREE),
        len: AtomicUsize::new(0),
        dev: AtomicU64::new(0),
        ino: AtomicU64::new(0),
    }
}; ROOM];

/// Words that were left and are not recorded yet, nor withdrawn: never less than there are.
static PENDING: AtomicUsize = AtomicUsize::new(0);

/// A private mapping of a whole file's pages, from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// First byte in memory.
    pub addr: usize,
    /// Bytes; whole pages.
    pub len: usize,
    /// The file.
    pub key: FileKey,
}

fn places(addr: usize) -> impl Iterator<Item = &'static Entry> {
    let first = (addr >> 12).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    (first..first + PROBES).filter_map(|place| RING.get(place % ROOM))
}

/// How many there are.
pub fn pending() -> usize {
    PENDING.load(SeqCst)
}

/// Leaves a word. False: there is no room.
pub fn leave(word: Word) -> bool {
    PENDING.fetch_add(1, SeqCst);
    for entry in places(word.addr) {
        if entry.state.compare_exchange(FREE, FILLING, Acquire, Relaxed).is_ok() {
            entry.len.store(word.len, Relaxed);
            entry.dev.store(word.key.dev, Relaxed);
            entry.ino.store(word.key.ino, Relaxed);
            entry.state.store(word.addr, SeqCst);
            return true;
        }
    }
    PENDING.fetch_sub(1, SeqCst);
    false
}

/// Takes back the word of a range that begins at `addr`. False: the sidecar has a record of it, or it never was here.
/// `wait` waits for a moment, and says false if there is no sidecar any more.
pub fn withdraw(addr: usize, wait: impl Fn() -> bool) -> bool {
    if pending() == 0 {
        return false;
    }
    for entry in places(addr) {
        if entry.state.compare_exchange(addr, FREE, AcqRel, Acquire).is_ok() {
            PENDING.fetch_sub(1, SeqCst);
            return true;
        }
        while entry.state.load(Acquire) == addr | TAKEN && wait() {}
    }
    false
}

/// In the sidecar: a word that was taken.
pub(crate) struct Taken {
    pub word: Word,
    entry: &'static Entry,
}

impl Taken {
    /// There is a record of it now.
    pub fn recorded(self) {
        self.entry.state.store(FREE, Release);
        PENDING.fetch_sub(1, SeqCst);
    }
}

/// In the sidecar: takes one word, if there is any.
pub(crate) fn take() -> Option<Taken> {
    if pending() == 0 {
        return None;
    }
    RING.iter().find_map(|entry| {
        let addr = entry.state.load(SeqCst);
        let taken = addr & TAKEN == 0
            && addr != FREE
            && entry.state.compare_exchange(addr, addr | TAKEN, AcqRel, Relaxed).is_ok();
        taken.then(|| {
            let key = FileKey { dev: entry.dev.load(Relaxed), ino: entry.ino.load(Relaxed) };
            Taken { word: Word { addr, len: entry.len.load(Relaxed), key }, entry }
        })
    })
}

/// In a new sidecar: what another had taken, and was killed before it made a record, is there to be taken again.
pub(crate) fn untake() {
    for entry in &RING {
        let state = entry.state.load(Relaxed);
        if state & TAKEN != 0 && state != FILLING {
            entry.state.store(state & !TAKEN, Release);
        }
    }
}

/// In a forked child: what another thread was leaving stays lost with it. (Anything else can be here only if no sidecar was there to take
/// it before the fork, and is this one's, too.)
pub(crate) fn reset() {
    let mut pending = 0;
    for entry in &RING {
        match entry.state.load(Relaxed) {
            FREE => (),
            FILLING => entry.state.store(FREE, Relaxed),
            _ => pending += 1,
        }
    }
    PENDING.store(pending, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn word(n: usize) -> Word {
        Word { addr: n << 12, len: (n + 1) << 12, key: FileKey { dev: 1, ino: n as u64 } }
    }

    fn yields() -> bool {
        std::thread::yield_now();
        true
    }

    fn take_word() -> Option<Word> {
        take().map(|taken| {
            let word = taken.word;
            taken.recorded();
            word
        })
    }

    #[test]
    fn what_is_left_is_taken_once_or_withdrawn() {
        assert_eq!(take_word(), None);
        for n in 1..=20 {
            assert!(leave(word(n)));
        }
        assert_eq!(pending(), 20);
        assert!(withdraw(word(7).addr, yields));
        assert!(!withdraw(word(7).addr, yields));
        let mut taken: Vec<Word> = core::iter::from_fn(take_word).collect();
        taken.sort_by_key(|word| word.addr);
        let expected: Vec<Word> = (1..=20).filter(|&n| n != 7).map(word).collect();
        assert_eq!(taken, expected);
        assert_eq!(pending(), 0);
        assert!(!withdraw(word(1).addr, yields));
    }

    /// Each word goes to exactly one: back to its thread, or to the one who takes. And a thread that does not get its word back
    /// knows that there is a record. (When it did not wait for that, what it left to be forgotten was forgotten first, and
    /// the record stayed: seen as a page of fresh memory that was said to be deferred.)
    #[test]
    fn threads_and_taker_never_share_a_word() {
        use std::sync::atomic::AtomicBool;
        const THREADS: usize = 3;
        const EACH: usize = 5_000;
        static RECORDS: [AtomicBool; 1 + THREADS * EACH] =
            [const { AtomicBool::new(false) }; 1 + THREADS * EACH];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    scope.spawn(move || {
                        let (mut kept, mut back) = (0, 0);
                        for n in 0..EACH {
                            let n = 1 + thread + THREADS * n;
                            if leave(word(n)) {
                                if n.is_multiple_of(2) {
                                    std::thread::yield_now();
                                }
                                let withdrawn = withdraw(word(n).addr, yields);
                                assert_ne!(RECORDS[n].load(SeqCst), withdrawn, "word {n}");
                                if withdrawn { back += 1 } else { kept += 1 }
                            }
                        }
                        (kept, back)
                    })
                })
                .collect();
            let taker = scope.spawn(|| {
                let mut count = 0;
                while !done.load(SeqCst) || pending() != 0 {
                    if let Some(taken) = take() {
                        let n = taken.word.addr >> 12;
                        assert_eq!(taken.word, word(n));
                        assert!(!RECORDS[n].swap(true, SeqCst));
                        taken.recorded();
                        count += 1;
                    }
                }
                count
            });
            let (kept, back) = makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
            done.store(true, SeqCst);
            assert_eq!(taker.join().unwrap(), kept);
            assert!(kept > 0 && back > 0, "{kept} {back}");
        });
    }
}
