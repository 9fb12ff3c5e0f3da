//! The truncation that is put off, for the program, its helper, and a helper's successor.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::*};
use elision_sys::file::FileKey;

/// A descriptor of the file; −1: no truncation is put off.
static FD: AtomicI32 = AtomicI32::new(-1);
static DEV: AtomicU64 = AtomicU64::new(0);
static INO: AtomicU64 = AtomicU64::new(0);
/// The file's size, as far as the program can tell.
static SIZE: AtomicU64 = AtomicU64::new(0);
/// Where the save under way ends: in its middle the bytes that it leaves out are still needed. 0: none is.
static UNTIL: AtomicU64 = AtomicU64::new(0);
/// The saving thread is in Elision's own code: its system calls concern the save alone.
static INSIDE: AtomicBool = AtomicBool::new(false);

/// May a truncation be put off?
static ALLOWED: AtomicBool = AtomicBool::new(true);

pub(crate) fn allow(allowed: bool) {
    ALLOWED.store(allowed, Relaxed);
}

pub fn allowed() -> bool {
    ALLOWED.load(Relaxed)
}

pub(crate) fn begin(fd: i32, key: FileKey) {
    SIZE.store(0, SeqCst);
    UNTIL.store(0, SeqCst);
    INSIDE.store(true, SeqCst);
    DEV.store(key.dev, SeqCst);
    INO.store(key.ino, SeqCst);
    FD.store(fd, SeqCst);
}

pub(crate) fn end() {
    FD.store(-1, SeqCst);
    INSIDE.store(false, SeqCst);
}

#[inline]
pub fn any() -> bool {
    FD.load(Relaxed) >= 0
}

/// The descriptor, the file, and the size it is to have.
pub(crate) fn now() -> Option<(i32, FileKey, u64)> {
    let fd = FD.load(SeqCst);
    let key = FileKey { dev: DEV.load(SeqCst), ino: INO.load(SeqCst) };
    (fd >= 0).then(|| (fd, key, size()))
}

pub(crate) fn size() -> u64 {
    SIZE.load(SeqCst)
}

pub(crate) fn has_grown(to: u64) {
    SIZE.fetch_max(to, SeqCst);
}

/// The file's size after the save under way.
pub(crate) fn until() -> u64 {
    size().max(UNTIL.load(SeqCst))
}

fn is_of(key: FileKey) -> bool {
    now().is_some_and(|(_, pending, _)| pending == key)
}

/// A save up to `until` begins. The size before, if the file's truncation is put off.
pub(crate) fn begin_save(key: FileKey, until: u64) -> Option<u64> {
    is_of(key).then(|| {
        UNTIL.store(until, SeqCst);
        size()
    })
}

/// Bytes up to `to` are written next. (Before it: a killed helper's successor may cut the file at any moment.) The size before.
pub(crate) fn begin_write(key: FileKey, to: u64) -> Option<u64> {
    is_of(key).then(|| SIZE.fetch_max(to, SeqCst))
}

/// After `begin_write` returned `before`: the write ended here.
pub(crate) fn end_write(key: FileKey, before: u64, to: u64) {
    if is_of(key) {
        SIZE.store(before.max(to), SeqCst);
    }
}

/// The save has written up to `to`, and leaves nothing out from there on.
pub(crate) fn end_save(key: FileKey, to: u64) {
    if is_of(key) {
        has_grown(to);
        UNTIL.store(0, SeqCst);
    }
}

pub(crate) fn is_inside() -> bool {
    INSIDE.load(SeqCst)
}

pub(crate) fn set_inside(inside: bool) {
    INSIDE.store(inside, SeqCst);
}
