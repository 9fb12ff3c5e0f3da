//! Files that are opened with O_TRUNC and saved: what is equal is not written, and nobody can tell.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::{Dice, text};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// Runs `emptied WHAT ROUNDS SEED` under the drop-in for each seed. The bytes that its saves left out.
fn played(what: &str, rounds: u32, seeds: std::ops::Range<u32>) -> u64 {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    let stats = made.path().join("stats");
    for seed in seeds {
        let place = directory();
        let mut command = Command::new(&program);
        command.args([what, &rounds.to_string(), &seed.to_string()]).current_dir(&place);
        common::offer_everything(&mut command, &stats);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{what} {rounds} {seed}: {}", text(&output));
    }
    common::counter(&std::fs::read_to_string(&stats).unwrap(), "elided_bytes")
}

/// Another process is told in each way that there is, and looks at the file. The program itself looks, too.
#[test]
fn nobody_can_tell() {
    let elided = played("told", 60, 1..6);
    assert!(elided > 0 || !stays_known(), "nothing was elided");
}

#[test]
fn another_thread_stores_while_a_copy_is_compared() {
    played("race", 20, 1..3);
}

/// A store into memory that others share is no system call.
#[test]
fn a_program_that_shares_memory_truncates_at_once() {
    assert_eq!(played("shared", 20, 1..3), 0);
}

/// Then the file is cut at once.
#[test]
fn another_process_opens_the_file_at_any_moment() {
    let elided = played("opened", 60, 1..4);
    assert!(elided > 0 || !stays_known(), "nothing was elided");
}

#[test]
fn the_helper_is_killed_while_a_truncation_waits() {
    // (After forty in a row nobody starts another until the program asks.)
    played("killed", 35, 1..5);
}

/// tmpfs does not tell whether a file is the same after it was opened for writing.
fn stays_known() -> bool {
    let known = !common::on_tmpfs(directory().path());
    if !known {
        println!("skipped: on tmpfs nothing stays known after an open for writing");
    }
    known
}

const SIZE: usize = (24 << 20) + 123;

fn make(path: &Path) {
    let mut dice = Dice(7);
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| dice.below(1 << 62).to_le_bytes()).flatten().take(SIZE).collect();
    std::fs::write(path, bytes).unwrap();
}

