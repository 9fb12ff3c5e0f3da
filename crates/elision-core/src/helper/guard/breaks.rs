//! Notes of leases being broken, from signal handlers.
//!
//! Asking thousands of leases takes milliseconds, so the kernel names the descriptor in a signal (`F_SETSIG`). For the program's
//! descriptions, whose settings must not outlive a killed helper, and if the queue is full, it sends SIGIO: then all are asked.
//!
//! Notes are bits, so none is lost; a stale one does no harm. Taking a note precedes asking: a later break is noted anew.

use crate::helper::files::DESCRIPTORS;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Any real-time signal would do: only the helper's code runs here.
pub(crate) const NAMED_BREAK: i32 = 40;

static ALL: AtomicBool = AtomicBool::new(false);
static ANY: AtomicBool = AtomicBool::new(false);
static NOTED: [AtomicU64; DESCRIPTORS / 64] = [const { AtomicU64::new(0) }; DESCRIPTORS / 64];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    One(i32),
    All,
}

/// Async-signal-safe.
pub fn note_all() {
    ALL.store(true, SeqCst);
}

/// Async-signal-safe.
pub fn note(fd: i32) {
    let Ok(fd) = usize::try_from(fd) else { return note_all() };
    let Some(word) = NOTED.get(fd / 64) else { return note_all() };
    word.fetch_or(1 << (fd % 64), SeqCst);
    ANY.store(true, SeqCst);
}

pub fn any() -> bool {
    ALL.load(SeqCst) || ANY.load(SeqCst)
}

pub fn take(mut each: impl FnMut(Broken)) {
    let all = ALL.swap(false, SeqCst);
    if !ANY.swap(false, SeqCst) && !all {
        return;
    }
    for (at, word) in NOTED.iter().enumerate() {
        if word.load(Relaxed) == 0 {
            continue;
        }
        let mut bits = word.swap(0, SeqCst);
        while bits != 0 && !all {
            each(Broken::One((at * 64) as i32 + bits.trailing_zeros() as i32));
            bits &= bits - 1;
        }
    }
    if all {
        each(Broken::All);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> Vec<Broken> {
        let mut taken = Vec::new();
        take(|broken| taken.push(broken));
        taken
    }

    #[test]
    fn notes_are_taken_once_and_none_is_lost() {
        assert_eq!(taken(), []);
        let last = DESCRIPTORS as i32 - 1;
        for fd in [700, 63, 64, last, 0, 64] {
            note(fd);
        }
        assert_eq!(taken(), [0, 63, 64, 700, last].map(Broken::One));
        assert_eq!(taken(), []);
        for fd in [-1, last + 1] {
            note(fd);
            note(5);
            assert_eq!(taken(), [Broken::All], "{fd}");
            assert_eq!(taken(), []);
        }
        note(3);
        note(900);
        let mut seen = Vec::new();
        take(|broken| {
            if seen.is_empty() {
                note(3);
                note(1_000);
            }
            seen.push(broken);
        });
        seen.extend(taken());
        assert_eq!(seen, [3, 900, 1_000, 3].map(Broken::One));
    }

    #[test]
    fn notes_of_another_thread_are_never_lost() {
        const ROUNDS: i32 = 200_000;
        let done = AtomicBool::new(false);
        let states = [const { AtomicBool::new(false) }; 200];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let fd = round * 7 % 200;
                    states[fd as usize].store(true, SeqCst);
                    note(fd);
                }
                done.store(true, SeqCst);
            });
            let look = || {
                take(|broken| {
                    if let Broken::One(fd) = broken {
                        states[fd as usize].store(false, SeqCst);
                    }
                });
            };
            while !done.load(SeqCst) {
                look();
            }
            look();
            assert!(states.iter().all(|broken| !broken.load(SeqCst)));
        });
    }
}
