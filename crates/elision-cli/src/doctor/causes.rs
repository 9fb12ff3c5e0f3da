//! Why a step may not have been possible, and what to do about it: one table.
//!
//! It explains, and decides nothing: its probes are made, each in a process of its own, after a step has turned out not to be possible. So a
//! row that the library does not need any more says too much at worst, and one that is missing too little.

use std::env;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use elision_core::probe;
use rustix::process::{Resource, geteuid, getrlimit};

use super::child::{End, Outcome, Starter};
use super::steps::Step;

/// What of the machine or the file a step may lack.
struct Cause {
    name: &'static str,
    /// The steps that fail without it.
    of: &'static [Step],
    probe: fn(&Path) -> io::Result<()>,
    remedy: fn(&Failure) -> String,
}

/// Every step.
const ALL: &[Step] = &[Step::Read, Step::Look, Step::Save, Step::Again, Step::Reopen, Step::Keep];
/// Those that go through a descriptor for reading and writing.
const SAVES: &[Step] = &[Step::Save, Step::Again, Step::Reopen];
/// Those that are about memory which is not deferred any more.
const TRACKING: &[Step] = &[Step::Again, Step::Reopen];

const CAUSES: &[Cause] = &[
    Cause {
        name: PROCESSES,
        of: ALL,
        // Only one who can start children can try; see `ask`.
        probe: |_| Ok(()),
        remedy: processes_remedy,
    },
    Cause {
        name: CLONE,
        of: ALL,
        probe: |_| probe::call(libc::SYS_clone),
        remedy: |_| "use a filter that lets it through, as any that lets programs start threads".into(),
    },
    Cause { name: "file system", of: ALL, probe: file_system, remedy: |_| ELSEWHERE.into() },
    Cause {
        name: "owner",
        of: ALL,
        probe: owner,
        remedy: |_| {
            "run as the owner, or with CAP_LEASE (Docker, Podman: --cap-add LEASE), or copy the file".into()
        },
    },
    Cause { name: "lease", of: ALL, probe: lease, remedy: lease_remedy },
    Cause {
        name: "limit on memory",
        of: ALL,
        probe: memory,
        remedy: |_| {
            "ulimit -v unlimited; ulimit -d unlimited (a limit by cgroup, as containers have, does no harm)"
                .into()
        },
    },
    Cause {
        name: "limit on descriptors",
        of: ALL,
        probe: descriptors,
        remedy: |_| "raise ulimit -Hn to 1024, as root (Docker, Podman: --ulimit nofile=1024)".into(),
    },
    Cause {
        name: PROC,
        of: ALL,
        probe: |_| probe::proc(),
        remedy: |_| {
            "mount a /proc of this PID namespace: unshare --pid --fork --mount-proc, or mount -t proc proc /proc".into()
        },
    },
    Cause { name: "ptrace", of: ALL, probe: |_| probe::ptrace(), remedy: ptrace_remedy },
    Cause {
        name: "PAGEMAP_SCAN",
        of: ALL,
        probe: |_| probe::pagemap_scan(),
        remedy: |failure| {
            failure.of_call((6, 7), "/proc/PID/pagemap must be there, and ioctl be let through")
        },
    },
    Cause {
        name: "PROCMAP_QUERY",
        of: ALL,
        probe: |_| probe::procmap_query(),
        remedy: |failure| failure.of_call((6, 11), "/proc/PID/maps must be there, and ioctl be let through"),
    },
    Cause {
        name: "futex_waitv",
        of: ALL,
        probe: |_| probe::futex_waitv(),
        remedy: |failure| failure.of_call((5, 16), "use a filter that lets it through, or answers ENOSYS"),
    },
    Cause {
        name: "pidfd_getfd",
        of: SAVES,
        probe: |_| probe::pidfd_getfd(),
        remedy: |failure| failure.of_call((5, 6), CAP_SYS_PTRACE),
    },
    Cause {
        name: "userfaultfd",
        of: TRACKING,
        probe: |_| probe::write_tracking(),
        remedy: |failure| {
            failure.of_call(
                (6, 7),
                "use a filter that lets it through (Docker, Podman: --security-opt seccomp=FILE)",
            )
        },
    },
    Cause {
        name: "times",
        of: &[Step::Reopen],
        probe: times,
        remedy: |failure| {
            failure.of_call(
                (6, 13),
                "save through the descriptor that was read, or keep the file on ext4, XFS or btrfs",
            )
        },
    },
];

/// The row that is probed in another way.
const PROCESSES: &str = "processes";
/// What processes are started by, as the library does it.
const CLONE: &str = "clone";
const PROC: &str = "/proc";

const CAP_SYS_PTRACE: &str = "Docker, Podman: --cap-add SYS_PTRACE; else use a filter that lets it through";

const ELSEWHERE: &str = "keep what is big on ext4, XFS, btrfs or tmpfs (in a container: on a volume)";

/// What a probe came to.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    text: String,
    errno: i32,
    /// The process that tried was killed.
    killed: bool,
}