/// The program saves a file over itself: the same file comes of it, of which 95 % are not written. Gives the counters.
fn saves(command: &[&str], more: &[(&str, &str)]) -> String {
    let made = directory();
    let [plain, ours, stats] = ["plain", "ours", "stats"].map(|name| made.path().join(name));
    make(&plain);
    std::fs::copy(&plain, &ours).unwrap();
    let run = |path: &Path, environment: &[(&str, &str)]| {
        let (program, arguments) = command.split_first().unwrap();
        let mut command = Command::new(program);
        let output = command.args(arguments).arg(path).envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    run(&plain, &[]);
    let library = common::library();
    let ours_too = [("LD_PRELOAD", library.to_str().unwrap()), ("ELISION_STATS", stats.to_str().unwrap())];
    run(&ours, &[&ours_too, more].concat());
    assert!(std::fs::read(&plain).unwrap() == std::fs::read(&ours).unwrap(), "another file than without");
    std::fs::read_to_string(&stats).unwrap()
}

fn elides(command: &[&str]) {
    if !Path::new(command[0]).exists() {
        return println!("skipped: no {}", command[0]);
    }
    if !stays_known() {
        return;
    }
    // On a busy machine the truncation may not wait so long (`PATIENCE_NS` in `helper/pending.rs`).
    let mut stats = String::new();
    let elided = (0..5).any(|_| {
        stats = saves(command, &[]);
        common::counter(&stats, "elided_bytes") > SIZE as u64 * 95 / 100
    });
    assert!(elided, "{stats}");
}

fn elides_in_c(how: &str) {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    elides(&[program.to_str().unwrap(), "save", how]);
}

#[test]
fn open_and_write() {
    elides_in_c("open");
}

#[test]
fn creat_and_two_writes() {
    elides_in_c("creat");
}

#[test]
fn fopen_and_fwrite() {
    elides_in_c("fopen");
}

#[test]
fn writev_behind_an_empty_piece() {
    elides_in_c("writev");
}

/// No call has told that the memory has the file's bytes.
#[test]
fn a_copy_of_the_file() {
    elides_in_c("copy");
}

#[test]
fn while_other_threads_work() {
    elides_in_c("threads");
}

/// The saving thread waits for another without telling the kernel, while the other is held.
#[test]
fn a_thread_that_spins_until_another_answers() {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    saves(&[program.to_str().unwrap(), "save", "spins"], &[]);
}

#[test]
fn python_writes_what_it_has_read() {
    elides(&[
        "/usr/bin/python3",
        "-c",
        "import os, sys
data = bytearray(os.path.getsize(sys.argv[1]))
with open(sys.argv[1], 'rb', buffering=0) as file: file.readinto(data)
for at in range(10): data[at << 20] ^= 1
with open(sys.argv[1], 'wb') as file: file.write(data)",
    ]);
}

#[test]
fn python_writes_a_copy_of_what_it_has_read() {
    elides(&[
        "/usr/bin/python3",
        "-c",
        "import sys
with open(sys.argv[1], 'rb') as file: data = bytearray(file.read())
for at in range(10): data[at << 20] ^= 1
with open(sys.argv[1], 'wb') as file: file.write(data)",
    ]);
}

#[test]
fn perl_writes_what_it_has_read() {
    elides(&[
        "/usr/bin/perl",
        "-e",
        "open(F, '<:raw', $ARGV[0]); sysread(F, my $s, -s $ARGV[0]); close F;
substr($s, $_ << 20, 1) ^= \"\\x01\" for 0..9; open(F, '>:raw', $ARGV[0]); syswrite(F, $s) or die; close F;",
    ]);
}

#[test]
fn a_switch_truncates_at_once() {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    let stats = saves(&[program.to_str().unwrap(), "save", "open"], &[("ELISION_TRUNCATE", "now")]);
    assert_eq!(common::counter(&stats, "elided_bytes"), 0, "{stats}");
}

/// The file is at once what it would be without.
#[test]
fn the_program_ends_in_the_middle() {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    for how in ["at once", "exit", "exec", "signal", "trap"] {
        let [plain, ours, stats] = ["plain", "ours", "stats"].map(|name| made.path().join(name));
        make(&plain);
        std::fs::copy(&plain, &ours).unwrap();
        let run = |path: &Path, preloaded: bool| {
            let mut command = Command::new(&program);
            command.arg("leave").arg(path).arg(how);
            if preloaded {
                common::offer_everything(&mut command, &stats);
            }
            let status = command.status().unwrap();
            (status, std::fs::read(path).unwrap())
        };
        let (plainly, wanted) = run(&plain, false);
        let (status, left) = run(&ours, true);
        assert_eq!(status, plainly, "{how}");
        assert!(left == wanted, "{how}: {} bytes in place of {}", left.len(), wanted.len());
    }
}

/// Killed at any moment, the program leaves the old file, or the beginning of the new one.
#[test]
fn the_program_is_killed_at_any_moment() {
    let made = directory();
    let program = common::compile(made.path(), "emptied", &["-lrt"]);
    let [path, new, stats] = ["file", "new", "stats"].map(|name| made.path().join(name));
    make(&path);
    let old = std::fs::read(&path).unwrap();
    std::fs::copy(&path, &new).unwrap();
    assert!(Command::new(&program).args(["save", "open"]).arg(&new).status().unwrap().success());
    let new = std::fs::read(&new).unwrap();
    let mut dice = Dice(11);
    let mut took = Duration::from_millis(20);
    for _ in 0..30 {
        std::fs::write(&path, &old).unwrap();
        let mut command = Command::new(&program);
        command.args(["save", "open"]).arg(&path);
        common::offer_everything(&mut command, &stats);
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let until = Duration::from_micros(dice.below(took.as_micros() as u64 * 5 / 4));
        while begun.elapsed() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            took = begun.elapsed();
        }
        let left = std::fs::read(&path).unwrap();
        assert!(left == old || new.starts_with(&left), "{} bytes", left.len());
    }
}
