//! `elision doctor`: what this machine, file or program allows, line by line.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use elision::dropin::DEFAULT_MIN_BYTES;
use elision::probe;
use rustix::process::geteuid;

use crate::Ending;
use crate::preload;
use crate::program::{self, Obstacle, Program};
use crate::totals::bytes;

/// The exit status for a question that makes no sense.
pub const ASKED_WRONGLY: u8 = 2;

/// Says what is possible here.
#[derive(clap::Args)]
pub struct Args {
    /// A file, a directory, or a program (by path, or by its name in PATH)
    #[arg(value_name = "PATH|PROGRAM")]
    subject: Option<OsString>,
}

/// Examines the kernel, and then the subject.
pub fn run(args: Args) -> Result<Ending> {
    let subject = args.subject.map(Subject::identify).transpose()?;
    let mut report = Report::default();
    report.kernel();
    match subject {
        None => report.library(),
        Some(Subject::Program(path)) => {
            report.title(&format!("program {}", path.display()));
            report.library();
            report.program(&path);
        }
        Some(Subject::Directory(path)) => {
            report.title(&format!("directory {}", path.display()));
            report.file_system(&path);
        }
        Some(Subject::File(path)) => {
            report.title(&format!("file {}", path.display()));
            report.file(&path);
        }
    }
    Ok(Ending::Code(report.missing.into()))
}

enum Subject {
    Program(PathBuf),
    Directory(PathBuf),
    File(PathBuf),
}

impl Subject {
    fn identify(name: OsString) -> Result<Subject> {
        let path = PathBuf::from(&name);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => Ok(Subject::Directory(path)),
            Ok(_) if program::runnable(&path) => Ok(Subject::Program(path)),
            Ok(_) => Ok(Subject::File(path)),
            Err(error) => match program::find(&name) {
                Some(found) => Ok(Subject::Program(found)),
                None if error.kind() == io::ErrorKind::NotFound => {
                    bail!("{}: there is no such file, and no such program in PATH", path.display())
                }
                None => bail!("{}: {error}", path.display()),
            },
        }
    }
}

/// Prints as it goes; remembers whether anything needed was missing.
#[derive(Default)]
struct Report {
    missing: bool,
}

impl Report {
    fn title(&self, title: &str) {
        println!("\n{title}");
    }

    fn line(mark: &str, name: &str, finding: impl AsRef<str>) {
        println!("{mark}  {name:<20} {}", finding.as_ref());
    }

    fn ok(&self, name: &str, finding: impl AsRef<str>) {
        Self::line("ok", name, finding);
    }

    /// Needed, and not there.
    fn no(&mut self, name: &str, finding: impl AsRef<str>, advice: impl AsRef<str>) {
        self.missing = true;
        Self::line("no", name, finding);
        Self::advise(advice);
    }

    /// Good to know; with advice if it could be better.
    fn note(&self, name: &str, finding: impl AsRef<str>, advice: Option<&str>) {
        Self::line("--", name, finding);
        advice.into_iter().for_each(Self::advise);
    }

    fn advise(advice: impl AsRef<str>) {
        for line in advice.as_ref().lines() {
            println!("    > {line}");
        }
    }

    /// `ok` or `no`, by how the probe came out.
    fn needed(&mut self, name: &str, probe: io::Result<()>, works: &str, advice: &str) {
        match probe {
            Ok(()) => self.ok(name, works),
            Err(error) => self.no(name, error.to_string(), advice),
        }
    }

    /// `ok` or `--`, by how the probe came out.
    fn helpful(&self, name: &str, probe: io::Result<()>, works: &str, advice: &str) {
        match probe {
            Ok(()) => self.ok(name, works),
            Err(error) => self.note(name, error.to_string(), Some(advice)),
        }
    }

