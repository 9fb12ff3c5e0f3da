//! A program cannot tell whether the drop-in is there: C programs.

mod common;
use common::{compile, same};
use object::{Object, ObjectSymbol};
use std::path::Path;
use std::process::Command;

fn c(name: &str, flags: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    same(&compile(directory.path(), name, flags), &[])
}

#[test]
fn reads_and_writes() {
    let said = c("calls", &["-O1"]);
    // Of the program itself: it got to the cases that it was written for.
    for error in
        ["Bad address", "Bad file descriptor", "Is a directory", "Invalid argument", "File too large"]
    {
        assert!(said.contains(error), "{error} never happened:\n{said}");
    }
    // (tmpfs knows no reads that do not wait: these fail.)
    let changed = said.lines().find(|line| line.contains("errno changed") && !line.contains("RWF_NOWAIT"));
    assert_eq!(changed, None, "{said}");
}

#[test]
fn streams() {
    c("stdio", &["-O1"]);
}

#[test]
fn fortified_streams() {
    c("stdio", &["-O2", "-D_FORTIFY_SOURCE=2"]);
}

#[test]
fn fortified_reads_and_writes() {
    c("calls", &["-O2", "-D_FORTIFY_SOURCE=2", "-Wno-attribute-warning"]);
}

#[test]
fn processes() {
    c("processes", &["-O1"]);
}

/// A program that had confined itself was killed by its first big read: the helper is started by a system call that no
/// such program allows.
#[test]
fn confined_to_some_system_calls() {
    let directory = tempfile::tempdir().unwrap();
    let program = common::compile(directory.path(), "confined", &["-O1"]);
    for call in ["prctl", "syscall"] {
        for deferred in ["yes", "no"] {
            common::same(&program, &[call, deferred]);
        }
    }
}

/// Some terabytes of address space are what databases and virtual machines reserve. What is mapped afterwards lies where the drop-in
/// places its blocks; and `free` ended the program at the first block of libc's there.
#[test]
fn reserved_address_space() {
    let directory = tempfile::tempdir().unwrap();
    let program = common::compile(directory.path(), "reserved", &["-O1"]);
    for terabytes in ["0", "1", "2", "4", "8", "16", "24", "30", "32"] {
        // At a MiB libc itself has blocks that it maps.
        let runs = [4096, 1 << 20].map(common::With::Least);
        let said = common::same_with(&program, &[terabytes], &runs);
        assert!(said.ends_with("done\n"), "{said}");
    }
}

/// Valgrind ends a program that starts a process which shares its memory.
#[test]
fn simulated_by_valgrind() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "simulated", &["-O1"]);
    let program = program.to_str().unwrap();
    same(Path::new(program), &[]);
    if !Command::new("valgrind")
        .args(["-q", "--tool=none", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return eprintln!("skipped: valgrind does not work here");
    }
    same(Path::new("valgrind"), &["-q", "--tool=none", program]);
}

#[test]
fn cancellation() {
    let said = c("cancel", &[]);
    // (From glibc 2.41 on a write that has come part of its way returns instead.)
    for what in ["small read", "big read", "pending cancellation"] {
        assert!(said.contains(&format!("cleaned up after a {what}")), "{said}");
    }
}

#[test]
fn before_the_constructor_and_after_the_destructor() {
    let directory = tempfile::tempdir().unwrap();
    let library = compile(directory.path(), "early", &["-shared", "-fPIC", "-DLIBRARY"]);
    let named = directory.path().join("libearly.so");
    std::fs::rename(library, &named).unwrap();
    let path = directory.path().to_str().unwrap();
    let (search, run) = (format!("-L{path}"), format!("-Wl,-rpath,{path}"));
    same(&compile(directory.path(), "early", &[&search, &run, "-learly"]), &[]);
}

/// A signal handler's stack may be small: 8 KiB are what programs gave it for thirty years.
#[test]
fn no_call_takes_much_more_of_the_stack() {
    let made = tempfile::tempdir().unwrap();
    let program = compile(made.path(), "stacks", &["-O1", "-Wextra", "-Werror"]);
    let stats = made.path().join("stats");
    let taken = |with: bool| -> Vec<(String, usize)> {
        let mut command = Command::new(&program);
        // (Binding a name when it is first called takes some of the stack, too.)
        command.current_dir(&made).env("LD_BIND_NOW", "1").env_remove("LD_PRELOAD");
        if with {
            common::offer_everything(&mut command, &stats);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let call =
            |line: &str| line.split_once(' ').map(|(name, bytes)| (name.to_owned(), bytes.parse().unwrap()));
        said.lines().filter_map(call).collect()
    };
    let (plain, ours) = (taken(false), taken(true));
    assert!(plain.len() > 30 && plain.len() == ours.len());
    assert!(common::counter(&std::fs::read_to_string(&stats).unwrap(), "elided_bytes") > 0);
    // A library with assertions, which is not optimised, has larger frames.
    let library = std::fs::read(common::library()).unwrap();
    let library = object::File::parse(&*library).unwrap();
    let asserts =
        library.symbols().any(|symbol| symbol.name().is_ok_and(|name| name.contains("watch_faults")));
    let most = if asserts { 4 } else { 1 } * 2048;
    for ((name, plain), (_, ours)) in plain.iter().zip(&ours) {
        println!("{name}: {plain}, and {} more", *ours as i64 - *plain as i64);
    }
    for ((name, plain), (_, ours)) in plain.iter().zip(&ours) {
        assert!(*ours <= plain + most, "{name}: {ours} beside {plain}");
    }
}

/// Each start of a program would pay for another library.
#[test]
fn the_drop_in_brings_no_library_but_itself() {
    let loaded = |preload: &str| {
        let mut command = std::process::Command::new("/bin/true");
        let output = command.env("LD_TRACE_LOADED_OBJECTS", "1").env("LD_PRELOAD", preload).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (without, with) = (loaded(""), loaded(common::library().to_str().unwrap()));
    assert_eq!(with.lines().count(), without.lines().count() + 1, "{with}");
}

/// Not a test of anything: prints a table. `cargo test --release -p elision-preload -- --ignored --nocapture cost`
#[test]
#[ignore = "a measurement"]
fn cost_of_small_calls() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "cost", &["-O2"]);
    for preload in [false, true, false, true] {
        let mut command = std::process::Command::new(&program);
        command.current_dir(&directory).env_remove("LD_PRELOAD");
        if preload {
            command.env("LD_PRELOAD", common::library());
        }
        let output = command.output().unwrap();
        println!("with the drop-in: {preload}\n{}", String::from_utf8_lossy(&output.stdout));
    }
}
