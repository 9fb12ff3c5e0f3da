//! Helpers that are killed, programs that are killed or stopped. What is to come of each is in docs/FAULTS.md.

#![allow(unsafe_code)] // Signals.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::{Dice, With};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SIZE: usize = 256 * 4096 + 123;

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// A running program of `tests/c/faults.c` that has said that it is ready.
struct Program {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    made: tempfile::TempDir,
}

impl Program {
    fn start(row: &str) -> Program {
        let made = directory();
        let program = common::compile(made.path(), "faults", &["-O1", "-Wextra", "-Werror"]);
        Program::start_again(&program, row, made, None)
    }

    /// In a cgroup, if one is named.
    fn start_again(program: &Path, row: &str, made: tempfile::TempDir, group: Option<&Path>) -> Program {
        let mut command = Command::new("/bin/sh");
        let join = "if [ \"$1\" ]; then echo $$ >\"$1/cgroup.procs\" || exit; fi; shift; exec \"$@\"";
        command.args(["-c", join, "sh"]).arg(group.unwrap_or(Path::new(""))).arg("/usr/bin/env");
        command.arg(format!("LD_PRELOAD={}", common::library().display()));
        let mut child = command
            .arg(program)
            .arg(row)
            .arg(made.path())
            .env("ELISION_MIN_BYTES", "4096")
            .env("ELISION_STATS", made.path().join("stats"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        }
        Program { child, output, made }
    }

    /// The parent of this program's helper.
    fn supervisor(&self) -> Option<i32> {
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).ok()?;
        let name = |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        children.split_whitespace().rfind(|pid| name(pid) == "elision-watch\n")?.parse().ok()
    }

    /// Until a helper of this program guards its file.
    fn helper(&mut self) -> Option<i32> {
        let file = self.made.path().join("file");
        let guards = |process: &Path| {
            let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            descriptors.into_iter().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == file))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            let parent = format!("PPid:\t{}\n", self.supervisor().unwrap_or(0));
            let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
                let entry = entry.ok()?;
                let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
                let ours = status.starts_with("Name:\telision\n")
                    && status.contains(&parent)
                    && guards(&entry.path());
                ours.then(|| entry.file_name().to_str()?.parse().ok())?
            });
            if let Some(pid) = found.max() {
                return Some(pid);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    fn signal(&self, number: i32) {
        // SAFETY: a process that we have started and not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, number) }, 0);
    }

    /// Its input ends, and then it does.
    fn finish(mut self) -> (String, tempfile::TempDir) {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{said}");
        (said, self.made)
    }
}

/// The moments are random, and no event could stand for them.
fn some_time(dice: &mut Dice, most_us: u64) {
    std::thread::sleep(Duration::from_micros(dice.below(most_us)));
}

/// The program's next call starts another helper, which first gives everything memory of its own. No byte is lost, and who
/// wants to write waits no longer than until then; meanwhile somebody opens the files, again and again.
#[test]
fn the_helper_is_killed_at_any_moment() {
    let mut program = Program::start("edits");
    let mut dice = Dice(7);
    let mut killed = 0;
    let (files, done) = (program.made.path().to_owned(), AtomicBool::new(false));
    let (said, _made) = std::thread::scope(|scope| {
        let others = scope.spawn(|| common::want_files(&files, Dice(5), &done));
        while killed < 15 {
            let Some(helper) = program.helper() else { break };
            some_time(&mut dice, 20_000);
            // SAFETY: the helper of a program of ours. (If it has gone since, nobody has its number yet.)
            killed += i32::from(unsafe { libc::kill(helper, libc::SIGKILL) } == 0);
        }
        // Somebody may be waiting for a lease that only the program's going on, or its end, gives up.
        done.store(true, Relaxed);
        let finished = program.finish();
        println!("opened and refused: {:?}", others.join().unwrap());
        finished
    });
    assert_eq!(said, "done 1\n");
    assert!(killed >= 15, "only {killed} helpers were there to be killed");
}

/// After so many system calls and so many instructions of what it does for a request, each time others: a mapping made that it says
/// nothing of yet, a list that says half of two things, a lease taken that is on no list.
#[test]
fn the_helper_is_killed_between_any_two_instructions() {
    killed_in(60, &["4"]);
    // One instruction after the other, about where a deferred read has been mapped and is looked at; and where a block that grows has been
    // moved and is not yet said to be.
    killed_in(60, &["1", "walk", "1", "11"]);
    killed_in(60, &["1", "walk", "10", "6"]);
}

