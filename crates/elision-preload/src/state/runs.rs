//! Runs of reads: each goes on in memory where another ended. Together they are one big read in pieces, and after
//! [`client::life::min_bytes`] the next pieces are deferred like one. A wrong guess costs time, never a byte.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use elision_core::client;

/// From here on a deferred piece costs less than its copy, even if every page is altered (by the bench of pieces).
pub(crate) const PIECE: usize = 512 << 10;

/// The place of a run in the table is a hash of where it ends: one load finds it.
const RUNS: usize = 16;

/// Where a run ends, and its bytes; the topmost bit: it is not deferred.
struct Run {
    end: AtomicUsize,
    bytes: AtomicUsize,
}

const DECLINED: usize = 1 << 63;

static TABLE: [Run; RUNS] = [const { Run { end: AtomicUsize::new(0), bytes: AtomicUsize::new(0) } }; RUNS];

fn place(end: usize) -> &'static Run {
    let hash = (end as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60;
    &TABLE[hash as usize % RUNS]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// Big enough by itself.
    Whole,
    /// With this piece the run is as big as a read that is deferred.
    First,
    /// The run is being deferred.
    Next,
    /// The run is too small so far, or was declined.
    Traditional,
}

/// Taken before a read, and [`Reading::ended`] after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reading {
    before: usize,
    pub(crate) piece: Piece,
}

/// Could a read of `len` bytes be deferred?
#[inline(always)]
pub(crate) fn matters(len: usize) -> bool {
    len >= PIECE || len >= client::life::min_bytes()
}

pub(crate) fn reading(addr: usize, len: usize) -> Reading {
    let run = place(addr);
    let before = if run.end.load(Relaxed) == addr { run.bytes.load(Relaxed) } else { 0 };
    judge(before, len, client::life::min_bytes())
}

/// A read that was not deferred returned `got`.
#[cold]
#[inline(never)]
pub(crate) fn note_traditional(addr: usize, len: usize, got: isize) {
    reading(addr, len).ended(addr, got, false);
}

/// `least`: [`client::life::min_bytes`].
fn judge(before: usize, len: usize, least: usize) -> Reading {
    let piece = match before & !DECLINED {
        _ if len >= least => Piece::Whole,
        _ if before & DECLINED != 0 || least == usize::MAX => Piece::Traditional,
        bytes if bytes >= least => Piece::Next,
        bytes if bytes + len >= least => Piece::First,
        _ => Piece::Traditional,
    };
    Reading { before, piece }
}

impl Reading {
    /// `got`: what the call returned.
    pub(crate) fn ended(self, addr: usize, got: isize, deferred: bool) {
        let Some(got) = usize::try_from(got).ok().filter(|&got| got > 0) else { return };
        let run = place(addr + got);
        // A race between two runs costs a few copies.
        run.end.store(addr + got, Relaxed);
        run.bytes.store(self.after(got, deferred), Relaxed);
    }

    fn after(self, got: usize, deferred: bool) -> usize {
        let bytes = (self.before & !DECLINED).saturating_add(got).min(!DECLINED);
        let declined = match self.piece {
            Piece::Traditional => self.before & DECLINED,
            _ if deferred => 0,
            _ => DECLINED,
        };
        bytes | declined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// What becomes of reads of these sizes, one behind the other.
    fn pieces(sizes: &[usize], deferrable: bool) -> Vec<Piece> {
        let mut before = 0;
        sizes
            .iter()
            .map(|&len| {
                let reading = judge(before, len, 4 * MIB);
                before = reading.after(len, deferrable && reading.piece != Piece::Traditional);
                reading.piece
            })
            .collect()
    }

    #[test]
    fn a_run_is_deferred_once_it_is_as_big_as_a_read_that_is() {
        use Piece::*;
        assert_eq!(pieces(&[MIB; 6], true), [Traditional, Traditional, Traditional, First, Next, Next]);
        assert_eq!(pieces(&[8 * MIB, MIB, 9 * MIB, MIB], true), [Whole, Next, Whole, Next]);
    }

    #[test]
    fn a_run_that_was_declined_is_not_tried_again() {
        use Piece::*;
        let tried = pieces(&[MIB; 6], false);
        assert_eq!(tried, [Traditional, Traditional, Traditional, First, Traditional, Traditional]);
        assert_eq!(pieces(&[8 * MIB, MIB, 9 * MIB], false), [Whole, Traditional, Whole]);
    }

    #[test]
    fn nothing_is_deferred_while_deferral_is_off() {
        assert_eq!(judge(64 * MIB, 64 * MIB, usize::MAX).piece, Piece::Traditional);
    }

    #[test]
    fn a_run_is_found_where_it_ends() {
        let addr = 0x7000_0000_0000;
        reading(addr, MIB).ended(addr, MIB as isize, false);
        assert_eq!(reading(addr + MIB, MIB).before, MIB);
        assert_eq!(reading(addr, MIB).before, 0);
        reading(addr + MIB, MIB).ended(addr + MIB, -1, false);
        assert_eq!(reading(addr + MIB, MIB).before, MIB);
    }
}
