//! `elision doctor` under limits, filters and users of all kinds. Its report is compared with what `elision run` does under the same.
#![allow(unsafe_code)] // What happens between fork and exec.

mod common;

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{REFUSE, filtered};
use elision_core::probe;
use libc::c_long;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getuid, kill_process, setrlimit, waitid,
};
use tempfile::TempDir;

const SIZE: usize = 8 << 20;
const NOBODY: u32 = 65534;

/// How the command is started.
struct Setting<'a> {
    /// What starts it.
    prefix: &'a [&'a str],
    /// What is done to it before.
    prepare: &'a dyn Fn(&mut Command),
    /// Where the program has its file.
    dir: &'a Path,
}

impl Setting<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut words: Vec<&str> = self.prefix.to_vec();
        let elision = built("elision");
        words.push(text(&elision));
        words.extend(arguments);
        let mut command = Command::new(words[0]);
        for name in ["LD_PRELOAD", "ELISION", "ELISION_PRELOAD", "ELISION_STATS", "ELISION_MIN_BYTES"] {
            command.env_remove(name);
        }
        command.env_remove("ELISION_VERBOSE").env("TMPDIR", self.dir).args(&words[1..]).stdin(Stdio::null());
        (self.prepare)(&mut command);
        command
    }

    /// Exit status and report of the doctor. What holds for each of them: the status is 1 exactly if a line says no, after which
    /// there is advice; it takes no longer than it should; and no scratch file is left.
    fn doctor(&self, subject: &str) -> (i32, String) {
        let begun = Instant::now();
        let output =
            self.command(&["doctor", subject]).output().expect("the command was built with this test");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output
            .status
            .code()
            .unwrap_or_else(|| panic!("{:?}\n{report}{}", output.status, stderr(&output)));
        let lines: Vec<&str> = report.lines().collect();
        let noes: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].starts_with("no ")).collect();
        for &at in &noes {
            assert!(
                lines.get(at + 1).is_some_and(|next| next.starts_with("    > ")),
                "no advice after: {}",
                lines[at]
            );
        }
        assert_eq!(code, i32::from(!noes.is_empty()), "{report}{}", stderr(&output));
        let mut left = fs::read_dir(self.dir).expect("list").map(|entry| entry.expect("entry").file_name());
        assert!(
            !left.any(|name| name.to_string_lossy().contains("elision-doctor")),
            "something was left\n{report}"
        );
        (code, report)
    }

    /// What a program did that reads, and that reads and saves, the file in `dir`: deferred, elided anything?
    fn reality(&self) -> (bool, bool) {
        let file = self.dir.join("file");
        let (input, editor) = (format!("if={}", file.display()), built("elision-demo-edit"));
        let read = self.run(&["dd", &input, "of=/dev/null", "bs=8M", "status=none"]);
        let saved = self.run(&[text(&editor), text(&file), "in_place", "9", "100", "9000", "20000"]);
        (read.0, saved.1)
    }

    fn run(&self, program: &[&str]) -> (bool, bool) {
        let stats = self.dir.join("stats");
        let _ = fs::write(&stats, "{}");
        if getuid().is_root() {
            fs::set_permissions(&stats, Permissions::from_mode(0o666)).expect("chmod");
        }
        let option = format!("--stats={}", stats.display());
        // Whether it is killed by a filter is what this is about.
        let _ = self.command(&[&["run", &option, "--"], program].concat()).output().expect("run");
        let found: serde_json::Value =
            serde_json::from_slice(&fs::read(&stats).expect("read")).unwrap_or_default();
        let some = |name: &str| found[name].as_u64().unwrap_or(0) > 0;
        (some("deferred_bytes"), some("elided_bytes"))
    }

    /// The doctor's report on `dir`, after seeing that it says what is so.
    fn compared(&self) -> (i32, String) {
        let (code, report) = self.doctor(text(self.dir));
        assert_eq!((says(&report, "ok", "read"), says(&report, "ok", "save ")), self.reality(), "{report}");
        (code, report)
    }
}

