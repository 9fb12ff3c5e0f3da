//! `elision doctor`: does what Elision is for, on this machine, in this directory or with this file, and says what came of it.
//!
//! Every step is done by a child, as a program under `elision run` would do it, with statistics, under the limits and filters that hold
//! (`child.rs`, `steps.rs`). Only if it is not possible, causes are looked for (`causes.rs`).

mod causes;
mod child;
mod steps;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use elision_core::client::dropin::DEFAULT_MIN_BYTES;
use elision_core::{probe, settings};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use tempfile::TempPath;

use crate::Ending;
use crate::preload;
use crate::program::{self, Obstacle, Program};
use crate::totals::bytes;
use causes::{Finding, killed_by, text_of};
use child::{End, Interrupted, Outcome, Starter};
pub use steps::Args as StepArgs;
use steps::Step;

/// The exit status for a question that makes no sense.
pub const ASKED_WRONGLY: u8 = 2;

/// Says what is possible here.
#[derive(clap::Args)]
pub struct Args {
    /// A file, a directory, or a program (by path, or by its name in PATH) [default: the current directory]
    #[arg(value_name = "PATH|PROGRAM")]
    subject: Option<OsString>,
}

/// Tries it, and says what came of it.
pub fn run(args: Args) -> Result<Ending> {
    let subject = args.subject.map_or(Ok(Subject::Directory(".".into())), Subject::identify)?;
    let mut report = Report::default();
    report.kernel();
    report.settings();
    let Some(starter) = report.starter()? else { return Ok(Ending::Code(1)) };
    match report.examine(&starter, subject) {
        Ok(()) => Ok(Ending::Code(report.missing.into())),
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(&Interrupted(signal)) => Ok(Ending::Signal(signal)),
            None => Err(error),
        },
    }
}

