//! A deferred read, start to end, on the program's side.

use crate::client::dropin::Outcome;
use crate::helper::files;
use crate::helper::guard;
use crate::helper::state;
use crate::history;
use crate::shared::channel::{Call, Op};
use crate::stats::Reason;
use crate::transfer::{PAGE, Split, Transfer};
use elision_sys::file::{self, Stat};
use elision_sys::raw::Errno;

/// What a caller asks and vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Position of the transfer; `None`: the description's own, which is then moved.
    pub offset: Option<u64>,
    /// Every change through this description will be shown first, and no other process shares it.
    pub owned: bool,
    /// The [count of forks](crate::client::fork::forks) up to which that holds.
    pub forks: u64,
    /// Nobody else can store into the pages around the buffer.
    pub exclusive: bool,
    /// Transfers below this many bytes are left alone.
    pub least: usize,
}

/// Tries to read up to `len` bytes into `[addr, addr + len)` by association. `undisturbed`, asked when that is done: has nobody
/// begun to change the file through this description since before it was begun?
///
/// # Safety
/// The range must be memory that the caller may overwrite.
#[allow(unsafe_code)]
pub unsafe fn read(
    fd: i32,
    addr: usize,
    len: usize,
    terms: Terms,
    undisturbed: impl Fn() -> bool,
) -> Outcome {
    match plan(fd, addr, len, terms) {
        // SAFETY: the caller's promise.
        Ok((transfer, flags, stat)) => unsafe { carry_out(fd, flags, stat, transfer, terms, undisturbed) },
        Err(reason) => {
            crate::decline(reason, len);
            Outcome::PassThrough
        }
    }
}

/// What there is to read, and whether it is worth deferring. Changes nothing.
fn plan(fd: i32, addr: usize, len: usize, terms: Terms) -> Result<(Transfer, i32, Stat), Reason> {
    let stat = file::stat(fd).map_err(|_| Reason::NotRegular)?;
    if !stat.is_regular() {
        return Err(Reason::NotRegular);
    }
    let flags = file::flags(fd).map_err(|_| Reason::NotRegular)?;
    if flags & (libc::O_DIRECT | libc::O_PATH) != 0 || flags & libc::O_ACCMODE == libc::O_WRONLY {
        return Err(Reason::OpenFlags);
    }
    let writes = flags & libc::O_ACCMODE == libc::O_RDWR;
    if writes && !terms.owned {
        return Err(Reason::OwnWriter);
    }
    let offset = match terms.offset {
        Some(offset) => offset,
        None => file::seek(fd, 0, libc::SEEK_CUR).map_err(|_| Reason::NotRegular)?,
    };
    let available = usize::try_from(stat.size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let len = len.min(available);
    let transfer = Transfer { addr, len, offset };
    if len < terms.least || (transfer.split().pages.len == 0 && !terms.exclusive) || len == 0 {
        return Err(Reason::Small);
    }
    if !transfer.congruent() {
        return Err(Reason::Phase);
    }
    let number = files::number(stat.id);
    let declines = match writes {
        true => history::declines(number, len),
        false => history::declines_large(number, len),
    };
    if let Some(reason) = declines {
        overwrites(stat, transfer);
        return Err(reason);
    }
    // Asked here, so that the sidecar never opens a file on a network or in another process's hands, and hangs.
    if !guard::file_system_allowed(file::filesystem(fd).map_err(|_| Reason::FileSystem)?) {
        return Err(Reason::FileSystem);
    }
    Ok((transfer, flags, stat))
}

/// The file is about to be read at once into memory in which something may be deferred.
fn overwrites(stat: Stat, transfer: Transfer) {
    if state::touched(transfer.addr, transfer.len) {
        history::overwritten(files::number(stat.id), transfer.len);
    }
}

/// # Safety
/// As [`read`].
#[allow(unsafe_code)]
unsafe fn carry_out(
    fd: i32,
    flags: i32,
    stat: Stat,
    transfer: Transfer,
    terms: Terms,
    undisturbed: impl Fn() -> bool,
) -> Outcome {
    let Split { head, pages, tail } = transfer.split();
    let fragment = |part: Transfer| {
        // SAFETY: within the caller's range.
        let got = unsafe { file::pread(fd, part.addr, part.len, part.offset) };
        part.len == 0 || got == Ok(part.len)
    };
    // To be taken in with the whole pages, fragments have to be there before.
    let good = !terms.exclusive || fragment(head) && fragment(tail);
    let mut changes = 0;
    let mut taken = pages;
    let declined = if !good {
        Some(Reason::Raced)
    } else if let Some(mut call) = Call::new(Op::Associate, true) {
        let request = call.request();
        (request.fd, request.flags, request.key) = (fd, flags, stat.id);
        (request.addr, request.len, request.offset) = (pages.addr, pages.len, pages.offset);
        (request.owned, request.forks, request.exclusive) = (terms.owned, terms.forks, terms.exclusive);
        (request.head, request.tail) = (head.len, tail.len);
        let declined = call.send();
        let answer = call.request();
        (changes, taken.addr, taken.len) = (answer.changes, answer.addr, answer.handled);
        declined
    } else {
        Some(crate::unavailable())
    };
    if let Some(reason) = declined {
        overwrites(stat, transfer);
        crate::decline(reason, transfer.len);
        return Outcome::PassThrough;
    }
    // Under the guard the file cannot have become shorter. If a fragment fails all the same (EIO), so does the
    // call it belongs to: the traditional way, over the pages just mapped. So it is if the fragments may be of another time
    // than the pages: where a read is atomic (XFS), nobody sees a part of somebody's write.
    let (before, after) = (taken.addr <= head.addr, taken.addr + taken.len >= tail.addr + tail.len);
    let fragments = (head.len > 0 && !before, tail.len > 0 && !after);
    if fragments != (false, false) {
        let got = (!fragments.0 || fragment(head)) && (!fragments.1 || fragment(tail));
        if !got || state::changes() != changes || !undisturbed() {
            return Outcome::PassThrough;
        }
    }
    if terms.offset.is_some() {
        return Outcome::Done(transfer.len);
    }
    match file::seek(fd, transfer.len as i64, libc::SEEK_CUR) {
        Ok(end) if end == transfer.offset + transfer.len as u64 => Outcome::Done(transfer.len),
        // Another thread read through the same description in between. The bytes that this call has claimed are
        // elsewhere: read those.
        // SAFETY: within the caller's range.
        Ok(end) => unsafe {
            let claimed = end - transfer.len as u64;
            match file::pread(fd, transfer.addr, transfer.len, claimed) {
                Ok(got) => {
                    let _ = file::seek(fd, got as i64 - transfer.len as i64, libc::SEEK_CUR);
                    Outcome::Done(got)
                }
                Err(errno) => Outcome::Failed(errno),
            }
        },
        Err(errno) => Outcome::Failed(errno),
    }
}

/// Loads `[addr, addr + len)` now: what touching every page would do, with an I/O error as an error.
///
/// # Errors
/// `EIO` where a page cannot be read from its file, `ENOMEM` where memory is short.
#[allow(unsafe_code)]
pub fn load(addr: usize, len: usize) -> Result<(), Errno> {
    let start = addr / PAGE * PAGE;
    let end = (addr + len).next_multiple_of(PAGE);
    // SAFETY: populating changes no contents.
    match unsafe { elision_sys::memory::advise(start, end - start, libc::MADV_POPULATE_READ) } {
        // What would be a SIGBUS.
        Err(Errno(libc::EFAULT)) => Err(Errno(libc::EIO)),
        other => other,
    }
}
