//! Programs whose transfers are declined: that can be seen in their statistics.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

fn compiled(directory: &Path) -> PathBuf {
    common::compile(directory, "declines", &["-O1", "-Wextra", "-Werror"])
}

/// Runs a row of the program; gives its lines of statistics.
fn statistics(program: &Path, row: &[&str]) -> String {
    let made = directory();
    let stats = made.path().join("stats");
    let mut command = Command::new(program);
    common::offer_everything(&mut command, &stats);
    let output = command.args(row).current_dir(made.path()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{row:?}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(&stats).unwrap_or_default()
}

/// They wrote no line when there was no helper to write it, so a program that always declined was not seen.
#[test]
fn a_program_that_never_needed_a_helper_is_in_the_statistics() {
    let made = directory();
    let program = compiled(made.path());
    // How it ends, processes that have a line, reads that were declined.
    let rows = [
        ("exit", 1, 3),
        ("_exit", 1, 3),
        ("fork", 2, 3),
        ("vfork", 1, 3),
        ("rights", 1, 3),
        ("limit", 0, 0),
        ("nothing", 0, 0),
    ];
    for (how, processes, declined) in rows {
        let stats = statistics(&program, &["ends", how]);
        let mut pids: Vec<&str> = stats.lines().filter_map(|line| line.split(',').next()).collect();
        pids.dedup();
        assert_eq!(pids.len(), processes, "{how}: {stats}");
        assert_eq!(common::counter(&stats, "not_a_regular_file"), declined, "{how}: {stats}");
        assert_eq!(common::counter(&stats, "deferred_bytes"), 0, "{how}: {stats}");
    }
}
