//! What a tree of processes saved: one JSON line from each, added up.
//!
//! Every process that used Elision appends one line to the file that `ELISION_STATS` names:
//!
//! Where deferral ends because of what a program uses, the process adds a line that says so.
//!
//! ```json
//! {"pid":1,"stopped":"why"}
//! {"pid":1,"deferred_bytes":0,"loaded_bytes":0,"materialised_bytes":0,"elided_bytes":0,"written_bytes":0,"declined":{"reason":1}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use rustix::fs::{FlockOperation, MemfdFlags, flock, memfd_create};
use serde_json::{Map, Value, json};
use tempfile::TempPath;

use crate::units::bytes;

/// The amounts, by their names in the JSON, and what they say.
const AMOUNTS: [(&str, &str); 5] = [
    ("deferred_bytes", "deferred: read without loading"),
    ("loaded_bytes", "loaded after all, when touched"),
    ("materialised_bytes", "materialised, because the file changed"),
    ("elided_bytes", "elided: written without storing"),
    ("written_bytes", "written"),
];

/// The sums.
#[derive(Default, Debug)]
pub struct Totals {
    processes: BTreeSet<u64>,
    amounts: [u64; AMOUNTS.len()],
    declined: BTreeMap<String, u64>,
    stopped: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds up the lines of a statistics file. A line that is none is warned about and left out: a process may
    /// have been killed in the middle of it.
    pub fn of(lines: &str) -> Totals {
        let mut totals = Totals::default();
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            if totals.add(line).is_none() {
                eprintln!("elision: ignored a malformed line of statistics: {line}");
            }
        }
        totals
    }

    /// All of the line or nothing.
    fn add(&mut self, line: &str) -> Option<()> {
        let line: Map<String, Value> = serde_json::from_str(line).ok()?;
        let number = |name: &str| line.get(name).map_or(Some(0), Value::as_u64);
        let process = line.get("pid")?.as_u64()?;
        if let Some(why) = line.get("stopped") {
            *self.stopped.entry(why.as_str()?.to_owned()).or_default() += 1;
            return Some(());
        }
        let mut amounts = self.amounts;
        for (sum, (name, _)) in amounts.iter_mut().zip(AMOUNTS) {
            *sum = sum.saturating_add(number(name)?);
        }
        let mut declined = self.declined.clone();
        for (reason, count) in line.get("declined").map_or(Some(&Map::new()), Value::as_object)? {
            let sum = declined.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(count.as_u64()?);
        }
        // A process that execs reports once for each program it was.
        self.processes.insert(process);
        (self.amounts, self.declined) = (amounts, declined);
        Some(())
    }

    /// One amount, by its name in the JSON.
    pub fn amount(&self, name: &str) -> u64 {
        AMOUNTS.iter().position(|amount| amount.0 == name).map_or(0, |index| self.amounts[index])
    }

    /// Did no process report?
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.stopped.is_empty()
    }

    /// How often a transfer was declined.
    pub fn declines(&self) -> &BTreeMap<String, u64> {
        &self.declined
    }

    /// With what deferral ended, and how often.
    pub fn stops(&self) -> &BTreeMap<String, u64> {
        &self.stopped
    }

    /// The sums as one JSON object.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("processes".into(), self.processes.len().into());
        for ((name, _), sum) in AMOUNTS.iter().zip(self.amounts) {
            object.insert((*name).into(), sum.into());
        }
        object.insert("declined".into(), json!(self.declined));
        object.insert("stopped".into(), json!(self.stopped));
        object.into()
    }

    /// The sums for people, or that there are none, and `why`.
    pub fn to_text(&self, why: &str) -> String {
        match self.is_empty() {
            true => format!("elision: nothing to report: {why}"),
            false => self.to_table().to_string(),
        }
    }

    fn to_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["elision", "total"]);
        table.add_row(["processes that used it".into(), self.processes.len().to_string()]);
        for ((_, meaning), sum) in AMOUNTS.iter().zip(self.amounts) {
            table.add_row([(*meaning).to_owned(), bytes(sum)]);
        }
        for (reason, count) in &self.declined {
            table.add_row([format!("declined: {reason}"), format!("{count} times")]);
        }
        for (why, count) in &self.stopped {
            table.add_row([format!("ended, for the use of {why}"), format!("{count} times")]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Why there is nothing to report from a process that has the drop-in, is not told otherwise, and uses nothing with which it ends.
pub fn nothing_big(least: usize) -> String {
    format!(
        "no process that it reached read or wrote {} or more at once (--min-bytes sets from which size on a transfer is \
         considered)",
        bytes(least as u64)
    )
}

/// The name of memory that processes report to: the drop-in writes below the /proc of another process only what has this name.
const MEMORY: &str = "elision-statistics";

/// A temporary file that processes report to, or, where none can be made, memory that they find by way of /proc.
pub struct Collector {
    file: File,
    path: PathBuf,
    /// Removes the file.
    _temporary: Option<TempPath>,
}

impl Collector {
    /// Makes the file, or takes the memory.
    pub fn new() -> Result<Collector> {
        Collector::in_a_file().or_else(|error| Collector::in_memory().map_err(|_| error))
    }

    fn in_a_file() -> Result<Collector> {
        // The program may change directory, so the name must not depend on ours.
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
        // /proc may be missing, or another PID namespace's.
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

    /// The lines that were reported, and their sums. The sidecar of each process shares a lock on the file until it has written
    /// its line, which may be a moment after its process ended; what holds it longer is left out.
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
        // (By the descriptor: the program may have cleared the temporary directory.)
        let mut lines = Vec::new();
        (&self.file).read_to_end(&mut lines).context("cannot read the statistics")?;
        let totals = Totals::of(&String::from_utf8_lossy(&lines));
        Ok((lines, totals))
    }
}

/// Passes lines on to where statistics went before: to another `elision run --stats` that runs this one.
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

    const TWO: &str = concat!(
        r#"{"pid":7,"deferred_bytes":100,"loaded_bytes":1,"materialised_bytes":2,"elided_bytes":90,"#,
        r#""written_bytes":10,"declined":{"too small":2,"writer":1}}"#,
        "\n",
        r#"{"pid":8,"deferred_bytes":11,"elided_bytes":5,"declined":{"writer":4},"new_field":[1]}"#,
        "\n",
    );

    #[test]
    fn lines_add_up() {
        let totals = Totals::of(TWO);
        let expected = json!({
            "processes": 2, "deferred_bytes": 111, "loaded_bytes": 1, "materialised_bytes": 2,
            "elided_bytes": 95, "written_bytes": 10, "declined": {"too small": 2, "writer": 5}, "stopped": {},
        });
        assert_eq!(totals.to_json(), expected);
        let table = totals.to_table().to_string();
        assert!(table.contains("declined: writer") && table.contains("5 times"), "{table}");
    }

    #[test]
    fn a_process_that_execs_counts_once() {
        let line = r#"{"pid":7,"elided_bytes":5,"declined":{}}"#;
        let totals = Totals::of(&format!("{line}\n{line}\n"));
        assert_eq!((totals.to_json()["processes"].clone(), totals.amount("elided_bytes")), (json!(1), 10));
    }

    #[test]
    fn malformed_lines_leave_no_trace() {
        let broken = [
            r#"{"pid":9,"deferred_bytes":7,"declined":{"writer":"#,
            r#"{"pid":9,"deferred_bytes":7,"loaded_bytes":-1}"#,
            r#"{"pid":9,"deferred_bytes":7,"declined":{"writer":"many"}}"#,
            r#"{"deferred_bytes":7}"#,
            "[]",
            "\u{fffd}",
        ];
        for broken in broken {
            let totals = Totals::of(&format!("{TWO}{broken}\n"));
            assert_eq!(totals.to_json(), Totals::of(TWO).to_json(), "after {broken}");
        }
    }

    #[test]
    fn sums_do_not_wrap() {
        let line = format!(r#"{{"pid":1,"elided_bytes":{}}}"#, u64::MAX);
        assert_eq!(Totals::of(&format!("{line}\n{line}")).amount("elided_bytes"), u64::MAX);
    }

    /// The reader must wait for a process that still holds the lock, as a sidecar does while it writes.
    #[test]
    fn collecting_waits_for_the_lock() {
        let collector = Collector::new().expect("a collector");
        let mut sidecar = fs::OpenOptions::new().append(true).open(collector.path()).expect("open");
        flock(&sidecar, FlockOperation::LockShared).expect("lock");
        let (started, begun) = std::sync::mpsc::channel();
        let totals = std::thread::scope(|scope| {
            scope.spawn(move || {
                begun.recv().expect("the reader has begun");
                sidecar.write_all(TWO.as_bytes()).expect("write");
            });
            started.send(()).expect("the writer waits");
            collector.collect().expect("collect")
        });
        assert_eq!(totals.1.amount("deferred_bytes"), 111);
    }
}
