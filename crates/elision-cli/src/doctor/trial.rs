//! Every step, tried with a scratch file.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use elision_core::probe;
use tempfile::TempPath;

use super::causes::{self, ELSEWHERE};
use super::child::{End, Outcome, Starter};
use super::diagnosis::{self, ended, reasons, report_failure};
use super::report::{Finding, Report, text_of};
use super::scratch;
use super::step::Step;
use crate::units::bytes;

const FAULT: &str = "this is a fault of Elision's: please report it";

/// Tries all steps in this directory, or elsewhere if no scratch file can be made in it.
pub fn in_directory(report: &mut Report, starter: &Starter, path: &Path) -> Result<()> {
    match make_scratch(report, path) {
        Some(scratch) => all_steps(report, starter, &scratch),
        // Only the directory may be unfit.
        None => elsewhere(report, starter, &[]),
    }
}

/// Tries all steps in the first of these directories, or of the usual ones, that is likely to be fit.
pub fn elsewhere(report: &mut Report, starter: &Starter, first: &[PathBuf]) -> Result<()> {
    let places = [env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
    let mut places = first.iter().chain(&places);
    let supported = |dir: &&PathBuf| probe::file_system(dir).is_ok_and(|found| found.supported);
    let Some(scratch) = places.by_ref().filter(supported).find_map(|dir| scratch::make(dir).ok()) else {
        report.no(
            "scratch file",
            "none of the usual directories is on ext4, XFS, btrfs or tmpfs and can be written to",
            "set TMPDIR to one that is",
        );
        return Ok(());
    };
    let dir = scratch.parent().unwrap_or(Path::new("/"));
    report.title(&format!("tried in {} ({})", dir.display(), probe::file_system(dir)?.name));
    all_steps(report, starter, &scratch)
}

fn make_scratch(report: &mut Report, dir: &Path) -> Option<TempPath> {
    let system = probe::file_system(dir).map_or("unknown", |found| found.name);
    report.title(&format!("directory {} ({system})", dir.display()));
    if let Err(unfit) = causes::file_system(dir) {
        report.no("file system", unfit.to_string(), ELSEWHERE);
        return None;
    }
    scratch::make(dir)
        .map_err(|error| {
            let advice = "name a directory that you may write to: elision doctor DIRECTORY";
            report.no("scratch file", format!("cannot be made here: {}", text_of(&error)), advice);
        })
        .ok()
}

fn all_steps(report: &mut Report, starter: &Starter, path: &TempPath) -> Result<()> {
    if !fill(report, starter, path)? {
        return Ok(());
    }
    let read = starter.elided(Step::Read, path, None, |_| Ok(()))?;
    let deferred = read.totals.amounts.deferred_bytes;
    if !read.good() || deferred == 0 {
        report_failure(report, starter, "read", Step::Read, &read, path)?;
        report.note("save, break", "not tried: they need what reads need, and more", None);
        return Ok(());
    }
    report.ok("read", format!("{} deferred", bytes(deferred)));
    if save(report, starter, path)? {
        save_with_tracking(report, starter, path)?;
    }
    change_meanwhile(report, starter, path)
}

/// Has a child fill the scratch file. False, with a report, if that is not possible.
fn fill(report: &mut Report, starter: &Starter, scratch: &TempPath) -> Result<bool> {
    let filled = starter.plainly(Step::Fill, scratch, 0)?;
    let (what, advice) = match &filled.end {
        End::Exited(0) => return Ok(true),
        End::Killed(libc::SIGXFSZ) => {
            (format!("a file may not have {}", bytes(scratch::SIZE as u64)), "ulimit -f unlimited")
        }
        End::NotStarted(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
            let findings = diagnosis::find(starter, Step::Read, scratch)?;
            report.no_because("read", "no process can be started", findings);
            return Ok(false);
        }
        End::NotStarted(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            (text_of(error), "raise ulimit -n to 1024 (Docker, Podman: --ulimit nofile=1024)")
        }
        End::NotStarted(error) => (text_of(error), "see whether this command can be executed"),
        _ => (ended(&filled), "make room, or name another directory: elision doctor DIRECTORY"),
    };
    report.no("scratch file", format!("cannot be written: {what}"), advice);
    Ok(false)
}

/// True if the save was elided.
fn save(report: &mut Report, starter: &Starter, path: &Path) -> Result<bool> {
    let save = starter.elided(Step::Save, path, None, |_| Ok(()))?;
    let [written, elided] =
        [save.totals.amounts.written_bytes, save.totals.amounts.elided_bytes].map(|bytes| bytes / 4096);
    let right = scratch::is_as_saved(path)?;
    let possible = save.good() && elided > 0;
    if save.good() && !right {
        report.no("save", "the file is not what was saved", FAULT);
    } else if possible {
        let pages = format!("one byte altered: {written} of {} pages written", written + elided);
        report.ok("save", pages);
    } else {
        report_failure(report, starter, "save", Step::Save, &save, path)?;
    }
    Ok(possible)
}

/// Saves that need write tracking. The second needs what the first needs, and more.
fn save_with_tracking(report: &mut Report, starter: &Starter, path: &Path) -> Result<()> {
    for (step, name, works) in [
        (Step::Again, "save again", "memory that was written before: only altered pages are written again"),
        (
            Step::Reopen,
            "save, opened anew",
            "a file that was read, closed and opened for writing: only altered pages are written",
        ),
    ] {
        let saved = starter.elided(step, path, None, |_| Ok(()))?;
        if !saved.good() {
            return report_failure(report, starter, name, step, &saved, path);
        }
        if saved.totals.amounts.elided_bytes == 0 {
            note_written_in_full(report, name, diagnosis::find(starter, step, path)?, &saved);
            return Ok(());
        }
        report.ok(name, works);
    }
    Ok(())
}

fn note_written_in_full(report: &Report, name: &str, findings: Vec<Finding>, outcome: &Outcome) {
    let how = "written in full";
    if findings.is_empty() {
        return report.note(name, format!("{how} ({})", reasons(outcome)), None);
    }
    for Finding { what, remedy } in findings {
        report.note(name, format!("{how}; {what}"), Some(&remedy));
    }
}

/// Changes the file while a child holds a buffer of it.
fn change_meanwhile(report: &mut Report, starter: &Starter, path: &Path) -> Result<()> {
    let (mut begun, mut changed) = (Instant::now(), None);
    let kept = starter.elided(Step::Keep, path, None, |wait| {
        begun = Instant::now();
        changed = Some(scratch::change(path, wait));
        Ok(())
    })?;
    let took = begun.elapsed().as_millis();
    match changed {
        Some(Ok(false)) => report.no(
            "break",
            format!("another process could not change the file: no answer in {took} ms"),
            FAULT,
        ),
        Some(Err(error)) => {
            report.no("break", text_of(&error), "no file can be truncated and written to here")
        }
        _ if !kept.good() || kept.totals.amounts.deferred_bytes == 0 => {
            report_failure(report, starter, "break", Step::Keep, &kept, path)?;
        }
        _ => report.ok(
            "break",
            format!("another process changed the file ({took} ms), and the buffer kept its bytes"),
        ),
    }
    Ok(())
}