/// What is wrong, and what to do.
pub struct Finding {
    pub what: String,
    pub remedy: String,
}

impl Failure {
    /// What to do about a call that came with this release of Linux.
    fn of_call(&self, since: (u32, u32), let_through: &str) -> String {
        if release() < since {
            return format!("needs Linux {}.{} (this is {})", since.0, since.1, probe::release());
        }
        let_through.to_owned()
    }

    /// The same, with what is known of its reason.
    fn describe(&self) -> String {
        let refused = [libc::EPERM, libc::EACCES, libc::ENOSYS].contains(&self.errno);
        match refused && probe::filtered() {
            true => format!("{}; there is a seccomp filter", self.text),
            false => self.text.clone(),
        }
    }
}

fn release() -> (u32, u32) {
    let release = probe::release();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What stands in the way of a step with this file. Empty: nothing that is known.
pub fn find(starter: &Starter, step: Step, path: &Path) -> Result<Vec<Finding>> {
    let mut found: Vec<(String, Finding)> = Vec::new();
    let needed = |cause: &Cause| cause.of.contains(&step);
    for number in (0..CAUSES.len()).filter(|&number| needed(&CAUSES[number])) {
        let cause = &CAUSES[number];
        // Killed for a call that the row is not about: which one that is comes below.
        let told = |failure: &Failure| !failure.killed || cause.is_call();
        let Some(failure) = cause.ask(starter, number, path)?.filter(told) else { continue };
        let (why, remedy) = (failure.describe(), (cause.remedy)(&failure));
        // What has the same reason and the same remedy is said once.
        match found.iter_mut().find(|(other, finding)| *other == why && finding.remedy == remedy) {
            Some((_, finding)) => finding.what = format!("{}, {}", cause.name, finding.what),
            None => found.push((why.clone(), Finding { what: format!("{}: {why}", cause.name), remedy })),
        }
        // Without these the others fail as well.
        if [PROCESSES, CLONE, PROC].contains(&cause.name) {
            break;
        }
    }
    // Whatever is tried, though it could be done without, may be the end of a process.
    for number in (0..CAUSES.len()).filter(|&number| found.is_empty() && !needed(&CAUSES[number])) {
        let cause = &CAUSES[number];
        if let Some(failure) =
            cause.ask(starter, number, path)?.filter(|failure| failure.killed && cause.is_call())
        {
            let what = format!("{}: {}", cause.name, failure.text);
            return Ok(vec![Finding { what, remedy: (cause.remedy)(&failure) }]);
        }
    }
    // Or it is another call.
    for (number, (name, _)) in
        probe::calls().iter().enumerate().filter(|_| found.is_empty() && probe::filtered())
    {
        if let Some(failure) = failure(starter.plainly(Step::Call, path, number)?) {
            let what = format!("{}: {}", name.trim_start_matches("SYS_"), failure.describe());
            return Ok(vec![Finding { what, remedy: "use a filter that lets it through".into() }]);
        }
    }
    Ok(found.into_iter().map(|(_, finding)| finding).collect())
}

impl Cause {
    /// Is it about a system call, and named after it?
    fn is_call(&self) -> bool {
        self.name == CLONE
            || probe::calls().iter().any(|(name, _)| name.strip_prefix("SYS_") == Some(self.name))
    }

    /// Has a child make the probe.
    fn ask(&self, starter: &Starter, number: usize, path: &Path) -> Result<Option<Failure>> {
        Ok(failure(match self.name {
            // As many as a program has beside itself.
            PROCESSES => starter.plainly(Step::Spawn, path, 2)?,
            _ => starter.plainly(Step::Probe, path, number)?,
        }))
    }
}

/// What a probe has come to, unless it was good.
fn failure(outcome: Outcome) -> Option<Failure> {
    let failed = |text: String, errno| Failure { text, errno, killed: false };
    Some(match outcome.end {
        End::Exited(0) => return None,
        End::Exited(_) if outcome.said.is_empty() => failed("it cannot be asked for".into(), libc::EPERM),
        End::Exited(errno) => failed(outcome.said.trim().to_owned(), errno),
        End::Killed(signal) => Failure { killed: true, ..failed(killed_by(signal), 0) },
        End::Late => failed("it did not end".into(), 0),
        End::NotStarted(error) => failed(text_of(&error), error.raw_os_error().unwrap_or(0)),
    })
}

/// How a child ended that was killed.
pub fn killed_by(signal: i32) -> String {
    match signal {
        libc::SIGSYS => "killed by SIGSYS, by a seccomp filter".into(),
        signal => format!("killed by signal {signal}"),
    }
}

/// What an error is, without its number.
pub fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// In a child: makes the probe of one cause. The exit status is the error's number.
pub fn probe(number: usize, path: &Path) -> Result<()> {
    let Some(cause) = CAUSES.get(number) else { bail!("there is no such cause") };
    exit_with((cause.probe)(path))
}

/// In a child: makes one system call, which says nothing but whether it is let through.
pub fn call(number: usize) -> Result<()> {
    let Some(&(_, number)) = probe::calls().get(number) else { bail!("there is no such call") };
    exit_with(probe::call(number))
}

fn exit_with(outcome: io::Result<()>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    println!("{}", text_of(&error));
    std::process::exit(error.raw_os_error().unwrap_or(255))
}

/// In a child: starts so many processes, each by the one before.
pub fn spawn(number: usize, path: &Path) -> Result<()> {
    if number == 0 {
        return Ok(());
    }
    let next = (number - 1).to_string();
    let started = Command::new(crate::preload::this_command()?)
        .args(["doctor-step", "spawn"])
        .arg(path)
        .arg(next)
        .status();
    match started {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => std::process::exit(status.code().unwrap_or(255)),
        Err(error) => exit_with(Err(error)),
    }
}

fn file_system(path: &Path) -> io::Result<()> {
    let found = probe::file_system(path)?;
    let text = || {
        format!("{} (0x{:x}), on which everything is read and written traditionally", found.name, found.magic)
    };
    if found.supported { Ok(()) } else { Err(io::Error::other(text())) }
}

fn owner(path: &Path) -> io::Result<()> {
    let (owner, user) = (path.metadata()?.uid(), geteuid().as_raw());
    if owner == user || probe::has_capability(probe::CAP_LEASE) {
        return Ok(());
    }
    Err(io::Error::other(format!("the file is uid {owner}'s, and you are {user} without CAP_LEASE")))
}

fn lease(path: &Path) -> io::Result<()> {
    match (probe::read_lease(path), probe::file_system(path)) {
        (Err(error), _) if error.raw_os_error() == Some(libc::EAGAIN) => {
            Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody has the file open for writing"))
        }
        // See the owner, and the file system.
        (Err(error), _) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        (_, Ok(found)) if !found.supported => Ok(()),
        (granted, _) => granted,
    }
}

fn lease_remedy(failure: &Failure) -> String {
    match (probe::sysctl("fs/leases-enable"), failure.errno) {
        (Some(0), _) => "leases are switched off: sysctl fs.leases-enable=1".into(),
        (_, libc::EPERM | 0) => "use a filter that lets fcntl through".into(),
        _ => "wait until it is closed (fuser -v says by whom), or copy the file".into(),
    }
}

fn memory(_: &Path) -> io::Result<()> {
    let limited =
        |resource, name: &str| getrlimit(resource).current.map(|bytes| format!("{name} is {}", bytes / 1024));
    let limits = [limited(Resource::As, "ulimit -v"), limited(Resource::Data, "ulimit -d")];
    match limits.into_iter().flatten().collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => Ok(()),
        limits => Err(io::Error::other(format!("{limits}, against which everything that is mapped counts"))),
    }
}

