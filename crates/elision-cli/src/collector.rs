//! Collecting the statistics that processes report.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, MemfdFlags, flock, memfd_create};
use tempfile::TempPath;

use crate::totals::Totals;

/// The name of the memory file. Below the /proc of another process, the drop-in writes only to files of this name.
const MEMORY: &str = "elision-statistics";

/// The file that processes report to: a temporary file, or a memory file that they open by way of /proc.
pub struct Collector {
    file: File,
    path: PathBuf,
    /// Removes the file.
    _temporary: Option<TempPath>,
}

impl Collector {
    /// Makes the file.
    pub fn new() -> Result<Collector> {
        Collector::in_a_file().or_else(|error| Collector::in_memory().map_err(|_| error))
    }

    fn in_a_file() -> Result<Collector> {
        // An absolute path: the program may change directory.
        let dir = std::env::temp_dir();
        let dir = dir.canonicalize().with_context(|| format!("the temporary directory {}", dir.display()))?;
        let file = tempfile::Builder::new().prefix("elision-stats-").tempfile_in(&dir);
        let (file, path) =
            file.with_context(|| format!("cannot make a file in {}", dir.display()))?.into_parts();
        Ok(Collector { file, path: path.to_path_buf(), _temporary: Some(path) })
    }

    fn in_memory() -> io::Result<Collector> {
        let file = File::from(memfd_create(MEMORY, MemfdFlags::CLOEXEC)?);
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        // /proc may be missing, or that of another PID namespace.
        let (there, here) = (fs::metadata(&path)?, file.metadata()?);
        match (there.dev(), there.ino()) == (here.dev(), here.ino()) {
            true => Ok(Collector { file, path, _temporary: None }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The value for `ELISION_STATS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines that were reported, and their sums. The helper of each process holds a shared lock on the file until it has written its
    /// line, which may be a moment after the process ended. After two seconds, missing lines are left out.
    pub fn collect(&self) -> Result<(Vec<u8>, Totals)> {
        let patience = Instant::now() + Duration::from_secs(2);
        while let Err(error) = flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(io::Error::from(error)).context("cannot lock the statistics");
            }
            if Instant::now() > patience {
                eprintln!("elision: processes of the program are still running; the totals are without them");
                break;
            }
            sleep(Duration::from_millis(5));
        }
        // By the descriptor: the program may have cleared the temporary directory.
        let mut lines = Vec::new();
        (&self.file).read_to_end(&mut lines).context("cannot read the statistics")?;
        let totals = Totals::of(&String::from_utf8_lossy(&lines));
        Ok((lines, totals))
    }
}

/// Appends the lines to the file that `ELISION_STATS` named before: that of an outer `elision run --stats`.
pub fn pass_on(path: &Path, lines: &[u8]) -> Result<()> {
    let below_proc = path
        .to_string_lossy()
        .strip_prefix("/proc/")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_ours = || {
        fs::read_link(path).is_ok_and(|name| name.to_string_lossy().starts_with(&format!("/memfd:{MEMORY}")))
    };
    if lines.is_empty() || below_proc && !is_ours() {
        return Ok(());
    }
    let file = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.and_then(|mut file| file.write_all(lines))
        .with_context(|| format!("cannot pass the statistics on to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"{\"pid\":7,\"deferred_bytes\":111}\n";

    /// The reader waits while a helper holds the lock.
    #[test]
    fn collecting_waits_for_the_lock() {
        let collector = Collector::new().expect("a collector");
        let mut helper = fs::OpenOptions::new().append(true).open(collector.path()).expect("open");
        flock(&helper, FlockOperation::LockShared).expect("lock");
        let (started, begun) = std::sync::mpsc::channel();
        let totals = std::thread::scope(|scope| {
            scope.spawn(move || {
                begun.recv().expect("the reader has begun");
                helper.write_all(LINE).expect("write");
            });
            started.send(()).expect("the writer waits");
            collector.collect().expect("collect")
        });
        assert_eq!(totals.1.amounts.deferred_bytes, 111);
    }
}
