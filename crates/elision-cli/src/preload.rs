//! The drop-in: where it is, and the LD_PRELOAD that loads it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::embedded;

const NAME: &str = "libelision_preload.so";

/// The advice if a part is missing: `cargo run` builds only the command.
pub const BUILD: &str = "`cargo build --release` builds it beside the command";

/// Finds the drop-in: where `ELISION_PRELOAD` says, near this executable, or in it.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os("ELISION_PRELOAD").filter(|named| !named.is_empty()) {
        let path = Path::new(&named).canonicalize();
        return loadable(path.with_context(|| format!("ELISION_PRELOAD names {}", named.display()))?);
    }
    find_near(this_command()?.parent().unwrap_or(Path::new("/")))
}

/// The path of this executable.
pub fn this_command() -> Result<PathBuf> {
    let named = || crate::program::find(&env::args_os().next()?)?.canonicalize().ok();
    // Without /proc: by the name that it was started with.
    env::current_exe().or_else(|error| named().ok_or(error)).context("cannot tell where this executable is")
}

fn find_near(dir: &Path) -> Result<PathBuf> {
    // In a build tree, cargo always refreshes the library in `deps`, and the copy beside the command only sometimes.
    let places = ["deps", ".", "../lib", "../lib/elision"].map(|place| dir.join(place).join(NAME));
    match places.iter().find_map(|path| path.canonicalize().ok()) {
        Some(path) => loadable(path),
        None => embedded::find(NAME).map_or_else(
            || {
                bail!(
                    "{NAME} is not here; looked for{}\n{BUILD}; or install it there, or name it in ELISION_PRELOAD",
                    places.iter().map(|path| format!("\n  {}", path.display())).collect::<String>()
                )
            },
            |found| loadable(found?),
        ),
    }
}

fn loadable(path: PathBuf) -> Result<PathBuf> {
    if path.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
        bail!(
            "{} cannot be preloaded: LD_PRELOAD is a list separated by spaces and colons, and the path has one",
            path.display()
        );
    }
    Ok(path)
}

/// The LD_PRELOAD that loads `library` first, then the existing entries.
pub fn prepended(library: &Path, existing: Option<&OsStr>) -> OsString {
    let existing = existing.unwrap_or_default();
    let mut entries = existing.as_bytes().split(|byte| b" :".contains(byte));
    if existing.is_empty() || entries.next() == Some(library.as_os_str().as_bytes()) {
        // Nothing to keep, or already first.
        return if existing.is_empty() { library.into() } else { existing.into() };
    }
    let mut list = library.as_os_str().to_owned();
    list.push(":");
    list.push(existing);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_list_is_kept() {
        let with = |existing: Option<&str>| prepended(Path::new("/e.so"), existing.map(OsStr::new));
        assert_eq!(with(None), "/e.so");
        assert_eq!(with(Some("")), "/e.so");
        assert_eq!(with(Some("/a.so /b.so")), "/e.so:/a.so /b.so");
        assert_eq!(with(Some("/e.so:/a.so")), "/e.so:/a.so");
    }

    #[test]
    fn every_place_is_searched_and_named() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let bin = root.path().join("bin");
        std::fs::create_dir_all(&bin).expect("mkdir");
        let message = find_near(&bin).expect_err("nothing is there").to_string();
        for place in ["bin/deps", "bin/.", "lib/", "lib/elision", "ELISION_PRELOAD"] {
            assert!(message.contains(place), "{place} is missing from: {message}");
        }
        for place in ["lib/elision", "lib", "bin", "bin/deps"] {
            let dir = root.path().join(place);
            std::fs::create_dir_all(&dir).expect("mkdir");
            std::fs::write(dir.join(NAME), "").expect("write");
            assert_eq!(find_near(&bin).expect("found"), dir.join(NAME).canonicalize().expect("there"));
        }
    }

    #[test]
    fn a_path_that_ld_preload_cannot_hold_is_refused() {
        let root = tempfile::Builder::new().prefix("with space").tempdir().expect("a temporary directory");
        std::fs::write(root.path().join(NAME), "").expect("write");
        let message = find_near(root.path()).expect_err("refused").to_string();
        assert!(message.contains("spaces and colons"), "{message}");
    }
}