/// A mapping that the program has made itself, of a file of which something is deferred, shows what the file has later; what was behind the
/// end of the file then, too. (The next helper took it for a deferred read, and gave it memory of its own, or none.)
#[test]
fn the_helper_is_killed_beside_a_mapping_of_the_programs_own() {
    killed_in(84, &["1", "own"]);
}

/// Pages are exchanged one by one then, and each is in nobody's memory but the helper's for a moment.
#[test]
fn the_helper_is_killed_while_there_is_room_for_no_mapping() {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    match limit.trim().parse::<u32>().unwrap() {
        // (With the second, one in two runs died of SIGBUS when the next helper could keep but a part of its reserve, and took that for none.)
        ..100_000 => ["4", "1035"].into_iter().for_each(|seed| killed_in(12, &[seed, "full"])),
        limit => println!("skipped: {limit} mappings are too many to be made again and again"),
    }
}

fn killed_in(rounds: u32, more: &[&str]) {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "killed", &["-O1", "-Wextra", "-Werror"]);
    let count = rounds.to_string();
    let (output, _) = common::run(With::Least(4096), &program, &[&[&*count], more].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    if said.starts_with("skipped: ") {
        return println!("{said}");
    }
    assert!(output.status.success(), "{}: {said}", output.status);
    let killed: u32 = said.trim_end().strip_prefix("done ").unwrap().parse().unwrap();
    assert!(killed > rounds / 2, "only {killed} helpers were there to be killed");
}

/// Who wants to change the file waits no longer than for any helper, and nothing of what has been read is lost, though it may be hours
/// before the program makes its next call.
#[test]
fn the_helper_is_killed_and_the_program_makes_no_call() {
    let mut dice = Dice(3);
    for row in ["orphaned_reader", "orphaned_writer"] {
        for round in 0..4 {
            let mut program = Program::start(row);
            let helper = program.helper().unwrap();
            // SAFETY: the helper of a program of ours.
            assert_eq!(unsafe { libc::kill(helper, libc::SIGKILL) }, 0);
            if round > 0 {
                some_time(&mut dice, 2_000);
            }
            let begun = Instant::now();
            let file =
                std::fs::OpenOptions::new().write(true).open(program.made.path().join("file")).unwrap();
            file.set_len(4096 * (round % 2)).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(15), "a lease had nobody to answer for it");
            drop(file);
            let (said, _made) = program.finish();
            assert!(said.ends_with(": yes\n"), "{said}");
        }
    }
}

/// May this process have a write lease on the file, as Samba's servers want one?
fn write_lease_is_granted(path: &Path) -> bool {
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: no pointers. The lease goes with the descriptor.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0 }
}

/// The descriptor by which the helper guards the file of a buffer is one too many for a write lease of another process.
#[test]
#[ignore = "a limit: the kernel asks nobody before it refuses a write lease for a descriptor that the helper has"]
fn a_write_lease_of_another_process_on_a_file_that_was_closed() {
    let program = Program::start("closed");
    let granted = write_lease_is_granted(&program.made.path().join("file"));
    program.finish();
    assert!(granted);
}

