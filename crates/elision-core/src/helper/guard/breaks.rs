//! Which leases may be being broken: noted in signal handlers, asked in the helper's loop.
//!
//! To ask each of thousands of leases takes milliseconds, in which everybody who wants a file waits. So the kernel is told (`F_SETSIG`) to
//! send a real-time signal for leases on the helper's own descriptions, which names the descriptor. It sends SIGIO for leases on the program's
//! descriptions, whose settings must not outlive a killed helper, and where it cannot queue a signal: then every lease is asked.
//!
//! Descriptors are noted as bits, so no number of signals is too many. A note says only that a lease is worth a look, so it does no harm
//! that the descriptor may be another by then. A lease is looked at after its note was taken: what comes meanwhile is noted anew.

use crate::helper::files::DESCRIPTORS;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// The signal of a break that names its descriptor. (Any real-time signal will do: nobody else's code runs in a helper.)
pub(crate) const NAMED_BREAK: i32 = 40;

static ALL: AtomicBool = AtomicBool::new(false);
static ANY: AtomicBool = AtomicBool::new(false);
static NOTED: [AtomicU64; DESCRIPTORS / 64] = [const { AtomicU64::new(0) }; DESCRIPTORS / 64];

/// What was noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The lease of this descriptor.
    One(i32),
    /// Perhaps any.
    All,
}

/// Every lease is worth a look. (In a signal handler, too.)
pub fn note_all() {
    ALL.store(true, SeqCst);
}

/// The lease of this descriptor is. (In a signal handler, too.)
pub fn note(fd: i32) {
    let Ok(fd) = usize::try_from(fd) else { return note_all() };
    let Some(word) = NOTED.get(fd / 64) else { return note_all() };
    word.fetch_or(1 << (fd % 64), SeqCst);
    ANY.store(true, SeqCst);
}

/// Takes the notes there are, and hands each over. After [`Broken::All`] none is left.
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
        // What is noted while notes are taken comes at the next time, or still at this one.
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

    /// Signals come at any moment, each of a lease that is broken from then on.
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
