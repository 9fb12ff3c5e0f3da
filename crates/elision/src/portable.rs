//! The same face where nothing can be deferred: plain memory, plain reads, plain writes.
#![cfg_attr(feature = "stable_deref_trait", allow(unsafe_code))] // A promise on addresses.

use crate::part::part;
use crate::threshold;
use elision_core::page_state::PageState;
use elision_core::stats::{COUNTERS, Reason};
pub use elision_core::stats::{count_exactly, snapshot};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A number of bytes in which buffers may live. Nothing is reserved here.
#[derive(Clone, Debug)]
pub struct Segment(usize);

impl Segment {
    /// Notes the size.
    ///
    /// # Errors
    /// None.
    pub fn reserve(bytes: usize) -> io::Result<Segment> {
        Ok(Segment(bytes))
    }

    /// The size.
    pub fn capacity(&self) -> usize {
        self.0
    }

    /// A buffer of `len` zero bytes.
    ///
    /// # Errors
    /// If `len` is more than the segment, or than memory has.
    pub fn buffer(&self, len: usize) -> io::Result<Buffer> {
        if len > self.0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Buffer::new(len)
    }
}

/// Owned memory that files can be read into and written from.
pub struct Buffer {
    bytes: Vec<u8>,
    pub(crate) origin: Option<File>,
}

impl Buffer {
    /// A buffer of `len` zero bytes.
    ///
    /// # Errors
    /// If memory has no room for it.
    pub fn new(len: usize) -> io::Result<Buffer> {
        let mut buffer = Buffer { bytes: Vec::new(), origin: None };
        buffer.resize(len)?;
        Ok(buffer)
    }

    /// Changes the length. New bytes are zero.
    ///
    /// # Errors
    /// If memory has no room for it.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        let more = len.saturating_sub(self.bytes.len());
        self.bytes.try_reserve_exact(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.bytes.resize(len, 0);
        Ok(())
    }

    /// Longer, with room for more of it.
    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        let more = len.saturating_sub(self.bytes.len());
        self.bytes.try_reserve(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.bytes.resize(len, 0);
        Ok(())
    }

    /// A copy. It keeps no file open.
    ///
    /// # Errors
    /// If memory has no room for it.
    pub fn try_clone(&self) -> io::Result<Buffer> {
        let mut copy = Buffer::new(self.len())?;
        copy.copy_from_slice(self);
        Ok(copy)
    }

    /// Fills `self[at..at + len]` from `file`, and says how many bytes there were.
    ///
    /// # Errors
    /// As reading the file.
    ///
    /// # Panics
    /// If `at + len` is beyond the buffer.
    pub fn read_at(&mut self, at: usize, len: usize, file: &File, offset: u64) -> io::Result<usize> {
        self.fill(at, len, file, offset, threshold::to_refill())
    }

    fn fill(&mut self, at: usize, len: usize, file: &File, offset: u64, least: usize) -> io::Result<usize> {
        if len >= least {
            COUNTERS.decline_read(Reason::Unavailable, len);
        }
        let mut file = file.at(offset)?;
        let mut done = 0;
        let target = &mut self[at..at + len];
        while done < len {
            match file.read(&mut target[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes `self[at..at + len]` to `file`.
    ///
    /// # Errors
    /// As writing the file.
    ///
    /// # Panics
    /// If `at + len` is beyond the buffer.
    pub fn write_at(&mut self, at: usize, len: usize, file: &File, offset: u64) -> io::Result<()> {
        file.write_bytes(&self[at..at + len], offset)
    }

    /// Loads a range now: it is loaded.
    ///
    /// # Errors
    /// None.
    ///
    /// # Panics
    /// If the range is beyond the buffer.
    pub fn load(&self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let _ = part(self, &range);
        Ok(())
    }

    /// Gives memory of loaded pages back: there is none to give.
    ///
    /// # Errors
    /// None.
    ///
    /// # Panics
    /// If the range is beyond the buffer.
    pub fn unload(&mut self, range: impl RangeBounds<usize>) -> io::Result<usize> {
        let _ = part(self, &range);
        Ok(0)
    }

    /// What each run of bytes is.
    pub fn ranges(&self) -> Vec<(Range<usize>, PageState)> {
        if self.is_empty() { Vec::new() } else { vec![(0..self.len(), PageState::Plain)] }
    }

    /// The bytes, and where the file stays that they are saved to.
    pub(crate) fn parts(&mut self) -> (&[u8], Option<&mut Option<File>>) {
        (&self.bytes, Some(&mut self.origin))
    }

    /// Lets go of the file this buffer was read from for editing, or saved to.
    pub fn close(&mut self) {
        self.origin = None;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

// SAFETY: as for the `Vec` that has the bytes.
#[cfg(feature = "stable_deref_trait")]
unsafe impl stable_deref_trait::StableDeref for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// An open file.
#[derive(Debug)]
pub struct File(Mutex<fs::File>);

impl From<fs::File> for File {
    fn from(file: fs::File) -> File {
        File(Mutex::new(file))
    }
}

/// Plain reads from the file's position on.
impl Read for File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).read(target)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).seek(to)
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// As `std::fs::File::open`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        fs::File::open(path).map(|file| File(Mutex::new(file)))
    }

    /// Opens a file as the options say.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_with(options: &OpenOptions, path: impl AsRef<Path>) -> io::Result<File> {
        options.open(path).map(|file| File(Mutex::new(file)))
    }

    /// Reads up to `len` bytes from `offset` into a new buffer.
    ///
    /// # Errors
    /// As reading the file.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Buffer> {
        self.read_new(offset, len, threshold::to_read())
    }