/// Without any change.
fn plain(dir: &Path) -> Setting<'_> {
    Setting { prefix: &[], prepare: &|_| (), dir }
}

/// Is there a line about `what` with this mark?
fn says(report: &str, mark: &str, what: &str) -> bool {
    report.lines().any(|line| line.starts_with(mark) && line[4..].starts_with(what))
}

fn assert_says(report: &str, sentences: &[&str]) {
    for sentence in sentences {
        assert!(report.contains(sentence), "{sentence:?} is missing from:\n{report}");
    }
}

fn built(name: &str) -> PathBuf {
    env::current_exe().expect("a path").ancestors().nth(2).expect("in deps").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory with a file whose reads are deferred and saves elided. `None`: there is nothing to test.
fn able() -> Option<TempDir> {
    let places = [env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
    let supported = |place: &&PathBuf| probe::file_system(place).is_ok_and(|found| found.supported);
    let dir = places.iter().filter(supported).find_map(|place| tempfile::tempdir_in(place).ok());
    let dir = dir.filter(|dir| {
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod");
        fill(&dir.path().join("file"), SIZE);
        plain(dir.path()).reality() == (true, true)
    });
    if dir.is_none() {
        println!("skipped: nothing is deferred or elided here in any case");
    }
    dir
}

fn fill(path: &Path, size: usize) {
    fs::write(path, vec![b'x'; size]).expect("write");
    fs::set_permissions(path, Permissions::from_mode(0o666)).expect("chmod");
}

/// Only root can make some settings.
fn root() -> bool {
    if !getuid().is_root() {
        println!("skipped: not root");
    }
    getuid().is_root()
}

/// Has a command run as this user.
fn becomes(user: u32) -> impl Fn(&mut Command) {
    move |command| {
        command.uid(user).gid(NOBODY);
    }
}

/// May this user run the built command?
fn may_run(user: u32) -> bool {
    let started = Command::new(built("elision")).arg("--version").uid(user).stdout(Stdio::null()).status();
    let may = started.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: user {user} may not run what was built");
    }
    may
}

fn limited(resource: Resource, most: u64) -> impl Fn(&mut Command) {
    move |command| {
        let limit = move || {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(io::Error::from)
        };
        // SAFETY: one system call.
        unsafe { command.pre_exec(limit) };
    }
}

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// The report under this filter.
fn under(answer: u32, calls: &'static [c_long]) -> Option<(i32, String)> {
    let dir = able()?;
    Some(Setting { prefix: &[], prepare: &filtered(answer, calls), dir: dir.path() }.compared())
}

#[test]
fn where_nothing_stands_in_the_way() {
    let Some(dir) = able() else { return };
    let (code, report) = plain(dir.path()).compared();
    assert_eq!(code, 0, "{report}");
    for step in ["kernel", "drop-in", "read", "save ", "break"] {
        assert!(says(&report, "ok", step), "{step} is missing from:\n{report}");
    }
    assert!(report.contains("pages written"), "{report}");
}

// ---- limits ----

#[test]
fn limits_on_memory() {
    let Some(dir) = able() else { return };
    for (resource, name) in [(Resource::As, "ulimit -v is"), (Resource::Data, "ulimit -d is")] {
        let (code, report) =
            Setting { prefix: &[], prepare: &limited(resource, 4 << 30), dir: dir.path() }.compared();
        assert!(code == 1 && says(&report, "no", "read"), "{report}");
        assert_says(&report, &[name, "> ulimit -v unlimited"]);
    }
}

#[test]
fn a_limit_on_descriptors() {
    let Some(dir) = able() else { return };
    let (code, report) =
        Setting { prefix: &[], prepare: &limited(Resource::Nofile, 16), dir: dir.path() }.compared();
    assert!(code == 1 && says(&report, "no", "read"), "{report}");
    assert_says(&report, &["ulimit -Hn is 16", "> raise ulimit -Hn"]);
}

#[test]
fn a_limit_on_processes() {
    if !root() {
        return;
    }
    let Some(dir) = able() else { return };
    // Itself; and the program; and the helper's parent; and the helper.
    for most in 1..=4 {
        // Who has no other process.
        let user = 1_000_000 + 5 * std::process::id() + most as u32;
        if !may_run(user) {
            return;
        }
        let prepare = |command: &mut Command| {
            limited(Resource::Nproc, most)(command);
            becomes(user)(command);
        };
        chown(dir.path().join("file"), Some(user), None).expect("chown");
        let (code, report) = Setting { prefix: &[], prepare: &prepare, dir: dir.path() }.compared();
        assert_eq!(code, i32::from(most < 4), "{most}: {report}");
        if most < 4 {
            assert_says(
                &report,
                &[
                    "processes: ",
                    &format!("> the helper is two more processes: raise ulimit -u (it is {most})"),
                ],
            );
        }
    }
}

#[test]
fn a_limit_on_the_size_of_files() {
    let Some(dir) = able() else { return };
    let (code, report) = Setting { prefix: &[], prepare: &limited(Resource::Fsize, 4096), dir: dir.path() }
        .doctor(text(dir.path()));
    assert_eq!(code, 1);
    assert_says(&report, &["a file may not have 8.0 MiB", "> ulimit -f unlimited"]);
}

// ---- namespaces ----

#[test]
fn a_pid_namespace_without_its_own_proc() {
    if !root() {
        return;
    }
    let Some(dir) = able() else { return };
    let setting = Setting { prefix: &["unshare", "--pid", "--fork"], prepare: &|_| (), dir: dir.path() };
    if !setting.command(&["--version"]).output().is_ok_and(|output| output.status.success()) {
        return println!("skipped: unshare --pid does not work here");
    }
    let (code, report) = setting.compared();
    assert_eq!(code, 1);
    assert_says(
        &report,
        &["/proc: /proc is that of another PID namespace", "> mount a /proc of this PID namespace"],
    );
}

// ---- filters ----

#[test]
fn a_filter_that_refuses_ptrace() {
    let Some((code, report)) = under(REFUSE, &[libc::SYS_ptrace]) else { return };
    assert!(code == 1 && says(&report, "no", "read"), "{report}");
    assert_says(
        &report,
        &["ptrace: Operation not permitted; there is a seccomp filter", "--cap-add SYS_PTRACE"],
    );
}

#[test]
fn a_filter_that_kills_for_ptrace() {
    let Some((code, report)) = under(KILL, &[libc::SYS_ptrace]) else { return };
    assert!(code == 1 && says(&report, "no", "read"), "{report}");
    assert_says(&report, &["ptrace: killed by SIGSYS", "--cap-add SYS_PTRACE"]);
}

/// Calls that are not needed are not mentioned; the others come with advice.
#[test]
fn filters_that_refuse_what_saves_use() {
    for (calls, possible) in [
        (&[libc::SYS_pidfd_open][..], true),
        (&[libc::SYS_pidfd_getfd, libc::SYS_kcmp, libc::SYS_userfaultfd], true),
        (&[libc::SYS_pidfd_getfd, libc::SYS_socket], false),
    ] {
        let Some((code, report)) = under(REFUSE, calls) else { return };
        assert!(says(&report, "ok", "read") && says(&report, "ok", "break"), "{report}");
        assert_eq!((code == 0, says(&report, "ok", "save ")), (possible, possible), "{report}");
        if code != 0 {
            assert_says(
                &report,
                &["pidfd_getfd: Operation not permitted; there is a seccomp filter", "--cap-add SYS_PTRACE"],
            );
        }
    }
}

/// Reads are deferred and saves elided, so the status is 0.
#[test]
fn a_filter_that_refuses_tracking() {
    let Some((code, report)) = under(REFUSE, &[libc::SYS_userfaultfd]) else { return };
    if fs::OpenOptions::new().write(true).open("/dev/userfaultfd").is_ok() {
        assert!(code == 0 && says(&report, "ok", "save again"), "{report}");
        return;
    }
    assert!(code == 0 && says(&report, "--", "save again"), "{report}");
    assert_says(
        &report,
        &[
            "userfaultfd: Operation not permitted; there is a seccomp filter",
            "> use a filter that lets it through",
        ],
    );
}

#[test]
fn a_filter_that_kills_for_futex_waitv() {
    let Some((code, report)) = under(KILL, &[libc::SYS_futex_waitv]) else { return };
    assert_eq!(code == 0, says(&report, "ok", "read"), "{report}");
    if code != 0 {
        assert_says(&report, &["killed by SIGSYS", "futex_waitv: killed by SIGSYS"]);
    }
}

// ---- directories and files ----

#[test]
fn a_directory_that_cannot_be_written_to() {
    if !root() || !may_run(NOBODY) {
        return;
    }
    let Some(dir) = able() else { return };
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).expect("mkdir");
    let setting = Setting { prefix: &[], prepare: &becomes(NOBODY), dir: dir.path() };
    let (code, report) = setting.doctor(text(&closed));
    assert_eq!(code, 1);
    assert_says(&report, &["scratch file", "Permission denied", "> name a directory that you may write to"]);
    // What the machine can do is said as well.
    assert!(says(&report, "ok", "read") && says(&report, "ok", "save "), "{report}");
}

