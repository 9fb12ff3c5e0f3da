//! `read`, `edit`, `write` and `write_atomic`: whole files by their paths.

use crate::{Buffer, File, platform, threshold};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

/// Reads a whole file, in time that does not depend on its size: `std::fs::read`, deferred.
///
/// The bytes are those that the file has now, whatever happens to it later. For text: [`Buffer::to_str`].
///
/// # Errors
/// As `std::fs::read`. An I/O error of a page that is loaded later arrives when it is touched; see [`Buffer::load`].
pub fn read(path: impl AsRef<Path>) -> io::Result<Buffer> {
    File::open(path)?.read_all(threshold::to_read())
}

/// Reads a whole file in order to change it and save it again: like [`read`], but the file is opened for writing as
/// well and stays open with the buffer, so that [`write()`] to the same path writes what was altered and
/// nothing else. (After a plain [`read`], the first save has to load the file, because opening it for writing ends its lease.)
///
/// # Errors
/// As opening the file for reading and writing, and reading it.
pub fn edit(path: impl AsRef<Path>) -> io::Result<Buffer> {
    let path = path.as_ref();
    let file = File::open_with(OpenOptions::new().read(true).write(true), path)?;
    let mut buffer = file.read_all(threshold::to_save())?;
    buffer.origin = Some(file);
    Ok(buffer)
}

/// What can be saved: bytes in whatever holds them. Of a [`Buffer`] only what was altered is written; `&mut Buffer` also remembers what
/// was written, for the next save.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("notes");
/// elision::write(&path, "text")?;
/// elision::write(&path, vec![1, 2, 3])?;
/// let shared = std::sync::Arc::new(elision::read(&path)?);
/// elision::write(dir.path().join("copy"), &*shared)?;
/// # assert_eq!(std::fs::read(dir.path().join("copy"))?, [1, 2, 3]);
/// # std::io::Result::Ok(())
/// ```
pub trait Contents: contents::Contents {}

impl<T: contents::Contents> Contents for T {}

mod contents {
    use crate::{Buffer, File};

    pub trait Contents {
        /// The bytes, and where the file may stay for the next save.
        fn parts(&mut self) -> (&[u8], Option<&mut Option<File>>);
    }

    impl Contents for &mut Buffer {
        fn parts(&mut self) -> (&[u8], Option<&mut Option<File>>) {
            Buffer::parts(self)
        }
    }

    macro_rules! bytes {
        ($($type:ty $(, $length:ident)?;)*) => {$(
            impl$(<const $length: usize>)? Contents for $type {
                fn parts(&mut self) -> (&[u8], Option<&mut Option<File>>) {
                    (<$type as AsRef<[u8]>>::as_ref(self), None)
                }
            }
        )*};
    }

    bytes! {
        Buffer;
        &Buffer;
        &[u8];
        &mut [u8];
        [u8; N], N;
        &[u8; N], N;
        Vec<u8>;
        &Vec<u8>;
        &mut Vec<u8>;
        Box<[u8]>;
        std::borrow::Cow<'_, [u8]>;
        &str;
        String;
        &String;
    }
}

/// Makes the file at `path` consist of these bytes: `std::fs::write`, without writing what it has already.
///
/// Unlike `std::fs::write` it does not truncate first, so the file is at no time empty, unless only that makes room on a full file
/// system. After an error the file has the buffer's bytes up to where the error came, and its own behind them; if there was no room, only up
/// to the new length.
///
/// On XFS and btrfs a new file shares blocks with the file that the [`Buffer`] was read from. Only altered pages, and short gaps between
/// them, are written.
///
/// The file stays open with a `&mut Buffer`, for the next save, until [`Buffer::close`] or the end of the buffer. Others notice: an open file
/// cannot be executed (ETXTBSY), a watcher is told only then that it was closed (IN_CLOSE_WRITE), and its file system cannot be
/// remounted read-only.
///
/// # Errors
/// As `std::fs::write`.
pub fn write(path: impl AsRef<Path>, mut contents: impl Contents) -> io::Result<()> {
    let (bytes, kept) = contents.parts();
    save(path.as_ref(), bytes, kept)
}

