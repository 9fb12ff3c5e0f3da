//! The `elision` command from outside: what a user, a shell and a parent process see of it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{REFUSE, filtered};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Pid, Signal, WaitOptions, getuid, kill_process, waitpid};
use rustix::thread::no_new_privs;
use tempfile::TempDir;

fn elision(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elision"));
    // What the tests themselves run under is not what they are about.
    for name in ["LD_PRELOAD", "ELISION", "ELISION_PRELOAD", "ELISION_STATS", "ELISION_MIN_BYTES"] {
        command.env_remove(name);
    }
    command.env_remove("ELISION_VERBOSE").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    elision(arguments).output().expect("the command was built with this test")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path()).collect()
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

/// A static program that exits with 3, or with 4 if LD_PRELOAD is set. `None` without a compiler or a static C library.
fn static_program(dir: &Path) -> Option<PathBuf> {
    let (source, program) = (dir.join("static.c"), dir.join("static"));
    fs::write(&source, "#include <stdlib.h>\nint main(void) { return getenv(\"LD_PRELOAD\") ? 4 : 3; }\n")
        .expect("write");
    let built = Command::new("cc").arg("-static").arg("-o").args([&program, &source]).output();
    match built {
        Ok(built) if built.status.success() => Some(program),
        _ => {
            eprintln!("skipped: cc -static does not work here");
            None
        }
    }
}

// ---- run: exit statuses ----

/// Both ways of running: by exec, and under the supervisor.
const WAYS: [&[&str]; 2] = [&["run", "--"], &["run", "--stats", "--"]];

fn both_ways(arguments: &[&str], mut check: impl FnMut(Output)) {
    for way in WAYS {
        check(output(&[way, arguments].concat()));
    }
}

#[test]
fn exit_statuses_are_the_programs() {
    for code in [0, 3, 255] {
        both_ways(&["sh", "-c", &format!("exit {code}")], |output| {
            assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        });
    }
}

#[test]
fn a_program_that_cannot_be_run_is_told_from_one_that_is_missing() {
    let dir = dir();
    let plain = dir.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").expect("write");
    both_ways(&[text(&plain)], |output| assert_eq!(output.status.code(), Some(126)));
    both_ways(&[text(dir.path())], |output| assert_eq!(output.status.code(), Some(126)));
    // Looking into a pipe to see what program it is would wait for a writer.
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    both_ways(&[text(&pipe)], |output| assert_eq!(output.status.code(), Some(126)));
    both_ways(&["no-such-program-here"], |output| {
        assert_eq!(output.status.code(), Some(127));
        assert!(stderr(&output).contains("elision: no-such-program-here: "), "{}", stderr(&output));
    });
    write_script(&plain, "#!/nonexistent/interpreter\n");
    both_ways(&[text(&plain)], |output| assert_eq!(output.status.code(), Some(127)));
}

#[test]
fn what_is_asked_wrongly_is_2() {
    for arguments in [
        &[][..],
        &["no-such-job"],
        &["run"],
        &["run", "--no-such-option", "true"],
        &["run", "--min-bytes", "x", "true"],
        &["run", "--stats", "--"],
        &["doctor", "a", "b"],
        &["demo", "--size", "x"],
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}

/// If the report cannot be written, the program is not run.
#[test]
fn own_failures_are_125() {
    let dir = dir();
    let witness = dir.path().join("witness");
    let output = self::output(&["run", "--stats=/nonexistent/file", "touch", text(&witness)]);
    assert_eq!((output.status.code(), witness.exists()), (Some(125), false), "{}", stderr(&output));
}

// ---- run: whatever is missing, the program runs ----

#[test]
fn a_program_runs_without_the_drop_in_where_there_is_none() {
    let dir = dir();
    let alone = dir.path().join("elision");
    fs::copy(env!("CARGO_BIN_EXE_elision"), &alone).expect("copy");
    let named = dir.path().join("with space.so");
    fs::write(&named, "").expect("write");
    for preload in ["", "/nonexistent.so", text(&named)] {
        for way in WAYS {
            let mut command = Command::new(&alone);
            command.args(way).args(["sh", "-c", "echo \"<$LD_PRELOAD>\"; exit 5"]);
            command.env_remove("LD_PRELOAD").env("ELISION_PRELOAD", preload);
            let output = command.output().expect("run");
            assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(5), "<>\n"), "{preload}");
            let said = stderr(&output);
            assert_eq!(said.matches("sh runs without the drop-in: ").count(), 1, "{said}");
            assert!(said.contains(if preload.is_empty() { "looked for" } else { preload }), "{said}");
            let nothing = "elision: nothing to report: sh ran without the drop-in\n";
            assert_eq!(said.contains(nothing), way.contains(&"--stats"), "{said}");
        }
    }
}

