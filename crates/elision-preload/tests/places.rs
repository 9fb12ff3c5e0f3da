//! Places that need no privilege to set up: the same results there as without the drop-in. (`scripts/places` has more of them.)

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A shell's words before the program, and whether something is deferred there.
const PLACES: [(&str, bool); 14] = [
    ("", true),
    ("ulimit -v 1000000", false),
    ("ulimit -d 1000000", false),
    ("ulimit -Sn 10", true),
    ("ulimit -n 20", false),
    ("ulimit -n 256", true),
    ("ulimit -l 0", true),
    ("ulimit -s 256", true),
    ("ulimit -c 0", true),
    ("ulimit -t 100", true),
    ("ulimit -f 100000", true),
    ("ulimit -i 0", true),
    ("ulimit -q 0", true),
    ("ulimit -x 0", true),
];

/// Has the program of `filters.c`, without a filter, read, edit and save in a directory of its own.
fn run(program: &Path, place: &str, stats: Option<&Path>) -> (Output, Vec<u8>) {
    let parent = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::tempdir_in(parent).unwrap();
    std::fs::write(made.path().join("file"), vec![5; 1 << 20]).unwrap();
    let script =
        format!("{}exec \"$0\"", if place.is_empty() { String::new() } else { format!("{place} && ") });
    let mut command = Command::new("/bin/bash");
    command.args(["-c", &script]).arg(program).current_dir(&made).env_remove("LD_PRELOAD");
    if let Some(stats) = stats {
        common::offer_everything(&mut command, stats);
    }
    let output = command.output().unwrap();
    (output, std::fs::read(made.path().join("file")).unwrap())
}

#[test]
fn limits_of_every_kind() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "filters", &["-O1", "-Wextra", "-Werror"]);
    let mut possible = true;
    for (place, defers) in PLACES {
        let plain = run(&program, place, None);
        if !plain.0.status.success() {
            println!("skipped: {place}: {}", common::text(&plain.0));
            continue;
        }
        let stats = made.path().join("stats");
        let _ = std::fs::remove_file(&stats);
        let ours = run(&program, place, Some(&stats));
        assert_eq!(common::text(&plain.0), common::text(&ours.0), "{place}");
        assert!(plain.1 == ours.1, "{place}: the file");
        let deferred =
            common::counter(&std::fs::read_to_string(&stats).unwrap_or_default(), "deferred_bytes");
        if place.is_empty() {
            possible = deferred > 0;
        }
        assert_eq!(deferred > 0, possible && defers, "{place}: {deferred} bytes deferred");
    }
    if !possible {
        println!("skipped: nothing is deferred here in any case");
    }
}
