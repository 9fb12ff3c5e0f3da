//! What a deferred read gains for programs as people write them, and what it must leave as it was.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SIZE: usize = 64 << 20;
const PYTHON: &str = "/usr/bin/python3";

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// A file of bytes that are nowhere all the same.
fn make(path: &Path, len: usize) {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let bytes: Vec<u8> = std::iter::repeat_with(&mut next).flatten().take(len).collect();
    std::fs::write(path, bytes).unwrap();
}

/// Under the drop-in, with statistics.
fn preloaded(program: &Path, stats: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", common::library()).env("ELISION_STATS", stats);
    command
}

/// One counter, summed over all processes.
fn counter(stats: &Path, name: &str) -> u64 {
    common::counter(&std::fs::read_to_string(stats).unwrap(), name)
}

fn good(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The program edits a file of [`SIZE`] bytes in place: once without the drop-in and once with it. The same file comes of
/// it, nearly nothing is loaded, and nearly nothing written.
fn edits(program: &Path, arguments: &[&str]) {
    let made = directory();
    let (plain, ours, stats) =
        (made.path().join("plain"), made.path().join("ours"), made.path().join("stats"));
    make(&plain, SIZE);
    std::fs::copy(&plain, &ours).unwrap();
    let before = std::fs::read(&plain).unwrap();
    let said = good(Command::new(program).args(arguments).arg(&plain).output().unwrap());
    assert_eq!(good(preloaded(program, &stats).args(arguments).arg(&ours).output().unwrap()), said);
    let after = std::fs::read(&plain).unwrap();
    let changed = before.chunks(4096).zip(after.chunks(4096)).filter(|(a, b)| a != b).count();
    assert_eq!((before.len(), changed), (after.len(), 3), "the program's own change");
    assert!(after == std::fs::read(&ours).unwrap(), "another file than without");
    let (size, allowance) = (SIZE as u64, 128 * 1024);
    assert!(
        counter(&stats, "deferred_bytes") > size - allowance,
        "{}",
        std::fs::read_to_string(&stats).unwrap()
    );
    // Thirteen places are touched, and the kernel maps up to 64 KiB around each.
    assert!(
        counter(&stats, "loaded_bytes") <= 16 * 64 * 1024,
        "{}",
        std::fs::read_to_string(&stats).unwrap()
    );
    // Three altered pages and the last one, rounded to pages; 99.9 % leaves room for sixteen.
    assert!(
        counter(&stats, "elided_bytes") >= size - size / 1000,
        "{}",
        std::fs::read_to_string(&stats).unwrap()
    );
    assert_eq!(counter(&stats, "materialised_bytes"), 0);
}

#[test]
fn python_reads_into_changes_and_writes_back() {
    if !Path::new(PYTHON).exists() {
        return println!("skipped: {PYTHON} not found");
    }
    let script = "
import os, sys
with open(sys.argv[1], 'r+b') as f:
    a = bytearray(os.path.getsize(sys.argv[1]))
    assert f.readinto(a) == len(a)
    print([a[len(a) // 10 * i] for i in range(10)])
    for i in (1, 2, 3): a[len(a) // 4 * i] ^= 255
    f.seek(0); assert f.write(a) == len(a)
    del a # What is kept beyond the close is loaded after a moment.
";
    edits(PYTHON.as_ref(), &["-c", script]);
}

/// What was read stays deferred when its block has to move.
#[test]
fn a_buffer_grows_with_what_is_read() {
    let made = tempfile::tempdir().unwrap();
    edits(&common::compile(made.path(), "slurps", &["-O1", "-Wextra", "-Werror"]), &[]);
}

#[test]
fn numpy_reads_changes_and_writes_back() {
    let numpy = Command::new(PYTHON).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        return println!("skipped: no numpy for {PYTHON}");
    }
    let script = "
import sys, numpy as np
with open(sys.argv[1], 'r+b') as f:
    a = np.fromfile(f, dtype=np.uint8)
    print([int(a[len(a) // 10 * i]) for i in range(10)])
    for i in (1, 2, 3): a[len(a) // 4 * i] ^= 255
    f.seek(0); a.tofile(f)
    del a # As above.
";
    edits(PYTHON.as_ref(), &["-c", script]);
}

/// Reads a file of 16 MiB in pieces of so many KiB, twice, each time to the end of one buffer, alters every `every`th page of it, and
/// gives what was deferred and declined.
fn in_pieces(kib: usize, every: usize) -> (u64, u64) {
    let made = directory();
    let (file, stats) = (made.path().join("file"), made.path().join("stats"));
    make(&file, 16 << 20);
    let script = "
import os, sys, hashlib
piece, every = int(sys.argv[2]) << 10, int(sys.argv[3])
for round in range(2):
    with open(sys.argv[1], 'rb', buffering=0) as f:
        a = bytearray(os.path.getsize(sys.argv[1])); view = memoryview(a); at = 0
        while at < len(a): at += f.readinto(view[at:at + piece])
        if every: a[::4096 * every] = bytes(len(a) // 4096 // every)
        print(at, hashlib.sha256(view).hexdigest()); view.release(); del a
";
    let arguments = |command: &mut Command| {
        let arguments = ["-c", script, file.to_str().unwrap(), &kib.to_string(), &every.to_string()];
        good(command.args(arguments).output().unwrap())
    };
    let said = arguments(&mut Command::new(PYTHON));
    assert_eq!(arguments(&mut preloaded(PYTHON.as_ref(), &stats)), said);
    if !stats.exists() {
        return (0, 0); // Nothing was offered.
    }
    (counter(&stats, "deferred_bytes"), counter(&stats, "mostly_altered"))
}

/// Reads that go on where another ended are deferred like one big read, once they are together as long as one.
#[test]
fn pieces_of_one_buffer_are_deferred_together() {
    if !Path::new(PYTHON).exists() {
        return println!("skipped: {PYTHON} not found");
    }
    const MIB: u64 = 1 << 20;
    let (deferred, _) = in_pieces(512, 0);
    assert!((24 * MIB..=26 * MIB).contains(&deferred), "{deferred}");
    let (deferred, _) = in_pieces(1024, 0);
    assert!((24 * MIB..=26 * MIB).contains(&deferred), "{deferred}");
    // Smaller pieces are copied in less time.
    assert_eq!(in_pieces(256, 0).0, 0);
    // Each run is judged once, as one read.
    let (deferred, declined) = in_pieces(1024, 1);
    assert!((12 * MIB..=13 * MIB).contains(&deferred), "{deferred}");
    assert_eq!(declined, 1);
}

fn compiled(directory: &Path) -> PathBuf {
    common::compile(directory, "deferred", &["-O1", "-Wextra", "-Werror"])
}

#[test]
fn c_reads_changes_and_writes_back_through_a_stream() {
    let made = directory();
    edits(&compiled(made.path()), &["stream"]);
}

/// One case of the C program on a file of 8 MiB: it says the same as without the drop-in, and did defer.
fn case(name: &str) -> String {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    make(&file, 8 << 20);
    compare(&program, name, &file, &made.path().join("stats"))
}

fn compare(program: &Path, name: &str, file: &Path, stats: &Path) -> String {
    let said = good(Command::new(program).arg(name).arg(file).output().unwrap());
    let ours =
        preloaded(program, stats).env("ELISION_MIN_BYTES", "4096").arg(name).arg(file).output().unwrap();
    assert_eq!(good(ours), said);
    assert!(counter(stats, "deferred_bytes") > 0, "nothing was deferred");
    said
}

#[test]
fn descriptors_are_what_they_were() {
    let said = case("descriptors");
    assert!(said.contains("the next is 1\n"), "{said}");
}

/// In a mapping whose stores are followed each page takes a fault of its own: a save follows the pages that were altered, no others.
#[test]
fn what_is_looked_at_after_a_save_takes_few_faults() {
    let said = case("summed");
    assert!(said.contains("few faults") && !said.contains("another"), "{said}");
}

#[test]
fn wait_knows_of_no_child() {
    let said = case("wait");
    assert_eq!(said.matches("-1 No child processes").count(), 2, "{said}");
}

#[test]
fn posix_locks_survive() {
    let said = case("locks");
    assert_eq!(said.matches("cannot lock").count(), 2, "{said}");
    assert_eq!(said.matches("can lock").count(), 1, "{said}");
}

#[test]
fn flock_ends_with_the_descriptor() {
    let said = case("flock");
    assert!(said.contains("another process can lock it\nthe same\n"), "{said}");
}

#[test]
fn a_pipe_ends_with_its_last_writer() {
    assert_eq!(case("pipe"), "end of file: 0\n");
}

/// Tracking a buffer that is another file's could elide nothing, and took a fault for each page.
#[test]
fn a_copy_takes_few_faults() {
    let said = case("copies");
    assert_eq!(said.matches("few faults\nthe same\n").count(), 4, "{said}");
}

/// What is materialised came in small pages, which cost more than those of a plain read. (The machine may have none that are huge.)
#[test]
fn a_program_that_wants_huge_pages_gets_them() {
    let said = case("huge");
    if !said.ends_with(": huge pages\n") {
        println!("skipped: {said}");
    }
}

/// Nothing of an emptied file can be elided, but its buffer was tracked from the second save on: a fault for each page.
#[test]
fn a_save_into_an_emptied_file_is_not_tracked() {
    assert_eq!(case("truncated"), "few faults\n".repeat(5));
}

#[test]
fn what_was_just_closed_can_be_executed() {
    let made = directory();
    let (program, patched) = (compiled(made.path()), made.path().join("patched"));
    make_program(&patched, 1 << 20);
    let said = compare(&program, "execute", &patched, &made.path().join("stats"));
    assert_eq!(said.matches("status 0\n").count(), 20, "{said}");
}

/// Bytes after what the loader looks at.
fn make_program(path: &Path, more: usize) {
    std::fs::copy("/bin/true", path).unwrap();
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(&vec![0; more]).unwrap();
}

/// The case `patch`, with a file and its statistics.
struct Patcher {
    child: Child,
    output: BufReader<ChildStdout>,
    stats: PathBuf,
}

impl Patcher {
    fn start(directory: &Path, file: &Path) -> Patcher {
        let (program, stats) = (compiled(directory), directory.join("stats"));
        let mut command = preloaded(&program, &stats);
        command.env("ELISION_MIN_BYTES", "4096").arg("patch").arg(file);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Patcher { child, output, stats }
    }

    fn patch(&mut self, byte: u8) {
        self.child.stdin.as_ref().unwrap().write_all(&[byte]).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    fn let_go(&mut self) {
        self.child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
    }

    fn end(mut self) -> PathBuf {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
        self.stats
    }
}

/// Whoever executes the file waits for the lease, which is given up with the description. When it ended before that, one in ten
/// found the file still open for writing (ETXTBSY). Some still do: the kernel ends the lease some instructions before it counts the
/// file as closed.
#[test]
fn what_another_has_just_closed_can_be_executed() {
    let made = directory();
    let patched = made.path().join("patched");
    make_program(&patched, 4 << 20);
    let permit = |mode| std::fs::set_permissions(&patched, Permissions::from_mode(mode)).unwrap();
    let mut patcher = Patcher::start(made.path(), &patched);
    let mut busy = 0;
    for round in 0..100 {
        // Else it would not be deferred.
        permit(0o644);
        patcher.patch(round);
        permit(0o755);
        match Command::new(&patched).status() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => busy += 1,
            status => {
                assert!(status.as_ref().is_ok_and(|status| status.success()), "round {round}: {status:?}")
            }
        }
        patcher.let_go();
    }
    assert!(busy < 5, "{busy} found it busy");
    assert!(counter(&patcher.end(), "elided_bytes") > 0, "nothing was elided");
}

/// It is executed next. All would have to be loaded for that, and for a moment it was busy.
#[test]
fn a_program_that_is_edited_is_not_deferred() {
    let made = directory();
    let file = made.path().join("file");
    for (begins, mode, deferred) in
        [("\x7fELF", 0o755, false), ("#!/", 0o100, false), ("\x7fELF", 0o644, true), ("# !", 0o777, true)]
    {
        std::fs::write(&file, begins.to_owned() + &" ".repeat(1 << 20)).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(mode | 0o600)).unwrap();
        let mut patcher = Patcher::start(made.path(), &file);
        patcher.patch(b'x');
        patcher.let_go();
        let stats = patcher.end();
        let counted = (counter(&stats, "deferred_bytes") > 0, counter(&stats, "own_writer") > 0);
        assert_eq!(counted, (deferred, !deferred), "{begins:?}, {mode:o}");
        std::fs::remove_file(stats).unwrap();
    }
}

/// A program that has deferred a file, and says so. Ends when its input does.
struct Holder {
    child: Child,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Holder {
    fn start(name: &str) -> Holder {
        let made = directory();
        let (program, file) = (compiled(made.path()), made.path().join("file"));
        make(&file, 8 << 20);
        let mut command = preloaded(&program, &made.path().join("stats"));
        command.env("ELISION_MIN_BYTES", "4096").arg(name).arg(&file);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Holder { child, file, _directory: made }
    }

    fn wait_until_ready(&mut self) {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    /// Helpers in whose memory the file is mapped.
    fn helpers(&self) -> usize {
        let file = self.file.to_str().unwrap();
        let helper = |process: &Path| {
            std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name == "elision\n")
                && std::fs::read_to_string(process.join("maps")).is_ok_and(|maps| maps.contains(file))
        };
        std::fs::read_dir("/proc").unwrap().filter(|entry| helper(&entry.as_ref().unwrap().path())).count()
    }

    /// Until there is none, and its lease is gone, too: a process that ends gives its memory up first and its descriptors
    /// after. (Nothing tells of the end of a process that is not one's child.)
    fn wait_until_alone(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.helpers() > 0 || common::leased(&self.file) {
            assert!(Instant::now() < deadline, "the helper has outlived its program");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whoever watches a file waits to be told that its writer is done, and the helper's copy of the descriptor puts that off. It was
/// until the program gave the buffer up, which an editor may do hours later.
#[test]
#[allow(unsafe_code)] // There is no safe inotify here.
fn a_watcher_hears_of_the_close_while_the_buffer_is_kept() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    make(&file, 8 << 20);
    let said = |mut child: Child| {
        drop(child.stdin.take());
        good(child.wait_with_output().unwrap())
    };
    let mut plain = Command::new(&program);
    plain.arg("saved").arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped());
    let expected = said(plain.spawn().unwrap());

    make(&file, 8 << 20);
    let stats = made.path().join("stats");
    let path = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
    // SAFETY: a path that is there, and a descriptor of our own, closed by the end of this process.
    let watch = unsafe {
        let watch = libc::inotify_init1(libc::IN_CLOEXEC);
        assert!(libc::inotify_add_watch(watch, path.as_ptr(), libc::IN_CLOSE_WRITE) >= 0);
        watch
    };
    let mut command = preloaded(&program, &stats);
    command.env("ELISION_MIN_BYTES", "4096").arg("saved").arg(&file);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let mut heard = libc::pollfd { fd: watch, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure of our own.
    let events = unsafe { libc::poll(&mut heard, 1, 20_000) };
    assert_eq!(&line, b"ready\n");
    assert_eq!(events, 1, "nobody was told of the close");
    // What was read is what it was.
    std::fs::write(&file, "other").unwrap();
    assert_eq!(format!("ready\n{}", said(child)), expected);
    assert!(counter(&stats, "deferred_bytes") > 0 && counter(&stats, "elided_bytes") > 0);
}

#[test]
fn the_helper_goes_when_the_program_ends() {
    for _ in 0..10 {
        let mut holder = Holder::start("stay");
        holder.wait_until_ready();
        assert_eq!(holder.helpers(), 1);
        drop(holder.child.stdin.take());
        assert!(holder.child.wait().unwrap().success());
        // Before its parent is told: nothing is busy any more that the program has used, be it a file or a file system.
        assert_eq!((common::leased(&holder.file), holder.helpers()), (false, 0));
    }
}

/// It stayed for good when the program had moved the word that tells of its end, and for up to a minute if the main thread was not the last.
#[test]
fn the_helper_goes_whichever_thread_is_the_last() {
    for name in ["word", "main_first"] {
        let mut holder = Holder::start(name);
        holder.wait_until_ready();
        assert_eq!(holder.helpers(), 1);
        drop(holder.child.stdin.take());
        assert!(holder.child.wait().unwrap().success());
        holder.wait_until_alone();
    }
}

/// In a PID namespace of which /proc was not mounted anew, another process's threads were taken for the program's, and the program's were
/// not held while their pages were exchanged: 60,000 stores of one thread were lost in the first round.
#[test]
fn nothing_is_deferred_where_proc_has_other_numbers() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    let stats = made.path().join("stats");
    make(&file, 8 << 20);
    let mut command = preloaded(Path::new("unshare"), &stats);
    // The third process there: outside, that is one of the kernel's.
    let script = r#"true; env true; "$0" descriptors "$1"; exit $?"#;
    command.args(["--pid", "--fork", "sh", "-c", script]).arg(&program).arg(&file);
    let output = command.env("ELISION_MIN_BYTES", "4096").output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        _ => return println!("skipped: no PID namespace for this user"),
    };
    let plain = Command::new(&program).arg("descriptors").arg(&file).output().unwrap();
    assert_eq!(good(output), good(plain));
    assert_eq!(counter(&stats, "deferred_bytes"), 0);
    assert!(counter(&stats, "unavailable") > 0, "nothing was declined");
}

/// Each time everything had to be loaded, which took nine times as long as reading it.
#[test]
fn what_is_changed_in_other_ways_is_soon_read_at_once() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    make(&file, 8 << 20);
    let stats = made.path().join("stats");
    let mut command = preloaded(&program, &stats);
    let with = good(command.env("ELISION_MIN_BYTES", "4096").arg("in_vain").arg(&file).output().unwrap());
    assert_eq!(with, good(Command::new(&program).arg("in_vain").arg(&file).output().unwrap()));
    assert!(counter(&stats, "deferred_bytes") > 0, "nothing was deferred");
    assert!(counter(&stats, "changing_file") > 30, "it was deferred again and again");
}

/// Each page was copied in a fault of its own, or by the helper, which took two to four times as long as reading it.
#[test]
fn what_deferring_does_not_pay_for_is_soon_read_at_once() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    for way in ["in_vain_reused", "in_vain_freed", "in_vain_saved", "in_vain_wanted"] {
        let stats = made.path().join(way);
        make(&file, 8 << 20);
        let plain = good(Command::new(&program).arg(way).arg(&file).output().unwrap());
        let then = std::fs::read(&file).unwrap();
        make(&file, 8 << 20);
        assert_eq!(good(preloaded(&program, &stats).arg(way).arg(&file).output().unwrap()), plain);
        assert!(std::fs::read(&file).unwrap() == then, "{way}");
        assert!(counter(&stats, "deferred_bytes") > 0, "{way}: nothing was deferred");
        // Twice tried, at three and ten, or three times.
        // (What somebody else wanted was said to have been altered.)
        let (reason, other) = match way {
            "in_vain_wanted" => ("changing_file", "mostly_altered"),
            _ => ("mostly_altered", "changing_file"),
        };
        let declined = counter(&stats, reason);
        assert!((17..24).contains(&declined), "{way}: {declined} of 24");
        assert_eq!(counter(&stats, other), 0, "{way}");
    }
}

/// It waited for a word of theirs for ever, with all of their memory.
#[test]
fn the_helper_goes_when_the_program_is_killed_while_it_starts() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    make(&file, 1 << 20);
    let mut command = preloaded(&program, &made.path().join("stats"));
    good(command.env("ELISION_MIN_BYTES", "4096").arg("young").arg(&file).output().unwrap());
    let of_program = |process: &Path| std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program);
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir("/proc").unwrap().any(|entry| of_program(&entry.as_ref().unwrap().path())) {
        assert!(Instant::now() < deadline, "a helper has outlived its program");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Threads that cannot be listed cannot be held still: what was not loaded was lost to a truncation.
#[test]
fn what_was_read_stays_when_proc_is_gone() {
    let made = directory();
    let (program, file) = (compiled(made.path()), made.path().join("file"));
    let run = |command: &mut Command| {
        make(&file, 8 << 20);
        let pipes = command.args(["--mount", "--"]).arg(&program).arg("proc").arg(&file);
        let mut child = pipes.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        if child.stdout.as_mut().unwrap().read_exact(&mut line).is_err() {
            child.wait().unwrap();
            return None;
        }
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(4096).unwrap();
        drop(child.stdin.take());
        Some(good(child.wait_with_output().unwrap()))
    };
    let Some(expected) = run(&mut Command::new("unshare")) else {
        return println!("skipped: no mount namespace for this user");
    };
    let stats = made.path().join("stats");
    let mut command = preloaded(Path::new("unshare"), &stats);
    assert_eq!(run(command.env("ELISION_MIN_BYTES", "4096")).unwrap(), expected);
    assert!(counter(&stats, "deferred_bytes") > 0, "nothing was deferred");
}

#[test]
fn the_helper_goes_when_the_program_is_killed() {
    let mut holder = Holder::start("stay");
    holder.wait_until_ready();
    assert_eq!(holder.helpers(), 1);
    holder.child.kill().unwrap();
    holder.child.wait().unwrap();
    holder.wait_until_alone();
}

#[test]
fn the_helper_goes_when_another_program_takes_the_place() {
    let mut holder = Holder::start("exec");
    holder.child.stdin.as_mut().unwrap().write_all(b"through cat\n").unwrap();
    let mut line = [0; 12];
    holder.child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"through cat\n");
    holder.wait_until_alone();
    drop(holder.child.stdin.take());
    assert!(holder.child.wait().unwrap().success());
    let stats = holder.file.with_file_name("stats");
    assert!(counter(&stats, "deferred_bytes") > 0, "nothing was deferred");
}

/// A helper shares the memory of its program, so code that has been deprived of its rights could use those that the
/// helper kept. Found in review, before it was used by anybody.
#[test]
fn a_program_that_gives_up_its_rights_leaves_none_with_the_helper() {
    use std::os::unix::fs::MetadataExt;
    let made = directory();
    let (file, stats) = (made.path().join("file"), made.path().join("stats"));
    make(&file, 8 << 20);
    if file.metadata().unwrap().uid() != 0 {
        println!("skipped: only root has rights to give up");
        return;
    }
    let script = r#"
import os, sys
def helpers():
    all = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            status = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status') if ':' in line)
        except OSError:
            continue
        if 'Z' not in status['State']:
            all[int(pid)] = (status['Name'].strip(), int(status['PPid']), status['Uid'].split()[0])
    watching = {pid for pid in all if all[pid][:2] == ('elision-watch', os.getpid())}
    return [user for name, parent, user in all.values() if name == 'elision' and parent in watching]
path = sys.argv[1]
before = open(path, 'rb', buffering=0)
size = os.fstat(before.fileno()).st_size
first = bytearray(size)
before.readinto(first)
print('helpers of', helpers())
os.chmod(path, 0o666)
os.setresuid(65534, 65534, 65534)
print('afterwards', helpers())
with open(path, 'r+b', buffering=0) as changed:
    changed.write(b'changed')
second = bytearray(size)
with open(path, 'rb', buffering=0) as again:
    again.readinto(second)
print(second[:7] == b'changed', first[:7] != second[:7], first[7:] == second[7:])
"#;
    let said = good(preloaded(Path::new(PYTHON), &stats).arg("-c").arg(script).arg(&file).output().unwrap());
    assert_eq!(said, "helpers of ['0']\nafterwards []\nTrue True True\n");
    assert!(counter(&stats, "deferred_bytes") >= 8 << 20, "{}", std::fs::read_to_string(&stats).unwrap());
}

/// The program saves a copy of what it read: nothing is known of that memory, so it is compared.
#[test]
fn a_copy_is_compared_with_its_file() {
    const EDIT: &str = "import sys\n\
        with open(sys.argv[1], 'r+b') as file:\n    \
            data = bytearray(file.read())\n    \
            for at in range(0, len(data) - 4096, len(data) // 7): data[at + 4095] ^= 1\n    \
            file.seek(0)\n    file.write(data)\n";
    let made = directory();
    let (plain, ours, stats) =
        (made.path().join("plain"), made.path().join("ours"), made.path().join("stats"));
    make(&plain, SIZE);
    std::fs::copy(&plain, &ours).unwrap();
    good(Command::new(PYTHON).args(["-c", EDIT]).arg(&plain).output().unwrap());
    good(preloaded(Path::new(PYTHON), &stats).args(["-c", EDIT]).arg(&ours).output().unwrap());
    assert!(std::fs::read(&plain).unwrap() == std::fs::read(&ours).unwrap(), "another file than without");
    let fs = elision_core::client::offer::fs(std::os::fd::AsRawFd::as_raw_fd(
        &std::fs::File::open(&ours).unwrap(),
    ));
    if fs.is_some_and(|fs| fs.times_tell) {
        assert!(
            counter(&stats, "elided_bytes") > SIZE as u64 * 99 / 100,
            "{}",
            std::fs::read_to_string(&stats).unwrap()
        );
    }
}

/// Two reads share a page. A save finds that the page is the file's, and follows it from then on.
#[test]
fn a_page_between_two_reads_is_elided() {
    const SAVE: &str = "import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
n, first = os.fstat(fd).st_size, (8 << 20) + 1000
data = memoryview(bytearray(n))
assert os.preadv(fd, [data[:first]], 0) == first and os.preadv(fd, [data[first:]], first) == n - first
os.pwrite(fd, data, 0)
if len(sys.argv) > 2:
    data[first] ^= 1
    os.pwrite(fd, data, 0)";
    let made = directory();
    let [plain, ours, stats] = ["plain", "ours", "stats"].map(|name| made.path().join(name));
    make(&plain, 24 << 20);
    for altered in [&[][..], &["altered"]] {
        std::fs::copy(&plain, &ours).unwrap();
        good(
            preloaded(Path::new(PYTHON), &stats)
                .args(["-c", SAVE])
                .arg(&ours)
                .args(altered)
                .output()
                .unwrap(),
        );
        let mut wanted = std::fs::read(&plain).unwrap();
        wanted[(8 << 20) + 1000] ^= altered.len() as u8;
        assert!(std::fs::read(&ours).unwrap() == wanted);
    }
    // Each of the three saves writes the first page. The last one also writes the page that was altered. On a tmpfs the helper cannot compare
    // the page between the reads, so the first save of each program writes that page, too.
    let pages = if common::on_tmpfs(made.path()) { 6 } else { 4 };
    let written = counter(&stats, "written_bytes");
    assert_eq!(written, pages * 4096, "{}", std::fs::read_to_string(&stats).unwrap());
}