#[test]
fn statistics_need_no_temporary_directory() {
    let declines = "echo line | dd bs=1M 2>/dev/null; exit 6";
    for nowhere in ["/nonexistent", "/proc"] {
        let mut command = elision(&["run", "--stats", "--min-bytes", "1MiB", "sh", "-c", declines]);
        let output = command.env("TMPDIR", nowhere).output().expect("run");
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(6), "line\n"));
        assert!(stderr(&output).contains("declined: not_a_regular_file"), "{}", stderr(&output));
    }
}

#[test]
fn statistics_survive_their_file_and_no_failure_of_theirs_is_the_programs() {
    let temporary = dir();
    let script = format!("{REPORT}; rm -r \"$TMPDIR\"/elision-stats-*; exit 7");
    let output = reporting("--stats", &script, temporary.path());
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).contains("declined: writer"), "{}", stderr(&output));
    let output = reporting("--stats=/dev/full", "exit 8", temporary.path());
    assert_eq!(output.status.code(), Some(8), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot write the statistics"), "{}", stderr(&output));
}

#[test]
fn a_program_runs_without_statistics_where_no_second_process_is_allowed() {
    let mut command = Command::new("setpriv");
    // A number that nobody else has, so that the limit is for this process alone.
    command.args(["--reuid=64321", "--regid=64321", "--clear-groups", "prlimit", "--nproc=1", "--"]);
    let dir = dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = dir.path().join("elision");
    fs::copy(env!("CARGO_BIN_EXE_elision"), &copy).expect("copy");
    command.arg(&copy).args(["run", "--stats", "sh", "-c", "echo \"<$ELISION_STATS>\"; exit 5"]);
    let output = command.env("TMPDIR", "/nonexistent").env_remove("ELISION_STATS").output();
    let output = match output {
        Ok(output) if getuid().is_root() && output.status.code() != Some(127) => output,
        _ => return println!("skipped: only root can take another user's number"),
    };
    let said = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(5), "<>\n"), "{said}");
    assert_eq!(said.matches("sh runs without statistics: ").count(), 1, "{said}");
}

#[test]
fn a_program_runs_without_proc() {
    let dir = dir();
    fs::write(dir.path().join("file"), vec![7; 2 << 20]).expect("write");
    let away =
        "mount --make-rprivate / && umount -l /proc && ! [ -e /proc/self ] && touch away && exec \"$@\"";
    let program = "dd if=file bs=1M of=copy 2>/dev/null; exit 5";
    for (options, said_of_statistics) in
        [(&[][..], 0), (&["--stats"][..], 0), (&["--stats", "TMPDIR=/nonexistent"][..], 1)]
    {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", away, "sh"]);
        command.args(["env"]).args(options.get(1));
        command.args([env!("CARGO_BIN_EXE_elision"), "run", "--min-bytes", "4096"]).args(options.first());
        command.args(["--", "sh", "-c", program]);
        let output = command.current_dir(dir.path()).output();
        if !dir.path().join("away").exists() {
            return println!("skipped: /proc cannot be taken away here: {output:?}");
        }
        let output = output.expect("it has run");
        assert_eq!(output.status.code(), Some(5), "{options:?}: {}", stderr(&output));
        let without = stderr(&output).matches("runs without statistics: ").count();
        assert_eq!(without, said_of_statistics, "{options:?}: {}", stderr(&output));
        assert_eq!(fs::read(dir.path().join("copy")).expect("read"), vec![7; 2 << 20]);
    }
}

