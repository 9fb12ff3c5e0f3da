//! System call filters that were there before the program: as containers and service managers put them on.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// Runs the program under a filter, with the drop-in if there is to be a file of statistics, in a directory of its own.
fn run(program: &Path, action: &str, calls: &str, stats: Option<&Path>) -> (Output, Vec<u8>) {
    let made = directory();
    let mut command = Command::new(program);
    command.args([action, calls]).current_dir(&made).env_remove("LD_PRELOAD");
    if let Some(stats) = stats {
        command.arg(common::library()).env("ELISION_MIN_BYTES", "4096").env("ELISION_STATS", stats);
    }
    let output = command.output().unwrap();
    (output, std::fs::read(made.path().join("file")).unwrap_or_default())
}

/// The same as without the drop-in. Says what statistics there are.
fn same(program: &Path, action: &str, calls: &str) -> String {
    let made = directory();
    let stats = made.path().join("stats");
    let plain = run(program, action, calls, None);
    assert!(plain.0.status.success(), "{plain:?}");
    let ours = run(program, action, calls, Some(&stats));
    assert_eq!(
        String::from_utf8_lossy(&plain.0.stdout),
        String::from_utf8_lossy(&ours.0.stdout),
        "{action} {calls}"
    );
    assert_eq!(plain.0.status, ours.0.status, "{action} {calls}");
    assert!(plain.1 == ours.1, "{action} {calls}: the file");
    std::fs::read_to_string(&stats).unwrap_or_default()
}

fn compiled(made: &tempfile::TempDir) -> PathBuf {
    common::compile(made.path(), "filters", &["-O1", "-Wextra", "-Werror"])
}

/// Docker refuses it to whoever may not trace everybody. What was edited was read at once then, and written whole.
#[test]
fn descriptors_and_memories_that_cannot_be_compared() {
    let made = directory();
    let program = compiled(&made);
    let stats = same(&program, "refuse", &libc::SYS_kcmp.to_string());
    if common::counter(&stats, "deferred_bytes") == 0 {
        return println!("skipped: nothing is deferred here: {stats}");
    }
    assert!(common::counter(&stats, "deferred_bytes") >= 3 << 20, "{stats}");
    assert!(common::counter(&stats, "elided_bytes") > 5 << 19, "{stats}");
}

/// The helper takes the program's descriptors by another way then, and saves are elided as far as that goes without write tracking.
#[test]
fn descriptors_that_the_helper_may_not_take() {
    let made = directory();
    let program = compiled(&made);
    for calls in [
        &[libc::SYS_pidfd_getfd][..],
        &[libc::SYS_pidfd_open],
        &[libc::SYS_pidfd_getfd, libc::SYS_userfaultfd],
        &[libc::SYS_pidfd_getfd, libc::SYS_userfaultfd, libc::SYS_process_vm_readv],
    ] {
        let calls = calls.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let stats = same(&program, "refuse", &calls);
        if common::counter(&stats, "deferred_bytes") == 0 {
            return println!("skipped: nothing is deferred here: {stats}");
        }
        // Both reads, and the first save but for two pages.
        assert!(common::counter(&stats, "deferred_bytes") >= 3 << 20, "{calls}: {stats}");
        assert!(common::counter(&stats, "elided_bytes") >= (1 << 20) - 3 * 4096, "{calls}: {stats}");
        assert_eq!(common::counter(&stats, "lease_refused"), 0, "{calls}: {stats}");
    }
    // Without sockets either, files that are open for writing are read and written the plain way.
    let stats = same(&program, "refuse", &format!("{},{}", libc::SYS_pidfd_getfd, libc::SYS_socket));
    assert!(common::counter(&stats, "deferred_bytes") >= 2 << 20, "{stats}");
    assert!(common::counter(&stats, "lease_refused") > 0, "{stats}");
}

/// Docker's filter and capabilities.
#[test]
fn a_container() {
    as_ever_under("container");
}

/// Without PROCMAP_QUERY the text of /proc/PID/maps tells of mappings.
#[test]
fn before_linux_6_11() {
    as_ever_under("before_6_11");
}

