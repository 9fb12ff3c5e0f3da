//! What the page cache holds of an extent.

use crate::cold::PARTS;
use crate::extent::Extent;
use crate::helper::files::File;
use crate::transfer::PAGE;
use elision_sys::file::{self, Cached};
use elision_sys::memory;
use elision_sys::raw::{Errno, Result};

/// Pages that tell how a range is.
const SAMPLES: usize = 32;

/// (Memory that is gone is not waited for.)
pub(crate) fn is_loaded(page: usize) -> bool {
    memory::all_cached(page, &mut [0]).unwrap_or(true)
}

/// As far as some pages tell. (Few of a small extent: the next request may be on its way.)
pub(crate) fn is_all_loaded(extent: Extent) -> bool {
    let pages = extent.len / PAGE;
    let samples = (pages >> 13).clamp(SAMPLES / 4, SAMPLES).min(pages);
    (0..samples).all(|sample| is_loaded(extent.addr + sample * pages / samples * PAGE))
}

pub(crate) struct Survey {
    /// Bytes.
    pub missing: u64,
    /// Pages that the kernel has given back.
    pub evicted: u64,
    /// Parts of which something is loaded.
    pub some: u32,
}

impl Survey {
    pub(crate) fn of(extent: Extent, file: &File) -> Survey {
        let mut survey = Survey { missing: 0, evicted: 0, some: 0 };
        let at = |part: usize| part * (extent.len / PAGE) / PARTS * PAGE;
        for (part, from, to) in (0..PARTS).map(|part| (part, at(part), at(part + 1))) {
            if from < to {
                let (start, end) = (extent.offset + from as u64, extent.offset + to as u64);
                let Cached { pages, evicted, .. } =
                    cached(file, start, end).unwrap_or_else(|_| sample(extent.addr + from, extent.addr + to));
                survey.missing += (to - from) as u64 - (pages * PAGE as u64).min((to - from) as u64);
                survey.evicted += evicted;
                survey.some |= u32::from(pages > 0) << part;
            }
        }
        survey
    }
}

/// (Of an overlay's file the kernel counts what the overlay has in memory: nothing.)
pub(crate) fn cached(file: &File, start: u64, end: u64) -> Result<Cached> {
    match file.fs {
        Some(fs) if fs.layered => Err(Errno(libc::ENOSYS)),
        _ => file::cached(file.source.fd, start, end),
    }
}

/// Where `cachestat` does not tell.
fn sample(from: usize, to: usize) -> Cached {
    let step = ((to - from) / PAGE).div_ceil(SAMPLES).max(1);
    let loaded = (from..to).step_by(step * PAGE).filter(|&page| is_loaded(page)).count();
    Cached { pages: (loaded * step) as u64, ..Cached::default() }
}
