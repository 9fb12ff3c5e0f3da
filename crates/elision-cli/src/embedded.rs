//! The drop-in that is inside this command, and the place where the loader finds it: `~/.cache/elision/VERSION-HASH/`.
//!
//! Whoever could write there could run code in every program that is started with Elision. So nobody else may be able to, all the way from
//! the root, and what is there is compared with the bytes in here before each use.

use std::env;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::StatVfsMountFlags;

struct Embedded {
    /// Another for other bytes.
    name: &'static str,
    bytes: &'static [u8],
}

const EMBEDDED: Option<Embedded> = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The path of the drop-in that is inside this command, under the file name `file`. `None`: there is none inside.
pub fn find(file: &str) -> Option<Result<PathBuf>> {
    let Embedded { name, bytes } = EMBEDDED?;
    Some(cache().and_then(|cache| {
        put(&cache, name, file, bytes)
            .with_context(|| format!("the drop-in cannot be kept in {}", cache.join("elision").display()))
    }))
}

/// The user's directory for what can be made again.
fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("there is no place for the drop-in: neither HOME nor XDG_CACHE_HOME names a directory")
}

/// Sees to it that `cache/elision/name/file` has these bytes, and that nobody else can change that.
fn put(cache: &Path, name: &str, file: &str, bytes: &[u8]) -> Result<PathBuf> {
    // (Not in a home that does not exist.)
    let make = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
        // Perhaps just made by another process.
        Err(_) if path.is_dir() => Ok(()),
        made => made.with_context(|| format!("cannot make {}", path.display())),
    };
    // Nothing is left in a place of somebody else's, either.
    ensure_ours_from_the_root(cache.parent().unwrap_or(cache), true)?;
    make(cache)?;
    let mut dir = ensure_ours_from_the_root(cache, false)?;
    for part in ["elision", name] {
        dir.push(part);
        make(&dir)?;
        let metadata = fs::symlink_metadata(&dir).with_context(|| dir.display().to_string())?;
        ensure!(metadata.is_dir(), "{} is not a directory", dir.display());
        ensure_ours(&dir, &metadata, false)?;
    }
    let path = dir.join(file);
    if has(&path, bytes) {
        return Ok(path);
    }
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(&dir)?;
    let flags = rustix::fs::fstatvfs(new.as_file())?.f_flag;
    ensure!(!flags.contains(StatVfsMountFlags::NOEXEC), "{} is mounted noexec", dir.display());
    new.write_all(bytes)?;
    new.persist(&path)?;
    ensure!(has(&path, bytes), "{} is not what was written", path.display());
    Ok(path)
}

/// The path with its links resolved. An error if another user but root could change a directory on it. With `sticky` the last directory may
/// be one that everybody adds to, if it has the sticky bit, as /tmp has.
fn ensure_ours_from_the_root(path: &Path, sticky: bool) -> Result<PathBuf> {
    let whole = path.canonicalize().with_context(|| path.display().to_string())?;
    for part in whole.ancestors() {
        let metadata = fs::symlink_metadata(part).with_context(|| part.display().to_string())?;
        // Of what is in a sticky directory, others can move only what is theirs.
        let shared = metadata.mode() & 0o1000 != 0 && (sticky || part != whole);
        ensure_ours(part, &metadata, shared)?;
    }
    Ok(whole)
}

/// Can nobody but this user and root change it?
fn ensure_ours(path: &Path, metadata: &Metadata, shared: bool) -> Result<()> {
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        bail!("{} belongs to another user ({owner})", path.display());
    }
    // (An access list that lets others write shows as the group's right.)
    if metadata.mode() & 0o022 != 0 && !shared {
        bail!("others may write to {} (mode {:o})", path.display(), metadata.mode() & 0o7777);
    }
    Ok(())
}

