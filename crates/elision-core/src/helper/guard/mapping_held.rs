//! Mappings that carry their own lease, on the sidecar's side (see [`crate::quick`]).
//!
//! Their lease needs nobody while nothing happens. When one is being broken, the kernel tells us so, but not which
//! ([`crate::helper::guard::breaks`]); so for every file with a carried guard we then try to take a lease of our own, by the path that the kernel knows the mapping
//! under. Where that succeeds, it is not the one, and is an ordinary guarded file from there on. Where it does
//! not, the pages are given memory of their own, which unmaps the file, and with that the lease is gone.

use crate::extent::{Extent, FileId, Kind};
use crate::helper::files::{File, Guard, NO_FILE, NO_STAMP};
use crate::helper::guard;
use crate::helper::state::{self, State};
use crate::shared::registration::Word;
use core::ffi::CStr;
use elision_sys::file;
use elision_sys::pages;

impl State {
    /// Records what has been announced, as far as it is there.
    pub(crate) fn enter_carried(&mut self, word: Word) {
        let new = File { key: word.key, guard: Guard::Carried, ..NO_FILE };
        let known = self.files.find(word.key).or_else(|| self.files.add(new));
        // (Room is asked for before a mapping is announced, but more threads may have asked at the same time than that was meant for. The
        // mapping is there, and its lease; so another file has to make room.)
        let Some(id) = known.or_else(|| self.make_room().then(|| self.files.add(new)).flatten()) else {
            return;
        };
        let remembered = self.file(id).guard == Guard::None;
        if remembered {
            self.files.set(id, File { guard: Guard::Carried, ..self.file(id) });
        }
        let whole = Extent { addr: word.addr, len: word.len, file: id, offset: 0, kind: Kind::Mapped };
        self.enter_mapped(whole);
        // Whether the file is still what tracked extents of earlier remember can only be seen with a descriptor.
        if remembered && !self.adopt(id) {
            self.map().retain_of(id, |row| row.kind == Kind::Mapped);
            if let Some(entry) = self.files.get_mut(id) {
                entry.stamp = NO_STAMP;
            }
        }
        self.dirty = true;
        self.publish();
    }

    /// Records what there is of a mapping that should be ours.
    pub(crate) fn enter_mapped(&mut self, whole: Extent) {
        let mut at = whole.addr;
        while at < whole.end() {
            let (end, ours) = self.stretch(whole, at);
            if ours && let Some(extent) = whole.clip(at, end) {
                self.learn_mapping(whole.file, at);
                let _ = self.map().insert(extent);
                state::mark(extent.addr, extent.len);
            }
            at = end;
        }
    }

    /// Materialises some file, and forgets it. False: that has to wait for a forked child, or for somebody's write.
    fn make_room(&mut self) -> bool {
        self.files.ids().any(|id| {
            let given_up = self.file(id).writer == 0 && self.release(id);
            if given_up {
                self.drop_file(id);
            }
            given_up
        })
    }

    /// Takes a lease of our own on a file whose guard is carried. False: it is being broken, or cannot be had.
    pub(crate) fn adopt(&mut self, id: FileId) -> bool {
        self.open_carried(id);
        let known = self.file(id);
        if known.guard != Guard::Carried || known.fd < 0 || guard::take_read_lease(known.fd).is_err() {
            return known.guard == Guard::Read;
        }
        self.enter(known.key, Guard::Read, known.fd).is_ok()
    }

    /// Gets a descriptor of a file whose guard is carried, if there is a way to it.
    pub(crate) fn open_carried(&mut self, id: FileId) {
        let known = self.file(id);
        if known.guard != Guard::Carried || known.fd >= 0 {
            return;
        }
        let row = self.map().of_file(id, 0).find(|row| row.kind == Kind::Mapped);
        let Some(row) = row.filter(|row| self.is_still_mapped(*row)) else { return };
        let mut path = [0u8; 4096];
        if pages::mapped_path(self.maps, row.addr, &mut path).is_err() {
            return;
        }
        let Ok(path) = CStr::from_bytes_until_nul(&path) else { return };
        let Ok(fd) = file::open_known(path) else { return };
        // Another file may have that name by now.
        match (file::stat(fd), self.files.get_mut(id)) {
            (Ok(stat), Some(entry)) if stat.id == entry.key => entry.fd = fd,
            _ => file::close(fd),
        }
    }

    /// Leaves no guard that is carried: what cannot be adopted is materialised.
    pub(crate) fn settle_carried(&mut self) {
        if !self.files.any_carried() {
            return;
        }
        for id in self.files.ids() {
            if self.file(id).guard == Guard::Carried && !self.adopt(id) {
                self.release(id);
            }
        }
    }
}