#[test]
fn what_is_on_no_file_system_of_a_disk() {
    let Some(dir) = able() else { return };
    let setting = plain(dir.path());
    for subject in ["/proc", "/proc/self/status"] {
        let (code, report) = setting.doctor(subject);
        assert_eq!(code, 1);
        assert_says(
            &report,
            &[
                "proc (0x9fa0), on which everything is read and written traditionally",
                "> keep what is big on ext4",
            ],
        );
    }
}

#[test]
fn a_file_of_another_owner() {
    if !root() || !may_run(NOBODY) {
        return;
    }
    let Some(dir) = able() else { return };
    let (user, file) = (becomes(NOBODY), dir.path().join("file"));
    let setting = Setting { prefix: &[], prepare: &user, dir: dir.path() };
    let (code, report) = setting.doctor(text(&file));
    assert!(code == 1 && says(&report, "no", "read"), "{report}");
    assert_says(
        &report,
        &["owner: the file is uid 0's, and you are 65534 without CAP_LEASE", "--cap-add LEASE"],
    );
    assert_eq!(setting.reality(), (false, false));
    chown(&file, Some(NOBODY), None).expect("chown");
    let (code, report) = setting.doctor(text(&file));
    assert!(code == 0 && says(&report, "ok", "save  "), "{report}");
    assert_eq!(setting.reality(), (true, true));
}

