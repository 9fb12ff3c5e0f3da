//! One copy of a file's bytes for processes that come of a fork.
//!
//! Before a fork the helper gives each file that is deferred an empty memory file, which the child's helper opens, too. When the
//! file is about to change, the helper of each process fills what is missing of the pages that it needs, and maps them privately in
//! place of the file's. Two helpers may fill a page at the same time: they store equal bytes, and a page counts once one has all.
#![allow(unsafe_code)] // Maps the memory file.

use crate::extent::{Extent, SourceId, TargetId};
use crate::helper::files::{File, Files, Guard, NO_COPY, NO_FILE, SharedCopy, Source};
use crate::helper::guard::lease;
use crate::helper::mappings;
use crate::helper::page_tables::PageTables;
use crate::shared::{forks, processes};
use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU8, Ordering::*};
use elision_sys::file::{self, ProcPath};
use elision_sys::memory;

/// Where a page's byte lies in the memory file: 1 once the page is filled. No file is so long.
const READY: u64 = 1 << 61;
const LEN: u64 = 1 << 62;

/// Bytes filled at a time: relatives begin at the same moment, and should not all fill the same.
const STEP: usize = 1 << 20;

impl SharedCopy {
    pub(crate) fn close(self) {
        if self.fd >= 0 {
            file::close(self.fd);
        }
    }
}

/// `None`: file sizes are limited, or there is no memory.
pub(crate) fn make() -> Option<SharedCopy> {
    let fd = file::memory_file(LEN).ok()?;
    match (file::stat(fd), file::begin_to_share(fd)) {
        (Ok(stat), Ok(())) if lease::has_room(fd) => Some(SharedCopy { fd, key: stat.id }),
        _ => {
            file::close(fd);
            None
        }
    }
}

/// In a forked child: opens its parent's.
pub(crate) fn join(copy: SharedCopy, predecessor: i32) -> SharedCopy {
    if copy.fd < 0 {
        return NO_COPY;
    }
    let path = ProcPath::new(predecessor, "fd", Some(copy.fd));
    let Ok(fd) = processes::open(&path, libc::O_RDWR) else { return NO_COPY };
    let same = file::stat(fd).is_ok_and(|stat| stat.id == copy.key);
    if same && lease::has_room(fd) && file::begin_to_share(fd).is_ok() {
        return SharedCopy { fd, ..copy };
    }
    file::close(fd);
    NO_COPY
}

pub(super) fn on_fork(known: &File, predecessor: i32) -> Option<i32> {
    let copy = join(SharedCopy { fd: known.source.fd, key: known.key }, predecessor);
    (copy.fd >= 0).then_some(copy.fd)
}

/// A part of the memory file, open to be filled: its bytes, and those that say which pages are filled.
struct Window {
    extent: Extent,
    bytes: usize,
    ready: usize,
    ready_len: usize,
}

impl Window {
    fn open(copy: SharedCopy, extent: Extent) -> Option<Window> {
        let first = READY + extent.offset / PAGE as u64;
        let skip = (first % PAGE as u64) as usize;
        let ready_len = (skip + extent.len / PAGE).next_multiple_of(PAGE);
        let bytes = shared(copy.fd, extent.len, extent.offset)?;
        let Some(ready) = shared(copy.fd, ready_len, first - skip as u64) else {
            // SAFETY: nobody else knows the window.
            unsafe { memory::unmap(bytes, extent.len) };
            return None;
        };
        Some(Window { extent, bytes, ready: ready + skip, ready_len })
    }

    fn is_ready(&self, at: usize) -> &AtomicU8 {
        let byte = self.ready + (at - self.extent.addr) / PAGE;
        // SAFETY: within the window. Other processes use the byte atomically, too.
        unsafe { AtomicU8::from_ptr(byte as *mut u8) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the window.
        unsafe {
            memory::unmap(self.bytes, self.extent.len);
            memory::unmap(self.ready & !(PAGE - 1), self.ready_len);
        }
    }
}

fn shared(fd: i32, len: usize, offset: u64) -> Option<usize> {
    let addr = memory::reserve(len).ok()?;
    // SAFETY: reserved just now.
    if unsafe { memory::share_file_at(addr, len, fd, offset) }.is_ok() {
        return Some(addr);
    }
    // SAFETY: as above.
    unsafe { memory::unmap(addr, len) };
    None
}

/// A private mapping of a copy, to be moved into an extent's place.
pub(crate) struct Shadow {
    pub memory: usize,
    pub id: TargetId,
    /// Bytes that this helper has copied.
    pub copied: usize,
}

/// Fills the copy's pages of an extent where the program has not altered them, and maps the copy. `None`: there is no relative, or
/// it cannot be done. `load(memory, from, end)` reads the file bytes of `[from, end)`, where `memory` stands for the extent, and says how
/// many it could read.
pub(crate) fn shadow(
    files: &mut Files,
    tables: &mut PageTables,
    extent: Extent,
    unaltered: impl Fn(&mut PageTables, &mut dyn FnMut(usize, usize)) -> bool,
    load: impl Fn(usize, usize, usize) -> usize,
) -> Option<Shadow> {
    let copy = files.get(extent.target).copy;
    // A child that was just born has not opened it yet.
    if copy.fd < 0 || !(file::is_shared(copy.fd) || forks::children_uncovered()) {
        return None;
    }
    let window = Window::open(copy, extent)?;
    let (mut copied, mut good) = (0, true);
    let complete = unaltered(tables, &mut |from, to| {
        let mut at = from;
        while good && at < to {
            let mut end = at;
            while end < to.min(at + STEP) && window.is_ready(end).load(Acquire) == 0 {
                end += PAGE;
            }
            if end > at {
                good = load(window.bytes, at, end) >= end - at;
                copied += end - at;
            }
            if good {
                (at..end).step_by(PAGE).for_each(|page| window.is_ready(page).store(1, Release));
            }
            at = end;
            while at < to && window.is_ready(at).load(Acquire) != 0 {
                at += PAGE;
            }
        }
    });
    if !complete || !good {
        return None;
    }
    let id = entry(files, copy)?;
    let memory = memory::reserve(extent.len).ok()?;
    // SAFETY: reserved just now; nobody changes a filled page.
    if unsafe { memory::map_file_at(memory, extent.len, copy.fd, extent.offset) }.is_err() {
        // SAFETY: as above.
        unsafe { memory::unmap(memory, extent.len) };
        return None;
    }
    mappings::learn(tables, files, SourceId::of(id), memory);
    Some(Shadow { memory, id, copied })
}

/// The copy as a file of its own, which extents may be of.
fn entry(files: &mut Files, copy: SharedCopy) -> Option<TargetId> {
    if let Some(id) = files.find(copy.key) {
        return Some(id);
    }
    let fd = file::fcntl(copy.fd, libc::F_DUPFD_CLOEXEC, 0).ok()?;
    let source = Source { fd, ..Source::NONE };
    let file = File { key: copy.key, guard: Guard::Copy, source, ..NO_FILE };
    let added = if lease::has_room(fd) { files.add(file) } else { None };
    if added.is_none() {
        file::close(fd);
    }
    added
}
