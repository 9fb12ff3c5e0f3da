//! A new file in place of an old one.
#![allow(unsafe_code)] // Takes descriptors over.

use crate::platform::file::File;
use crate::threshold;
use elision_core::client::{engine, offer};
use elision_sys::file;
use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString};
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// As many symbolic links as the kernel follows.
const LINKS: usize = 40;

/// Makes a new file of these bytes, and gives it the name of the old one. `kept`: where the new file may stay, with the memory.
pub(crate) fn replace(
    path: &Path,
    bytes: &[u8],
    kept: Option<&mut Option<File>>,
    durable: bool,
) -> io::Result<()> {
    let path = resolve(path)?;
    let error = |errno| Err(io::Error::from_raw_os_error(errno));
    let Some(name) = path.file_name() else { return error(libc::EISDIR) };
    let name = CString::new(name.as_bytes())?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let old = match fs::symlink_metadata(&path) {
        Ok(old) if old.is_dir() => return error(libc::EISDIR),
        Ok(old) if !old.is_file() => return error(libc::EINVAL),
        // What may not be written to may not be replaced.
        Ok(_) if !file::may_be_written(&path) => return error(libc::EACCES),
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let directory = owned(file::open_directory(parent, durable)?);
    let place = Place { directory: directory.as_raw_fd(), path: &path, name: &name, old, durable };
    match place.make(bytes, kept, false) {
        // No files without names here, or no way to name them.
        Err((_, kept)) => place.make(bytes, kept, true).unwrap_or_else(|(error, _)| Err(error)),
        Ok(done) => done,
    }
}

/// Follows a symbolic link, also to where nothing is yet.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: just opened, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

struct Place<'a> {
    directory: i32,
    path: &'a Path,
    name: &'a CStr,
    old: Option<fs::Metadata>,
    durable: bool,
}

/// A name that goes again unless it is given up.
struct Name<'a>(&'a Place<'a>, Option<CString>);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.1 {
            let _ = file::remove_in(self.0.directory, name);
        }
    }
}

type Kept<'a> = Option<&'a mut Option<File>>;

impl Place<'_> {
    /// `named`: from the beginning. An outer error: try it so.
    fn make<'a>(
        &self,
        bytes: &[u8],
        kept: Kept<'a>,
        named: bool,
    ) -> Result<io::Result<()>, (io::Error, Kept<'a>)> {
        let mode = if self.old.is_some() { 0o600 } else { 0o666 };
        let born = engine::forks();
        let created = if named {
            self.under_new_name(|name| file::create_in(self.directory, Some(name), mode))
        } else {
            file::create_in(self.directory, None, mode).map(|fd| (Name(self, None), fd)).map_err(Into::into)
        };
        let (mut name, fd) = match created {
            Ok((name, fd)) => (name, owned(fd)),
            Err(error) => return Err((error, kept)),
        };
        let new = File::of(fs::File::from(fd), born);
        if let Err(error) = self.fill(&new, bytes, kept.is_some()) {
            return Ok(Err(error));
        }
        if !named {
            // To a name that is free in one step.
            let here = self.old.is_none() && file::link_in(new.raw(), self.directory, self.name).is_ok();
            if !here {
                match self.under_new_name(|name| file::link_in(new.raw(), self.directory, name)) {
                    Ok((linked, ())) => name = linked,
                    Err(error) => return Err((error, kept)),
                }
            }
        }
        Ok((|| {
            if let Some(temporary) = &name.1 {
                file::rename_in(self.directory, temporary, self.name)?;
                name.1 = None;
            }
            if self.durable {
                file::sync(self.directory, true)?;
            }
            if let Some(kept) = kept
                && new.is_guarded()
            {
                *kept = Some(new);
            }
            Ok(())
        })())
    }

    /// Calls with names that nobody has, until one is free.
    fn under_new_name<T>(
        &self,
        mut make: impl FnMut(&CStr) -> elision_sys::raw::Result<T>,
    ) -> io::Result<(Name<'_>, T)> {
        loop {
            let number = RandomState::new().build_hasher().finish();
            let name = CString::new(format!(".elision-{number:016x}"))?;
            match make(&name) {
                Ok(made) => return Ok((Name(self, Some(name)), made)),
                Err(elision_sys::raw::Errno(libc::EEXIST)) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Contents, owner, mode and attributes.
    fn fill(&self, new: &File, bytes: &[u8], kept: bool) -> io::Result<()> {
        let big = bytes.len() >= threshold::to_save();
        match big.then(|| engine::fill(new.raw(), bytes.as_ptr() as usize, bytes.len())).flatten() {
            Some(filled) => filled?,
            // The next save clones this file, where that can be.
            None => new.write_all(bytes, kept && offer::fs(new.raw()).is_some_and(|fs| fs.clones))?,
        }
        if let Some(old) = &self.old {
            let [_, grouped] = file::give_to(new.raw(), old.uid(), old.gid())?;
            file::copy_attributes(self.path, new.raw())?;
            // A write drops the bits of set-uid programs, too. Another group gets no more than others.
            let mode = old.mode() & 0o1777;
            let mode = if grouped { mode } else { (mode & !0o070) | (mode & (mode << 3) & 0o070) };
            new.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        if self.durable { new.sync_all() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where the file had a name from the beginning.
    #[test]
    fn a_name_that_cannot_be_taken_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let directory = owned(file::open_directory(dir.path(), false).unwrap());
        let place =
            Place { directory: directory.as_raw_fd(), path: &path, name: c"file", old: None, durable: false };
        let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        for named in [false, true] {
            place.make(b"bytes", None, named).map_err(drop).unwrap().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"bytes");
            assert!(names().eq(["file"]));
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            let refused = place.make(b"bytes", None, named).map_err(drop).unwrap().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EISDIR));
            assert!(names().eq(["file"]));
            fs::remove_dir(&path).unwrap();
        }
    }
}