/// What the helper keeps free for its own work, and has open itself. (It raises the limit as far as it may.)
const DESCRIPTORS: u64 = 64;

fn descriptors(_: &Path) -> io::Result<()> {
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < DESCRIPTORS => {
            Err(io::Error::other(format!("ulimit -Hn is {most}, and the helper needs {DESCRIPTORS}")))
        }
        _ => Ok(()),
    }
}

fn processes_remedy(_: &Failure) -> String {
    let limit = getrlimit(Resource::Nproc).current.map_or("unlimited".into(), |limit| limit.to_string());
    format!(
        "the helper is two more processes: raise ulimit -u (it is {limit}), or pids.max (Docker, Podman: --pids-limit)"
    )
}

fn ptrace_remedy(failure: &Failure) -> String {
    let scope = probe::ptrace_scope();
    match (probe::tracer(), scope) {
        (Some(pid), _) => format!("process {pid} (a debugger? strace?) traces this one: run without it"),
        (None, Some(2)) if !probe::has_capability(probe::CAP_SYS_PTRACE) => {
            "sysctl kernel.yama.ptrace_scope=1".into()
        }
        (None, Some(3)) => "kernel.yama.ptrace_scope is 3, which stays until the next boot".into(),
        _ => failure.of_call((3, 4), CAP_SYS_PTRACE),
    }
}

fn times(path: &Path) -> io::Result<()> {
    if probe::file_system(path)?.name == "tmpfs" {
        return Err(io::Error::other(
            "on tmpfs a time of change says too little, so nothing is remembered between two opens",
        ));
    }
    if release() < (6, 13) {
        return Err(io::Error::other(
            "several changes may have one time, so nothing is remembered between two opens",
        ));
    }
    Ok(())
}

/// Is it the file system that stands in the way?
pub fn unfit(path: &Path) -> Option<Finding> {
    let error = file_system(path).err()?;
    Some(Finding { what: error.to_string(), remedy: ELSEWHERE.into() })
}

/// Is nothing done at all because somebody said so?
pub fn switched_off() -> Option<Finding> {
    let value = env::var_os("ELISION").filter(|value| !value.is_empty())?;
    if elision_core::settings::switch(value.as_encoded_bytes()) == Some(true) {
        return None;
    }
    Some(Finding { what: format!("ELISION is set to {}", value.display()), remedy: "unset ELISION".into() })
}
