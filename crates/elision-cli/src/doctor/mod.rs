//! `elision doctor`: tries what Elision does, on this machine, in this directory or with this file, and reports what came of it.
//!
//! Each step is done by a child process (`child.rs`, `step.rs`, `perform.rs`), as a program under `elision run` would do it. If a step is
//! not possible, its causes are looked for (`diagnosis.rs`, `causes.rs`).

mod causes;
mod child;
mod diagnosis;
mod file;
mod perform;
mod program;
mod report;
mod scratch;
mod step;
mod trial;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use elision_core::probe;

use crate::ending::Ending;
use crate::{preload, program as programs};
use child::{Interrupted, Starter};
use report::Report;
pub use step::Args as StepArgs;

/// The exit status if the command line or its subject makes no sense.
pub const ASKED_WRONGLY: u8 = 2;

/// Reports what is possible here.
#[derive(clap::Args)]
pub struct Args {
    /// A directory, a file, or a program (by its path, or by its name in PATH) [default: the current directory]
    #[arg(value_name = "PATH|PROGRAM")]
    subject: Option<OsString>,
}

/// Tries it, and reports what came of it.
pub fn run(args: Args) -> Result<Ending> {
    let subject = args.subject.map_or(Ok(Subject::Directory(".".into())), Subject::identify)?;
    let mut report = Report::default();
    kernel(&mut report);
    note_settings(&report);
    let Some(starter) = starter(&mut report)? else { return Ok(Ending::Code(1)) };
    match examine(&mut report, &starter, subject) {
        Ok(()) => Ok(Ending::Code(report.missing.into())),
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(&Interrupted(signal)) => Ok(Ending::Signal(signal)),
            None => Err(error),
        },
    }
}

/// Carries out one step, in a child.
pub fn step(args: StepArgs) -> Result<Ending> {
    Ok(match perform::perform(&args) {
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
            Ok(_) if programs::runnable(&path) => Ok(Subject::Program(path)),
            Ok(_) => Ok(Subject::File(path)),
            Err(error) => match programs::find(&name) {
                Some(found) => Ok(Subject::Program(found)),
                None if error.kind() == io::ErrorKind::NotFound => {
                    bail!("{}: there is no such file, and no such program in PATH", path.display())
                }
                None => bail!("{}: {error}", path.display()),
            },
        }
    }
}

fn examine(report: &mut Report, starter: &Starter, subject: Subject) -> Result<()> {
    match subject {
        Subject::Directory(path) => trial::in_directory(report, starter, &path),
        Subject::Program(path) => {
            program::examine(report, &path);
            trial::elsewhere(report, starter, &[PathBuf::from(".")])
        }
        Subject::File(path) => {
            file::examine(report, starter, &path)?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            trial::elsewhere(report, starter, &[parent.unwrap_or(Path::new(".")).into()])
        }
    }
}

fn kernel(report: &mut Report) {
    let release = format!("Linux {} on {}", probe::release(), env::consts::ARCH);
    if cfg!(target_arch = "x86_64") {
        report.ok("kernel", release);
    } else {
        report.no(
            "kernel",
            release,
            "only x86-64 is supported so far; everything else is read traditionally",
        );
    }
}

/// Settings of the machine with which Elision works, but not as well as it could.
fn note_settings(report: &Report) {
    // 0 means that the kernel waits for the lease holder without a limit.
    if let Some(seconds @ 1..10) = probe::sysctl("fs/lease-break-time") {
        let advice = "too short to load a big file from a slow disk: sysctl fs.lease-break-time=45";
        report.note("fs.lease-break-time", format!("{seconds} s"), Some(advice));
    }
    if probe::sysctl("vm/overcommit_memory") == Some(2) {
        let advice = "deferred reads count against the commit limit; with 0 or 1 they do not";
        report.note("vm.overcommit_memory", "2: all private memory is charged, touched or not", Some(advice));
    }
}

/// `None`, with a report: there is no drop-in.
fn starter(report: &mut Report) -> Result<Option<Starter>> {
    match preload::find() {
        Ok(path) => {
            report.ok("drop-in", path.display().to_string());
            Starter::new(path).map(Some)
        }
        Err(error) => {
            let text = format!("{error:#}");
            let (finding, advice) = text.split_once('\n').unwrap_or((&text, "see ELISION_PRELOAD"));
            report.no("drop-in", finding, advice);
            Ok(None)
        }
    }
}