#[test]
fn a_file_that_somebody_has_open() {
    let Some(dir) = able() else { return };
    let file = dir.path().join("file");
    let before = fs::read(&file).expect("read");
    let setting = plain(dir.path());

    let reader = File::open(&file).expect("open");
    let (code, report) = setting.doctor(text(&file));
    assert!(code == 1 && says(&report, "no", "save"), "{report}");
    assert_says(
        &report,
        &["8.0 MiB deferred", "another process has it open; saves", "> wait until it is closed"],
    );
    assert_eq!(setting.reality(), (true, false));
    drop(reader);

    let writer = File::options().append(true).open(&file).expect("open");
    let (code, report) = setting.doctor(text(&file));
    assert!(code == 1 && says(&report, "no", "read"), "{report}");
    assert_says(&report, &["lease: somebody has the file open for writing", "> wait until it is closed"]);
    assert_eq!(setting.reality(), (false, false));
    drop(writer);

    let after = fs::read(&file).expect("read");
    let (code, report) = setting.doctor(text(&file));
    assert_eq!(code, 0, "{report}");
    assert_says(&report, &["could be elided"]);
    assert!(
        before.len() == after.len() && after == fs::read(&file).expect("read"),
        "the doctor changed the file"
    );
}

#[test]
fn small_files() {
    let Some(dir) = able() else { return };
    let setting = plain(dir.path());
    let file = dir.path().join("small");
    fill(&file, 100_000);
    let (code, report) = setting.doctor(text(&file));
    assert_eq!(code, 0);
    assert_says(&report, &["97.7 KiB, below 3.8 MiB", "elision run --min-bytes 100000"]);
    fill(&file, 100);
    let (code, report) = setting.doctor(text(&file));
    assert_eq!(code, 1);
    assert_says(
        &report,
        &["100 B, of which nothing is deferred", "> small transfers are done traditionally"],
    );
}