    fn kernel(&mut self) {
        let release = format!("Linux {} on {}", probe::release(), std::env::consts::ARCH);
        if cfg!(target_arch = "x86_64") {
            self.ok("kernel", release);
        } else {
            self.no(
                "kernel",
                release,
                "only x86-64 is supported so far; everything else is read traditionally",
            );
        }
        self.leases();
        self.needed(
            "PAGEMAP_SCAN",
            probe::pagemap_scan(),
            "altered pages are found without looking at each",
            "needs Linux 6.7; in a container, its system call filter must let ioctl through",
        );
        self.needed(
            "write tracking",
            probe::write_tracking(),
            "userfaultfd with WP_ASYNC notices stores into pages that have memory of their own",
            "needs Linux 6.7 with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP; in a container, its system\n\
             call filter must let userfaultfd through. Without it, only deferred reads have their writes elided",
        );
        self.ptrace();
        self.needed(
            "PROCMAP_QUERY",
            probe::procmap_query(),
            "mappings are looked up by address",
            "needs Linux 6.11; without it, everything is read traditionally",
        );
        self.helpful(
            "kcmp",
            probe::kcmp(),
            "tells whether two descriptors share a file position",
            "needs CONFIG_KCMP; in a container, its system call filter must let kcmp through",
        );
        self.helpful(
            "futex_waitv",
            probe::futex_waitv(),
            "waits for several events at once",
            "comes with Linux 5.16; in a container, its system call filter must let futex_waitv through",
        );
        self.limits();
    }

