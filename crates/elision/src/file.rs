//! An open file whose every change goes through this crate.

use crate::buffer::Buffer;
use elision_core::client::dropin;
use elision_core::client::fork;
use elision_core::helper::guard;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// An open file of which no other handle exists in this program.
///
/// A file that a program has open for writing can only be followed if nothing is written to it unseen.
/// `std::fs::File` can be cloned, lent and written to from safe code, so reads through a writable one
/// cannot be deferred. This type keeps its descriptor to itself; that is all it adds.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// # std::fs::write(&path, vec![7u8; 1 << 20])?;
/// let file = elision::File::open_with(std::fs::OpenOptions::new().read(true).write(true), &path)?;
/// let mut buffer = file.read(0, 1 << 20)?;
/// buffer[500_000] = 1;
/// file.write(0, &mut buffer)?; // one page
/// # assert_eq!(std::fs::read(&path)?[500_000], 1);
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct File {
    /// Before the file itself, so that it goes first.
    _ending: Ending,
    file: fs::File,
    /// Forks of this process when it was opened; see [`File::owned`].
    born: u64,
    /// Changes under way in the lower half, changes ever begun in the upper.
    changes: AtomicU64,
    /// Reads under way that may be deferred; in the process that opened the file.
    deferrals: AtomicU32,
    process: i32,
}

/// Says that a descriptor is about to be closed.
#[derive(Debug)]
struct Ending(i32);

impl Drop for Ending {
    fn drop(&mut self) {
        dropin::closing_own(self.0);
    }
}

/// Stands for [`File::born`] where others may have the file: there are never so many forks.
const NEVER_OWNED: u64 = u64::MAX;

/// What [`File::changes`] said at some moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(u64);

/// A read under way that may be deferred.
pub(crate) struct Deferral<'a>(&'a AtomicU32);

