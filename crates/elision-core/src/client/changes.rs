//! Releases guards before file changes that are not offered as writes.
//!
//! No function here is `unsafe`: a superfluous call only loads or copies more.

use crate::client::call::Call;
use crate::history;
use crate::shared::hot::HOT;
use crate::shared::requests::Op;
use crate::shared::write_guarded;
use core::sync::atomic::Ordering::*;
use elision_sys::file::{self, FileKey};

#[inline(always)]
pub fn write_leases() -> bool {
    HOT.writers.load(Acquire) != 0
}

pub fn write_lease_on(fd: i32) -> bool {
    write_leased(fd).is_some()
}

#[inline]
pub fn write_lease_on_number(number: u64) -> bool {
    write_guarded::write_guarded_number(number)
}

/// A hash of a file's identity, not unique; the two lowest bits carry nothing.
pub fn file_number(key: FileKey) -> u64 {
    write_guarded::number(key)
}

fn write_leased(fd: i32) -> Option<FileKey> {
    if !write_leases() {
        return None;
    }
    file::stat(fd).ok().map(|stat| stat.id).filter(|&key| write_guarded::write_guarded(key))
}

/// Before a change of the file that is not a write (ftruncate, sendfile, a shared mapping…).
pub fn before_change(fd: i32) {
    if let Some(key) = write_leased(fd) {
        release(key);
    }
}

pub fn release(key: FileKey) {
    if let Some(mut call) = Call::new(Op::Release, false) {
        call.request().key = key;
        call.send();
        learn_of_release(&mut call, key);
    }
}

/// [`release`] for `fd`, also O_PATH: `open(O_RDONLY|O_TRUNC)` breaks no lease.
pub fn release_behind(fd: i32) {
    if let Ok(stat) = file::stat(fd) {
        release(stat.id);
    }
}

/// Pages loaded for a change that is no save were not worth deferring.
pub(crate) fn learn_of_release(call: &mut Call, key: FileKey) {
    history::learn_of_file(write_guarded::number(key), call.request().known);
}

/// `private`: no other process ever had the descriptor, so its buffers say how long the file is needed.
pub fn closing(fd: i32, private: bool) {
    if let Some(key) = write_leased(fd)
        && let Some(mut call) = Call::new(Op::Closing, false)
    {
        (call.request().key, call.request().owned) = (key, private);
        call.send();
    }
}

/// Descriptors are about to be shared (fork, exec, SCM_RIGHTS), or written to unseen.
pub fn release_write_leases() {
    if write_leases()
        && let Some(mut call) = Call::new(Op::Surrender, false)
    {
        call.send();
    }
}
