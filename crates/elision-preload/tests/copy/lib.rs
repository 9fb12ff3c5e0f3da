//! The crate behind names of C: the tests have it in the program, and once more in a library.
#![allow(unsafe_code, missing_docs)] // Pointers across the border of a library; for tests.

use core::ffi::{CStr, c_char};
use elision::{Buffer, stats};
use std::path::Path;

fn path<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the tests pass C strings.
    Path::new(unsafe { CStr::from_ptr(path) }.to_str().unwrap())
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_read(from: *const c_char) -> *mut Buffer {
    Box::into_raw(Box::new(elision::read(path(from)).unwrap()))
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_edit(from: *const c_char) -> *mut Buffer {
    Box::into_raw(Box::new(elision::edit(path(from)).unwrap()))
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_bytes(buffer: &mut Buffer, len: &mut usize) -> *mut u8 {
    *len = buffer.len();
    buffer.as_mut_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_save(buffer: &mut Buffer, to: *const c_char) {
    elision::write(path(to), buffer).unwrap();
}

/// Bytes of a new file, shared with the one that the buffer was read from or written.
#[unsafe(no_mangle)]
pub extern "C" fn copy_replace(buffer: &mut Buffer, at: *const c_char) {
    elision::write_atomic(path(at), buffer).unwrap();
}

/// Longer by so many bytes, as likely as not somewhere else.
#[unsafe(no_mangle)]
pub extern "C" fn copy_grow(buffer: &mut Buffer, by: usize) {
    buffer.resize(buffer.len() + by).unwrap();
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_clone(buffer: &Buffer) -> *mut Buffer {
    Box::into_raw(Box::new(buffer.clone()))
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_unload(buffer: &mut Buffer) -> usize {
    buffer.unload(..).unwrap()
}

/// How many pages are in runs that are not plain?
#[unsafe(no_mangle)]
pub extern "C" fn copy_known(buffer: &Buffer) -> usize {
    let runs = buffer.ranges();
    runs.iter().filter(|(_, state)| *state != elision::PageState::Plain).map(|(run, _)| run.len()).sum()
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_deferred() -> u64 {
    stats::snapshot().deferred_bytes
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_elided() -> u64 {
    stats::snapshot().elided_bytes
}

#[unsafe(no_mangle)]
pub extern "C" fn copy_drop(buffer: Box<Buffer>) {
    drop(buffer);
}
