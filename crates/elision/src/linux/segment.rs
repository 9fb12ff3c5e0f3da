//! Reserved address space, and which ranges of it are free.
#![allow(unsafe_code)] // Hands out memory by address; that ranges never overlap is argued below.

use elision_core::client::engine;
use elision_core::free_list::FreeList;
use elision_core::transfer::PAGE;
use elision_sys::memory;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A reserved range of address space in which buffers live.
///
/// It may be far larger than memory and swap together: a page is allocated when it is touched, and a page
/// that was only read from a file needs no memory of its own.
///
/// ```
/// let segment = elision::Segment::reserve(1 << 40)?; // 1 TiB costs nothing
/// let mut buffer = segment.buffer(1 << 30)?;
/// buffer[12_345] = 1; // one page of memory
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Segment(Arc<Range>);

#[derive(Debug)]
struct Range {
    base: usize,
    len: usize,
    free: Mutex<FreeList>,
}

impl Segment {
    /// Reserves `bytes` of address space, rounded up to whole pages.
    ///
    /// # Errors
    /// `ENOMEM` if there is no free range of that size, or RLIMIT_AS forbids it.
    pub fn reserve(bytes: usize) -> io::Result<Segment> {
        // Before the first fork that is to be counted.
        engine::forks();
        let len = whole_pages(bytes)?;
        let base = memory::reserve(len)?;
        let mut free = FreeList::default();
        free.give(base, len);
        Ok(Segment(Arc::new(Range { base, len, free: Mutex::new(free) })))
    }

    /// The size in bytes.
    pub fn capacity(&self) -> usize {
        self.0.len
    }

    /// Is this the only handle, so that no other buffer can be in the segment?
    pub(crate) fn is_sole(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some()
    }

    fn free(&self) -> MutexGuard<'_, FreeList> {
        // No panic leaves the list half changed.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a range of `len` bytes (whole pages) out of the segment and makes it usable.
    ///
    /// # Errors
    /// `ENOMEM` if there is none.
    pub(crate) fn take(&self, len: usize) -> io::Result<usize> {
        let mut free = self.free();
        let addr = free.fitting(len).ok_or_else(no_room)?;
        make_usable(addr, len)?;
        free.take(addr, len);
        Ok(addr)
    }

    /// Extends a range that ends at `end` by `more` bytes, if what follows is free.
    pub(crate) fn extend(&self, end: usize, more: usize) -> bool {
        let mut free = self.free();
        let extended = free.at(end) >= more && make_usable(end, more).is_ok();
        if extended {
            free.take(end, more);
        }
        extended
    }

    /// Gives a range back. Its contents and their associations end here.
    pub(crate) fn give(&self, addr: usize, len: usize) {
        // SAFETY: the range was taken from this segment and its buffer is gone: nobody uses it. If the kernel is out
        // of map entries the pages stay, unused, until the segment ends.
        let given = unsafe {
            engine::forget(addr, len);
            memory::unreserve(addr, len)
        };
        if given.is_err() {
            return;
        }
        self.free().give(addr, len);
    }
}

/// The bytes of the whole pages, at least one, that `bytes` need.
///
/// # Errors
/// `ENOMEM` if there can be no such range.
pub(crate) fn whole_pages(bytes: usize) -> io::Result<usize> {
    bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(no_room)
}

fn no_room() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

fn make_usable(addr: usize, len: usize) -> io::Result<()> {
    // SAFETY: the range is free and within a reservation of ours.
    Ok(unsafe { memory::protect(addr, len, libc::PROT_READ | libc::PROT_WRITE) }?)
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: every buffer holds a reference to this, so no buffer is left.
        unsafe { memory::unmap(self.base, self.len) };
    }
}