/// Replaces the file at `path` by a new one of these bytes: at every moment, and when the program is killed, there is the old file or the new
/// one, whole.
///
/// On XFS and btrfs the time to save a [`Buffer`] depends on how much of it was altered. The new file shares all other blocks with the file that
/// the buffer was read from, or first saved to by this function. Everything is written if more than half was altered, or if more than 16 MiB or a
/// sixteenth of that file is not on the device yet. On other file systems, and for other bytes, everything is written.
///
/// - A symbolic link is followed. Another name of the old file (a hard link), and who has it open, keep the old one.
/// - Mode, owner, group and extended attributes are those of the old file, ACLs among them. Where the owner cannot be given, the file is the
///   caller's; where the group cannot, its members may do what others may. Set-uid bits and capabilities of a program are dropped, as by a write;
///   attributes that the caller may not set, and those of `chattr`, are not kept.
/// - After an error the old file is there, and nothing else. A program that is killed in the instant of the exchange may leave a file
///   `.elision-…` beside it; always where the file system makes no file without a name.
/// - Not durable: after a power failure the file may be neither. See [`write_atomic_sync`].
///
/// # Errors
/// As creating and writing a file in that directory. `EACCES` if the old file may not be written to, `EINVAL` if it is no regular file, `EBUSY`
/// if it is a mount point.
pub fn write_atomic(path: impl AsRef<Path>, mut contents: impl Contents) -> io::Result<()> {
    let (bytes, kept) = contents.parts();
    platform::replace(path.as_ref(), bytes, kept, false)
}

/// [`write_atomic`], durable: also after a power failure there is the old file or the new one, and once this has returned, the new one.
///
/// # Errors
/// As [`write_atomic`], and as `fsync` of file and directory. If that of the directory fails, the new file is there.
pub fn write_atomic_sync(path: impl AsRef<Path>, mut contents: impl Contents) -> io::Result<()> {
    let (bytes, kept) = contents.parts();
    platform::replace(path.as_ref(), bytes, kept, true)
}

fn save(path: &Path, bytes: &[u8], mut kept: Option<&mut Option<File>>) -> io::Result<()> {
    let there = std::fs::metadata(path).ok();
    if there.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, bytes);
    }
    let stays = kept.is_some();
    let same = |file: &File| match (file.metadata(), &there) {
        (Ok(ours), Some(there)) => file.owned() && same_file(&ours, there),
        _ => false,
    };
    // A file that may not be written to any more is opened again, for the error.
    let writable = |file: &File| file.may_be_replaced(path);
    let file = match kept.as_deref_mut().and_then(Option::take).filter(same).filter(writable) {
        Some(file) => file,
        None => open_to_write(path, false)?,
    };
    let len = bytes.len();
    let write = || file.write_all(bytes, stays);
    let mut written = write();
    if no_room(&written) {
        // Room that the file has behind its new end is given back first, as it would be. (There may be some behind its old end, too.)
        file.set_len(file.metadata()?.len().min(len as u64))?;
        written = write();
    }
    if no_room(&written) && file.has_room_to_begin_anew(len) {
        // Where what is written takes new room before the old is given back (btrfs).
        file.set_len(0)?;
        written = write();
    }
    if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotSeekable) {
        // Some files in /proc are written to in order alone. They have no length.
        return file.write_in_order(bytes);
    }
    written?;
    // (To cut an empty file moves its times, too.)
    if len == 0 || file.metadata()?.len() != len as u64 {
        file.set_len(len as u64)?;
    }
    if let Some(kept) = kept {
        *kept = Some(file);
    }
    Ok(())
}

impl File {
    /// Creates a file, or empties the one that is there, and opens it for writing, and for reading if that may be (or nothing of later saves
    /// could be left out).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let mut buffer = elision::Buffer::new(16 << 20)?;
    /// let file = elision::File::create(dir.path().join("state"))?;
    /// file.write(0, &mut buffer)?;
    /// buffer[5_000_000] = 1;
    /// file.write(0, &mut buffer)?; // that page, and the first
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As `std::fs::File::create`.
    pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
        open_to_write(path.as_ref(), true)
    }
}

/// Opens for reading and writing, or for writing alone where that is all one may. Creates what is not there.
fn open_to_write(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(truncate);
    match File::open_with(options.clone().read(true), path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open_with(&options, path),
        other => other,
    }
}

fn no_room(written: &io::Result<()>) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    written.as_ref().is_err_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

#[cfg(unix)]
fn same_file(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Where files have no number to know them by, the path is opened again.
#[cfg(not(unix))]
fn same_file(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    false
}
