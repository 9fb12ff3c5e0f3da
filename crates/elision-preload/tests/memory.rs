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

/// Where a name was not found, dlsym's message was left for whoever called it next; and in a library whose `free` is the one that does, that had
/// no end. A program's heap hears of no call but the program's own.
#[test]
fn a_library_of_hooks_sees_the_calls_of_the_program_alone() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "hooked", &["-O1", "-Wextra", "-Werror"]);
    let own = made.path().join("program");
    std::fs::rename(program, &own).unwrap();
    for each in ["-DONCE", "-DEACH"] {
        let flags = ["-O1", "-fno-builtin", "-Wextra", "-Werror", "-shared", "-fPIC", "-DLIBRARY", each];
        let hooks = common::compile(made.path(), "hooked", &flags);
        let stats = made.path().join("stats");
        let says = |preloaded: &[&Path]| {
            let preloaded: Vec<_> = preloaded.iter().map(|path| path.to_str().unwrap()).collect();
            let mut command = Command::new(&own);
            common::offer_everything(&mut command, &stats);
            let output = command.current_dir(&made).env("LD_PRELOAD", preloaded.join(" ")).output().unwrap();
            assert!(output.status.success(), "{each} {preloaded:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let (plain, ours) = (says(&[&hooks]), common::library());
        assert!(plain.starts_with("no error, "), "{plain}");
        for preloaded in [[&hooks, &ours], [&ours, &hooks]] {
            assert_eq!(says(&preloaded.map(|path| &**path)), plain, "{each} {preloaded:?}");
        }
        assert!(common::counter(&std::fs::read_to_string(&stats).unwrap(), "deferred_bytes") > 0);
        std::fs::remove_file(&stats).unwrap();
        let alone = says(&[&ours]);
        assert_eq!(alone.matches("no error").count(), 2, "{alone}");
    }
}

/// What glibc gives back to the system is given back, whatever was set, and mostly what it keeps for later is kept.
#[test]
fn as_much_is_given_back() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "given", &["-O1", "-Wextra", "-Werror"]);
    let mut said = std::collections::BTreeSet::new();
    for setting in [
        "",
        "MALLOC_TRIM_THRESHOLD_=131072",
        "MALLOC_TOP_PAD_=0x1000",
        "GLIBC_TUNABLES=glibc.malloc.check=0:glibc.malloc.mmap_threshold=6291456",
        "GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000",
        "MALLOC_MMAP_THRESHOLD_=31457280",
    ] {
        let run = |with: &str| {
            let mut command = Command::new(&program);
            command.envs(setting.split_once('=')).env("LD_PRELOAD", with);
            let output = command.env("ELISION_MIN_BYTES", "4096").output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let (with, without) = (run(common::library().to_str().unwrap()), run(""));
        let numbers = |text: &str| -> Vec<i64> {
            text.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
        };
        let (ours, theirs) = (numbers(&with), numbers(&without));
        assert!(ours.len() > 7 && ours.len() == theirs.len());
        assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| ours <= theirs), "{setting}: {with}{without}");
        // As much is kept until the program itself sets a threshold; where one was set from outside, glibc's heap keeps what lies before a block, too.
        if !setting.starts_with("MALLOC_MMAP_THRESHOLD_") {
            let before = |text: &str| text.split("of what was kept").next().map(str::to_owned);
            assert_eq!(before(&with), before(&without), "{setting}");
        }
        said.insert(without);
    }
    assert!(said.len() > 3, "the settings make no difference");
}

/// One buffer, however many processes a fork has given it to, is in memory once, as after a plain read.
#[test]
fn a_family_has_one_copy() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "family", &["-O1", "-Wextra", "-Werror"]);
    for row in [
        "before",
        "during",
        "after",
        "after altered",
        "after generations",
        "after orphans",
        "after killed",
        "after reshaped",
    ] {
        let words: Vec<_> = row.split(' ').collect();
        let [plain, ours] = [common::With::Nothing, common::With::Least(4096)].map(|with| {
            let (output, _) = common::run(with, &program, &words);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{row}, {with:?}: {}: {said}", output.status);
            said.trim().parse::<u64>().unwrap()
        });
        // A process whose helper was killed makes a copy of its own.
        let plain = if row == "after killed" { 2 * plain } else { plain };
        assert!(ours <= plain + plain / 16, "{row}: {ours} KiB, and {plain} by plain reads");
    }
}