    /// Tried where a file system on the list can be written to: what the kernel can do is the question here.
    fn leases(&mut self) {
        let places = [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
        let supported = |dir: &&PathBuf| probe::file_system(dir).is_ok_and(|found| found.supported);
        let Some(dir) = places.iter().filter(supported).find(|dir| probe::lease_in(dir).is_ok()) else {
            let advice = match probe::sysctl("fs/leases-enable") {
                Some(0) => "leases are switched off: sysctl fs.leases-enable=1",
                _ => "set TMPDIR to a directory of yours on ext4, XFS, btrfs or tmpfs and try again",
            };
            return self.no("file leases", "no lease was to be had on a new temporary file", advice);
        };
        self.ok("file leases", format!("granted in {}", dir.display()));
        self.fine_ctime(dir);
    }

    fn fine_ctime(&self, dir: &Path) {
        let works = match probe::fine_ctime_in(dir) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::other("several changes share one clock tick")),
            Err(error) => Err(error),
        };
        self.helpful(
            "fine-grained ctime",
            works,
            "every change of a file that was looked at is seen",
            "comes with Linux 6.13 on ext4, XFS, btrfs and tmpfs; without it, a file that the program has open\n\
             for writing is written traditionally",
        );
    }

    fn ptrace(&mut self) {
        let administrator = probe::has_capability(probe::CAP_SYS_PTRACE);
        match probe::ptrace_scope() {
            None => self.ok("ptrace", "not restricted by Yama"),
            Some(scope @ 0..=1) => self.ok("ptrace", format!("kernel.yama.ptrace_scope is {scope}")),
            Some(2) if administrator => self.ok("ptrace", "administrators only, which this process is"),
            Some(scope) => self.no(
                "ptrace",
                format!(
                    "kernel.yama.ptrace_scope is {scope}: processes of one user may not look at each other"
                ),
                if scope == 2 { "sysctl kernel.yama.ptrace_scope=1" } else { "3 stays until the next boot" },
            ),
        }
        match probe::tracer() {
            None => self.ok("tracer", "none"),
            Some(pid) => self.note(
                "tracer",
                format!("process {pid} traces this one"),
                Some("what runs under a debugger or strace may be slower, or be read traditionally"),
            ),
        }
    }

    fn limits(&mut self) {
        const USUAL_MAPPINGS: u64 = 65_530;
        match probe::sysctl("vm/max_map_count") {
            Some(count) if count >= USUAL_MAPPINGS => self.ok("vm.max_map_count", count.to_string()),
            count => self.note(
                "vm.max_map_count",
                shown(count),
                Some("every deferred read takes a mapping, and scattered stores split it: 65530 or more is better"),
            ),
        }
        match probe::sysctl("vm/overcommit_memory") {
            Some(2) => self.note(
                "vm.overcommit_memory",
                "2: all private memory is charged, touched or not",
                Some("deferred reads count against the commit limit; 0 and 1 do without that"),
            ),
            mode => self.ok("vm.overcommit_memory", shown(mode)),
        }
        match probe::sysctl("fs/lease-break-time") {
            Some(seconds @ 10..) => {
                self.ok("fs.lease-break-time", format!("{seconds} s to load what is left"))
            }
            // Zero does not mean at once, but never: the opener waits for the holder.
            Some(0) => self.ok("fs.lease-break-time", "0: writers wait as long as it takes"),
            seconds => self.note(
                "fs.lease-break-time",
                shown(seconds),
                Some("too short to load a big file from a slow disk: sysctl fs.lease-break-time=45"),
            ),
        }
    }

    fn library(&mut self) {
        match preload::find() {
            Ok(path) => self.ok("drop-in", path.display().to_string()),
            Err(error) => {
                let text = format!("{error:#}");
                let (finding, advice) = text.split_once('\n').unwrap_or((&text, "see ELISION_PRELOAD"));
                self.no("drop-in", finding, advice);
            }
        }
    }

    fn program(&mut self, path: &Path) {
        let program = match Program::examine(path) {
            Ok(program) => program,
            Err(error) => return self.no("program", error.to_string(), "the kernel would not run it either"),
        };
        for pair in program.chain.windows(2) {
            self.ok("script", format!("{} is run by {}", pair[0].display(), pair[1].display()));
        }
        if !program.readable {
            return self.note("program", "cannot be read, so nothing is known about it", None);
        }
        if program.obstacles.is_empty() {
            self.ok("program", "dynamically linked against glibc, and gains no rights when it starts");
        }
        for obstacle in &program.obstacles {
            let advice = match obstacle {
                Obstacle::Static => "link it dynamically, or use the elision crate in it; it runs unchanged",
                Obstacle::Musl | Obstacle::Loader(_) => "build it for glibc, or use the elision crate in it",
                Obstacle::Foreign(_) => "use a build for this machine",
                Obstacle::First(_) => {
                    "set ASAN_OPTIONS=verify_asan_link_order=0 and preload the drop-in yourself"
                }
                Obstacle::Privileged(_) => "run it as the user whose rights it gains",
            };
            self.no("program", format!("{obstacle}"), advice);
        }
    }

    fn file(&mut self, path: &Path) {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => return self.no("file", error.to_string(), "it was there a moment ago"),
        };
        if !meta.is_file() {
            let kind = meta.file_type();
            let what = match () {
                _ if kind.is_fifo() => "a pipe",
                _ if kind.is_socket() => "a socket",
                _ if kind.is_block_device() || kind.is_char_device() => "a device",
                _ => "not a regular file",
            };
            return self.no("kind", what, "only regular files are deferred; the rest is read traditionally");
        }
        self.ok("kind", "a regular file");
        self.file_system(path);
        self.owner(&meta);
        match probe::read_lease(path) {
            Ok(()) => self.ok("lease", "granted now"),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => self.no(
                    "lease",
                    "somebody has it open for writing",
                    "wait until they close it (fuser -v says who), or copy the file",
                ),
                Some(libc::EACCES) => self.no("lease", "refused", "see the owner, and who may read it"),
                _ => self.no("lease", error.to_string(), "it is read traditionally"),
            },
        }
        self.size(meta.len());
    }

    fn file_system(&mut self, path: &Path) {
        match probe::file_system(path) {
            Ok(found) if found.supported => self.ok("file system", found.name),
            Ok(found) => self.no(
                "file system",
                format!("{} (0x{:x}), declined: read traditionally", found.name, found.magic),
                "keep the file on ext4, XFS, btrfs or tmpfs",
            ),
            Err(error) => self.no("file system", error.to_string(), "statfs must work on it"),
        }
    }

    fn owner(&mut self, meta: &fs::Metadata) {
        let (owner, user) = (meta.uid(), geteuid().as_raw());
        if owner == user {
            self.ok("owner", "you");
        } else if probe::has_capability(probe::CAP_LEASE) {
            self.ok("owner", format!("uid {owner}, and you have CAP_LEASE"));
        } else {
            self.no(
                "owner",
                format!("uid {owner}, and you are {user}: a lease needs the owner, or CAP_LEASE"),
                "run as the owner, or copy the file",
            );
        }
    }

    fn size(&self, size: u64) {
        match std::env::var("ELISION_MIN_BYTES").ok().and_then(|value| value.parse::<u64>().ok()) {
            Some(least) if size < least => self.note(
                "size",
                format!("{}, below ELISION_MIN_BYTES ({})", bytes(size), bytes(least)),
                Some("transfers as small as this are done traditionally"),
            ),
            None if size < DEFAULT_MIN_BYTES as u64 => self.note(
                "size",
                format!("{}, below {}", bytes(size), bytes(DEFAULT_MIN_BYTES as u64)),
                Some(
                    "transfers as small as this are done traditionally; ELISION_MIN_BYTES sets another limit",
                ),
            ),
            _ => self.ok("size", bytes(size)),
        }
    }
}

fn shown(value: Option<u64>) -> String {
    value.map_or("unknown".into(), |value| value.to_string())
}
