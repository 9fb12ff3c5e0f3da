//! An open file whose every change goes through this crate.
#![allow(unsafe_code)] // Reads into memory of the caller's, as it promises.

use crate::threshold;
use elision_core::client::offer::{self, FileFacts, Judged, TransferOptions};
use elision_core::client::write::Track;
use elision_core::client::{engine, read};
use elision_core::stats::Reason;
use elision_sys::file::FileKey;
use elision_sys::raw::Errno;
use elision_sys::{file, task};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// An open file of which no other handle exists in this program.
///
/// Reads through a descriptor that is open for writing can be deferred only if every write through it is seen.
/// `std::fs::File` can be cloned, lent and written to from safe code. This type keeps its descriptor to itself; that is
/// all it adds. So it has no `AsFd`: who borrows a descriptor can write through it, which the kernel does not count as another opener.
/// [`File::into_std`] gives it away.
///
/// [`File::read`], [`File::write`] and those of [`Buffer`](crate::Buffer) take offsets. `io::Read` and `io::Seek` are there, too, for code
/// that takes any reader (a header's parser): plain reads, and the file's position.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// # std::fs::write(&path, vec![7u8; 1 << 20])?;
/// let file = elision::File::open_with(std::fs::OpenOptions::new().read(true).write(true), &path)?;
/// let mut buffer = file.read(0, 1 << 20)?;
/// buffer[500_000] = 1;
/// file.write(0, &mut buffer)?; // that page, and the first
/// # assert_eq!(std::fs::read(&path)?[500_000], 1);
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct File {
    /// Declared before the file, so that it is dropped first.
    _ending: Ending,
    file: fs::File,
    /// The count of forks when it was opened; see [`File::owned`].
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
        engine::closing(self.0);
    }
}

/// [`File::born`] where others may have the file: there are never so many forks.
const NEVER_OWNED: u64 = u64::MAX;

/// A read under way that may be deferred.
struct Deferral<'a>(&'a AtomicU32);

