//! A deferred read that asks nobody: the mapping carries its own lease.
//!
//! [`crate::read()`] opens a file and closes it again, and nobody else ever has that description. So the lease can be taken
//! on the description itself, in the calling thread. The sidecar is named as the one to be told when
//! it is being broken; the file is mapped; word is left for the sidecar ([`announced`]); and the descriptor is closed. From then
//! on the mapping alone holds the description, and with it the lease: it ends when the last page is unmapped, be it because the
//! buffer goes or because the sidecar has put memory in its place. No round trip, and nothing to clean up.
//!
//! What could go wrong in between:
//!
//! - *The lease is broken before the word is left.* The sidecar would look in vain. So the lease is asked for once more
//!   afterwards; if it is being broken, or gone, all is taken back. (That also covers a thread that was stopped here
//!   for longer than the kernel waits.)
//! - *Another thread forks.* The child would have the descriptor, and nobody to close it. So forks are kept out until the
//!   descriptor is closed, and a file that a fork came after is not read in this way.
//! - *The sidecar goes, or another takes its place.* It is asked for again, too.
//! - *The sidecar may not be signalled*, because this process has another user than when it was started. Asked first.
#![allow(unsafe_code)] // Maps a file, at an address that nobody has.

use crate::buffer::Buffer;
use crate::file::File;
use crate::segment::Segment;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use elision_core::client::fork;
use elision_core::client::launch;
use elision_core::helper::guard;
use elision_core::helper::serve;
use elision_core::helper::state;
use elision_core::shared::channel::{Call, Op};
use elision_core::shared::registration::{self, Word};
use elision_core::stats::{COUNTERS, Counters};
use elision_core::transfer::PAGE;
use elision_sys::{file, memory};

/// Reads all of a file that was opened for reading and that nobody else has. `Err`: not in this way; the file as it was.
pub(crate) fn read(file: File) -> Result<Buffer, File> {
    let fd = file.raw();
    let Ok((stat, mount)) = file::stat_and_mount(fd) else { return Err(file) };
    let least = crate::min_bytes(false).max(PAGE);
    let Some(len) = usize::try_from(stat.size).ok().filter(|&len| len >= least) else { return Err(file) };
    if !stat.is_regular() || !allowed(fd, stat, mount) || !state::room_for_another() {
        return Err(file);
    }
    let Some(passage) = fork::Passage::enter() else { return Err(file) };
    if !file.owned() {
        return Err(file);
    }
    match map(fd, len, stat.id, &passage) {
        Some(buffer) => {
            drop(file);
            Ok(buffer)
        }
        None => {
            // (Where there is no lease, both say so and change nothing.)
            let _ = file::set_lease(fd, libc::F_UNLCK);
            let _ = file::fcntl(fd, libc::F_SETOWN, 0);
            let _ = file::set_lease_signal(fd, 0);
            Err(file)
        }
    }
}

/// Is it a file whose lease and page cache hold what they promise? Mounts have numbers that are never given again, and most
/// files are on the same one as the last.
fn allowed(fd: i32, stat: file::Stat, mount: Option<u64>) -> bool {
    static ALLOWED: AtomicU64 = AtomicU64::new(0);
    if mount.is_some_and(|mount| mount == ALLOWED.load(Relaxed)) {
        return true;
    }
    match file::filesystem(fd) {
        // (See `set_lease` and `associate`, which look at each file there.)
        Ok(file::TMPFS) => stat.links > 0 && stat.is_solid(),
        Ok(magic) if guard::file_system_allowed(magic) => {
            if let Some(mount) = mount {
                ALLOWED.store(mount, Relaxed);
            }
            true
        }
        _ => false,
    }
}

/// Takes the lease and maps the whole pages; the rest is copied.
fn map(fd: i32, len: usize, key: file::FileKey, passage: &fork::Passage) -> Option<Buffer> {
    // Before the lease, which would otherwise name this process.
    file::fcntl(fd, libc::F_SETOWN, passage.sidecar() as usize).ok()?;
    // If that cannot be set, it is SIGIO.
    let _ = file::set_lease_signal(fd, serve::CARRIED_BREAK);
    file::set_lease_of_named(fd, libc::F_RDLCK).ok()?;
    // Is it still as long, now that it can change no more?
    if file::seek(fd, 0, libc::SEEK_END) != Ok(len as u64) {
        return None;
    }
    let pages = len / PAGE * PAGE;
    let room = len.next_multiple_of(PAGE);
    let addr = if pages == len {
        memory::map_file(len, fd).ok()?
    } else {
        let addr = memory::allocate(room, false).ok()?;
        // SAFETY: memory that was allocated just now.
        if unsafe { memory::map_file_at(addr, pages, fd, 0) }.is_err() {
            // SAFETY: as above.
            unsafe { memory::unmap(addr, room) };
            return None;
        }
        addr
    };
    // From here on the mapping ends with the segment.
    let segment = Segment::of(addr, room);
    // SAFETY: the last page, which is memory of the segment's own. Without waiting for a device, which a fork would have to
    // wait for as well.
    let rest = unsafe { file::pread_at_once(fd, addr + pages, len - pages, pages as u64) };
    let word = Word { addr, len: pages, key };
    if rest != Ok(len - pages) || !leave(word) {
        return None;
    }
    if file::lease(fd) != Ok(libc::F_RDLCK) || !passage.still_holds() {
        if !registration::withdraw(addr, launch::wait_at_once) {
            // The sidecar has it already.
            elision_core::client::dropin::forget_known(addr, pages);
        }
        return None;
    }
    state::mark(addr, pages);
    Counters::add(&COUNTERS.deferred, pages);
    Some(Buffer::announced(segment, addr, len, room))
}

/// Leaves a word; wakes the sidecar when it is time that it took some.
fn leave(word: Word) -> bool {
    let left = registration::leave(word);
    if !left || registration::pending() > registration::MANY {
        elision_core::shared::channel::ring();
    }
    left
}

/// A buffer that [`read`] made is about to lose a part of its memory: has everything recorded that was announced, so that
/// the part can be forgotten.
pub(crate) fn settle() {
    if registration::pending() != 0
        && let Some(mut call) = Call::new(Op::Ping, false)
    {
        call.send();
    }
}

/// The memory of a buffer that [`read`] made is about to go.
///
/// # Safety
/// The range is the caller's, and nobody uses it any more.
pub(crate) unsafe fn forget(addr: usize, len: usize) {
    // Whoever wants to know how much was loaded has the sidecar look at the page tables first.
    if elision_core::stats::exact() {
        return elision_core::client::dropin::forget_known(addr, len);
    }
    // SAFETY: the caller's promise. The addresses stay taken, so that nobody else's word of them can be taken for this one.
    unsafe { let_go(addr, len) };
    // Nobody has to tell the sidecar of what it has never heard.
    if !registration::withdraw(addr, launch::wait_at_once) {
        elision_core::client::dropin::forget_known(addr, len);
    }
}

/// The mapping goes before the word of it does: a child that another thread forks in between would have a copy, and with it the lease, of
/// which nobody knows.
///
/// # Safety
/// As [`forget`].
pub(crate) unsafe fn let_go(addr: usize, len: usize) {
    // SAFETY: the caller's promise. If there is no room for it the mapping goes a moment later.
    let _ = unsafe { memory::unreserve(addr, len) };
}
