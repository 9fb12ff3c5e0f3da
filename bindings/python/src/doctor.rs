//! What this machine and file allow.

use elision::probe as ability;
use pyo3::prelude::*;
use std::io;
use std::path::{Path, PathBuf};

/// A row: what was tried, whether it works (`None`: not tried), and the error.
type Row = (String, Option<bool>, String);

fn row(name: &str, tried: io::Result<()>) -> Row {
    match tried {
        Ok(()) => (name.to_owned(), Some(true), String::new()),
        Err(error) => (name.to_owned(), Some(false), error.to_string()),
    }
}

fn tracing() -> Row {
    let name = "ptrace of the program by its helper";
    // The one who tries stops this process's main thread, so that no other may be at work.
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => row(name, ability::ptrace()),
        _ => (name.to_owned(), None, "not tried, since the process has several threads".to_owned()),
    }
}

fn file_system(path: &Path) -> Row {
    let found = ability::file_system(path);
    let name = |what: &str| format!("file system ({what})");
    match found {
        Ok(found) if found.supported => row(&name(found.name), Ok(())),
        Ok(found) => (name(found.name), Some(false), "not one that reads are deferred from".to_owned()),
        Err(error) => row("file system", Err(error)),
    }
}

/// The rows of elision.doctor().
#[pyfunction]
pub fn probe(py: Python<'_>, path: Option<PathBuf>) -> Vec<Row> {
    py.detach(|| {
        let mut rows = vec![
            row("/proc", ability::proc()),
            row("PAGEMAP_SCAN (Linux 6.7)", ability::pagemap_scan()),
            row("write tracking (Linux 6.7)", ability::write_tracking()),
            row("/proc/PID/maps", ability::mappings()),
            row("pidfd_getfd (Linux 5.6)", ability::pidfd_getfd()),
            tracing(),
        ];
        if let Some(path) = path {
            rows.push(file_system(&path));
            if path.is_file() {
                rows.push(row("read lease", ability::read_lease(&path)));
            }
        }
        rows
    })
}
