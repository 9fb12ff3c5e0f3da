//! Programs whose transfers are declined: that can be seen in their statistics.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use elision_core::stats::Reason;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

fn compiled(directory: &Path) -> PathBuf {
    common::compile(directory, "declines", &["-O1", "-Wextra", "-Werror"])
}

/// Runs a row of the program; gives its lines of statistics, or `None` if it says that it cannot work here. Its input ends
/// when it has declined something because of `until`, if that is given.
fn statistics(program: &Path, row: &[&str], until: Option<&str>) -> Option<String> {
    let made = directory();
    let stats = made.path().join("stats");
    let mut command = Command::new(program);
    common::offer_everything(&mut command, &stats);
    command.args(row).current_dir(made.path()).env("ELISION_VERBOSE", "1");
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let mut said = String::new();
    if let Some(until) = until {
        let mut lines = BufReader::new(child.stderr.as_mut().unwrap());
        while !said.ends_with(&format!(": {until}\n")) && lines.read_line(&mut said).unwrap() > 0 {}
    }
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    let (said, printed) =
        (said + &String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{row:?}: {}\n{said}", output.status);
    print!("{printed}");
    (!printed.starts_with("skipped: ")).then(|| settled(&stats))
}

/// The helper writes its line when the program has ended. It holds the file locked until it has.
fn settled(stats: &Path) -> String {
    let Ok(file) = std::fs::File::open(stats) else { return String::new() };
    file.lock().unwrap();
    std::fs::read_to_string(stats).unwrap()
}

/// Every reason is one that a program can meet with.
#[test]
fn every_reason_has_a_program() {
    let made = directory();
    let program = compiled(made.path());
    // (Of the crate alone: `copies.rs`.)
    let of_programs = Reason::ALL.iter().filter(|&&reason| reason != Reason::AnotherCopy);
    for reason in of_programs.map(|reason| reason.name()) {
        // By chance alone, so until it happens.
        let until = (reason == "raced").then_some(reason);
        if let Some(stats) = statistics(&program, &[reason], until) {
            assert!(common::counter(&stats, reason) > 0, "{reason}: {stats}");
        }
    }
}

/// Of a read, what there was to read; in the statistics, and said at the end.
#[test]
fn bytes_of_declined_reads_are_counted_by_reason() {
    let made = directory();
    let program = compiled(made.path());
    for (reason, bytes) in [("phase", 65536 - 16), ("odd_phase", 65536 - 1)] {
        let stats = statistics(&program, &[reason], None).unwrap();
        assert!(
            stats.ends_with(&format!(",\"declined_read_bytes\":{{\"{reason}\":{bytes}}}}}\n")),
            "{stats}"
        );
        let verbose = [("ELISION_VERBOSE", "1"), ("ELISION_MIN_BYTES", "4096")];
        let (pid, lines) = said(&program, &[reason], &verbose);
        let expected = format!("elision: declines[{pid}]: declined reads of {bytes} bytes in all: {reason}");
        assert_eq!(lines.last(), Some(&expected), "{lines:?}");
    }
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
        ("exec", 1, 3),
        ("limit", 0, 0),
        ("nothing", 0, 0),
        ("stack", 1, 0),
    ];
    for (how, processes, declined) in rows {
        let stats = statistics(&program, &["ends", how], None).unwrap();
        let mut pids: Vec<&str> = stats.lines().filter_map(|line| line.split(',').next()).collect();
        pids.dedup();
        assert_eq!(pids.len(), processes, "{how}: {stats}");
        assert_eq!(common::counter(&stats, "not_a_regular_file"), declined, "{how}: {stats}");
        // (Memory that is not even asked about.)
        assert_eq!(common::counter(&stats, "memory"), u64::from(how == "stack"), "{how}: {stats}");
        assert_eq!(common::counter(&stats, "deferred_bytes"), 0, "{how}: {stats}");
    }
}

/// Nothing was said of it but that there was nothing to report.
#[test]
fn what_ended_deferral_is_in_the_statistics() {
    let made = directory();
    let program = compiled(made.path());
    let stats = statistics(&program, &["ends", "deepbind"], None).unwrap();
    assert!(stats.ends_with(",\"stopped\":\"RTLD_DEEPBIND\"}\n") && stats.lines().count() == 1, "{stats}");
}

/// What a process says on its stderr with these settings, in the row `ends HOW`, or in that of a reason.
fn said(program: &Path, row: &[&str], settings: &[(&str, &str)]) -> (u32, Vec<String>) {
    let made = directory();
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", common::library()).env_remove("ELISION_STATS").args(row);
    command.current_dir(made.path()).envs(settings.iter().copied());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{row:?} with {settings:?}: {output:?}");
    (pid, String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect())
}

/// `ELISION=OFF` left it on, and `ELISION_MIN_BYTES=1M` was the default without a word.
#[test]
fn settings_are_understood_or_said_not_to_be() {
    let made = directory();
    let program = compiled(made.path());
    let row = &["not_a_regular_file"][..];
    let verbose = ("ELISION_VERBOSE", "yes");
    for (least, understood) in [("4096", 4096), ("60K", 60_000), ("64KiB", 65_536), ("1", 4096)] {
        for on in ["on", "TRUE", ""] {
            let (pid, lines) = said(&program, row, &[verbose, ("ELISION", on), ("ELISION_MIN_BYTES", least)]);
            let expected =
                format!("elision: declines[{pid}]: active for transfers of {understood} bytes and more");
            assert_eq!(lines.first(), Some(&expected), "ELISION={on}, ELISION_MIN_BYTES={least}");
        }
        for off in ["off", "OFF", "no", "False", "0"] {
            let (_, lines) = said(&program, row, &[verbose, ("ELISION", off), ("ELISION_MIN_BYTES", least)]);
            assert_eq!(lines, [] as [&str; 0], "ELISION={off}");
        }
    }
    // These are said without being asked, once; the first is safe, and the second as if it were not set.
    for least in ["abc", "1.5M", "-1", "9999999999999G"] {
        let (pid, lines) = said(&program, row, &[verbose, ("ELISION_MIN_BYTES", least)]);
        let expected =
            format!("elision: declines[{pid}]: ELISION_MIN_BYTES={least} is not understood: 4 MB it is");
        assert_eq!(lines, [expected]);
    }
    let (pid, lines) = said(&program, row, &[verbose, ("ELISION", "never"), ("ELISION_MIN_BYTES", "4096")]);
    assert_eq!(lines, [format!("elision: declines[{pid}]: ELISION=never is not understood: taken for off")]);
}

/// Each program of a tree said that it was active, whether it ever read anything or not.
#[test]
fn a_process_without_large_transfers_says_nothing() {
    let made = directory();
    let program = compiled(made.path());
    let verbose = [("ELISION_VERBOSE", "1"), ("ELISION_MIN_BYTES", "4096")];
    assert_eq!(said(&program, &["ends", "nothing"], &verbose).1, [] as [&str; 0]);
    // It declines something, and then puts itself in its place, and then does nothing.
    let (pid, lines) = said(&program, &["ends", "exec"], &verbose);
    let declined = "declined a transfer of 65536 bytes: not_a_regular_file";
    let expected = ["active for transfers of 4096 bytes and more", declined];
    assert_eq!(lines, expected.map(|line| format!("elision: declines[{pid}]: {line}")));
}
