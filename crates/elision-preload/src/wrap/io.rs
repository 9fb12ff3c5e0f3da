//! A call of the threshold's size or more is offered to the library. A smaller write to a file that could be under a write lease
//! is noted (see [`crate::state::descriptions`]).
#![allow(unsafe_code)] // The program's pointers.

use elision_core::client;
use libc::{c_int, c_void, off_t, size_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::state::descriptions::{self, Unnoted, changing};
use crate::state::in_flight;
use crate::wrap::offer::{self, Cancel, at, offer_write};
use crate::wrap::resuming::{self, SHORT};

enum Way {
    Straight,
    Noted(in_flight::Noted),
    Apart,
}

/// Every small write asks: a few loads.
#[inline(always)]
fn way_of_write(fd: c_int, len: usize) -> Way {
    if len >= client::life::min_bytes() {
        return Way::Apart;
    }
    match descriptions::note_unguarded(fd) {
        Ok(noted) => Way::Noted(noted),
        Err(Unnoted::NotForWriting) if !client::changes::write_leases() => Way::Straight,
        Err(_) => Way::Apart,
    }
}

#[inline(always)]
fn or(offered: Option<ssize_t>, traditional: impl FnOnce() -> ssize_t) -> ssize_t {
    match offered {
        Some(result) => result,
        None => traditional(),
    }
}

macro_rules! reading {
    ($name:ident($fd:ident, $buf:ident, $len:ident $(, $rest:ident)*), $offset:expr) => {{
        offer::reading($fd, $buf as usize, $len, $offset, Cancel::Point, || {
            resuming::reading($fd, $buf, $len, |buf, len| {
                // SAFETY: the program's call, or its rest.
                unsafe { $name::real($fd, buf, len $(, $rest)*) }
            })
        })
    }};
}

/// Most writes are only noted. A function apart makes the rest: this one needs next to no stack.
macro_rules! writing {
    ($name:ident($fd:ident, $buf:ident, $len:ident $(, $rest:ident)*), $offset:expr) => {{
        #[cold]
        #[inline(never)]
        unsafe extern "C-unwind" fn apart($fd: c_int, $buf: *const c_void, $len: size_t $(, $rest: off_t)*) -> ssize_t {
            changing($fd, || or(
                $offset.and_then(|offset| offer_write($fd, $buf as usize, $len, offset, Cancel::Point)),
                // SAFETY: the program's call.
                || unsafe { $name::real($fd, $buf, $len $(, $rest)*) },
            ))
        }
        match way_of_write($fd, $len) {
            // SAFETY: as above.
            Way::Straight => unsafe { $name::real($fd, $buf, $len $(, $rest)*) },
            Way::Noted(noted) => {
                // SAFETY: as above.
                let result = unsafe { $name::real($fd, $buf, $len $(, $rest)*) };
                in_flight::end(noted);
                result
            }
            // SAFETY: as above.
            Way::Apart => unsafe { apart($fd, $buf, $len $(, $rest)*) },
        }
    }};
}

const HERE: Option<Option<u64>> = Some(None);

interpose! {
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_read);
        if len > SHORT => reading!(read(fd, buf, len), HERE);

    fn __read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_read);
        if len > SHORT => reading!(__read(fd, buf, len), HERE);

    fn pread(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t, until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(pread(fd, buf, len, offset), at(offset));

    fn pread64(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t, until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(pread64(fd, buf, len, offset), at(offset));

    fn __pread64(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pread64);
        if len > SHORT => reading!(__pread64(fd, buf, len, offset), at(offset));

    /// libc ends the program if `len` exceeds `room`.
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_read, fd, buf, len.min(room));
        if len > SHORT && len <= room => reading!(__read_chk(fd, buf, len, room), HERE);

    fn __pread_chk(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_pread64, fd, buf, len.min(room), offset);
        if len > SHORT && len <= room => reading!(__pread_chk(fd, buf, len, offset, room), at(offset));

    fn __pread64_chk(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t,
        until kernel(libc::SYS_pread64, fd, buf, len.min(room), offset);
        if len > SHORT && len <= room => reading!(__pread64_chk(fd, buf, len, offset, room), at(offset));

    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_write);
        => writing!(write(fd, buf, len), HERE);

    fn __write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t, until kernel(libc::SYS_write);
        => writing!(__write(fd, buf, len), HERE);

    fn pwrite(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(pwrite(fd, buf, len, offset), at(offset));

    fn pwrite64(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(pwrite64(fd, buf, len, offset), at(offset));

    fn __pwrite64(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwrite64);
        => writing!(__pwrite64(fd, buf, len, offset), at(offset));
}