impl Drop for Deferral<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A change under way.
struct Change<'a>(&'a AtomicU64);

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
        let born = engine::forks();
        Ok(File::of(fs::File::open(path)?, born))
    }

    /// Opens a file as the options say.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_with(options: &OpenOptions, path: impl AsRef<Path>) -> io::Result<File> {
        // The open would break the lease of what this process has mapped of the file. Released before, the helper keeps what it knows
        // of the file's pages.
        release(path.as_ref());
        let born = engine::forks();
        Ok(File::of(options.open(path)?, born))
    }

    /// `born`: the count of forks when nobody had it yet.
    pub(crate) fn of(file: fs::File, born: u64) -> File {
        let (changes, deferrals) = (AtomicU64::new(0), AtomicU32::new(0));
        let ending = Ending(file.as_raw_fd());
        File { _ending: ending, file, born, changes, deferrals, process: task::pid() }
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

    /// Waits until the file's data is on the disk, and the metadata that is needed to read it.
    ///
    /// # Errors
    /// As `std::fs::File::sync_data`.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(crate) fn set_permissions(&self, permissions: fs::Permissions) -> io::Result<()> {
        self.file.set_permissions(permissions)
    }

    /// Is it watched for the sake of memory that was saved to it?
    pub(crate) fn is_guarded(&self) -> bool {
        engine::has_write_lease(self.raw())
    }

    /// The plain file. Whatever depends on it gets memory of its own, since it can be changed unseen from now on.
    pub fn into_std(self) -> fs::File {
        self.release();
        self.file
    }

    /// Could the file, which is known to be the one at `path`, be opened now to be written anew?
    pub(crate) fn may_be_replaced(&self, path: &Path) -> bool {
        file::may_be_written(path) && file::is_append_only(self.raw()) == Ok(false)
    }

    /// Is every change through this handle one of this process? Not once it has forked: the child has the handle, too.
    pub(crate) fn owned(&self) -> bool {
        self.born == engine::forks()
    }

    fn options(&self, offset: u64, least: usize) -> TransferOptions {
        let owned = self.owned();
        let (offset, judged) = (Some(offset), Judged::BySize);
        TransferOptions { offset, owned, forks: self.born, exclusive: true, least, judged, placed: false }
    }

    /// What the kernel says of it, if it is a regular file.
    pub(crate) fn facts(&self) -> Option<FileFacts> {
        FileFacts::of(self.raw(), 0).ok()
    }

    /// Does the size say how much there is to be read? In /proc it is 0, and elsewhere (or below an overlay) it may be of some time ago.
    pub(crate) fn size_is_true(&self, facts: Option<&FileFacts>) -> bool {
        facts.map_or_else(|| offer::fs(self.raw()), |facts| facts.fs).is_some_and(|fs| !fs.layered)
    }

    /// Reads from `offset`, deferred if that can be and there are at least `least` bytes, and says how many there were (fewer only at
    /// the end of file). `facts`: asked just now.
    ///
    /// # Safety
    /// No other thread may store into the pages around `target`.
    pub(crate) unsafe fn read_into(
        &self,
        target: &mut [u8],
        offset: u64,
        least: usize,
        facts: Option<&FileFacts>,
    ) -> io::Result<usize> {
        let (addr, len) = (target.as_mut_ptr() as usize, target.len());
        match (self.defer(), facts) {
            (None, _) => elision_core::decline_read(Reason::Raced, len),
            (_, None) => elision_core::decline_read(Reason::NotRegular, len),
            (Some(deferral), Some(facts)) => {
                let changes = self.changes.load(SeqCst);
                let options = self.options(offset, least);
                // SAFETY: the range is exclusively borrowed, and the pages around it are as the caller promises.
                let read = unsafe { engine::associate(self.raw(), facts, addr, len, options) };
                let still = |read: &read::DeferredRead| !read.has_fragments() || self.is_alone(changes, 0);
                let read = read.filter(still).map(read::DeferredRead::finish);
                drop(deferral);
                if let Some(done) = read {
                    return Ok(done?);
                }
            }
        }
        self.read_traditionally(target, offset)
    }

    /// Writes what the file does not have already.
    pub(crate) fn write_from(&self, bytes: &[u8], offset: u64, track: Track) -> io::Result<()> {
        let (addr, len) = (bytes.as_ptr() as usize, bytes.len());
        let options = self.options(offset, threshold::to_save());
        let _change = self.change();
        let changes = self.changes.load(SeqCst);
        let alone = || self.is_alone(changes, 1);
        let done = engine::write(self.raw(), addr, len, options, track, alone)?;
        self.file.write_all_at(&bytes[done..], offset + done as u64)
    }

    /// Writes from the beginning. `kept`: the memory stays with the file, so that the next write is compared with it.
    pub(crate) fn write_all(&self, bytes: &[u8], kept: bool) -> io::Result<()> {
        self.write_from(bytes, 0, if kept { Track::Now } else { Track::Never })
    }

    /// Begins a read that may be deferred. `None` while a change is under way: the change would not know of the pages, and a cut
    /// would take them.
    fn defer(&self) -> Option<Deferral<'_>> {
        self.deferrals.fetch_add(1, SeqCst);
        let deferral = Deferral(&self.deferrals);
        (self.changes.load(SeqCst) & 0xffff_ffff == 0).then_some(deferral)
    }

    /// Begins a change. Waits for reads that are being deferred; reads that begin meanwhile are not.
    fn change(&self) -> Change<'_> {
        self.changes.fetch_add(1 + (1 << 32), SeqCst);
        let change = Change(&self.changes);
        // (A forked child has the count, but not the threads that it counts.)
        let mut round = 0;
        while self.deferrals.load(SeqCst) != 0 && task::pid() == self.process {
            task::give_way(round);
            round += 1;
        }
        change
    }

    /// Were the `own` changes of the caller the only ones under way when [`File::changes`] was `since`, and has none begun since?
    fn is_alone(&self, since: u64, own: u64) -> bool {
        since & 0xffff_ffff == own && self.changes.load(SeqCst) >> 32 == since >> 32
    }

    /// Everything that depends on the file gets memory of its own.
    fn release(&self) {
        engine::release_behind(self.raw());
    }

    pub(crate) fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub(crate) fn read_traditionally(&self, target: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < target.len() {
            // Not by libc's name: the drop-in would defer the read, and does not know of this file's changes under way.
            match file::read_at(self.raw(), &mut target[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno(libc::EINTR)) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }

    /// From the position on, which nothing else here moves.
    pub(crate) fn write_in_order(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    /// Is there room for `len` bytes once what the file has is given back?
    pub(crate) fn has_room_to_begin_anew(&self, len: usize) -> bool {
        use std::os::unix::fs::MetadataExt;
        let own = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        file::room(self.raw()).is_ok_and(|free| free.saturating_add(own) >= len as u64)
    }

    /// Everything from the position to the end, of a file whose size says nothing (a pipe, a file in /proc).
    pub(crate) fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Takes over a file that is open already. If it is open for reading only, reads are deferred as ever.
/// If it is open for writing nothing is deferred or elided, since it may have clones.
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

/// Plain reads from the file's position on. (`file.read(…)` is [`File::read`]; generic code finds this one.)
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// # std::fs::write(&path, b"MAGIC2345678")?;
/// let mut file = elision::File::open(&path)?;
/// let mut magic = [0; 5];
/// file.read_exact(&mut magic)?;
/// assert_eq!((&magic, file.stream_position()?), (b"MAGIC", 5));
/// # std::io::Result::Ok(())
/// ```
impl Read for File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.file.read(target)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Everything that depends on the file at `path` gets memory of its own.
fn release(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    if let Ok(metadata) = fs::metadata(path) {
        engine::release(FileKey { dev: metadata.dev(), ino: metadata.ino() });
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
