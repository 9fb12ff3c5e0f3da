//! `read`, `edit` and `write`: whole files by their paths.

use crate::{Buffer, File, threshold};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

/// Reads a whole file, in time that does not depend on its size: `std::fs::read`, deferred.
///
/// The bytes are those that the file has now, whatever happens to it later.
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

/// Makes the file at `path` consist of the buffer's bytes: `std::fs::write`, without writing what it has already.
///
/// Unlike `std::fs::write` it does not truncate first, so the file is at no time empty, unless only that makes room on a full file
/// system. After an error the file has the buffer's bytes up to where the error came, and its own behind them; if there was no room, only up
/// to the new length.
///
/// The file stays open with the buffer, for the next save, until [`Buffer::close`] or the end of the buffer. Others notice: an open file
/// cannot be executed (ETXTBSY), a watcher is told only then that it was closed (IN_CLOSE_WRITE), and its file system cannot be
/// remounted read-only.
///
/// # Errors
/// As `std::fs::write`.
pub fn write(path: impl AsRef<Path>, buffer: &mut Buffer) -> io::Result<()> {
    let path = path.as_ref();
    let there = std::fs::metadata(path).ok();
    if there.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, buffer);
    }
    let same = |file: &File| match (file.metadata(), &there) {
        (Ok(ours), Some(there)) => file.owned() && same_file(&ours, there),
        _ => false,
    };
    // A file that may not be written to any more is opened again, for the error.
    let writable = |file: &File| file.may_be_replaced(path);
    let file = match buffer.origin.take().filter(same).filter(writable) {
        Some(file) => file,
        None => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            match File::open_with(options.clone().read(true), path) {
                // A file that may be written but not read.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    File::open_with(&options, path)?
                }
                other => other?,
            }
        }
    };
    let len = buffer.len();
    let mut written = file.write(0, buffer);
    if no_room(&written) {
        // Room that the file has behind its new end is given back first, as it would be. (There may be some behind its old end, too.)
        file.set_len(file.metadata()?.len().min(len as u64))?;
        written = file.write(0, buffer);
    }
    if no_room(&written) && file.has_room_to_begin_anew(len) {
        // Where what is written takes new room before the old is given back (btrfs).
        file.set_len(0)?;
        written = file.write(0, buffer);
    }
    if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotSeekable) {
        // Some files in /proc are written to in order alone. They have no length.
        return file.write_in_order(buffer);
    }
    written?;
    // (To cut an empty file moves its times, too.)
    if len == 0 || file.metadata()?.len() != len as u64 {
        file.set_len(len as u64)?;
    }
    buffer.origin = Some(file);
    Ok(())
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
