//! Does deferring pay? Decided by what became of earlier reads.
//!
//! Copying pages one fault at a time costs more than reading them at once. Where nearly all deferred pages came to be altered, the next
//! reads of that file are traditional: a few at first, more each time that a try gives the same. Saves are tracked, or not, by the same rule.
//!
//! A save always teaches about a file that is read to be changed. All else is learnt of large transfers only: pages that were altered
//! before their memory was read into again or freed, or between two saves; and pages that were loaded because somebody wanted
//! to change the file. Statistics tell the two reasons apart.
//!
//! Many programs treat one file after the other alike, each of them once. So the outcome counts for reads of about the same
//! size as well, and an unknown file is taken for one of those.

use crate::stats::Reason;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What is known of a file: how many reads are still to be done traditionally, and how many there were at the last decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    left: u8,
    /// A read that was not deferred has overwritten the memory: what is found altered next says nothing.
    void: bool,
    /// The pages were not altered, but loaded because somebody wanted to change the file.
    wanted: bool,
    /// 0: nothing is known; [`PAID`]: deferring was worth it.
    step: u8,
}

/// Reads that are not deferred after the first time that deferring did not pay…
const FIRST: u8 = 3;

/// …and at most.
const MOST: u8 = 63;

/// [`Memory::void`] in a word, beside `left`.
const VOID: u8 = 1 << 7;

/// [`Memory::wanted`], likewise.
const WANTED: u8 = 1 << 6;

const _: () = assert!(MOST < WANTED);

const PAID: u8 = u8::MAX;

impl Memory {
    /// Should the next read rather not be deferred, and why? The outer `None`: nothing is known.
    fn declines(&mut self) -> Option<Option<Reason>> {
        let reason = if self.wanted { Reason::Changing } else { Reason::MostlyAltered };
        let declines = (self.left > 0).then_some(reason);
        self.left = self.left.saturating_sub(1);
        (self.step > 0).then_some(declines)
    }

    /// Of `known` bytes that stood for the file, `altered` were found altered.
    fn learn(&mut self, known: usize, altered: usize) {
        if core::mem::take(&mut self.void) {
            return;
        }
        // Deferring is level somewhere between a half and all. From the benches.
        if altered / 4 >= known / 5 {
            let before = if self.step == PAID { 0 } else { self.step };
            self.step = (before * 2 + 1).clamp(FIRST, MOST);
            self.left = self.step;
            self.wanted = false;
        } else {
            *self = Memory { step: PAID, ..Memory::default() };
        }
    }
}

/// A tag in the upper bits, and a [`Memory`] in the lowest 16. Files that share a place overwrite each other.
type Table = [AtomicU64; 64];

/// By the number of the file, whose upper bits are the tag.
static FILES: Table = [const { AtomicU64::new(0) }; 64];

/// By the number of bits that a length has.
static SIZES: Table = [const { AtomicU64::new(0) }; 64];

fn with<T>(table: &Table, place: u64, tag: u64, act: impl FnOnce(&mut Memory) -> T) -> T {
    let tag = tag & !0xffff;
    let place = table.get(place as usize);
    let word = place.map_or(0, |place| place.load(Relaxed));
    let mut memory = match word & !0xffff == tag {
        true => Memory {
            left: word as u8 & !(VOID | WANTED),
            void: word as u8 & VOID != 0,
            wanted: word as u8 & WANTED != 0,
            step: (word >> 8) as u8,
        },
        false => Memory::default(),
    };
    let before = memory;
    let result = act(&mut memory);
    // Of two threads one may overwrite what the other has learnt, which costs one guess.
    if memory != before
        && let Some(place) = place
    {
        let left = memory.left | if memory.void { VOID } else { 0 } | if memory.wanted { WANTED } else { 0 };
        place.store(tag | u64::from(memory.step) << 8 | u64::from(left), Relaxed);
    }
    result
}

fn with_file<T>(number: u64, act: impl FnOnce(&mut Memory) -> T) -> T {
    with(&FILES, number >> 58, number, act)
}

fn with_size<T>(len: usize, act: impl FnOnce(&mut Memory) -> T) -> T {
    with(&SIZES, len.checked_ilog2().unwrap_or(0).into(), 0, act)
}

/// Transfers of this size and more are large.
pub const LARGE: usize = 4 << 20;

/// Should this read of the file, which is to be changed, rather not be deferred, and why?
pub fn declines(number: u64, len: usize) -> Option<Reason> {
    let of_its_size = || if len < LARGE { None } else { with_size(len, Memory::declines) };
    with_file(number, Memory::declines).or_else(of_its_size).flatten()
}

