//! Stopping the threads is a signal to the kernel, and cuts short calls that nothing else cuts short: copies between files, reads
//! of some devices, random numbers. They are repeated for the rest. A call that may wait for another process (sockets, pipes) is
//! not: more might never come.
#![allow(unsafe_code)] // The program's pointers.

use core::ffi::c_void;

use elision_core::client;
use libc::{c_int, c_long, c_uint, size_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::{kernel, raw};
use crate::state::stop::active;

/// Reads up to this are never cut short.
pub(crate) const SHORT: usize = 4096;

/// Repeats a call that such stops cut short, while `may` holds. `call` gets the bytes done.
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

/// The kernel advances the positions.
pub(crate) fn copying(to: c_int, len: usize, mut call: impl FnMut(usize) -> ssize_t) -> ssize_t {
    whole(len, || kernel::regular(to), |done| call(len - done))
}

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

pub(crate) fn random(len: usize, call: impl FnMut(usize) -> ssize_t) -> ssize_t {
    whole(len, || true, call)
}

interpose! {
    fn getrandom(buf: *mut c_void, len: size_t, flags: c_uint) -> ssize_t, until kernel(libc::SYS_getrandom);
        if len > SHORT && active() => random(len, |done| {
            // SAFETY: the program's call, or its rest.
            unsafe { getrandom::real(buf.wrapping_byte_add(done), len - done, flags) }
        });
}

pub(crate) fn by_number(
    number: c_long,
    arguments: [c_long; 6],
    call: impl Fn([c_long; 6]) -> c_long,
) -> c_long {
    // The indices of the length, and of a buffer to be advanced.
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
