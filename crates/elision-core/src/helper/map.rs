use crate::extent::{Chunk, Extent, ExtentMap, Share, TargetId, Usage};
use crate::helper::files::FILES;
use crate::shared::live;
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

const CHUNKS: usize = 1 << 14;

pub(crate) struct Map {
    pub usage: Usage,
    shares: [Share; FILES],
    chunks: [Chunk; CHUNKS],
    order: [u32; CHUNKS],
    pub dropped: bool,
    /// The kernel has still to be asked what is mapped.
    pub unsurveyed: bool,
    /// A request is being answered that may make an extent: if the helper is killed, another has to look.
    pub taking: bool,
    /// What is being mapped while the map does not say so yet.
    pub intent: Extent,
}

impl Map {
    pub(crate) fn view(&mut self) -> ExtentMap<'_> {
        ExtentMap::new(&mut self.chunks, &mut self.order, &mut self.shares, &mut self.usage)
    }

    pub(crate) fn share(&self, id: TargetId) -> Share {
        self.shares.get(id.0 as usize).copied().unwrap_or(Share::NONE)
    }

    pub(crate) fn next_piece(&mut self, at: usize, end: usize) -> Option<Extent> {
        self.view().overlapping(at, end.saturating_sub(at)).next()
    }

    /// A length is set only while the other fields are complete: the helper may be killed at any instruction.
    pub(crate) fn intend(&mut self, extent: Extent) {
        compiler_fence(SeqCst);
        self.intent.len = 0;
        compiler_fence(SeqCst);
        self.intent = Extent { len: 0, ..extent };
        compiler_fence(SeqCst);
        self.intent.len = extent.len;
        compiler_fence(SeqCst);
    }

    pub(crate) fn publish(&self) {
        live::publish(self.usage.extents + usize::from(self.unsurveyed) + usize::from(self.taking));
    }
}
