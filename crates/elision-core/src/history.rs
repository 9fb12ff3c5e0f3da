//! Does deferring pay? Decided by what became of earlier reads.
//!
//! Copying page by page costs more than reading at once. Where nearly all deferred pages came to be altered, the file's next
//! reads are traditional: a few at first, more after each failed try. Saves are tracked by the same rule. Outcomes count for
//! reads of about the same size, too.

use crate::settings::DEFAULT_MIN_BYTES;
use crate::stats::Reason;
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Reads still to be done traditionally, and how many there were at the last decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    left: u8,
    /// A traditional read has overwritten the memory: the next finding says nothing.
    void: bool,
    /// Pages were loaded for a change of the file, not altered.
    wanted: bool,
    /// 0: unknown; [`PAID`]: deferring paid.
    step: u8,
}

/// Traditional reads after the first failure…
const FIRST: u8 = 3;

/// …and at most.
const MOST: u8 = 63;

const VOID: u8 = 1 << 7;

const WANTED: u8 = 1 << 6;

const _: () = assert!(MOST < WANTED);

const PAID: u8 = u8::MAX;

impl Memory {
    /// The reason not to defer the next read, if any. The outer `None`: unknown.
    fn declines(&mut self) -> Option<Option<Reason>> {
        let reason = if self.wanted { Reason::Changing } else { Reason::MostlyAltered };
        let declines = (self.left > 0).then_some(reason);
        self.left = self.left.saturating_sub(1);
        (self.step > 0).then_some(declines)
    }

    fn learn(&mut self, known: usize, altered: usize) {
        if core::mem::take(&mut self.void) {
            return;
        }
        // Break-even lies between a half and all. From the benches.
        if altered / 4 >= known / 5 {
            let before = if self.step == PAID { 0 } else { self.step };
            self.step = (before * 2 + 1).clamp(FIRST, MOST);
            self.left = self.step;
            self.wanted = false;
        } else {
            // A file that was wanted after a save may be wanted after this one: forgiven step by step.
            let step = if self.wanted { self.step.saturating_sub(1) } else { 0 };
            *self =
                Memory { step: if step == 0 { PAID } else { step }, wanted: step > 0, ..Memory::default() };
        }
    }
}

/// A tag in the upper bits, a [`Memory`] in the lowest 16. Files may evict each other.
type Table = [AtomicU64; 64];

static FILES: Table = [const { AtomicU64::new(0) }; 64];

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
    // A race between threads loses one lesson.
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
    // A power of two, and a little less without its fragments, are of one size.
    with(&SIZES, (len + len / 8).checked_ilog2().unwrap_or(0).into(), 0, act)
}

/// The whole pages of any transfer that is considered by default.
pub const LARGE: usize = DEFAULT_MIN_BYTES - 2 * PAGE;

/// The reason not to defer this read of a file that is to be changed.
pub fn declines(number: u64, len: usize) -> Option<Reason> {
    let of_its_size = || if len < LARGE { None } else { with_size(len, Memory::declines) };
    with_file(number, Memory::declines).or_else(of_its_size).flatten()
}

/// The same for any read, or for tracking a save.
pub fn declines_large(number: u64, len: usize) -> Option<Reason> {
    if len >= LARGE { declines(number, len) } else { None }
}

pub fn learn(number: u64, known: usize, altered: usize) {
    if altered / 4 < known / 5 {
        IN_A_ROW.store(0, Relaxed);
    }
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

/// A traditional read overwrites deferred pages. If that counted, one would end deferral for a program that reuses its memory.
pub fn overwritten(number: u64, len: usize) {
    if len >= LARGE {
        with_file(number, |memory| memory.void = true);
        with_size(len, |memory| memory.void = true);
    }
}

pub fn learn_of_file(number: u64, known: usize) {
    if known > 0 {
        with_file(number, |memory| {
            let void = memory.void;
            if !void {
                // What the save before has forgiven; or more to begin with than a save and the free of its buffer forgive.
                memory.step = match memory.step {
                    step if memory.wanted => (step + 1).min(MOST),
                    PAID => FIRST,
                    step => step.max(FIRST),
                };
            }
            memory.learn(known, known);
            memory.wanted |= !void;
        });
    }
}

/// Another process needed all that was deferred. That counts for other files of its size, too: the program may read another one each
/// time, and what is deferred in vain takes fresh memory, where a plain read reuses some.
pub fn learn_of_copy(number: u64, known: usize) {
    learn_of_file(number, known);
    IN_A_ROW.fetch_add(1, Relaxed);
    with_size(known, |memory| memory.learn(known, known));
}

/// Is memory that was copied for a change likely to be saved? Not from the second copy in a row on: another process changes the files,
/// and tracking costs a fault for each page that is used again.
pub fn tracks_copies() -> bool {
    IN_A_ROW.load(Relaxed) < 2
}

/// Copies since deferring last paid.
static IN_A_ROW: AtomicU32 = AtomicU32::new(0);

pub fn is_curious(len: usize) -> bool {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    len >= LARGE
        && (with_size(len, |memory| memory.step != PAID) || ASKED.fetch_add(1, Relaxed).is_multiple_of(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `rounds` reads, `altered` percent altered each time, are declined?
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
        // Two in 65 are tried: the first is observed, the second follows from it.
        assert_eq!(got[350..].iter().filter(|&&declined| !declined).count(), 20);
        assert!(!declined(number, 200, 70)[80..].contains(&true));
    }

    #[test]
    fn a_file_that_is_wanted_after_its_saves_is_soon_read_at_once() {
        // Of 200 reads that are each followed by a save; the file is wanted after every so many of those deferred, or never.
        let deferred = |number: u64, every: usize| {
            let mut deferred = 0;
            for _ in 0..200 {
                if declines(number << 48, 100).is_none() {
                    learn(number << 48, 100, 0);
                    deferred += 1;
                    if every > 0 && deferred % every == 0 {
                        learn_of_file(number << 48, 100);
                    }
                }
            }
            deferred
        };
        assert!(deferred(0x5555, 1) <= 10);
        assert!(deferred(0x9999, 2) <= 20);
        // It is forgiven when nobody wants the file any more.
        assert!(deferred(0x9999, 0) > 130);
        assert_eq!(deferred(0x9999, 0), 200);
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
        // A file known to pay is still deferred, and then others of that size.
        learn(number(3), 2 * size, size);
        assert!(declines(number(3), size).is_none() && declines(number(4), size).is_some());
        learn(number(3), size, 0);
        assert!(declines(number(4), size).is_none());
        assert!(declines(number(8), 4 * size).is_none());
        learn_of_copy(number(5), 4 * size);
        assert!(declines(number(8), 4 * size).is_some() && tracks_copies());
        learn_of_copy(number(6), 4 * size);
        assert!(declines(number(6), 4 * size).is_some() && !tracks_copies());
        learn(number(9), size, 0);
        learn_of_copy(number(9), 4 * size);
        assert!(tracks_copies());
        assert_eq!((0..32).filter(|_| is_curious(size)).count(), 2);
    }
}
