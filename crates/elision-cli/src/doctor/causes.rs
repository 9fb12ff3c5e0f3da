//! Why a step may not be possible, and what to do about it: one table.
//!
//! The table explains and decides nothing: `diagnosis.rs` has its probes made only after a step has turned out not to be possible.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use elision_core::client::offer::FileFacts;
use elision_core::probe;
use rustix::process::{Resource, geteuid, getrlimit};

use super::step::Step;

/// Something that a step may lack, of the machine or of the file.
pub struct Cause {
    pub name: &'static str,
    /// The steps that fail without it.
    pub of: &'static [Step],
    pub probe: fn(&Path) -> io::Result<()>,
    pub remedy: fn(&Failure) -> String,
}

/// Every step.
const ALL: &[Step] = &[Step::Read, Step::Look, Step::Save, Step::Again, Step::Reopen, Step::Keep];
/// Steps through a descriptor for reading and writing.
const SAVES: &[Step] = &[Step::Save, Step::Again, Step::Reopen];
/// Steps that need write tracking.
const TRACKING: &[Step] = &[Step::Again, Step::Reopen];

pub const CAUSES: &[Cause] = &[
    Cause {
        name: PROCESSES,
        of: ALL,
        // Made by `Step::Spawn` instead.
        probe: |_| Ok(()),
        remedy: processes_remedy,
    },
    Cause {
        name: CLONE,
        of: ALL,
        probe: |_| probe::call(libc::SYS_clone),
        remedy: |_| {
            "use a filter that lets it through, as every filter does under which programs can start threads"
                .into()
        },
    },
    Cause { name: "file system", of: ALL, probe: file_system, remedy: |_| ELSEWHERE.into() },
    Cause {
        name: "owner",
        of: ALL,
        probe: owner,
        remedy: |_| {
            "run as the owner, or with CAP_LEASE (Docker, Podman: --cap-add LEASE), or copy the file (XFS, btrfs: cp --reflink)".into()
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
        name: "/proc/PID/maps",
        of: ALL,
        probe: |_| probe::mappings(),
        remedy: |_| "/proc/PID/maps must be there".into(),
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
        probe: |_| probe::descriptors(),
        remedy: |failure| failure.of_call((5, 6), CAP_SYS_PTRACE),
    },
    Cause {
        name: "userfaultfd",
        of: TRACKING,
        probe: |_| probe::write_tracking(),
        remedy: |failure| {
            failure.of_call(
                (6, 7),
                "use a filter that lets it through, or a /dev/userfaultfd that you may open (Docker, Podman: --security-opt seccomp=FILE; or --device /dev/userfaultfd, as root in the container)",
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

pub const PROCESSES: &str = "processes";
/// The call by which the library starts the helper.
pub const CLONE: &str = "clone";
pub const PROC: &str = "/proc";

const CAP_SYS_PTRACE: &str = "Docker, Podman: --cap-add SYS_PTRACE; else use a filter that lets it through";

pub const OVERLAY: &str = "overlayfs";

pub const ELSEWHERE: &str = "keep what is big on ext4, XFS, btrfs or tmpfs (in a container: on a volume)";

/// How a probe failed.
pub struct Failure {
    pub text: String,
    pub errno: i32,
    /// The process that made the probe was killed.
    pub killed: bool,
}

impl Failure {
    /// What to do about a call that Linux has had since this release.
    fn of_call(&self, since: (u32, u32), let_through: &str) -> String {
        if release() < since {
            return format!("needs Linux {}.{} (this is {})", since.0, since.1, probe::release());
        }
        let_through.to_owned()
    }

    /// The text, with what is known of the reason.
    pub fn describe(&self) -> String {
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

pub fn file_system(path: &Path) -> io::Result<()> {
    let found = probe::file_system(path)?;
    match found {
        _ if found.supported => Ok(()),
        _ if found.name == OVERLAY => Err(io::Error::other(
            "overlayfs: your own files of a lower layer (an image's) are deferred until somebody changes them; all else is read and written \
             traditionally",
        )),
        _ => Err(io::Error::other(format!(
            "{} (0x{:x}), on which everything is read and written traditionally",
            found.name, found.magic
        ))),
    }
}

/// Can the file never change? (Not if it cannot be opened.)
pub fn immutable(path: &Path) -> bool {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    open.is_ok_and(|file| FileFacts::of(file.as_raw_fd(), 0).is_ok_and(|facts| facts.immutable))
}

fn owner(path: &Path) -> io::Result<()> {
    let (owner, user) = (path.metadata()?.uid(), geteuid().as_raw());
    if owner == user || immutable(path) || probe::has_capability(probe::CAP_LEASE) {
        return Ok(());
    }
    Err(io::Error::other(format!("the file is uid {owner}'s, and you are {user} without CAP_LEASE")))
}

fn lease(path: &Path) -> io::Result<()> {
    match (probe::read_lease(path), probe::file_system(path)) {
        _ if immutable(path) => Ok(()),
        (Err(error), _) if error.raw_os_error() == Some(libc::EAGAIN) => {
            Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody has the file open for writing"))
        }
        // The rows for the owner and the file system are about these.
        (Err(error), _) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        (_, Ok(found)) if !found.supported => Ok(()),
        (granted, _) => granted,
    }
}

fn lease_remedy(failure: &Failure) -> String {
    match (probe::sysctl("fs/leases-enable"), failure.errno) {
        (Some(0), _) => "leases are switched off: sysctl fs.leases-enable=1".into(),
        (_, libc::EPERM | 0) => "use a filter that lets fcntl through".into(),
        _ => "wait until it is closed (fuser -v says by whom), or copy the file (XFS, btrfs: cp --reflink)"
            .into(),
    }
}

fn memory(_: &Path) -> io::Result<()> {
    let limited =
        |resource, name: &str| getrlimit(resource).current.map(|bytes| format!("{name} is {}", bytes / 1024));
    let limits = [limited(Resource::As, "ulimit -v"), limited(Resource::Data, "ulimit -d")];
    match limits.into_iter().flatten().collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => Ok(()),
        limits => Err(io::Error::other(format!("{limits}, which counts every mapping"))),
    }
}

/// The descriptors that the helper needs. (It raises the soft limit itself.)
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
            "times on tmpfs are too coarse to show that a file is unchanged, so nothing is remembered between two opens",
        ));
    }
    if release() < (6, 13) {
        return Err(io::Error::other(
            "times of change are too coarse before Linux 6.13, so nothing is remembered between two opens",
        ));
    }
    Ok(())
}
