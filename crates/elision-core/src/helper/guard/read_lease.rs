//! A read lease on the helper's own description: nobody has the file open for writing.

use crate::helper::files::File;
use crate::helper::guard::lease;
use crate::shared::forks;
use crate::shared::processes;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file::{self, ProcPath};

/// The program may close its own description, so the helper opens another.
pub(super) fn acquire(request: &Request) -> Result<i32, Reason> {
    // Mapping counts as access, so O_NOATIME is passed on.
    let fd = open(request.pid, request.fd, request.flags & libc::O_NOATIME)?;
    let taken = lease::take(fd, libc::F_RDLCK).and_then(|()| {
        // From the lease on nobody opens it for writing. Asked now, a file of a lower layer never was: that would have copied it up.
        let layered = request.fs.is_some_and(|fs| fs.layered);
        if layered && !file::only_in_lower_layer(fd) { Err(Reason::FileSystem) } else { Ok(fd) }
    });
    taken.inspect_err(|_| file::close(fd))
}

pub(super) fn open(pid: i32, fd: i32, flags: i32) -> Result<i32, Reason> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | flags;
    processes::open(&ProcPath::new(pid, "fd", Some(fd)), flags).map_err(lease::refused)
}

pub(super) fn still_holds(fd: i32, though_wanted: bool) -> bool {
    lease::still_holds(fd, libc::F_RDLCK, though_wanted)
}

pub(super) fn on_break(_known: &File, _program: i32) -> bool {
    true
}

pub(super) fn on_fork(known: &File, predecessor: i32) -> Option<i32> {
    let fd = reopen(known, predecessor)?;
    if lease::take(fd, libc::F_RDLCK).is_ok() {
        return Some(fd);
    }
    file::close(fd);
    None
}

/// Opens the file through the parent's helper's descriptor, without a lease.
pub(super) fn reopen(known: &File, predecessor: i32) -> Option<i32> {
    let fd = open(predecessor, known.source.fd, 0).ok()?;
    if file::stat(fd).is_ok_and(|stat| stat.id == known.key) {
        return Some(fd);
    }
    file::close(fd);
    None
}

/// Not while a forked child without guards of its own depends on the lease.
pub(super) fn give_up(known: &File) -> bool {
    if forks::children_uncovered() {
        return false;
    }
    // Closing is not enough: a mapping keeps the description, and so the lease.
    let _ = file::set_lease(known.source.fd, libc::F_UNLCK);
    true
}
