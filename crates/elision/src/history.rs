//! What became of earlier reads of a file, where it is read to be changed.
//!
//! Copying pages one fault at a time costs more than reading them all at once. So where nearly every page that was deferred came
//! to be altered before the file was written back, the next reads of that file for editing are done the traditional way: a few
//! at first, more if trying it again gives the same.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is known of a file: how many reads are still to be done traditionally, and how many there were at the last decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    left: u8,
    step: u8,
}

/// The first time that deferring did not pay, so many reads are not deferred…
const FIRST: u8 = 3;

/// …and never more than so many.
const MOST: u8 = 31;

impl Memory {
    /// A read is about to be deferred. True: it should not be.
    fn declines(&mut self) -> bool {
        let declines = self.left > 0;
        self.left = self.left.saturating_sub(1);
        declines
    }

    /// Of `known` bytes that stood for the file, `altered` were found altered when it was written back.
    fn learn(&mut self, known: usize, altered: usize) {
        // Deferring is level somewhere between a half and all. From the benches.
        if altered / 4 >= known / 5 {
            self.step = (self.step * 2 + 1).clamp(FIRST, MOST);
            self.left = self.step;
        } else {
            *self = Memory::default();
        }
    }
}

/// By the number of the file: its upper bits, and a [`Memory`] in the lowest 16. Files share places; the last one has it.
static TABLE: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn with<T>(number: u64, act: impl FnOnce(&mut Memory) -> T) -> T {
    let tag = number & !0xffff;
    let place = TABLE.get((number >> 58) as usize);
    let word = place.map_or(0, |place| place.load(Relaxed));
    let mut memory = match word & !0xffff == tag {
        true => Memory { left: word as u8, step: (word >> 8) as u8 },
        false => Memory::default(),
    };
    let before = memory;
    let result = act(&mut memory);
    // Two threads may overwrite what the other has learnt, which costs one guess.
    if memory != before
        && let Some(place) = place
    {
        place.store(tag | u64::from(memory.step) << 8 | u64::from(memory.left), Relaxed);
    }
    result
}

/// Should a read of this file, which is open for writing, rather not be deferred?
pub fn declines(number: u64) -> bool {
    with(number, Memory::declines)
}

/// A write to the file found `known` bytes associated, and `altered` of them altered.
pub fn learn(number: u64, known: usize, altered: usize) {
    if known > 0 {
        with(number, |memory| memory.learn(known, altered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of a file of which a share is altered each time: which of them are declined?
    fn declined(number: u64, rounds: usize, altered: usize) -> Vec<bool> {
        (0..rounds)
            .map(|_| {
                let declined = declines(number);
                if !declined {
                    learn(number, 100, altered);
                }
                declined
            })
            .collect()
    }

    #[test]
    fn what_is_altered_throughout_is_soon_read_at_once() {
        let number = 0x1234_5678_0000_0000;
        let got = declined(number, 200, 100);
        assert_eq!(got[..5], [false, true, true, true, false]);
        // From some time on one in 32 is tried.
        assert_eq!(got[100..].iter().filter(|&&declined| !declined).count(), 3);
        // One read that was altered little, and all is as at first.
        while declines(number) {}
        learn(number, 100, 1);
        assert!(!declined(number, 50, 70).contains(&true));
    }

    #[test]
    fn files_are_told_apart() {
        learn(0x1111 << 48, 100, 100);
        assert!(!declines(0x1112 << 48));
        assert!(declines(0x1111 << 48));
        learn(0x1111 << 48, 0, 0);
        assert!(declines(0x1111 << 48));
    }
}
