//! A write lease on the program's own description: nobody else has the file open.

use crate::helper::descriptions;
use crate::helper::files::File;
use crate::helper::guard::lease::{self, shows_lock};
use crate::helper::state::State;
use crate::shared::processes;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file::{self, FileKey, ProcPath};
use elision_sys::{maps, task};

pub(super) fn acquire(state: &mut State, request: &mut Request) -> Result<i32, Reason> {
    let fd = descriptions::of(state, request).map_err(lease::refused)?;
    // Another file's description may have a lease of the program's, which this would replace.
    let taken = match file::stat(fd) {
        Ok(stat) if stat.id == request.key => lease::take(fd, libc::F_WRLCK),
        _ => Err(Reason::Raced),
    };
    if taken.is_err() {
        file::close(fd);
        descriptions::note_in_vain(state, request);
    }
    taken.map(|()| fd)
}

pub(super) fn still_holds(fd: i32, though_wanted: bool) -> bool {
    lease::still_holds(fd, libc::F_WRLCK, though_wanted)
}

/// A break waits for a write under way, unless the program is stopped within it.
pub(super) fn on_break(known: &File, program: i32) -> bool {
    known.writer == 0 || processes::is_stopped(program)
}

pub(super) fn on_fork(_known: &File, _predecessor: i32) -> Option<i32> {
    None
}

pub(super) fn give_up(known: &File, gone: bool, program: i32, maps: i32) -> bool {
    // A waiting exec fails if the file is open for writing when the lease ends: closing the last descriptor ends both.
    let ends_with_us = gone
        && known.closed != 0
        && !program_holds(known, program)
        && maps >= 0
        && !maps::is_mapped(maps, known.key.ino);
    if !ends_with_us {
        unlock(known);
    }
    true
}

pub(super) fn unlock(known: &File) {
    descriptions::give_back(known.source.fd);
}

pub(super) fn give_up_orphan(program: i32, number: i32, guarded: impl FnOnce(FileKey) -> bool) {
    if let Ok(fd) = descriptions::of_program(program, number) {
        let ours = file::stat(fd).is_ok_and(|stat| guarded(stat.id));
        // The program is the owner of leases that it takes itself.
        if ours && file::fcntl(fd, libc::F_GETOWN, 0) != Ok(program) {
            let _ = file::set_lease(fd, libc::F_UNLCK);
        }
        file::close(fd);
    }
}

/// The kernel shows a lease with its description, and grants no other. `otherwise`: the answer if it does not say.
pub(crate) fn has_our_lease(pid: i32, fd: i32, key: FileKey, otherwise: bool) -> bool {
    shows_lock(pid, fd, &[b"LEASE"], otherwise)
        && processes::open(&ProcPath::new(pid, "fd", Some(fd)), libc::O_PATH).is_ok_and(|fd| {
            let same = file::stat(fd).is_ok_and(|stat| stat.id == key);
            file::close(fd);
            same
        })
}

/// Has the program such a descriptor? True if the kernel does not say, or the lease is lost.
pub(crate) fn program_holds(known: &File, program: i32) -> bool {
    if !has_our_lease(task::pid(), known.source.fd, known.key, false) {
        return true;
    }
    let mut holds = false;
    processes::each_descriptor(program, |theirs| {
        holds = has_our_lease(program, theirs, known.key, true);
        !holds
    });
    holds
}

pub(crate) fn holds_locks(fd: i32) -> bool {
    shows_lock(task::pid(), fd, &[b"FLOCK", b"OFDLCK"], true)
}
