//! What became of earlier reads, and does deferring pay?
//!
//! Copying pages one fault at a time costs more than reading them all at once. So where nearly every page that was deferred came
//! to be altered, the next reads of that file are done the traditional way: a few at first, more if trying it again gives the
//! same. And so few saves of a buffer are tracked.
//!
//! What a save tells of a file that is read to be changed is always learnt. All else is learnt of large transfers alone, since only
//! there does it show: what was read in any way, and altered throughout before something else was read there, or it was freed; or
//! was wanted by somebody else; or is altered throughout between one save and the next.
//!
//! Which of the two it was, altered or wanted, is the reason that statistics give.
//!
//! Many programs do the same to one file after the other, each of them once. So the outcome counts for reads of about the same
//! size as well, and a file of which nothing is known is taken for one of those.

use crate::stats::Reason;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What is known of a file: how many reads are still to be done traditionally, and how many there were at the last decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    left: u8,
    /// What will be found altered next was overwritten by a read that was not deferred: it says nothing.
    void: bool,
    /// It was not altered, but had to be loaded because somebody wanted to change the file.
    wanted: bool,
    /// 0: nothing is known; [`PAID`]: deferring was worth it.
    step: u8,
}

/// The first time that deferring did not pay, so many reads are not deferred…
const FIRST: u8 = 3;

/// …and never more than so many.
const MOST: u8 = 63;

/// In a word, in the place of `left`: see [`Memory::void`].
const VOID: u8 = 1 << 7;

/// Likewise: see [`Memory::wanted`].
const WANTED: u8 = 1 << 6;

const _: () = assert!(MOST < WANTED);

const PAID: u8 = u8::MAX;

impl Memory {
    /// A read is about to be deferred. A reason: it should not be. `None`: nothing is known.
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

/// A tag in the upper bits, and a [`Memory`] in the lowest 16. What shares a place has it in turn.
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
    // Two threads may overwrite what the other has learnt, which costs one guess.
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

/// They were found when all was over.
pub fn learn_large(number: u64, known: usize, altered: usize) {
    if known >= LARGE {
        learn(number, known, altered);
    }
}

/// A read of the file that is not deferred is about to overwrite what was. (Whoever reads into the same memory again and again, and only looks at
/// it, would never be deferred again after one read that could not be.)
pub fn overwritten(number: u64, len: usize) {
    if len >= LARGE {
        with_file(number, |memory| memory.void = true);
        with_size(len, |memory| memory.void = true);
    }
}

/// What was deferred of this very file came to nothing.
pub fn learn_of_file(number: u64, known: usize) {
    if known > 0 {
        with_file(number, |memory| {
            let void = memory.void;
            memory.learn(known, known);
            memory.wanted |= !void;
        });
    }
}

/// Is it worth waiting for an answer to learn what became of so many bytes? Where it is known to pay, now and then.
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

    /// What had been wanted by others was said to have been altered.
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
