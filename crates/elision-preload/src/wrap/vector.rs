//! readv and writev: a vector of one piece is a plain transfer; a longer one's big pieces are offered one by one. Unnoticed:
//!
//! - The kernel checks everything first: a vector that it would refuse is left whole.
//! - The kernel stops at a short count: so does the walk.
//! - No other write comes in between: writes need one thread and a write lease; where the file system keeps writes out of reads,
//!   reads stay whole.
//! - The kernel holds the position: transfers there need one thread, and a descriptor never shared.
#![allow(unsafe_code)] // The program's vector, once known to be readable.

use core::sync::atomic::{AtomicPtr, Ordering};

use elision_core::client;
use libc::{c_int, iovec, off_t, ssize_t};

use crate::abi::interpose::interpose;
use crate::abi::kernel::{self, pieces};
use crate::abi::{objects, raw};
use crate::state::descriptions::{self, changing};
use crate::state::memory;
use crate::wrap::offer::{Cancel, at, offer_read, offer_write, write_matters};

/// libc's flag that no second thread was ever started.
static SINGLE_THREADED: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

pub(crate) fn find_flag() {
    if let Some(found) = objects::first(c"__libc_single_threaded") {
        SINGLE_THREADED.store(found.address.cast(), Ordering::Relaxed);
    }
}

fn single_threaded() -> bool {
    let flag = SINGLE_THREADED.load(Ordering::Relaxed);
    // SAFETY: libc stores to its variable only in a single thread.
    !flag.is_null() && unsafe { flag.read_volatile() } != 0
}

/// A safe look may take a system call: so only for descriptors opened here, which no socket is.
#[inline]
pub(crate) fn big(fd: c_int, iov: *const iovec, count: c_int) -> bool {
    descriptions::recorded(fd)
        && pieces(iov, count).is_some_and(|pieces| {
            pieces.iter().fold(0usize, |total, piece| total.saturating_add(piece.iov_len))
                >= client::life::min_bytes()
        })
}

fn divisible(fd: c_int, pieces: &[iovec], offset: Option<off_t>) -> bool {
    let mut total = 0usize;
    for piece in pieces {
        total = total.saturating_add(piece.iov_len);
        if !kernel::nameable(piece.iov_base as usize, piece.iov_len) {
            return false;
        }
    }
    total <= kernel::MOST
        && offset.is_none_or(|offset| offset.checked_add(total as off_t).is_some())
        && (offset.is_some() || single_threaded() && descriptions::sole(fd))
        && !descriptions::being_shared()
        && kernel::regular(fd)
        && kernel::status_flags(fd).is_some_and(|flags| flags & (libc::O_APPEND | libc::O_DIRECT) == 0)
}

/// Can nothing else write between two pieces?
fn alone(fd: c_int) -> bool {
    single_threaded() && descriptions::sole(fd) && client::changes::write_lease_on(fd)
}

/// `traditional` makes the call for a part, at an offset if positioned.
#[cold]
#[inline(never)]
pub(crate) fn read(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: Option<off_t>,
    cancel: Cancel,
    traditional: impl Fn(*const iovec, c_int, off_t) -> ssize_t,
) -> ssize_t {
    let whole = || traditional(iov, count, offset.unwrap_or(0));
    let Some(pieces) = pieces(iov, count) else { return whole() };
    let fits = |piece: &iovec| {
        piece.iov_len >= client::life::min_bytes() && memory::eligible(piece.iov_base as usize, piece.iov_len)
    };
    let offer = |piece: &iovec, offset: Option<off_t>| {
        let offset = offset.map_or(Some(None), at)?;
        offer_read(fd, piece.iov_base as usize, piece.iov_len, offset, cancel)
    };
    match pieces {
        [piece] => offer(piece, offset).unwrap_or_else(whole),
        _ if !pieces.iter().any(fits) || !divisible(fd, pieces, offset) => whole(),
        _ if kernel::reads_are_atomic(fd) => whole(),
        _ => walk(pieces, offset, fits, offer, &traditional),
    }
}

#[inline(never)]
pub(crate) fn write(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: Option<off_t>,
    cancel: Cancel,
    traditional: impl Fn(*const iovec, c_int, off_t) -> ssize_t,
) -> ssize_t {
    let whole = || traditional(iov, count, offset.unwrap_or(0));
    let unseen = || {
        before_change(fd);
        whole()
    };
    let Some(pieces) = pieces(iov, count) else { return whole() };
    let _inside = client::truncate::enter();
    let offer = |piece: &iovec, offset: Option<off_t>| {
        let offset = offset.map_or(Some(None), at)?;
        offer_write(fd, piece.iov_base as usize, piece.iov_len, offset, cancel)
    };
    let fits = |piece: &iovec| write_matters(fd, piece.iov_len) && piece.iov_len != 0;
    changing(fd, || match pieces {
        [piece] => offer(piece, offset).unwrap_or_else(whole),
        _ if !big(fd, iov, count) => unseen(),
        _ if !alone(fd) => unseen(),
        // Each piece would wait for the disk.
        _ if kernel::writes_synchronously(fd) => unseen(),
        // At the limit the kernel signals even for a call that writes nothing.
        _ if !divisible(fd, pieces, offset) || !kernel::unlimited_file_size() => unseen(),
        _ => walk(pieces, offset, fits, offer, &traditional),
    })
}