    fn read_new(&self, offset: u64, len: usize, least: usize) -> io::Result<Buffer> {
        let available = self.metadata()?.len().saturating_sub(offset);
        let mut buffer = Buffer::new(usize::try_from(available).unwrap_or(usize::MAX).min(len))?;
        let got = buffer.fill(0, buffer.len(), self, offset, least)?;
        buffer.resize(got)?;
        Ok(buffer)
    }

    /// Writes a whole buffer at `offset`.
    ///
    /// # Errors
    /// As writing the file.
    pub fn write(&self, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        self.write_bytes(buffer, offset)
    }

    /// Size, times, permissions.
    ///
    /// # Errors
    /// As `std::fs::File::metadata`.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.lock().metadata()
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// As `std::fs::File::set_len`.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.lock().set_len(len)
    }

    /// Waits until the file is on the disk.
    ///
    /// # Errors
    /// As `std::fs::File::sync_all`.
    pub fn sync_all(&self) -> io::Result<()> {
        self.lock().sync_all()
    }

    /// Waits until the file's data is on the disk, and the metadata that is needed to read it.
    ///
    /// # Errors
    /// As `std::fs::File::sync_data`.
    pub fn sync_data(&self) -> io::Result<()> {
        self.lock().sync_data()
    }

    /// The plain file.
    pub fn into_std(self) -> fs::File {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is opened again for each save.
    pub(crate) fn may_be_replaced(&self, _: &Path) -> bool {
        false
    }

    pub(crate) fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.at(offset)?.write_all(bytes)
    }

    /// `kept`: whether the memory stays with the file.
    pub(crate) fn write_all(&self, bytes: &[u8], _kept: bool) -> io::Result<()> {
        self.write_bytes(bytes, 0)
    }

    /// Nothing depends on who else could write to it.
    pub(crate) fn owned(&self) -> bool {
        true
    }

    pub(crate) fn write_in_order(&self, bytes: &[u8]) -> io::Result<()> {
        self.lock().write_all(bytes)
    }

    /// Not that anybody knows.
    pub(crate) fn has_room_to_begin_anew(&self, _: usize) -> bool {
        false
    }

    /// The descriptor has one position; it is taken for one transfer at a time.
    fn lock(&self) -> MutexGuard<'_, fs::File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, offset: u64) -> io::Result<MutexGuard<'_, fs::File>> {
        let mut file = self.lock();
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }

    /// Reads a whole file, whatever it is.
    pub(crate) fn read_all(&self, least: usize) -> io::Result<Buffer> {
        let metadata = self.metadata()?;
        if metadata.is_file() && metadata.len() > 0 {
            return self.read_new(0, usize::MAX, least);
        }
        let mut buffer = Buffer::new(0)?;
        self.lock().read_to_end(&mut buffer.bytes)?;
        Ok(buffer)
    }
}

/// Makes a new file of these bytes, and gives it the name of the old one.
pub(crate) fn replace(
    path: &Path,
    bytes: &[u8],
    _kept: Option<&mut Option<File>>,
    durable: bool,
) -> io::Result<()> {
    let path = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path)?,
        _ => path.to_owned(),
    };
    let old = fs::metadata(&path).ok().map(|metadata| metadata.permissions());
    if old.as_ref().is_some_and(fs::Permissions::readonly) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut number = std::process::id();
    let (name, mut file) = loop {
        let name = path.with_file_name(format!(".elision-{number}"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number = number.wrapping_add(1),
            other => break (name, other?),
        }
    };
    let made = (|| {
        file.write_all(bytes)?;
        old.map_or(Ok(()), |old| file.set_permissions(old))?;
        if durable {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(&name, &path)
    })();
    if made.is_err() {
        let _ = fs::remove_file(&name);
    }
    made
}
