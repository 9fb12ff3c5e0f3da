//! A deferred read, in the sidecar: take or find a guard, check the memory, map.
#![allow(unsafe_code)] // Maps over the program's buffer, at its request.

use crate::extent::{self, Extent, Kind};
use crate::helper::state::{self, State};
use crate::shared::channel::Request;
use crate::stats::{COUNTERS, Counters, Reason};
use crate::transfer::PAGE;
use elision_sys::{file, memory, pages};

impl State {
    /// Associates the whole pages `[addr, addr + len)` with the file from `offset`. With `exclusive`, the pages at
    /// either end that the buffer shares with other bytes are taken in as well, if all of their bytes equal the file.
    pub(crate) fn associate(&mut self, request: &mut Request) -> Option<Reason> {
        let id = match self.guard_for_read(request) {
            Ok(id) => id,
            Err(reason) => return Some(reason),
        };
        let fd = self.file(id).fd;
        // The guard holds from here on. Was the file long enough when it began to?
        let Ok(now) = file::stat(fd) else { return Some(Reason::Raced) };
        if now.size < request.offset + request.len as u64 {
            self.dirty = true;
            return Some(Reason::Raced);
        }
        // Touching a hole by way of a mapping makes tmpfs fill it, where there is room, and is SIGBUS where there is none.
        if !now.is_solid() && file::filesystem(fd) == Ok(file::TMPFS) {
            self.dirty = true;
            return Some(Reason::Holes);
        }
        let (mut addr, mut len, mut offset) = (request.addr, request.len, request.offset);
        if request.exclusive {
            // Only where the transfer has a fragment: the page beside one without may be another buffer's.
            if request.head > 0
                && self.equals_file(fd, addr.wrapping_sub(PAGE), offset.wrapping_sub(PAGE as u64), now.size)
            {
                (addr, len, offset) = (addr - PAGE, len + PAGE, offset - PAGE as u64);
            }
            if request.tail > 0 && self.equals_file(fd, addr + len, offset + len as u64, now.size) {
                len += PAGE;
            }
        }
        if len == 0 {
            self.dirty = true;
            return Some(Reason::Small);
        }
        self.find_again(addr, len);
        if let Some(reason) = self.unfit_memory(addr, len) {
            self.dirty = true;
            return Some(reason);
        }
        if !self.map().has_room(4) {
            return Some(Reason::Limit);
        }
        self.count_loaded(addr, len);
        self.learn(addr, len);
        let extent = Extent { addr, len, file: id, offset, kind: Kind::Mapped };
        self.intend(extent);
        // SAFETY: the program asked for these pages to be replaced by these bytes, and waits. Other threads that use
        // the buffer meanwhile race with the read itself, as they would traditionally.
        let mut good = unsafe { memory::map_file_at(addr, len, fd, offset) }.is_ok();
        if good {
            self.learn_mapping(id, addr);
            // Whatever these pages stood for has ended: not before, since a refusal leaves them what they are. There was
            // room above for both rows that an insertion can need.
            good = self.map().insert(extent).is_ok();
        }
        self.intend(extent::BLANK);
        if !good {
            self.dirty = true;
            return Some(Reason::Limit);
        }
        state::mark(addr, len);
        self.publish();
        Counters::add(&COUNTERS.deferred, len);
        (request.addr, request.handled, request.changes) = (addr, len, state::changes());
        None
    }

    /// Do all bytes of the page at `addr` equal the file at `offset`?
    fn equals_file(&mut self, fd: i32, addr: usize, offset: u64, size: u64) -> bool {
        if offset.checked_add(PAGE as u64).is_none_or(|end| end > size) || !self.is_plain(addr) {
            return false;
        }
        let page = self.page.as_mut_ptr() as usize;
        // SAFETY: reads into our own page; then compares with memory just seen to be mapped and readable, which only
        // the waiting thread may change (`exclusive`).
        unsafe {
            file::pread(fd, page, PAGE, offset) == Ok(PAGE)
                && core::slice::from_raw_parts(addr as *const u8, PAGE) == self.page.as_slice()
        }
    }

    /// Is it the program's own memory, private, and of no file?
    pub(crate) fn is_plain(&self, addr: usize) -> bool {
        self.maps >= 0
            && pages::mapping(self.maps, addr)
                .is_ok_and(|m| m.start <= addr && m.readable && m.writable && !m.shared && m.ino == 0)
    }

    /// Why the range may not be mapped over, if so: it must be private memory, writable, of no file but
    /// those we mapped there ourselves.
    fn unfit_memory(&mut self, addr: usize, len: usize) -> Option<Reason> {
        if self.mapped_extents() >= self.map_limit {
            return Some(Reason::Limit);
        }
        let mut at = addr;
        while at < addr + len {
            let Ok(mapping) = pages::mapping(self.maps, at) else { return Some(Reason::Memory) };
            let ours =
                mapping.ino == 0 || self.map().overlapping(at, PAGE).any(|row| row.kind == Kind::Mapped);
            if mapping.start > at || !mapping.readable || !mapping.writable || mapping.shared || !ours {
                return Some(Reason::Memory);
            }
            at = mapping.end;
        }
        None
    }
}