/// The kernel handles flags, and −1 for the current position.
pub(crate) fn write2(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
    cancel: Cancel,
    traditional: impl Fn(*const iovec, c_int, off_t) -> ssize_t,
) -> ssize_t {
    if flags == 0 && offset >= 0 {
        write(fd, iov, count, Some(offset), cancel, traditional)
    } else {
        changing(fd, || {
            before_change(fd);
            traditional(iov, count, offset)
        })
    }
}

fn before_change(fd: c_int) {
    if client::changes::write_leases() {
        client::changes::before_change(fd);
    }
}

fn walk(
    pieces: &[iovec],
    offset: Option<off_t>,
    fits: impl Fn(&iovec) -> bool,
    offer: impl Fn(&iovec, Option<off_t>) -> Option<ssize_t>,
    traditional: &impl Fn(*const iovec, c_int, off_t) -> ssize_t,
) -> ssize_t {
    let before = raw::errno();
    let mut done: ssize_t = 0;
    let mut rest = pieces;
    while let Some(first) = rest.first() {
        let here = offset.map(|offset| offset.wrapping_add(done as off_t));
        let (taken, moved) = match fits(first).then(|| offer(first, here)).flatten() {
            Some(moved) => (1, moved),
            None => {
                let run =
                    1 + rest.get(1..).map_or(0, |rest| rest.iter().take_while(|piece| !fits(piece)).count());
                (run, traditional(rest.as_ptr(), run as c_int, here.unwrap_or(0)))
            }
        };
        if moved < 0 {
            if done == 0 {
                return moved;
            }
            // The kernel reports what was moved.
            raw::set_errno(before);
            return done;
        }
        done += moved;
        let (run, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
        if moved as usize != run.iter().map(|piece| piece.iov_len).sum::<usize>() {
            return done;
        }
        rest = after;
    }
    done
}

interpose! {
    fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, until kernel(libc::SYS_readv);
        if big(fd, iov, count) => read(fd, iov, count, None, Cancel::Point, |iov, count, _| {
            // SAFETY: the program's vector, or a part of it.
            unsafe { readv::real(fd, iov, count) }
        });

    fn preadv(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_preadv, fd, iov, count, offset, 0);
        if offset >= 0 && big(fd, iov, count) =>
            read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { preadv::real(fd, iov, count, offset) }
            });

    fn preadv64(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_preadv, fd, iov, count, offset, 0);
        if offset >= 0 && big(fd, iov, count) =>
            read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { preadv64::real(fd, iov, count, offset) }
            });

    fn preadv2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_preadv2, fd, iov, count, offset, 0, flags);
        if flags == 0 && offset >= 0 && big(fd, iov, count) =>
            read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { preadv2::real(fd, iov, count, offset, flags) }
            });

    fn preadv64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_preadv2, fd, iov, count, offset, 0, flags);
        if flags == 0 && offset >= 0 && big(fd, iov, count) =>
            read(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { preadv64v2::real(fd, iov, count, offset, flags) }
            });

    fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, until kernel(libc::SYS_writev);
        if write_matters(fd, 0) || big(fd, iov, count) =>
            write(fd, iov, count, None, Cancel::Point, |iov, count, _| {
                // SAFETY: as above.
                unsafe { writev::real(fd, iov, count) }
            });

    fn pwritev(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwritev, fd, iov, count, offset, 0);
        if write_matters(fd, 0) || big(fd, iov, count) =>
            write(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { pwritev::real(fd, iov, count, offset) }
            });

    fn pwritev64(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        until kernel(libc::SYS_pwritev, fd, iov, count, offset, 0);
        if write_matters(fd, 0) || big(fd, iov, count) =>
            write(fd, iov, count, Some(offset), Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { pwritev64::real(fd, iov, count, offset) }
            });

    fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_pwritev2, fd, iov, count, offset, 0, flags);
        if write_matters(fd, 0) || big(fd, iov, count) =>
            write2(fd, iov, count, offset, flags, Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { pwritev2::real(fd, iov, count, offset, flags) }
            });

    fn pwritev64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        until kernel(libc::SYS_pwritev2, fd, iov, count, offset, 0, flags);
        if write_matters(fd, 0) || big(fd, iov, count) =>
            write2(fd, iov, count, offset, flags, Cancel::Point, |iov, count, offset| {
                // SAFETY: as above.
                unsafe { pwritev64v2::real(fd, iov, count, offset, flags) }
            });
}
