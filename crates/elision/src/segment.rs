//! Address space: reserve, place, give back.
#![allow(unsafe_code)] // Hands out memory by address; that ranges never overlap is argued below.

use crate::buffer::Buffer;
use elision_core::client::dropin;
use elision_core::free_list::Stretches;
use elision_core::transfer::PAGE;
use elision_sys::memory;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A reserved range of address space in which buffers live.
///
/// It may be far larger than memory and swap together: nothing is allocated before it is touched, and what
/// a buffer has merely read from a file needs no memory of its own.
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
    free: Mutex<Stretches>,
}

impl Segment {
    /// Reserves `bytes` of address space, rounded up to whole pages.
    ///
    /// # Errors
    /// `ENOMEM` if there is no such stretch of address space, or RLIMIT_AS forbids it.
    pub fn reserve(bytes: usize) -> io::Result<Segment> {
        let len = bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(no_room)?;
        let base = memory::reserve(len)?;
        let mut free = Stretches::default();
        free.give(base, len);
        Ok(Segment(Arc::new(Range { base, len, free: Mutex::new(free) })))
    }

    /// Bytes reserved.
    pub fn capacity(&self) -> usize {
        self.0.len
    }

    /// A buffer of `len` zero bytes in this segment.
    ///
    /// # Errors
    /// `ENOMEM` if the segment has no free stretch of that length.
    pub fn buffer(&self, len: usize) -> io::Result<Buffer> {
        Buffer::place(self.clone(), len)
    }

    /// Does nobody else hold this segment, so that no other buffer can be in it?
    pub(crate) fn is_sole(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some()
    }

    fn free(&self) -> MutexGuard<'_, Stretches> {
        // A list left by a thread that panicked is whole all the same: nothing panics half-way.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stretch of `len` bytes (whole pages) out of the segment and makes it usable.
    pub(crate) fn take(&self, len: usize) -> io::Result<usize> {
        let mut free = self.free();
        let addr = free.fitting(len).ok_or_else(no_room)?;
        make_usable(addr, len)?;
        free.take(addr, len);
        Ok(addr)
    }

    /// Extends a stretch that ends at `end` by `more` bytes, if what follows is free.
    pub(crate) fn extend(&self, end: usize, more: usize) -> bool {
        let mut free = self.free();
        let extended = free.at(end) >= more && make_usable(end, more).is_ok();
        if extended {
            free.take(end, more);
        }
        extended
    }

    /// Gives a stretch back. Its contents and their associations end here.
    pub(crate) fn give(&self, addr: usize, len: usize) {
        // SAFETY: the stretch was taken from this segment and its buffer is gone: nobody uses it. If the kernel is out
        // of map entries the pages stay, unused, until the segment ends.
        let given = unsafe {
            dropin::forget(addr, len);
            memory::unreserve(addr, len)
        };
        if given.is_err() {
            return;
        }
        self.free().give(addr, len);
    }
}

/// What the kernel would say.
pub(crate) fn no_room() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

fn make_usable(addr: usize, len: usize) -> io::Result<()> {
    // SAFETY: the stretch is free and within a reservation of ours.
    Ok(unsafe { memory::protect(addr, len, libc::PROT_READ | libc::PROT_WRITE) }?)
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: every buffer holds a reference, so there is none left.
        unsafe { memory::unmap(self.base, self.len) };
    }
}
