//! The association map in the helper's memory, and what it is said to be by a helper that is killed in the middle of a change.

use crate::extent::{Chunk, Extent, ExtentMap, Share, TargetId, Usage};
use crate::helper::files::FILES;
use crate::shared::live;
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// Chunks of extents.
const CHUNKS: usize = 1 << 14;

/// The map's storage.
pub(crate) struct Map {
    /// How much of it is in use.
    pub usage: Usage,
    /// How much it has of each file.
    shares: [Share; FILES],
    chunks: [Chunk; CHUNKS],
    order: [u32; CHUNKS],
    /// Extents were dropped since guards were last looked over.
    pub dropped: bool,
    /// What is mapped has still to be asked of the kernel: there may be more than there are extents.
    pub unsurveyed: bool,
    /// What is about to be mapped, or has been, before the map says so; of no length if nothing is.
    pub intent: Extent,
}

impl Map {
    /// The association map.
    pub(crate) fn view(&mut self) -> ExtentMap<'_> {
        ExtentMap::new(&mut self.chunks, &mut self.order, &mut self.shares, &mut self.usage)
    }

    /// How much there is of a file.
    pub(crate) fn share(&self, id: TargetId) -> Share {
        self.shares.get(id.0 as usize).copied().unwrap_or(Share::NONE)
    }

    /// The first extent with a byte in `[at, end)`, clipped.
    pub(crate) fn next_piece(&mut self, at: usize, end: usize) -> Option<Extent> {
        self.view().overlapping(at, end.saturating_sub(at)).next()
    }

    /// Says what is about to be mapped, or with `BLANK` that nothing is. (A helper may be killed between any two instructions: what
    /// it says has a length only while all else of it is there.)
    pub(crate) fn intend(&mut self, extent: Extent) {
        compiler_fence(SeqCst);
        self.intent.len = 0;
        compiler_fence(SeqCst);
        self.intent = Extent { len: 0, ..extent };
        compiler_fence(SeqCst);
        self.intent.len = extent.len;
        compiler_fence(SeqCst);
    }

    /// Tells the program's threads how much there is. To be called after extents changed.
    pub(crate) fn publish(&self) {
        live::publish(self.usage.extents + usize::from(self.unsurveyed));
    }
}
