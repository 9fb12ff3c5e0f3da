//! No lease: the file can never change. The helper keeps it open, so that its number stays its own.

use crate::fs_traits::FsTraits;
use crate::helper::files::File;
use crate::helper::guard::{lease, read_lease};
use crate::shared::forks;
use crate::shared::requests::Request;
use crate::stats::Reason;
use elision_sys::file::{self, Stat};

/// Of a file system that is read-only by nature, under fs-verity, or a memory file that was sealed. (No read-only mount, no `chattr +i`:
/// these come and go.)
pub(crate) fn is_immutable(fd: i32, fs: &FsTraits, stat: &Stat) -> bool {
    let nameless = stat.links == 0 && !fs.counts_nameless_writers;
    fs.immutable || stat.verity || nameless && file::is_sealed(fd)
}

pub(super) fn acquire(request: &Request) -> Result<i32, Reason> {
    let fd = read_lease::open(request.pid, request.fd, request.flags & libc::O_NOATIME)?;
    let known = file::stat(fd).ok().zip(request.fs);
    let refused = match known {
        _ if !lease::has_room(fd) => Reason::Limit,
        Some((stat, fs)) if is_immutable(fd, fs, &stat) => return Ok(fd),
        _ => Reason::Raced,
    };
    file::close(fd);
    Err(refused)
}

pub(super) fn on_fork(known: &File, predecessor: i32) -> Option<i32> {
    let fd = read_lease::reopen(known, predecessor)?;
    if lease::has_room(fd) {
        return Some(fd);
    }
    file::close(fd);
    None
}

/// Not while a forked child is about to open the file through the helper's descriptor.
pub(super) fn give_up() -> bool {
    !forks::children_uncovered()
}
