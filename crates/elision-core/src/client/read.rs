//! A deferred read, on the program's side.
//!
//! [`associate`] maps whole pages and copies fragments, [`DeferredRead::finish`] moves the file position. Between the two the
//! caller checks that nobody changed the file through its own descriptors.

use crate::client::call::Call;
use crate::client::offer::{FileFacts, Judged, TransferOptions, check_lease};
use crate::history;
use crate::shared::requests::Op;
use crate::shared::verbose;
use crate::shared::{live, write_guarded};
use crate::stats::Reason;
use crate::transfer::{PAGE, Split, Transfer};
use elision_sys::file;
use elision_sys::raw::{Errno, Result};

#[derive(Debug)]
#[must_use]
pub struct DeferredRead {
    fd: i32,
    transfer: Transfer,
    moves: bool,
    has_fragments: bool,
}

/// Tries to read up to `len` bytes into `[addr, addr + len)` by association. `None`: make the traditional call.
///
/// # Safety
/// The caller may overwrite the range until [`DeferredRead::finish`] returns, and what `options` vouch for holds.
#[allow(unsafe_code)]
pub unsafe fn associate(
    fd: i32,
    facts: &FileFacts,
    addr: usize,
    len: usize,
    options: TransferOptions,
) -> Option<DeferredRead> {
    verbose::say_active();
    let (reason, bytes) = match plan(fd, facts, addr, len, &options) {
        // SAFETY: the caller's promise.
        Ok(transfer) => match unsafe { carry_out(fd, facts, transfer, &options) } {
            Ok(read) => return read,
            Err(reason) => {
                overwrites(facts, transfer);
                (reason, transfer.len)
            }
        },
        Err(declined) => declined,
    };
    crate::decline_read(reason, bytes);
    None
}