/// Is it a file of ours alone, of these bytes?
fn has(path: &Path, bytes: &[u8]) -> bool {
    let compare = || -> io::Result<bool> {
        let mut file: File =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file()
            || metadata.len() != bytes.len() as u64
            || ensure_ours(path, &metadata, false).is_err()
            || rustix::fs::fstatvfs(&file)?.f_flag.contains(StatVfsMountFlags::NOEXEC)
        {
            return Ok(false);
        }
        let mut there = Vec::with_capacity(bytes.len());
        file.read_to_end(&mut there)?;
        Ok(there == bytes)
    };
    compare().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const FILE: &str = "library.so";
    const BYTES: &[u8] = b"the drop-in";

    /// A place that only this user can write to, on whatever the temporary directory is on.
    fn home() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").mode() & 0o7777
    }

    fn refused(cache: &Path, why: &str) {
        let error = format!("{:#}", put(cache, "name", FILE, BYTES).expect_err("refused"));
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn it_is_put_once_and_checked_each_time() {
        let home = home();
        let cache = home.path().join("not yet");
        let path = put(&cache, "name", FILE, BYTES).expect("put");
        assert_eq!(path, cache.canonicalize().expect("made").join("elision/name/library.so"));
        assert_eq!(fs::read(&path).expect("there"), BYTES);
        for part in [cache.as_path(), &cache.join("elision"), &cache.join("elision/name")] {
            assert_eq!(mode(part), 0o700, "{}", part.display());
        }
        let inode = || fs::symlink_metadata(&path).expect("there").ino();
        let first = inode();
        let again = |what: &str| {
            assert_eq!(put(&cache, "name", FILE, BYTES).expect(what), path);
            assert_eq!(fs::read(&path).expect("there"), BYTES, "{what}");
            assert_eq!(mode(&path) & 0o022, 0, "{what}");
            assert!(!fs::symlink_metadata(&path).expect("there").is_symlink(), "{what}");
        };
        again("nothing has happened");
        assert_eq!(inode(), first);
        fs::write(&path, b"the drop-iN").expect("write");
        again("one byte was changed");
        fs::write(&path, b"").expect("write");
        again("it was cut");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("chmod");
        again("others may write to it");
        let other = home.path().join("other");
        fs::write(&other, BYTES).expect("write");
        fs::remove_file(&path).expect("remove");
        symlink(&other, &path).expect("link");
        again("it is a link");
        let names: Vec<_> = fs::read_dir(path.parent().expect("a directory")).expect("there").collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn no_place_is_used_that_others_can_write_to() {
        for part in ["", "cache", "cache/elision", "cache/elision/name"] {
            for writable in [0o702, 0o720, 0o777] {
                let home = home();
                let cache = home.path().join("cache");
                put(&cache, "name", FILE, BYTES).expect("put");
                fs::set_permissions(home.path().join(part), Permissions::from_mode(writable)).expect("chmod");
                refused(&cache, "others may write to");
                // As /tmp is: nobody can move what is in it. But not as the last one.
                if part.is_empty() {
                    fs::set_permissions(home.path(), Permissions::from_mode(0o1777)).expect("chmod");
                    put(&cache, "name", FILE, BYTES).expect("put");
                    refused(home.path(), "others may write to");
                }
            }
        }
    }

    #[test]
    fn no_place_is_used_that_leads_elsewhere() {
        let home = home();
        let (cache, elsewhere) = (home.path().join("cache"), home.path().join("elsewhere"));
        fs::create_dir(&cache).expect("mkdir");
        fs::create_dir(&elsewhere).expect("mkdir");
        symlink(&elsewhere, cache.join("elision")).expect("link");
        refused(&cache, "is not a directory");
        assert_eq!(fs::read_dir(&elsewhere).expect("there").count(), 0);
        // The user's own directory for caches may be anywhere.
        let named = home.path().join("named");
        symlink(&elsewhere, &named).expect("link");
        let path = put(&named, "name", FILE, BYTES).expect("put");
        assert!(path.starts_with(elsewhere.canonicalize().expect("there")), "{}", path.display());
    }

    #[test]
    fn no_place_of_another_user_is_used() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can give a directory away");
            return;
        }
        for part in ["cache", "cache/elision", "cache/elision/name"] {
            let home = home();
            let cache = home.path().join("cache");
            let path = put(&cache, "name", FILE, BYTES).expect("put");
            std::os::unix::fs::chown(home.path().join(part), Some(65534), None).expect("chown");
            refused(&cache, "belongs to another user (65534)");
            std::os::unix::fs::chown(home.path().join(part), Some(0), None).expect("chown");
            // A file of theirs is replaced.
            std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
            put(&cache, "name", FILE, BYTES).expect("put");
            assert_eq!(fs::symlink_metadata(&path).expect("there").uid(), 0);
        }
    }

    #[test]
    fn nothing_is_left_in_the_home_of_another_user() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can give a directory away");
            return;
        }
        let home = home();
        std::os::unix::fs::chown(home.path(), Some(65534), None).expect("chown");
        refused(&home.path().join("cache"), "belongs to another user (65534)");
        assert_eq!(fs::read_dir(home.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_named() {
        refused(Path::new("/proc/elision-cache"), "/proc/elision-cache");
        let home = home();
        let missing = home.path().join("missing");
        refused(&missing.join("cache"), "missing: No such file");
        assert!(!missing.exists());
        let file = home.path().join("file");
        fs::write(&file, b"").expect("write");
        refused(&file, "cannot make");
    }
}
