//! Calls that end early when the threads are stopped, and are completed here.
//!
//! To the kernel, stopping a thread is a signal. Copies between files, reads of some devices, and random numbers end early for
//! one, never otherwise: so programs do not expect it. A call that came back short is made again for the rest, if the threads
//! were stopped since it began. (Not where it may wait for another process, as with sockets and pipes: there short counts are
//! common, and more might never come.)
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use core::ffi::c_void;

use elision_core::client;
use libc::{c_int, c_long, c_uint, size_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::{kernel, raw};
use crate::state::stop::active;

/// Reads of no more than this are never cut short.
pub(crate) const SHORT: usize = 4096;

/// Makes a call, and again for the rest while stops of the threads cut it short. `may`: is it of that kind? `call` gets the
/// number of bytes done.
pub(crate) fn whole(len: usize, may: impl Fn() -> bool, mut call: impl FnMut(usize) -> ssize_t) -> ssize_t {
    let len = len.min(kernel::MOST);
    let mut done = 0;
    let errno = raw::errno();
    loop {
        let before = client::life::pauses();
        let got = call(done);
        let Some(got) = usize::try_from(got).ok().filter(|&got| got > 0) else {
            if done > 0 {
                raw::set_errno(errno);
                return done as ssize_t;
            }
            return got;
        };
        done += got;
        if done >= len || client::life::pauses() == before || !may() {
            return done as ssize_t;
        }
    }
}

/// A copy to a file, of which the kernel advances the positions.
pub(crate) fn copying(to: c_int, len: usize, mut call: impl FnMut(usize) -> ssize_t) -> ssize_t {
    whole(len, || kernel::regular(to), |done| call(len - done))
}

/// A read of more than [`SHORT`] bytes.
#[inline(always)]
pub(crate) fn reading(
    fd: c_int,
    buf: *mut c_void,
    len: usize,
    mut call: impl FnMut(*mut c_void, usize) -> ssize_t,
) -> ssize_t {
    let before = client::life::pauses();
    let got = call(buf, len);
    if got <= 0 || got as usize >= len || client::life::pauses() == before || !kernel::is_endless(fd) {
        return got;
    }
    let (done, errno) = (got as usize, raw::errno());
    match whole(len - done, || true, |more| call(buf.wrapping_byte_add(done + more), len - done - more)) {
        more @ 0.. => got + more,
        // The rest has failed; the call has not.
        _ => {
            raw::set_errno(errno);
            got
        }
    }
}

/// `getrandom`, and by its number.
pub(crate) fn random(len: usize, call: impl FnMut(usize) -> ssize_t) -> ssize_t {
    whole(len, || true, call)
}

interpose! {
    /// See getrandom(2).
    fn getrandom(buf: *mut c_void, len: size_t, flags: c_uint) -> ssize_t, until kernel(libc::SYS_getrandom);
        if len > SHORT && active() => random(len, |done| {
            // SAFETY: the program's call, or the rest of it.
            unsafe { getrandom::real(buf.wrapping_byte_add(done), len - done, flags) }
        });
}

/// The calls of this kind that came through `syscall`.
pub(crate) fn by_number(
    number: c_long,
    arguments: [c_long; 6],
    call: impl Fn([c_long; 6]) -> c_long,
) -> c_long {
    // Which argument is the length, and which a buffer to be advanced.
    let (at, buffer) = match number {
        libc::SYS_getrandom => (1, Some(0)),
        libc::SYS_sendfile => (3, None),
        _ => (4, None),
    };
    let len = arguments[at] as usize;
    let part = |done: usize| {
        let mut arguments = arguments;
        arguments[at] -= done as c_long;
        if let Some(buffer) = buffer {
            arguments[buffer] += done as c_long;
        }
        call(arguments) as ssize_t
    };
    (match number {
        libc::SYS_getrandom => random(len, part),
        libc::SYS_sendfile => copying(arguments[0] as c_int, len, |rest| part(len - rest)),
        _ => copying(arguments[2] as c_int, len, |rest| part(len - rest)),
    }) as c_long
}