/// Carries out one step, in a child.
pub fn step(args: StepArgs) -> Result<Ending> {
    Ok(match steps::carry_out(&args) {
        Ok(()) => Ending::Code(0),
        Err(error) => {
            println!("{error:#}");
            Ending::Code(1)
        }
    })
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

    fn kernel(&mut self) {
        let release = format!("Linux {} on {}", probe::release(), env::consts::ARCH);
        if cfg!(target_arch = "x86_64") {
            self.ok("kernel", release);
        } else {
            self.no(
                "kernel",
                release,
                "only x86-64 is supported so far; everything else is read traditionally",
            );
        }
    }

    /// Settings of the machine that are no hindrance, and better otherwise.
    fn settings(&self) {
        // Zero does not mean at once, but never: the opener waits for the holder.
        if let Some(seconds @ 1..10) = probe::sysctl("fs/lease-break-time") {
            let advice = "too short to load a big file from a slow disk: sysctl fs.lease-break-time=45";
            self.note("fs.lease-break-time", format!("{seconds} s"), Some(advice));
        }
        if probe::sysctl("vm/overcommit_memory") == Some(2) {
            let advice = "deferred reads count against the commit limit; with 0 or 1 they do not";
            self.note(
                "vm.overcommit_memory",
                "2: all private memory is charged, touched or not",
                Some(advice),
            );
        }
    }

    /// What starts children. `None`: there is no drop-in.
    fn starter(&mut self) -> Result<Option<Starter>> {
        match preload::find() {
            Ok(path) => {
                self.ok("drop-in", path.display().to_string());
                Starter::new(path).map(Some)
            }
            Err(error) => {
                let text = format!("{error:#}");
                let (finding, advice) = text.split_once('\n').unwrap_or((&text, "see ELISION_PRELOAD"));
                self.no("drop-in", finding, advice);
                Ok(None)
            }
        }
    }

    fn examine(&mut self, starter: &Starter, subject: Subject) -> Result<()> {
        match subject {
            Subject::Directory(path) => match self.scratch(&path) {
                Some(scratch) => self.everything(starter, &scratch),
                // It may be the directory alone.
                None => self.elsewhere(starter, &[]),
            },
            Subject::Program(path) => {
                self.title(&format!("program {}", path.display()));
                self.program(&path);
                self.elsewhere(starter, &[PathBuf::from(".")])
            }
            Subject::File(path) => {
                self.title(&format!("file {}", path.display()));
                self.file(starter, &path)?;
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                self.elsewhere(starter, &[parent.unwrap_or(Path::new(".")).into()])
            }
        }
    }

    /// A scratch file in the directory.
    fn scratch(&mut self, dir: &Path) -> Option<TempPath> {
        let system = probe::file_system(dir).map_or("unknown", |found| found.name);
        self.title(&format!("directory {} ({system})", dir.display()));
        if let Some(Finding { what, remedy }) = causes::unfit(dir) {
            self.no("file system", what, remedy);
            return None;
        }
        scratch_in(dir)
            .map_err(|error| {
                let advice = "name a directory that you may write to: elision doctor DIRECTORY";
                self.no("scratch file", format!("cannot be made here: {}", text_of(&error)), advice);
            })
            .ok()
    }

    fn fill(&mut self, starter: &Starter, scratch: &TempPath) -> Result<bool> {
        let filled = starter.plainly(Step::Fill, scratch, 0)?;
        let (what, advice) = match &filled.end {
            End::Exited(0) => return Ok(true),
            End::Killed(libc::SIGXFSZ) => {
                (format!("a file may not have {}", bytes(steps::SIZE as u64)), "ulimit -f unlimited")
            }
            End::NotStarted(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                let findings = causes::find(starter, Step::Read, scratch)?;
                self.extext_of("read", "no process can be started", findings);
                return Ok(false);
            }
            End::NotStarted(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                (text_of(error), "raise ulimit -n to 1024 (Docker, Podman: --ulimit nofile=1024)")
            }
            End::NotStarted(error) => (text_of(error), "see whether this command can be executed"),
            _ => (ended(&filled), "make room, or name another directory: elision doctor DIRECTORY"),
        };
        self.no("scratch file", format!("cannot be written: {what}"), advice);
        Ok(false)
    }

    /// Tries what the machine can do where it is likely to be possible.
    fn elsewhere(&mut self, starter: &Starter, first: &[PathBuf]) -> Result<()> {
        let places = [env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
        let mut places = first.iter().chain(&places);
        let supported = |dir: &&PathBuf| probe::file_system(dir).is_ok_and(|found| found.supported);
        let Some(scratch) = places.by_ref().filter(supported).find_map(|dir| scratch_in(dir).ok()) else {
            self.no(
                "scratch file",
                "none of the usual directories is on ext4, XFS, btrfs or tmpfs and can be written to",
                "set TMPDIR to one that is",
            );
            return Ok(());
        };
        let dir = scratch.parent().unwrap_or(Path::new("/"));
        self.title(&format!("tried in {} ({})", dir.display(), probe::file_system(dir)?.name));
        self.everything(starter, &scratch)
    }

    /// All steps.
    fn everything(&mut self, starter: &Starter, path: &TempPath) -> Result<()> {
        if !self.fill(starter, path)? {
            return Ok(());
        }
        let read = starter.elided(Step::Read, path, None, |_| Ok(()))?;
        let deferred = read.totals.amount("deferred_bytes");
        if !read.good() || deferred == 0 {
            self.not_possible(starter, "read", Step::Read, &read, path)?;
            self.note("save, break", "not tried: they need what reads need, and more", None);
            return Ok(());
        }
        self.ok("read", format!("{} deferred", bytes(deferred)));

        let save = starter.elided(Step::Save, path, None, |_| Ok(()))?;
        let pages = ["written_bytes", "elided_bytes"].map(|name| save.totals.amount(name) / 4096);
        let right = steps::is_as_saved(path)?;
        if save.good() && !right {
            self.no(
                "save",
                "the file is not what was saved",
                "this is a fault of Elision's: please report it",
            );
        } else if !save.good() || pages[1] == 0 {
            self.not_possible(starter, "save", Step::Save, &save, path)?;
        } else {
            self.ok(
                "save",
                format!("one byte altered: {} of {} pages written", pages[0], pages[0] + pages[1]),
            );
        }

        if save.good() && pages[1] > 0 {
            self.tracking(starter, path)?;
        }
        let (mut asked, mut changed) = (Instant::now(), None);
        let kept = starter.elided(Step::Keep, path, None, |wait| {
            asked = Instant::now();
            changed = Some(steps::change(path, wait));
            Ok(())
        })?;
        let took = asked.elapsed().as_millis();
        match changed {
            Some(Ok(false)) => self.no(
                "break",
                format!("another process could not change the file: no answer in {took} ms"),
                "this is a fault of Elision's: please report it",
            ),
            Some(Err(error)) => {
                self.no("break", text_of(&error), "no file can be truncated and written to here")
            }
            _ if !kept.good() || kept.totals.amount("deferred_bytes") == 0 => {
                self.not_possible(starter, "break", Step::Keep, &kept, path)?;
            }
            _ => self.ok(
                "break",
                format!("another process changed the file ({took} ms), and the buffer kept its bytes"),
            ),
        }
        Ok(())
    }

    /// Saves that could do with more than is needed. The second needs what the first needs, and more.
    fn tracking(&mut self, starter: &Starter, path: &Path) -> Result<()> {
        for (step, name, works) in [
            (Step::Again, "save again", "what was written before is written again as far as it was altered"),
            (
                Step::Reopen,
                "save, opened anew",
                "a file that was read and closed is saved as far as it was altered",
            ),
        ] {
            let saved = starter.elided(step, path, None, |_| Ok(()))?;
            if !saved.good() {
                return self.not_possible(starter, name, step, &saved, path);
            }
            if saved.totals.amount("elided_bytes") == 0 {
                self.could_be_better(name, causes::find(starter, step, path)?, &saved);
                return Ok(());
            }
            self.ok(name, works);
        }
        Ok(())
    }

    /// A step that was not possible: how it ended, and why.
    fn not_possible(
        &mut self,
        starter: &Starter,
        name: &str,
        step: Step,
        outcome: &Outcome,
        path: &Path,
    ) -> Result<()> {
        let mut findings = causes::find(starter, step, path)?;
        if outcome.totals.is_empty() {
            findings.splice(0..0, causes::switched_off());
        }
        let declined = reasons(outcome);
        let how = match outcome.good() {
            false => ended(outcome),
            true if declined.is_empty() => "done traditionally".into(),
            true => format!("done traditionally ({declined})"),
        };
        self.extext_of(name, &how, findings);
        Ok(())
    }

    fn extext_of(&mut self, name: &str, how: &str, findings: Vec<Finding>) {
        if findings.is_empty() {
            let advice = "no cause was found; elision run --stats --verbose -- PROGRAM says more";
            return self.no(name, how, advice);
        }
        for (number, Finding { what, remedy }) in findings.into_iter().enumerate() {
            match number {
                0 => self.no(name, format!("{how}; {what}"), remedy),
                _ => self.no("", format!("and {what}"), remedy),
            }
        }
    }

    /// What was done, though not as cheaply as could be.
    fn could_be_better(&self, name: &str, findings: Vec<Finding>, outcome: &Outcome) {
        let how = "written in full";
        if findings.is_empty() {
            return self.note(name, format!("{how} ({})", reasons(outcome)), None);
        }
        for Finding { what, remedy } in findings {
            self.note(name, format!("{how}; {what}"), Some(&remedy));
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
        if has_zend_engine(program.binary()) {
            self.no(
                "PHP",
                "it loads its extensions past the drop-in (RTLD_DEEPBIND), with which deferral ends, and reads into strings \
                 of which no part is aligned as the file is",
                "none is known: it runs unchanged",
            );
        }
        self.note(
            "while it runs",
            "deferral ends with the first io_uring, seccomp filter, RTLD_DEEPBIND and the like",
            Some("to see what is deferred, and what ends it: elision run --stats --verbose -- PROGRAM"),
        );
    }

    /// Reads the file, and asks whether it could be saved. It is not changed.
    fn file(&mut self, starter: &Starter, path: &Path) -> Result<()> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => {
                self.no("file", text_of(&error), "it was there a moment ago");
                return Ok(());
            }
        };
        if !meta.is_file() {
            let kind = meta.file_type();
            let what = match () {
                _ if kind.is_fifo() => "a pipe",
                _ if kind.is_socket() => "a socket",
                _ if kind.is_block_device() || kind.is_char_device() => "a device",
                _ => "not a regular file",
            };
            self.no("kind", what, "only regular files are deferred; the rest is read traditionally");
            return Ok(());
        }
        // (A file of /proc says that it has no bytes.)
        let supported = probe::file_system(path).is_ok_and(|found| found.supported);
        if supported && meta.size() < LEAST as u64 {
            let size = format!("{}, of which nothing is deferred", bytes(meta.size()));
            self.no("size", size, "small transfers are done traditionally, which is faster");
            return Ok(());
        }
        let read = starter.elided(Step::Look, path, Some(LEAST), |_| Ok(()))?;
        let deferred = read.totals.amount("deferred_bytes");
        if read.good() && deferred > 0 {
            self.ok("read", format!("{} deferred, of {}", bytes(deferred), bytes(meta.size())));
            self.size(meta.size());
            self.could_be_saved(path);
        } else {
            self.not_possible(starter, "read", Step::Look, &read, path)?;
            self.note("save", "not either: it needs what reads need, and more", None);
        }
        Ok(())
    }

    fn could_be_saved(&mut self, path: &Path) {
        if let Err(error) = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) {
            return self.note("save", format!("you may not write to it: {}", text_of(&error.into())), None);
        }
        match probe::write_lease(path) {
            Ok(()) => self.ok("save", "could be elided: nobody else has it open"),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => self.no(
                "save",
                "somebody has it open, and who saves has to be the only one",
                "wait until it is closed (fuser -v says by whom), or save a copy",
            ),
            Err(error) => self.no("save", text_of(&error), "it is written traditionally"),
        }
    }

    fn size(&self, size: u64) {
        let set = env::var("ELISION_MIN_BYTES").ok().and_then(|value| settings::bytes(value.as_bytes()));
        let least = set.unwrap_or(DEFAULT_MIN_BYTES) as u64;
        if size < least {
            let advice = format!("to have transfers of this size deferred: elision run --min-bytes {size}");
            self.note("size", format!("{}, below {}", bytes(size), bytes(least)), Some(&advice));
        }
    }
}

/// Is it PHP? (It has a function that its extensions call.)
fn has_zend_engine(program: &Path) -> bool {
    fs::read(program)
        .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("\0zend_register_extension\0"))
}

/// The smallest transfer that is ever considered.
const LEAST: usize = 4096;

fn scratch_in(dir: &Path) -> io::Result<TempPath> {
    // Nobody may have it open.
    Ok(tempfile::Builder::new().prefix(".elision-doctor-").tempfile_in(dir)?.into_temp_path())
}

/// How a child ended, for people.
fn ended(outcome: &Outcome) -> String {
    match &outcome.end {
        End::Exited(_) => outcome.said.trim().to_owned(),
        End::Killed(signal) => killed_by(*signal),
        End::Late => "it did not end, and was killed".into(),
        End::NotStarted(error) => format!("no process can be started: {}", text_of(error)),
    }
}

/// Why transfers were done traditionally, by the names that statistics have for it.
fn reasons(outcome: &Outcome) -> String {
    let ended = outcome.totals.stops().keys().map(|why| format!("deferral ended with {why}"));
    outcome.totals.declines().keys().cloned().chain(ended).collect::<Vec<_>>().join(", ")
}