/// Under that C program, which becomes the one that it is told.
fn as_ever_under(wrapper: &str) {
    let made = directory();
    let program = compiled(&made);
    let container = common::compile(made.path(), wrapper, &["-O1", "-Wextra", "-Werror"]);
    let run = |stats: Option<&Path>| {
        let inside = directory();
        let mut command = Command::new(&container);
        command.arg(&program).args(["refuse", "999"]).current_dir(&inside).env_remove("LD_PRELOAD");
        if let Some(stats) = stats {
            command.arg(common::library()).env("ELISION_MIN_BYTES", "4096").env("ELISION_STATS", stats);
        }
        let output = command.output().unwrap();
        (output, std::fs::read(inside.path().join("file")).unwrap_or_default())
    };
    let plain = run(None);
    if plain.0.status.code() == Some(125) {
        return println!("skipped: {}", common::text(&plain.0));
    }
    assert!(plain.0.status.success(), "{}", common::text(&plain.0));
    let stats = made.path().join("stats");
    let ours = run(Some(&stats));
    assert_eq!(common::text(&plain.0), common::text(&ours.0));
    assert!(plain.1 == ours.1, "the file");
    let stats = std::fs::read_to_string(&stats).unwrap_or_default();
    if common::counter(&same(&program, "refuse", "999"), "deferred_bytes") == 0 {
        return println!("skipped: nothing is deferred here");
    }
    assert!(common::counter(&stats, "deferred_bytes") >= 3 << 20, "{stats}");
    assert!(common::counter(&stats, "elided_bytes") >= (1 << 20) - 3 * 4096, "{stats}");
}

/// What a program's own threads call before it is known that no filter kills for it, which a plain program may not.
const UNTRIED: [(&str, i64); 16] = [
    ("clone", libc::SYS_clone),
    ("fcntl", libc::SYS_fcntl),
    ("flock", libc::SYS_flock),
    ("fstatfs", libc::SYS_fstatfs),
    ("futex", libc::SYS_futex),
    ("getpid", libc::SYS_getpid),
    ("gettid", libc::SYS_gettid),
    ("lseek", libc::SYS_lseek),
    ("madvise", libc::SYS_madvise),
    ("membarrier", libc::SYS_membarrier),
    ("nanosleep", libc::SYS_nanosleep),
    ("prctl", libc::SYS_prctl),
    ("restart_syscall", libc::SYS_restart_syscall),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("sched_yield", libc::SYS_sched_yield),
    ("statx", libc::SYS_statx),
];

/// Whatever a filter kills for, it is no program that is killed which would live without the drop-in: but for a few calls, which have to be
/// made before others can be tried by somebody else.
#[test]
fn any_one_call_that_kills() {
    let made = directory();
    let program = compiled(&made);
    let numbers = std::sync::atomic::AtomicU32::new(0);
    let work = || {
        let (mut killed, mut deferred) = (Vec::new(), 0);
        loop {
            let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // The last in use are below 480, and between these two there are none.
            match number {
                335..424 => continue,
                480.. => return (killed, deferred),
                _ => (),
            }
            let call = number.to_string();
            let plain = run(&program, "kill", &call, None);
            if !plain.0.status.success() {
                continue;
            }
            let stats = made.path().join(format!("stats{number}"));
            let ours = run(&program, "kill", &call, Some(&stats));
            let same = plain.0.stdout == ours.0.stdout && plain.1 == ours.1;
            // (A call that is made only now and then may kill the program's child alone.)
            let untried = UNTRIED.iter().any(|&(_, untried)| untried == i64::from(number));
            if ours.0.status.success() && (same || !untried) {
                assert!(same, "{call}");
                let stats = std::fs::read_to_string(&stats).unwrap_or_default();
                deferred += u32::from(common::counter(&stats, "deferred_bytes") > 0);
            } else {
                killed.push(number);
            }
        }
    };
    let (mut killed, deferred) = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)].map(|thread| thread.join().unwrap());
        threads.into_iter().reduce(|(a, n), (b, m)| ([a, b].concat(), n + m)).unwrap()
    });
    killed.sort_unstable();
    println!("{killed:?} kill; beside {deferred} others something is deferred");
    let unexpected = |number: &&u32| UNTRIED.iter().all(|&(_, untried)| untried != i64::from(**number));
    let unexpected: Vec<_> = killed.iter().filter(unexpected).collect();
    assert!(unexpected.is_empty(), "{unexpected:?} kill the program with the drop-in alone");
    let page = include_str!("../../../docs/ENTRANCES.md").split("## What is called untried").nth(1).unwrap();
    let (_, list) = page.split_once("tried: ").unwrap();
    let names: Vec<_> = list.split(". ").next().unwrap().split('`').skip(1).step_by(2).collect();
    assert_eq!(names, UNTRIED.map(|(name, _)| name), "docs/ENTRANCES.md");
}