#[test]
fn switched_off() {
    let Some(dir) = able() else { return };
    let off = |command: &mut Command| {
        command.env("ELISION", "off");
    };
    let (code, report) = Setting { prefix: &[], prepare: &off, dir: dir.path() }.compared();
    assert_eq!(code, 1);
    assert_says(&report, &["ELISION is set to off", "> unset ELISION"]);
}

/// The doctor itself must not depend on these calls.
#[test]
fn filters_that_kill_for_what_commands_wait_with() {
    let Some(dir) = able() else { return };
    let calls = &[libc::SYS_rt_sigtimedwait, libc::SYS_ppoll, libc::SYS_clock_nanosleep];
    let setting = Setting { prefix: &[], prepare: &filtered(KILL, calls), dir: dir.path() };
    let (code, report) = setting.doctor(text(dir.path()));
    assert!(code == 0 && says(&report, "ok", "break"), "{report}");
}

/// The doctor removes its scratch file first.
#[test]
fn interrupted() {
    let Some(dir) = able() else { return };
    let scratch = || {
        let mut all = fs::read_dir(dir.path()).expect("list").map(|entry| entry.expect("entry").file_name());
        all.any(|name| name.to_string_lossy().contains("elision-doctor"))
    };
    // It may be done before the signal comes.
    for _ in 0..50 {
        let mut command = plain(dir.path()).command(&["doctor", text(dir.path())]);
        let mut child = command.stdout(Stdio::null()).spawn().expect("spawn");
        while !scratch() && is_running(&child) {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it is not reaped yet");
        let status = child.wait().expect("wait");
        assert!(!scratch(), "{status:?}");
        if status.signal() == Some(libc::SIGTERM) {
            return;
        }
    }
    panic!("it was never interrupted");
}

/// (The child can still be waited for.)
fn is_running(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), options).expect("wait").is_none()
}

// ---- other subjects ----

#[test]
fn what_is_no_file() {
    let Some(dir) = able() else { return };
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let (code, report) = plain(dir.path()).doctor(text(&pipe));
    assert_eq!(code, 1);
    assert_says(&report, &["a pipe", "> only regular files are deferred"]);
}

/// By root, and by a user who could have no lease.
#[test]
fn a_file_that_can_never_change() {
    let Some(dir) = able() else { return };
    // SAFETY: a C string; the kernel just made the descriptor.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), libc::MFD_ALLOW_SEALING)) };
    (&file).write_all(&vec![7; SIZE]).expect("write");
    file.set_permissions(Permissions::from_mode(0o644)).expect("chmod");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    for (seals, deferred) in [(libc::F_SEAL_SHRINK, false), (libc::F_SEAL_WRITE, true)] {
        // SAFETY: no memory.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        for user in [getuid().as_raw(), NOBODY] {
            if user == NOBODY && !(root() && may_run(NOBODY)) {
                continue;
            }
            let prepare = |command: &mut Command| {
                if user == NOBODY {
                    becomes(user)(command);
                }
            };
            let (_, report) = Setting { prefix: &[], prepare: &prepare, dir: dir.path() }.doctor(&path);
            let sentences = [
                "deferred, of 8.0 MiB; it can never change, so no lease is needed",
                "save                 it can never change",
            ];
            assert_eq!(sentences.map(|sentence| report.contains(sentence)), [deferred; 2], "{report}");
        }
    }
}