/// The same for any read; or should this save of the file rather not be tracked?
pub fn declines_large(number: u64, len: usize) -> Option<Reason> {
    if len >= LARGE { declines(number, len) } else { None }
}

/// When they were saved, `known` bytes were found associated with the file, `altered` of them altered.
pub fn learn(number: u64, known: usize, altered: usize) {
    if known > 0 {
        with_file(number, |memory| memory.learn(known, altered));
    }
    if known >= LARGE {
        with_size(known, |memory| memory.learn(known, altered));
    }
}

/// As [`learn`], but at unmap.
pub fn learn_large(number: u64, known: usize, altered: usize) {
    if known >= LARGE {
        learn(number, known, altered);
    }
}

/// A read that is not deferred is about to overwrite deferred pages. What is found altered next is not learnt: else one such read
/// would end the deferral of a program that reads into the same memory again and again.
pub fn overwritten(number: u64, len: usize) {
    if len >= LARGE {
        with_file(number, |memory| memory.void = true);
        with_size(len, |memory| memory.void = true);
    }
}

/// What was deferred of this very file had to be loaded for a change that is no save.
pub fn learn_of_file(number: u64, known: usize) {
    if known > 0 {
        with_file(number, |memory| {
            let void = memory.void;
            memory.learn(known, known);
            memory.wanted |= !void;
        });
    }
}

/// Is it worth a round trip to learn what became of so many bytes? Where deferring is known to pay, now and then.
pub fn is_curious(len: usize) -> bool {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    len >= LARGE
        && (with_size(len, |memory| memory.step != PAID) || ASKED.fetch_add(1, Relaxed).is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of a file, into the same memory, of which a share is altered each time, in percent: which of them are declined?
    fn declined(number: u64, rounds: usize, altered: usize) -> Vec<bool> {
        let mut found = None;
        (0..rounds)
            .map(|_| {
                let declined = declines(number, LARGE).is_some();
                if declined {
                    overwritten(number, LARGE);
                    found = Some(100);
                } else if let Some(found) = found.replace(altered) {
                    learn(number, 100, found);
                }
                declined
            })
            .collect()
    }

    #[test]
    fn what_is_altered_throughout_is_soon_read_at_once() {
        let number = 0x1234_5678_0000_0000;
        let got = declined(number, 1000, 100);
        assert_eq!(got[..8], [false, false, true, true, true, false, false, true]);
        // From some time on two in 65 are tried: the first to see what becomes of it, the second then.
        assert_eq!(got[350..].iter().filter(|&&declined| !declined).count(), 20);
        // Once they are altered little, all is as at first.
        assert!(!declined(number, 200, 70)[80..].contains(&true));
    }

    #[test]
    fn files_are_told_apart() {
        learn_of_file(0x1111 << 48, 100);
        assert_eq!(declines(0x1112 << 48, 1 << 40), None);
        assert_eq!(declines(0x1111 << 48, 1 << 40), Some(Reason::Changing));
        learn_of_file(0x1111 << 48, 0);
        assert_eq!(declines(0x1111 << 48, 1 << 40), Some(Reason::Changing));
    }

    #[test]
    fn the_reason_is_what_happened_last() {
        let number = 0x7777 << 48;
        let next = || (0..MOST).find_map(|_| declines(number, 100));
        learn(number, 100, 100);
        assert_eq!(next(), Some(Reason::MostlyAltered));
        learn_of_file(number, 100);
        assert_eq!(next(), Some(Reason::Changing));
        learn(number, 100, 100);
        assert_eq!(next(), Some(Reason::MostlyAltered));
        learn(number, 100, 0);
        assert_eq!(next(), None);
    }

    #[test]
    fn a_file_of_which_nothing_is_known_is_like_others_of_its_size() {
        let (size, number) = (1 << 30, |n: u64| (0x2000 + n) << 48);
        assert!(is_curious(size) && declines(number(1), size).is_none());
        learn(number(1), size, size);
        assert!(declines(number(2), size + 5).is_some() && declines(number(2), 2 * size).is_none());
        // One that is known to pay is deferred all the same, and what is of that size again.
        learn(number(3), 2 * size, size);
        assert!(declines(number(3), size).is_none() && declines(number(4), size).is_some());
        learn(number(3), size, 0);
        assert!(declines(number(4), size).is_none());
        assert_eq!((0..32).filter(|_| is_curious(size)).count(), 2);
    }
}
