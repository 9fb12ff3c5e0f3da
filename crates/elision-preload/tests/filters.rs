//! System call filters that were there before the program: as containers and service managers put them on.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// Runs the program under a filter, with the drop-in if there is to be a file of statistics, in a directory of its own.
fn run(program: &Path, action: &str, calls: &str, stats: Option<&Path>) -> (Output, Vec<u8>) {
    let made = directory();
    let mut command = Command::new(program);
    command.args([action, calls]).current_dir(&made).env_remove("LD_PRELOAD");
    if let Some(stats) = stats {
        command.arg(common::library()).env("ELISION_MIN_BYTES", "4096").env("ELISION_STATS", stats);
    }
    let output = command.output().unwrap();
    (output, std::fs::read(made.path().join("file")).unwrap_or_default())
}

/// The same as without the drop-in. Says what statistics there are.
fn same(program: &Path, action: &str, calls: &str) -> String {
    let made = directory();
    let stats = made.path().join("stats");
    let plain = run(program, action, calls, None);
    assert!(plain.0.status.success(), "{plain:?}");
    let ours = run(program, action, calls, Some(&stats));
    assert_eq!(
        String::from_utf8_lossy(&plain.0.stdout),
        String::from_utf8_lossy(&ours.0.stdout),
        "{action} {calls}"
    );
    assert_eq!(plain.0.status, ours.0.status, "{action} {calls}");
    assert!(plain.1 == ours.1, "{action} {calls}: the file");
    std::fs::read_to_string(&stats).unwrap_or_default()
}

fn compiled(made: &tempfile::TempDir) -> PathBuf {
    common::compile(made.path(), "filters", &["-O1", "-Wextra", "-Werror"])
}

/// Docker refuses it to whoever may not trace everybody. What was edited was read at once then, and written whole.
#[test]
fn descriptors_and_memories_that_cannot_be_compared() {
    let made = directory();
    let program = compiled(&made);
    let stats = same(&program, "refuse", &libc::SYS_kcmp.to_string());
    if common::counter(&stats, "deferred_bytes") == 0 {
        return println!("skipped: nothing is deferred here: {stats}");
    }
    assert!(common::counter(&stats, "deferred_bytes") >= 3 << 20, "{stats}");
    assert!(common::counter(&stats, "elided_bytes") > 5 << 19, "{stats}");
}