impl Drop for Deferral<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A change under way.
pub(crate) struct Change<'a>(&'a AtomicU64);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// As `std::fs::File::open`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        let born = fork::forks();
        Ok(File::of(fs::File::open(path)?, born))
    }

    /// Opens a file as the options say.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_with(options: &OpenOptions, path: impl AsRef<Path>) -> io::Result<File> {
        // The open itself would wait for whatever this process still has mapped of the file; ask for it first, so that
        // what is known of its pages survives.
        settle(path.as_ref());
        let born = fork::forks();
        Ok(File::of(options.open(path)?, born))
    }

    fn of(file: fs::File, born: u64) -> File {
        let (changes, deferrals) = (AtomicU64::new(0), AtomicU32::new(0));
        let ending = Ending(file.as_raw_fd());
        File { _ending: ending, file, born, changes, deferrals, process: elision_sys::task::pid() }
    }

    /// Reads up to `len` bytes from `offset` (fewer only at the end of file) into a new buffer.
    ///
    /// # Errors
    /// As reading traditionally (`EINVAL` if there can be no such offset); `ENOMEM` if there is no address space.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Buffer> {
        if i64::try_from(offset).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let available = self.file.metadata()?.len().saturating_sub(offset);
        let there = usize::try_from(available).unwrap_or(usize::MAX).min(len);
        let mut buffer = Buffer::new(there)?;
        let got = buffer.read_with(0, there, self, offset, crate::min_bytes(false))?;
        if got < there {
            buffer.resize(got)?;
        } else if got < len && !self.size_is_true() {
            self.read_on(&mut buffer, offset, len)?;
        }
        Ok(buffer)
    }

    /// Does the size say how much there is to be read? In /proc it is 0, and elsewhere it may be of some time ago.
    fn size_is_true(&self) -> bool {
        elision_sys::file::filesystem(self.raw()).is_ok_and(guard::file_system_allowed)
    }

    /// Reads on traditionally, from where the file should have ended, until it has `len` bytes or does end.
    fn read_on(&self, buffer: &mut Buffer, offset: u64, len: usize) -> io::Result<()> {
        let mut room = vec![0; 1 << 16];
        while buffer.len() < len {
            let end = buffer.len();
            let wanted = room.len().min(len - end);
            let got = self.read_traditionally(&mut room[..wanted], offset + end as u64)?;
            if got == 0 {
                break;
            }
            buffer.resize(end + got)?;
            buffer[end..].copy_from_slice(&room[..got]);
        }
        Ok(())
    }

    /// Writes a whole buffer at `offset`: only what the file does not have already.
    ///
    /// # Errors
    /// As writing traditionally.
    pub fn write(&self, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.write_at(0, buffer.len(), self, offset)
    }

    /// Size, times, permissions.
    ///
    /// # Errors
    /// As `std::fs::File::metadata`.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    /// Cuts or extends the file. Buffers that depend on it get memory of their own first.
    ///
    /// # Errors
    /// As `std::fs::File::set_len`.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        let _change = self.change();
        self.release();
        self.file.set_len(len)
    }

    /// Waits until the file is on the disk.
    ///
    /// # Errors
    /// As `std::fs::File::sync_all`.
    pub fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// The plain file. Whatever depends on it gets memory of its own, since it can be changed unseen from here on.
    pub fn into_std(self) -> fs::File {
        self.release();
        self.file
    }

    /// Could the file, which is known to be the one at `path`, be opened now to be written anew?
    pub(crate) fn may_be_replaced(&self, path: &Path) -> bool {
        elision_sys::file::may_be_written(path) && elision_sys::file::is_append_only(self.raw()) == Ok(false)
    }

    /// Is every change through this handle one of this process? Not once it has forked: the child has the handle, too.
    pub(crate) fn owned(&self) -> bool {
        self.born == fork::forks()
    }

    /// The same, and the count of forks after which it is so no longer: one may come before the sidecar is asked.
    pub(crate) fn owned_until(&self) -> (bool, u64) {
        (self.owned(), self.born)
    }

    /// Marks the beginning of a read that may be deferred, and its end; `None` if it must not be, while a change is under
    /// way: what it would map, the change may not know of any more, and what a cut has taken could not be had again.
    pub(crate) fn defer(&self) -> Option<Deferral<'_>> {
        self.deferrals.fetch_add(1, SeqCst);
        let deferral = Deferral(&self.deferrals);
        (self.changes.load(SeqCst) & 0xffff_ffff == 0).then_some(deferral)
    }

    /// Marks the beginning of a change, and its end. Waits for reads that are being deferred; those that begin meanwhile
    /// are not. A write elided may trust what another change replaces: it asks [`File::undisturbed`] when it is done.
    pub(crate) fn change(&self) -> Change<'_> {
        self.changes.fetch_add(1 + (1 << 32), SeqCst);
        let change = Change(&self.changes);
        // (A forked child has the count, but not the threads that it counts.)
        let mut round = 0;
        while self.deferrals.load(SeqCst) != 0 && elision_sys::task::pid() == self.process {
            elision_sys::task::give_way(round);
            round += 1;
        }
        change
    }

    /// Now, to be handed to [`File::undisturbed`].
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.changes.load(SeqCst))
    }

    /// Was no change under way at that moment, but for `own` of the caller's, and has none begun since?
    pub(crate) fn undisturbed(&self, since: Moment, own: u64) -> bool {
        since.0 & 0xffff_ffff == own && self.changes.load(SeqCst) >> 32 == since.0 >> 32
    }

    /// Everything that depends on the file gets memory of its own.
    pub(crate) fn release(&self) {
        if let Ok(stat) = elision_sys::file::stat(self.raw()) {
            elision_core::client::write::release(self.raw(), stat);
        }
    }

    pub(crate) fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub(crate) fn read_traditionally(&self, target: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < target.len() {
            match self.file.read_at(&mut target[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    pub(crate) fn write_traditionally(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// From the position on, which nothing else here moves.
    pub(crate) fn write_in_order(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    /// Is there room for `len` bytes once what the file has is given back?
    pub(crate) fn has_room_to_begin_anew(&self, len: usize) -> bool {
        use std::os::unix::fs::MetadataExt;
        let own = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        elision_sys::file::room(self.raw()).is_ok_and(|free| free.saturating_add(own) >= len as u64)
    }

    /// Everything up to the end, of a file whose size says nothing (a pipe, a file in /proc).
    pub(crate) fn read_to_end(&self) -> io::Result<Buffer> {
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes)?;
        let mut buffer = Buffer::new(bytes.len())?;
        buffer.copy_from_slice(&bytes);
        Ok(buffer)
    }
}

/// Takes over a file that is open already. Through one that is open for reading only, reads are deferred as ever.
/// Through one that is open for writing nothing is deferred or elided, since nobody can tell whether it has clones.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// # std::fs::write(&path, vec![7u8; 1 << 20])?;
/// let file = elision::File::from(std::fs::File::open(&path)?);
/// assert_eq!(file.read(0, 1 << 20)?[500_000], 7);
/// # std::io::Result::Ok(())
/// ```
impl From<fs::File> for File {
    fn from(file: fs::File) -> File {
        File::of(file, NEVER_OWNED)
    }
}

/// Has whatever this process has mapped of the file at `path` given memory of its own.
pub(crate) fn settle(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    if let Ok(metadata) = fs::metadata(path) {
        let key = elision_sys::file::FileKey { dev: metadata.dev(), ino: metadata.ino() };
        elision_core::client::write::release(-1, elision_sys::file::Stat { id: key, ..Default::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_time_thread_that_writes_does_not_wait_for_what_it_keeps_from_running() {
        let file = File::from(tempfile::tempfile().unwrap());
        elision_sys::testing::beside_real_time(
            |until_waited_for| {
                let deferral = file.defer();
                until_waited_for();
                drop(deferral);
            },
            || drop(file.change()),
        );
    }
}