fn plan(
    fd: i32,
    facts: &FileFacts,
    addr: usize,
    len: usize,
    options: &TransferOptions,
) -> core::result::Result<Transfer, (Reason, usize)> {
    let access = facts.flags & libc::O_ACCMODE;
    if facts.flags & (libc::O_DIRECT | libc::O_PATH) != 0 || access == libc::O_WRONLY {
        return Err((Reason::OpenFlags, len));
    }
    let writes = access == libc::O_RDWR && !facts.immutable;
    if writes && !options.owned {
        return Err((Reason::OwnWriter, len));
    }
    let offset = match options.offset {
        Some(offset) => offset,
        None => file::seek(fd, 0, libc::SEEK_CUR).map_err(|_| (Reason::NotRegular, len))?,
    };
    let available = usize::try_from(facts.stat.size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let transfer = Transfer { addr, len: len.min(available), offset };
    let has_pages = transfer.split().pages.len > 0 || options.exclusive;
    if transfer.len < options.least || !has_pages || transfer.len == 0 {
        return Err((Reason::Small, transfer.len));
    }
    if !transfer.congruent() {
        verbose::say_phase(&transfer, options.placed);
        let apart = transfer.offset.wrapping_sub(addr as u64);
        let reason = if apart.is_multiple_of(16) { Reason::Phase } else { Reason::OddPhase };
        return Err((reason, transfer.len));
    }
    let number = write_guarded::number(facts.stat.id);
    let declines = match options.judged {
        Judged::Before => None,
        Judged::BySize => declines(number, transfer.len, writes),
        Judged::ByRest => declines(number, available, writes),
    };
    if let Some(reason) = declines {
        overwrites(facts, transfer);
        return Err((reason, transfer.len));
    }
    if !facts.immutable {
        check_lease(fd, facts.fs, &facts.stat, writes).map_err(|reason| (reason, transfer.len))?;
    }
    Ok(transfer)
}

fn declines(number: u64, len: usize, writes: bool) -> Option<Reason> {
    if writes { history::declines(number, len) } else { history::declines_large(number, len) }
}

fn overwrites(facts: &FileFacts, transfer: Transfer) {
    if live::touched(transfer.addr, transfer.len) {
        history::overwritten(write_guarded::number(facts.stat.id), transfer.len);
    }
}

/// An error: nothing was associated. `None`: pages were; the traditional call must overwrite them.
///
/// # Safety
/// As [`associate`].
#[allow(unsafe_code)]
unsafe fn carry_out(
    fd: i32,
    facts: &FileFacts,
    transfer: Transfer,
    options: &TransferOptions,
) -> core::result::Result<Option<DeferredRead>, Reason> {
    let Split { head, pages, tail } = transfer.split();
    let fragment = |part: Transfer| {
        // SAFETY: within the caller's range.
        let got = unsafe { file::pread(fd, part.addr, part.len, part.offset) };
        part.len == 0 || got == Ok(part.len)
    };
    // The helper associates partial end pages only if all their bytes are there already.
    if options.exclusive && !(fragment(head) && fragment(tail)) {
        return Err(Reason::Raced);
    }
    let mut call = Call::new(Op::Associate, true).ok_or_else(crate::unavailable)?;
    let request = call.request();
    (request.fd, request.flags) = (fd, facts.flags);
    (request.key, request.fs, request.immutable) = (facts.stat.id, facts.fs, facts.immutable);
    (request.addr, request.len, request.offset) = (pages.addr, pages.len, pages.offset);
    (request.owned, request.forks, request.exclusive) = (options.owned, options.forks, options.exclusive);
    (request.head, request.tail) = (head.len, tail.len);
    if let Some(reason) = call.send() {
        return Err(reason);
    }
    let answer = call.request();
    let (changes, start, end) = (answer.changes, answer.addr, answer.addr + answer.handled);
    drop(call);
    let (before, after) = (head.len > 0 && start > head.addr, tail.len > 0 && end < tail.addr + tail.len);
    let has_fragments = before || after;
    if has_fragments {
        // A failed fragment (EIO) fails in the traditional call, too. An atomic read (XFS) has fragments and pages of one time.
        let got = (!before || fragment(head)) && (!after || fragment(tail));
        if !got || live::changes() != changes {
            return Ok(None);
        }
    }
    Ok(Some(DeferredRead { fd, transfer, moves: options.offset.is_none(), has_fragments }))
}

impl DeferredRead {
    /// At an offset, carried out by another copy of this library.
    pub(crate) fn by_another(
        fd: i32,
        addr: usize,
        len: usize,
        offset: u64,
        has_fragments: bool,
    ) -> DeferredRead {
        DeferredRead { fd, transfer: Transfer { addr, len, offset }, moves: false, has_fragments }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.transfer.len
    }

    /// Were fragments copied after the pages were mapped? If the file changed meanwhile, make the traditional call.
    pub fn has_fragments(&self) -> bool {
        self.has_fragments
    }

    /// Moves the file position where the call moves it, and returns the bytes read.
    ///
    /// # Errors
    /// As the traditional call.
    #[allow(unsafe_code)]
    pub fn finish(self) -> Result<usize> {
        let Transfer { addr, len, offset } = self.transfer;
        if !self.moves {
            return Ok(len);
        }
        let end = file::seek(self.fd, len as i64, libc::SEEK_CUR)?;
        if end == offset + len as u64 {
            return Ok(len);
        }
        // Another thread read through the description: this call has claimed other bytes. SAFETY: within `associate`'s range.
        let got = unsafe { file::pread(self.fd, addr, len, end - len as u64) }?;
        let _ = file::seek(self.fd, got as i64 - len as i64, libc::SEEK_CUR);
        Ok(got)
    }
}

/// Loads `[addr, addr + len)` now; an I/O error is returned, not signalled.
///
/// # Errors
/// `EIO` where a page cannot be read, `ENOMEM` where memory is short.
#[allow(unsafe_code)]
pub fn load(addr: usize, len: usize) -> Result<()> {
    let start = addr / PAGE * PAGE;
    let end = (addr + len).next_multiple_of(PAGE);
    // SAFETY: populating changes no contents.
    match unsafe { elision_sys::memory::advise(start, end - start, libc::MADV_POPULATE_READ) } {
        // A touch would raise SIGBUS.
        Err(Errno(libc::EFAULT)) => Err(Errno(libc::EIO)),
        other => other,
    }
}