#[test]
fn programs() {
    let Some(dir) = able() else { return };
    let setting = plain(dir.path());
    let (code, report) = setting.doctor("sh");
    assert_eq!(code, 0, "{report}");
    assert_says(&report, &["dynamically linked against glibc", "elision run --stats --verbose"]);
    let script = dir.path().join("script");
    fs::write(&script, "#!/usr/bin/env sh\n").expect("write");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    assert_says(&setting.doctor(text(&script)).1, &["script is run by"]);

    let (source, program) = (dir.path().join("static.c"), dir.path().join("static"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("write");
    let built = Command::new("cc").arg("-static").arg("-o").args([&program, &source]).output();
    if !built.is_ok_and(|built| built.status.success()) {
        return println!("skipped: cc -static does not work here");
    }
    let (code, report) = setting.doctor(text(&program));
    assert_eq!(code, 1);
    assert_says(&report, &["is statically linked", "> link it dynamically"]);
}

/// PHP is recognised by a function that its extensions call.
#[test]
fn php() {
    let Some(dir) = able() else { return };
    let program = dir.path().join("cli");
    let mut bytes = fs::read("/bin/true").expect("read");
    bytes.extend(b"\0zend_register_extension\0");
    fs::write(&program, bytes).expect("write");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    let (code, report) = plain(dir.path()).doctor(text(&program));
    assert_eq!(code, 1);
    assert_says(&report, &["PHP", "RTLD_DEEPBIND", "> none is known"]);
}

#[test]
fn questions_without_sense() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (arguments, message) in [
        (&["doctor", "no-such-thing"][..], "no such file, and no such program"),
        (&["doctor", "a", "b"], "Usage"),
    ] {
        let output = plain(dir.path()).command(arguments).output().expect("run");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
        assert_says(&stderr(&output), &[message]);
    }
}

#[test]
fn help_teaches() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = plain(dir.path()).command(&["doctor", "--help"]).output().expect("run");
    assert_says(
        &String::from_utf8_lossy(&output.stdout),
        &["Exit status", "Examples:", "--cap-add SYS_PTRACE"],
    );
}

/// Also for a call that reads do not need, and for one that is not in the doctor's table.
#[test]
fn filters_that_kill_the_helper() {
    for (calls, name) in [
        (&[libc::SYS_userfaultfd][..], "userfaultfd"),
        (&[libc::SYS_setsid], "setsid"),
        (&[libc::SYS_clone], "clone"),
        (&[libc::SYS_geteuid], "geteuid"),
    ] {
        let Some((code, report)) = under(KILL, calls) else { return };
        assert_eq!(code == 0, says(&report, "ok", "read"), "{report}");
        if code != 0 {
            assert_says(
                &report,
                &[&format!("{name}: killed by SIGSYS"), "> use a filter that lets it through"],
            );
        }
    }
}

/// On an overlay it tells what is in a lower layer alone from what is not.
#[test]
fn files_of_an_overlay() {
    let Some(dir) = able() else { return };
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|name| dir.path().join(name));
    for layer in [&lower, &upper, &work, &root] {
        fs::create_dir(layer).expect("mkdir");
    }
    fill(&lower.join("file"), SIZE);
    let layers = [&lower, &upper, &work].map(|layer| layer.display());
    let [lower, upper, work] = layers;
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let script = format!(
        "mount -t overlay -o {options} overlay {0} && cp {0}/file {0}/made && exec \"$@\"",
        root.display()
    );
    let mut prefix = vec!["unshare", "--mount", "--map-root-user", "sh", "-c", &script, "sh"];
    if getuid().is_root() {
        prefix.remove(2);
    }
    let overlay = Setting { prefix: &prefix, ..plain(dir.path()) };
    let tried = Command::new(prefix[0]).args(&prefix[1..]).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        return println!("skipped: no overlay");
    }
    let (code, report) = overlay.doctor(text(&root.join("file")));
    assert_says(&report, &["8.0 MiB deferred, of 8.0 MiB; under a lease", "an overlay copies the file"]);
    assert_eq!(code, 0, "{report}");
    for subject in [&root, &root.join("made")] {
        let (code, report) = overlay.doctor(text(subject));
        assert_says(&report, &["your own files of a lower layer"]);
        assert_eq!(code, 1, "{report}");
    }
}
