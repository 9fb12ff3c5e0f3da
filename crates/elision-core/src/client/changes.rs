//! Changes of files that the library is not asked to make: guards are released before them.
//!
//! No function here is `unsafe`: a call too many only loads or copies more than need be. What a caller promises to say first is part
//! of [`TransferOptions::owned`](crate::client::offer::TransferOptions::owned).

use crate::client::call::Call;
use crate::history;
use crate::shared::hot::HOT;
use crate::shared::requests::Op;
use crate::shared::write_guarded;
use core::sync::atomic::Ordering::*;
use elision_sys::file::{self, FileKey};

/// Is any file of this process under a write lease? One atomic load.
#[inline(always)]
pub fn write_leases() -> bool {
    HOT.writers.load(Acquire) != 0
}

/// May the file behind `fd` be under a write lease? `false` is certain, and cheap while there are no [`write_leases`].
pub fn write_lease_on(fd: i32) -> bool {
    write_leased(fd).is_some()
}

/// May the file of this [`file_number`] be under a write lease? `false` is certain.
#[inline]
pub fn write_lease_on_number(number: u64) -> bool {
    write_guarded::write_guarded_number(number)
}

/// A hash of a file's identity. Two files may share it; its two lowest bits say nothing.
pub fn file_number(key: FileKey) -> u64 {
    write_guarded::number(key)
}

/// The file behind `fd`, if it may be under a write lease.
fn write_leased(fd: i32) -> Option<FileKey> {
    if !write_leases() {
        return None;
    }
    file::stat(fd).ok().map(|stat| stat.id).filter(|&key| write_guarded::write_guarded(key))
}

/// Before a call that changes the file behind `fd` and is not offered as a write (ftruncate, fallocate, sendfile, a shared
/// mapping…): a write lease on it is released. Cheap while there are no [`write_leases`].
pub fn before_change(fd: i32) {
    if let Some(key) = write_leased(fd) {
        release(key);
    }
}

/// Has whatever depends on a file get memory of its own, and its guard released.
pub fn release(key: FileKey) {
    if let Some(mut call) = Call::new(Op::Release, false) {
        call.request().key = key;
        call.send();
        learn_of_release(&mut call, key);
    }
}

/// [`release`] for the file behind `fd`, which may be an O_PATH descriptor. Before `open(O_RDONLY|O_TRUNC)`, which breaks no
/// lease, and before an open that would not wait for the lease to be released.
pub fn release_behind(fd: i32) {
    if let Ok(stat) = file::stat(fd) {
        release(stat.id);
    }
}

/// Deferred pages that had to be loaded for a change which is no save were not worth deferring.
pub(crate) fn learn_of_release(call: &mut Call, key: FileKey) {
    history::learn_of_file(write_guarded::number(key), call.request().known);
}

/// A descriptor is about to be closed. `private`: nobody else ever had it, so how long the file is needed is what its buffers
/// say. Cheap while there are no [`write_leases`].
pub fn closing(fd: i32, private: bool) {
    if let Some(key) = write_leased(fd)
        && let Some(mut call) = Call::new(Op::Closing, false)
    {
        (call.request().key, call.request().owned) = (key, private);
        call.send();
    }
}

/// Releases every write lease: descriptors are about to be shared with another process (fork, exec, posix_spawn,
/// SCM_RIGHTS), or written to where the library does not see it.
pub fn release_write_leases() {
    if write_leases()
        && let Some(mut call) = Call::new(Op::Surrender, false)
    {
        call.send();
    }
}