#[test]
fn a_program_that_may_not_be_read_runs() {
    let dir = dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let (program, command) = (dir.path().join("program"), dir.path().join("elision"));
    fs::copy("/bin/echo", &program).expect("copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o111)).expect("chmod");
    fs::copy(env!("CARGO_BIN_EXE_elision"), &command).expect("copy");
    for way in WAYS {
        let mut run = match getuid().is_root() {
            true => Command::new("setpriv"),
            false => Command::new("env"),
        };
        if getuid().is_root() {
            run.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        let output = run.arg(&command).args(way).arg(&program).arg("hello").output().expect("run");
        assert_eq!(
            (output.status.code(), stdout(&output).as_str()),
            (Some(0), "hello\n"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn death_by_a_signal_is_mirrored() {
    for signal in [Signal::TERM, Signal::KILL, Signal::SEGV] {
        both_ways(&["sh", "-c", &format!("kill -{} $$", signal.as_raw())], |output| {
            assert_eq!(output.status.signal(), Some(signal.as_raw()), "{}", stderr(&output));
            assert!(!output.status.core_dumped() || signal == Signal::SEGV);
        });
    }
}

// ---- run: what the program starts with ----

#[test]
fn an_existing_preload_is_kept() {
    for way in WAYS {
        let arguments = [way, &["sh", "-c", "echo $LD_PRELOAD"]].concat();
        let output = elision(&arguments).env("LD_PRELOAD", "libm.so.6").output().expect("run");
        let list = stdout(&output);
        let (first, rest) = list.trim().split_once(':').expect("two entries");
        assert!(first.ends_with("/libelision_preload.so") && rest == "libm.so.6", "{list}");
    }
}

#[test]
fn options_become_the_environment() {
    let show = "echo $ELISION_MIN_BYTES $ELISION_VERBOSE";
    let output = output(&["run", "--min-bytes", "1MiB", "--verbose", "sh", "-c", show]);
    assert_eq!(stdout(&output), "1048576 1\n");
    // Options after the program are the program's.
    let output = self::output(&["run", "echo", "--min-bytes", "--", "-x"]);
    assert_eq!(stdout(&output), "--min-bytes -- -x\n");
}

/// Rust's runtime ignores SIGPIPE and opens missing standard descriptors; the command blocks signals. None of it may reach the program.
#[test]
fn signals_and_descriptors_are_as_they_were() {
    let look = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd";
    for before in ["", "trap '' PIPE;", "trap '' CHLD HUP;", "exec 0<&-;"] {
        let seen = |prefix: &str| {
            let script = format!("{before} exec {prefix} sh -c \"$LOOK\"");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).env("LOOK", look).env("ELISION", "off");
            let output = shell.env_remove("LD_PRELOAD").stdin(Stdio::null()).output().expect("sh");
            assert!(output.status.success(), "{prefix}: {}", stderr(&output));
            stdout(&output)
        };
        let alone = seen("");
        assert!(alone.contains("SigIgn"), "{alone}");
        for way in WAYS {
            let prefix = format!("{} {}", env!("CARGO_BIN_EXE_elision"), way.join(" "));
            assert_eq!(seen(&prefix), alone, "{way:?} after {before:?}");
        }
    }
}

// ---- run: programs out of reach ----

#[test]
fn a_static_program_is_named_and_runs_unchanged() {
    let dir = dir();
    let Some(program) = static_program(dir.path()) else { return };
    let expected = format!("elision: {} is statically linked; it runs unchanged\n", program.display());
    both_ways(&[text(&program)], |output| {
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    });
    let script = dir.path().join("script");
    write_script(&script, &format!("#!{}\n", program.display()));
    both_ways(&[text(&script)], |output| {
        assert_eq!(output.status.code(), Some(3));
        let expected = format!("script is run by {}, which is statically linked; it", program.display());
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    });
}

/// The address sanitizer ends a program in which its library is not loaded first.
#[test]
fn a_program_with_the_address_sanitizer_runs_unchanged() {
    let dir = dir();
    let (source, program) = (dir.path().join("sanitized.c"), dir.path().join("sanitized"));
    fs::write(&source, "int main(void) { return 3; }\n").expect("write");
    let built = Command::new("cc").args(["-fsanitize=address", "-o"]).args([&program, &source]).output();
    if !built.is_ok_and(|built| built.status.success()) {
        return eprintln!("skipped: cc -fsanitize=address does not work here");
    }
    both_ways(&[text(&program)], |output| {
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("needs libasan"), "{}", stderr(&output));
    });
    // As a child of a program that has the drop-in it does so, too.
    both_ways(&["sh", "-c", "\"$0\"; exit $?", text(&program)], |output| {
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(!stderr(&output).contains("ASan"), "{}", stderr(&output));
    });
    // And any program for which the sanitizer is preloaded.
    let found = Command::new("cc").arg("-print-file-name=libasan.so").output().expect("cc");
    let preloaded = stdout(&found);
    for way in WAYS {
        let mut command = elision(&[way, &["sh", "-c", "exit 3"]].concat());
        command.env("LD_PRELOAD", preloaded.trim()).env("ASAN_OPTIONS", "detect_leaks=0");
        let output = command.output().expect("run");
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("libasan is preloaded"), "{}", stderr(&output));
    }
}

/// The drop-in needs glibc, and musl's loader ends a program if it cannot load a library.
#[test]
fn a_program_of_musl_runs_unchanged() {
    let dir = dir();
    let (source, program) = (dir.path().join("musl.c"), dir.path().join("musl"));
    fs::write(&source, "int main(void) { return 3; }\n").expect("write");
    let built = Command::new("musl-gcc").arg("-o").args([&program, &source]).output();
    if !built.is_ok_and(|built| built.status.success()) {
        return eprintln!("skipped: there is no musl-gcc");
    }
    both_ways(&[text(&program)], |output| {
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("is linked against musl"), "{}", stderr(&output));
    });
    both_ways(&["sh", "-c", "\"$0\"; exit $?", text(&program)], |output| {
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(!stderr(&output).contains("rror"), "{}", stderr(&output));
    });
}

#[test]
fn scripts_are_seen_through() {
    let dir = dir();
    let script = dir.path().join("script");
    for first in ["#!/bin/sh", "#!/usr/bin/env sh", "#!/usr/bin/env -S sh -u", ""] {
        write_script(&script, &format!("{first}\necho $LD_PRELOAD\n"));
        both_ways(&[text(&script)], |output| {
            assert!(stdout(&output).contains("libelision_preload.so"), "{first}: {}", stderr(&output));
            assert!(!stderr(&output).contains("unchanged"), "{first}: {}", stderr(&output));
        });
    }
}

#[test]
fn a_set_uid_program_is_named() {
    if !getuid().is_root() {
        eprintln!("skipped: only root can make a program of another user's");
        return;
    }
    let dir = dir();
    let mount = statvfs(dir.path()).expect("statvfs");
    if mount.f_flag.contains(StatVfsMountFlags::NOSUID) || no_new_privs().unwrap_or(false) {
        eprintln!("skipped: set-uid has no effect here");
        return;
    }
    let program = dir.path().join("program");
    fs::copy("/bin/true", &program).expect("copy");
    std::os::unix::fs::chown(&program, Some(65534), None).expect("chown");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("chmod");
    let output = output(&["run", text(&program)]);
    assert!(stderr(&output).contains("is set-uid, so the loader ignores LD_PRELOAD; it runs unchanged"));
}

// ---- run: statistics ----

const REPORT: &str = "for n in 1 2; do echo \
    '{\"pid\":'$n',\"deferred_bytes\":1048576,\"elided_bytes\":5,\"declined\":{\"writer\":3}}' \
    >> \"$ELISION_STATS\"; done";

/// With the drop-in off: all lines are the script's.
fn reporting(option: &str, script: &str, temporary: &Path) -> Output {
    let mut command = elision(&["run", option, "sh", "-c", script]);
    command.env("ELISION", "off").env("TMPDIR", temporary).output().expect("run")
}

#[test]
fn statistics_are_added_up_as_json() {
    let (dir, temporary) = (dir(), dir());
    let file = dir.path().join("stats.json");
    let output =
        reporting(&format!("--stats={}", file.display()), &format!("{REPORT}; exit 9"), temporary.path());
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    let expected = serde_json::json!({
        "processes": 2, "deferred_bytes": 2097152, "loaded_bytes": 0, "materialised_bytes": 0, "prefetched_bytes": 0,
        "elided_bytes": 10, "shared_bytes": 0, "written_bytes": 0, "declined": {"writer": 6}, "declined_read_bytes": {}, "stopped": {},
    });
    assert_eq!(found, expected);
    assert_eq!(entries(temporary.path()), [] as [PathBuf; 0]);
}

#[test]
fn statistics_are_a_table_on_stderr() {
    let temporary = dir();
    let output = reporting(
        "--stats",
        &format!("{REPORT}; echo nonsense >> $ELISION_STATS; kill -9 $$"),
        temporary.path(),
    );
    assert_eq!((output.status.signal(), stdout(&output)), (Some(9), String::new()));
    let table = stderr(&output);
    for expected in ["2.0 MiB", "declined: writer", "6 times", "malformed line of statistics: nonsense"] {
        assert!(table.contains(expected), "{expected} is missing from:\n{table}");
    }
    assert_eq!(entries(temporary.path()), [] as [PathBuf; 0], "dying must not leave the file behind");
}

/// A program whose transfers are declined is distinguished from one without big transfers.
#[test]
fn statistics_of_programs_that_defer_nothing() {
    let (dir, temporary) = (dir(), dir());
    let report = |script: &str| {
        let mut command = elision(&["run", "--stats", "--min-bytes", "1MiB", "--", "sh", "-c", script]);
        let output = command.current_dir(dir.path()).env("TMPDIR", temporary.path()).output().expect("run");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    let table = report("echo line | dd bs=1M of=copy 2>/dev/null");
    assert!(table.contains("declined: not_a_regular_file"), "{table}");
    let nothing = report("echo line | dd bs=64 of=copy 2>/dev/null");
    let expected =
        "elision: nothing to report: no process that it reached read or wrote 1.0 MiB or more at once ";
    assert!(nothing.starts_with(expected) && nothing.lines().count() == 1, "{nothing}");
    assert_eq!(entries(temporary.path()), [] as [PathBuf; 0]);
}

#[test]
fn statistics_give_the_true_reason_where_there_are_none() {
    let report = |settings: &[(&str, &str)], script: &str| {
        let mut command = elision(&["run", "--stats", "sh", "-c", script]);
        let output = command.envs(settings.iter().copied()).output().expect("run");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    let declines = "echo line | dd bs=8M 2>/dev/null";
    for off in ["off", "NO", "False", "0"] {
        assert_eq!(report(&[("ELISION", off)], declines), "elision: nothing to report: ELISION says off\n");
    }
    let said = report(&[("ELISION", "never")], declines);
    let not_understood = "elision: ELISION=never is not understood: taken for off\n";
    assert_eq!(said, format!("{not_understood}elision: nothing to report: ELISION says off\n"));
    // Not said by each process of the tree as well.
    let said = report(&[("ELISION_MIN_BYTES", "abc")], declines);
    let not_understood = "elision: ELISION_MIN_BYTES=abc is not understood: 4 MB it is\n";
    assert!(said.starts_with(not_understood) && said.matches("not understood").count() == 1, "{said}");
    assert!(said.contains("declined: not_a_regular_file"), "{said}");
    // What ended deferral in a process is a reason, and the process has not used it.
    let stop = r#"echo '{"pid":1,"stopped":"RTLD_DEEPBIND"}' >> $ELISION_STATS"#;
    let said = report(&[], stop);
    assert!(said.contains("ended, for the use of RTLD_DEEPBIND") && said.contains("1 times"), "{said}");
}

#[test]
fn nested_statistics_count_for_both() {
    let (dir, temporary) = (dir(), dir());
    for place in [text(temporary.path()), "/nonexistent"] {
        let outer = dir.path().join("outer");
        let inner = format!(
            "{} run --stats={}/inner sh -c 'echo line | dd bs=8M 2>/dev/null'",
            env!("CARGO_BIN_EXE_elision"),
            text(dir.path())
        );
        let mut command = elision(&["run", &format!("--stats={}", text(&outer)), "sh", "-c", &inner]);
        let output = command.env("TMPDIR", place).output().expect("run");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        for report in [outer, dir.path().join("inner")] {
            let found: serde_json::Value =
                serde_json::from_slice(&fs::read(&report).expect("read")).expect("JSON");
            // The line, and the end.
            assert_eq!(found["declined"]["not_a_regular_file"], 2, "{}: {found}", report.display());
        }
        assert_eq!(entries(temporary.path()), [] as [PathBuf; 0]);
    }
}

// ---- run: signals while it runs ----

/// Starts the supervisor in a group of its own (as a shell does), and waits until its program says so.
fn supervised(script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    supervised_as(|_| (), script)
}

fn supervised_as(
    prepare: impl Fn(&mut Command),
    script: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = elision(&["run", "--stats", "sh", "-c", script]);
    prepare(&mut command);
    command.env("ELISION", "off").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.process_group(0).spawn().expect("spawn");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    assert_eq!(next_line(&mut lines), "ready");
    (child, lines)
}

fn next_line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).expect("read");
    line.trim().to_owned()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it is not reaped yet");
}

/// Does this process ignore the signal, and so what it starts?
fn ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("SigIgn");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("hexadecimal");
    mask >> (signal.as_raw() - 1) & 1 != 0
}

#[test]
fn signals_sent_to_the_supervisor_reach_the_program() {
    for (signal, name) in
        [(Signal::TERM, "TERM"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1"), (Signal::INT, "INT")]
    {
        if ignored(signal) {
            println!(
                "skipped: {name} is ignored here (nohup?), and what is ignored at its start no shell can trap"
            );
            continue;
        }
        let script = format!("trap 'kill $!; echo got; exit 7' {name}; sleep 1000 & echo ready; wait");
        let (mut child, mut lines) = supervised(&script);
        send(&child, signal);
        assert_eq!(next_line(&mut lines), "got", "{name}");
        assert_eq!(child.wait().expect("wait").code(), Some(7), "{name}");
    }
}

/// The command must not retry a refused wait for ever.
#[test]
fn filters_that_refuse_what_commands_wait_with() {
    for calls in
        [&[libc::SYS_rt_sigtimedwait][..], &[libc::SYS_waitid], &[libc::SYS_ppoll, libc::SYS_signalfd4]]
    {
        let (mut child, mut lines) = supervised_as(
            filtered(REFUSE, calls),
            "trap 'kill $!; exit 7' TERM; sleep 20 & echo ready; wait",
        );
        send(&child, Signal::TERM);
        let begun = Instant::now();
        while child.try_wait().expect("wait").is_none() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        assert_eq!(child.wait().expect("wait").code(), Some(7), "{calls:?}");
        let _ = lines.read_to_end(&mut Vec::new());
    }
}

#[test]
fn a_stop_is_mirrored_and_ended() {
    let (mut child, _lines) = supervised("echo ready; read line; exit 5");
    send(&child, Signal::TSTP);
    let (_, status) =
        waitpid(Some(Pid::from_child(&child)), WaitOptions::UNTRACED).expect("wait").expect("stopped");
    assert_eq!(status.stopping_signal(), Some(Signal::STOP.as_raw()), "{status:?}");
    send(&child, Signal::CONT);
    child.stdin.take().expect("piped").write_all(b"go\n").expect("it reads");
    assert_eq!(child.wait().expect("wait").code(), Some(5));
}

// ---- demo ----

#[test]
fn the_demo_compares_and_leaves_nothing_behind() {
    let dir = dir();
    let mut command = elision(&["demo", "--size", "8MiB", "--dir", text(dir.path())]);
    let output = command.env("TMPDIR", dir.path()).output().expect("run");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    for expected in
        ["traditional", "in place", "O_TRUNC", "renamed", "peak memory", "Both files are identical"]
    {
        assert!(stdout(&output).contains(expected), "{expected} is missing from:\n{}", stdout(&output));
    }
    assert_eq!(entries(dir.path()), [] as [PathBuf; 0]);
}

/// `cargo run -- demo` builds only the command.
#[test]
fn a_demo_without_its_parts_says_what_to_build() {
    let dir = dir();
    let alone = dir.path().join("elision");
    fs::copy(env!("CARGO_BIN_EXE_elision"), &alone).expect("copy");
    for missing in ["libelision_preload.so", "elision-demo-edit"] {
        let output = Command::new(&alone).arg("demo").env_remove("ELISION_PRELOAD").output().expect("run");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        for expected in [missing, "cargo build --release"] {
            assert!(stderr(&output).contains(expected), "{expected} is missing from: {}", stderr(&output));
        }
        fs::write(dir.path().join(missing), "").expect("write");
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let dir = dir();
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = elision(&["demo", "--size", "256MiB", "--dir", text(dir.path())]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("spawn");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        assert!(next_line(&mut lines).contains("making two files"));
        assert_eq!(entries(dir.path()).len(), 1, "it has begun");
        send(&child, signal);
        // Whatever it still says must not block it.
        lines.read_to_end(&mut Vec::new()).expect("read");
        assert_eq!(child.wait().expect("wait").signal(), Some(signal.as_raw()));
        assert_eq!(entries(dir.path()), [] as [PathBuf; 0]);
    }
}

#[test]
fn a_demo_without_room_says_so() {
    let dir = dir();
    let output = output(&["demo", "--size", "900PiB", "--dir", text(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("more room than there is"), "{}", stderr(&output));
}

// ---- help ----

#[test]
fn help_teaches() {
    let output = output(&["--help"]);
    assert!(output.status.success());
    for expected in ["Examples:", "ELISION=off", "ELISION_MIN_BYTES", "ELISION_STATS", "ELISION_VERBOSE"] {
        assert!(stdout(&output).contains(expected), "{expected} is missing");
    }
    assert!(stdout(&self::output(&["--version"])).starts_with("elision "));
}

/// What bash offers for these words.
fn completed(script: &Path, words: &str) -> String {
    let ask = format!(
        "source {} && COMP_WORDS=({words} '') && COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) && \
         _elision elision '' \"${{COMP_WORDS[COMP_CWORD - 1]}}\" && echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash");
    assert!(output.status.success(), "{words}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn completions_complete() {
    let dir = dir();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = output(&["completions", shell]);
        assert!(output.status.success(), "{shell}: {}", stderr(&output));
        for word in ["run", "doctor", "demo", "min-bytes"] {
            assert!(stdout(&output).contains(word), "{shell}: {word} is missing");
        }
        fs::write(dir.path().join(shell), output.stdout).expect("write");
    }
    if Command::new("bash").arg("--version").output().is_err() {
        println!("skipped: bash not found");
        return;
    }
    let bash = dir.path().join("bash");
    let commands = completed(&bash, "elision");
    assert!(commands.contains("run") && commands.contains("doctor"), "{commands}");
    let options = completed(&bash, "elision run");
    assert!(options.contains("--stats") && options.contains("--min-bytes"), "{options}");
    assert_eq!(output(&["completions", "dos"]).status.code(), Some(2));
}

#[test]
fn manual_pages_are_written() {
    let dir = dir();
    let pages = dir.path().join("man1");
    let output = output(&["man", text(&pages)]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut names: Vec<_> =
        entries(&pages).iter().map(|page| page.file_name().expect("a name").to_owned()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "elision-completions.1",
            "elision-demo.1",
            "elision-doctor.1",
            "elision-run.1",
            "elision-top.1",
            "elision.1"
        ]
    );
    for (page, words) in [("elision.1", "ELISION_MIN_BYTES"), ("elision-run.1", "Exit status")] {
        let shown = fs::read_to_string(pages.join(page)).expect("there");
        assert!(shown.starts_with(".ie") && shown.contains(words), "{page}: {shown}");
        match Command::new("man")
            .args(["--warnings", "-l"])
            .arg(pages.join(page))
            .env("MANWIDTH", "80")
            .output()
        {
            Ok(output) => assert!(stdout(&output).contains(words), "{page}: {}", stdout(&output)),
            Err(_) => println!("skipped: man not found"),
        }
    }
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    assert_eq!(self::output(&["man", text(&file)]).status.code(), Some(1));
}
