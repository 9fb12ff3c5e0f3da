//! malloc, mmap and their kin, seen by an unmodified C program with the drop-in and without.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The directory that this test was built into: `target/<profile>/deps`.
fn built() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn drop_in() -> PathBuf {
    let deps = built();
    let places = [deps.join("libelision_preload.so"), deps.parent().unwrap().join("libelision_preload.so")];
    // Cargo builds the first for tests and links the second to it for users: the newer one is the present one.
    let newest = places.iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.expect("the drop-in is built before its tests").1.clone()
}

fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/memory.c");
    // Not beside the test: whoever runs it may not be allowed to write there.
    let program = std::env::temp_dir().join(format!("elision-memory-{}", std::process::id()));
    let done = Command::new("cc")
        .args(["-O1", "-w", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .expect("a C compiler");
    assert!(done.success());
    program
}

fn run(program: &Path, drop_in: Option<&Path>, min_bytes: &str) -> Output {
    let mut command = Command::new(program);
    if let Some(drop_in) = drop_in {
        command.env("LD_PRELOAD", drop_in).env("ELISION_MIN_BYTES", min_bytes);
    }
    command.output().unwrap()
}

#[test]
fn a_program_sees_no_difference() {
    let program = program();
    let without = run(&program, None, "");
    let text = String::from_utf8(without.stdout.clone()).unwrap();
    assert!(without.status.success() && !text.contains("NO"), "the program itself: {text}");
    for min_bytes in ["4096", "100000", "1048576"] {
        let with = run(&program, Some(&drop_in()), min_bytes);
        assert_eq!(String::from_utf8_lossy(&with.stdout), text, "with ELISION_MIN_BYTES={min_bytes}");
        assert_eq!(with.status, without.status);
        assert_eq!(String::from_utf8_lossy(&with.stderr), String::from_utf8_lossy(&without.stderr));
    }
    let _ = std::fs::remove_file(program);
}
