//! malloc, mmap and their kin, seen by an unmodified C program with the drop-in and without.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::Path;
use std::process::{Command, Output};

fn run(program: &Path, libraries: &[&Path], min_bytes: &str) -> Output {
    let mut command = Command::new(program);
    if !libraries.is_empty() {
        let libraries: Vec<_> = libraries.iter().map(|path| path.to_str().unwrap()).collect();
        command.env("LD_PRELOAD", libraries.join(":")).env("ELISION_MIN_BYTES", min_bytes);
    }
    command.output().unwrap()
}

/// The program says the same with these libraries as without.
fn same_with(program: &Path, libraries: &[&Path]) {
    let without = run(program, &[], "");
    let text = String::from_utf8(without.stdout.clone()).unwrap();
    assert!(without.status.success() && !text.contains("NO"), "the program itself: {text}");
    for min_bytes in ["4096", "100000", "1048576"] {
        let with = run(program, libraries, min_bytes);
        assert_eq!(String::from_utf8_lossy(&with.stdout), text, "with ELISION_MIN_BYTES={min_bytes}");
        assert_eq!(with.status, without.status);
        assert_eq!(String::from_utf8_lossy(&with.stderr), String::from_utf8_lossy(&without.stderr));
    }
}

#[test]
fn a_program_sees_no_difference() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "memory", &["-O1", "-w"]);
    same_with(&program, &[&common::library()]);
}

/// With tcmalloc behind the drop-in, mmap called mmap until there was no stack left.
#[test]
fn a_library_that_makes_its_mappings_by_syscall() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "memory", &["-O1", "-w"]);
    let other = common::compile(made.path(), "behind", &["-O1", "-Wextra", "-Werror", "-shared", "-fPIC"]);
    same_with(&program, &[&common::library(), &other]);
    same_with(&program, &[&other, &common::library()]);
}