/// Whoever opens the file for writing is waited for with it, and the helper keeps nothing open then.
#[test]
fn a_write_lease_of_another_process_after_it_has_opened_the_file_for_writing() {
    let program = Program::start("closed");
    let path = program.made.path().join("file");
    drop(std::fs::File::options().write(true).open(&path).unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !write_lease_is_granted(&path) {
        assert!(Instant::now() < deadline, "the helper keeps the file open");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (said, _made) = program.finish();
    assert!(said.ends_with(": yes\n"), "{said}");
}

/// Both at once, as by their name: the program's next call starts another helper, with another parent.
fn others_go_on_after(row: &str) {
    let mut program = Program::start(row);
    let helper = program.helper().unwrap();
    for pid in [program.supervisor().unwrap(), helper] {
        // SAFETY: the helper of a program of ours, and its parent.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    }
    let begun = Instant::now();
    let (said, _made) = program.finish();
    assert!(said.ends_with(": yes\n"), "{said}");
    // A third of what the kernel would wait.
    assert!(begun.elapsed() < Duration::from_secs(15), "a lease had nobody to answer for it");
}

#[test]
fn a_reader_without_its_helper_holds_nobody_up() {
    others_go_on_after("orphaned_reader");
}

#[test]
fn a_writer_without_its_helper_holds_nobody_up() {
    others_go_on_after("orphaned_writer");
}

/// A helper that was to take over from one that had been killed was itself killed, before it was ready. Nobody tried again:
/// writers waited for all of lease-break-time, and then changed what had been read.
#[test]
fn the_next_helper_is_killed_while_it_starts() {
    for row in ["orphaned_reader", "orphaned_writer"] {
        let mut program = Program::start(row);
        let helper = program.helper().unwrap();
        let list = format!("/proc/{0}/task/{0}/children", program.supervisor().unwrap());
        let children = || -> Option<Vec<i32>> {
            Some(std::fs::read_to_string(&list).ok()?.split_whitespace().flat_map(str::parse).collect())
        };
        let Some(known) = children() else {
            return println!("skipped: this kernel has no lists of children");
        };
        let kill = |pid| {
            // SAFETY: a helper of a program of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) }
        };
        assert_eq!(kill(helper), 0);
        // Its parent starts another, which is killed at sight.
        program.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let begun = Instant::now();
        let next = loop {
            let found = children().into_iter().flatten().find(|pid| !known.contains(pid));
            if found.is_some() || program.child.try_wait().unwrap().is_some() {
                break found;
            }
        };
        // On a busy machine it may be done by now.
        if let Some(next) = next {
            kill(next);
        }
        let (said, _made) = program.finish();
        assert!(said.ends_with(": yes\n"), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(15), "a lease had nobody to answer for it");
    }
}

/// Each next helper looked whether the thread that had forked was still there, where the kernel notes it, on its stack; and died of that, if
/// the stack was gone.
#[test]
fn the_thread_that_forked_has_ended_when_the_helper_is_killed() {
    let made = directory();
    let program = common::compile(made.path(), "forker", &["-O1", "-Wextra", "-Werror"]);
    let (output, _) = common::run(With::Least(4096), &program, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(said, "another: 1, and it stays: 1\n");
}

/// As `bytes_at` of the C programs has them.
fn byte_at(at: usize, seed: u32) -> u8 {
    let x = (at as u32 / 16 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
    (x >> 13) as u8 ^ at as u8
}

/// Every byte of the file is what it was before the save or what it is after it, and nothing is left that would hold
/// up those who want the file.
#[test]
fn a_program_is_killed_in_the_middle_of_a_save() {
    let mut made = directory();
    let compiled = common::compile(made.path(), "faults", &["-O1", "-Wextra", "-Werror"]);
    let mut dice = Dice(11);
    let (mut both, mut stats) = (0, String::new());
    for _ in 0..12 {
        let mut program = Program::start_again(&compiled, "saves", made, None);
        some_time(&mut dice, 15_000);
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        made = program.made;
        let path = made.path().join("file");
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), SIZE);
        let mut seen = [false; 2];
        for (at, &byte) in bytes.iter().enumerate() {
            let (old, new) = (byte_at(at, 1) == byte, byte_at(at, 2) == byte);
            assert!(old || new, "neither old nor new at {at}");
            seen = [seen[0] | !new, seen[1] | !old];
        }
        both += i32::from(seen == [true; 2]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while common::leased(&path) {
            assert!(Instant::now() < deadline, "the lease has outlived its program");
            std::thread::sleep(Duration::from_millis(1));
        }
        stats += &std::fs::read_to_string(made.path().join("stats")).unwrap_or_default();
        std::fs::remove_file(&path).unwrap();
        let _ = std::fs::remove_file(made.path().join("stats"));
    }
    assert!(both > 0, "no save was ever under way");
    println!("{both} with both, {} bytes elided", common::counter(&stats, "elided_bytes"));
    assert!(common::counter(&stats, "elided_bytes") > 0, "nothing was elided");
}

/// Runs something with `fs.lease-break-time` at a second.
fn with_little_patience(test: impl FnOnce() + std::panic::UnwindSafe) {
    const SETTING: &str = "/proc/sys/fs/lease-break-time";
    let lock = std::fs::File::create(std::env::temp_dir().join("elision-lease-break-time")).unwrap();
    lock.lock().unwrap();
    let before = std::fs::read_to_string(SETTING).unwrap();
    if let Err(error) = std::fs::write(SETTING, "1") {
        return println!("skipped: {SETTING} cannot be set: {error}");
    }
    let outcome = std::panic::catch_unwind(test);
    std::fs::write(SETTING, before).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The helper answers for a program that is stopped, well before the kernel's patience is over.
#[test]
#[ignore = "sets fs.lease-break-time, which is the whole machine's, to one second"]
fn the_kernel_is_impatient_with_a_program_that_is_stopped() {
    with_little_patience(|| {
        let mut program = Program::start("holds");
        assert!(program.helper().is_some());
        program.signal(libc::SIGSTOP);
        let path = program.made.path().join("file");
        let begun = Instant::now();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 300_000], 5_000).unwrap();
        let waited = begun.elapsed();
        std::fs::write(&path, b"short").unwrap();
        std::thread::sleep(Duration::from_secs(3).saturating_sub(begun.elapsed()));
        program.signal(libc::SIGCONT);
        let (said, made) = program.finish();
        assert!(said.ends_with(": yes\n"), "{said}");
        let stats = std::fs::read_to_string(made.path().join("stats")).unwrap();
        assert!(common::counter(&stats, "materialised_bytes") > 0, "{stats}");
        println!("the writer waited for {waited:?}");
    });
}

/// The kernel takes the lease away from a helper that cannot answer, and the file changes. What had been saved before is written again: a
/// save left out the page that the other process had changed, since its time was noted when the lease was gone already.
#[test]
#[ignore = "sets fs.lease-break-time, which is the whole machine's, to one second"]
fn the_kernel_is_impatient_with_helpers_that_are_stopped() {
    with_little_patience(|| {
        let mut program = Program::start("saves_after_another");
        let helpers = [program.supervisor().unwrap(), program.helper().unwrap()];
        // SAFETY: processes of the program that was started above.
        let signal = |number| helpers.map(|pid| assert_eq!(unsafe { libc::kill(pid, number) }, 0));
        signal(libc::SIGSTOP);
        let path = program.made.path().join("file");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[b'X'; 4096], 5 * 4096).unwrap();
        drop(file);
        signal(libc::SIGCONT);
        let (said, _) = program.finish();
        assert!(said.ends_with(": yes\n"), "{said}");
    });
}

/// A program that had altered all of what it had read needed twice the memory for an instant, and was killed for it.
#[test]
fn an_altered_buffer_is_not_in_memory_twice() {
    if let Some(said) = altered_with_little_memory("altered") {
        assert!(said.contains("1 mappings\n"), "{said}");
    }
}

/// So did one whose block had to move.
#[test]
fn an_altered_block_that_grows_is_not_in_memory_twice() {
    altered_with_little_memory("grown");
}

fn altered_with_little_memory(row: &str) -> Option<String> {
    let made = directory();
    // The buffer's 40 MiB and half as much; on tmpfs the file is in memory, too.
    let limit = if common::on_tmpfs(made.path()) { 100 << 20 } else { 60 << 20 };
    let Some(group) = common::Group::new(Some(limit)) else {
        println!("skipped: no cgroup with a limit on memory may be made");
        return None;
    };
    let compiled = common::compile(made.path(), "faults", &["-O1", "-Wextra", "-Werror"]);
    let (said, made) = Program::start_again(&compiled, row, made, Some(&group.0)).finish();
    assert!(said.ends_with(": yes\n"), "{said}");
    let stats = std::fs::read_to_string(made.path().join("stats")).unwrap();
    assert!(common::counter(&stats, "deferred_bytes") >= 40 << 20, "{stats}");
    Some(said)
}

/// A helper that was just being started when rights were given up kept them; and one thread's waiting for the other's change of
/// rights, in which libc waits for all threads, could have had no end.
#[test]
fn rights_change_while_other_threads_read() {
    let program = Program::start("rights");
    let (said, made) = program.finish();
    assert!(said.matches(": yes\n").count() == 3 && !said.contains(": no\n"), "{said}");
    let stats = std::fs::read_to_string(made.path().join("stats")).unwrap();
    assert!(common::counter(&stats, "deferred_bytes") > 0, "{stats}");
}

/// A helper that took longer than two seconds to go, or was only about to come, was there with the old rights when they had changed.
#[test]
fn rights_change_while_the_helper_takes_its_time() {
    let made = directory();
    let program = common::compile(made.path(), "slowly", &["-O1", "-Wextra", "-Werror"]);
    for (what, more) in [("threads", ""), ("next", "NoNewPrivs:\t1\n")] {
        let (output, _) = common::run(With::Least(4096), &program, &[what]);
        let said = String::from_utf8_lossy(&output.stdout);
        if said.starts_with("skipped: ") {
            return println!("{said}");
        }
        assert!(output.status.success(), "{what}: {}: {said}", output.status);
        assert_eq!(said, format!("there when rights had changed: 0 0\n{more}"), "{what}");
    }
}

/// What the other threads had begun ends with them: no lease, no helper, no half of a page.
#[test]
fn a_program_puts_another_in_its_place_while_threads_read_and_write() {
    let begun = Instant::now();
    let (said, made) = Program::start("execs").finish();
    assert!(said.ends_with("40 times\n") && !said.contains(": no\n"), "{said}");
    let stats = std::fs::read_to_string(made.path().join("stats")).unwrap();
    for name in ["deferred_bytes", "elided_bytes"] {
        assert!(common::counter(&stats, name) > 0, "{name}: {stats}");
    }
    println!("{} processes in {:?}", stats.lines().count(), begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(30), "somebody waited for a lease");
}

/// A program that reads a file of which three pages cannot be read from the device; what it says of them.
fn with_unreadable_pages(row: &str) -> Option<String> {
    if std::env::var_os("ELISION_TEST_DIR").is_some() {
        println!("skipped: has a file system of its own");
        return None;
    }
    if !common::image::mounts_of_our_own() {
        return None;
    }
    // Where reading would show as an access, pages are loaded by way of the mapping.
    let image = common::image::Image::btrfs(if row == "unreadable" { "strictatime" } else { "noatime" })?;
    let programs = directory();
    let compiled = common::compile(programs.path(), "faults", &["-O1", "-Wextra", "-Werror"]);
    let made = tempfile::tempdir_in(&image.root).unwrap();
    let path = made.path().join("file");
    let bytes: Vec<u8> = (0..SIZE).map(|at| byte_at(at, 1)).collect();
    std::fs::write(&path, &bytes).unwrap();
    image.spoil(&path, &[40, 41, 100].map(|page| bytes[page * 4096..][..4096].to_vec()));
    let begun = Instant::now();
    let (said, made) = Program::start_again(&compiled, row, made, None).finish();
    assert!(begun.elapsed() < Duration::from_secs(15), "a lease had nobody to answer for it");
    assert!(!said.contains(": no\n"), "{said}");
    let stats = std::fs::read_to_string(made.path().join("stats")).unwrap();
    println!("{said}{stats}");
    assert!(common::counter(&stats, "deferred_bytes") > 0, "nothing was deferred");
    assert_eq!(common::counter(&stats, "elided_bytes") > 0, row == "unreadable_saved");
    Some(said)
}

/// What a program finds of its pages where it has read all, and has altered pages 3 and 99.
const ALL_BUT_THREE: &str = " 0= 3+ 4= 40! 42= 99+ 100! 101=\n";

/// Giving up at the first page that could not be read left all behind it to whoever wrote to the file. And a page that
/// cannot be read must not come back with what somebody else has written since.
#[test]
fn pages_that_the_device_does_not_deliver_are_lost_alone() {
    let Some(said) = with_unreadable_pages("unreadable") else { return };
    assert!(said.contains("to a pipe: -1 Bad address\n"), "{said}");
    assert!(said.contains(&format!("written:{ALL_BUT_THREE}")), "{said}");
    assert!(said.contains(&format!("truncated:{ALL_BUT_THREE}")), "{said}");
}

#[test]
fn pages_that_the_device_does_not_deliver_raise_sigbus() {
    let Some(said) = with_unreadable_pages("unreadable_touched") else { return };
    assert!(said.contains(&format!("touched:{ALL_BUT_THREE}")), "{said}");
    assert!(said.contains(&format!("truncated:{ALL_BUT_THREE}")), "{said}");
}

#[test]
fn pages_that_the_device_does_not_deliver_are_saved_to_their_place_only() {
    let Some(said) = with_unreadable_pages("unreadable_saved") else { return };
    assert!(said.contains(&format!("written:{ALL_BUT_THREE}")), "{said}");
    assert!(
        said.contains("to another file: not beyond") || said.contains("to another file: Bad address"),
        "{said}"
    );
    assert!(!said.contains(": no\n"), "{said}");
}
