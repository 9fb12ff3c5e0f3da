//! `elision doctor FILE`: can this file be deferred, and its saves elided? The file is read, and not changed.

use std::env;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::Result;
use elision_core::settings::DEFAULT_MIN_BYTES;
use elision_core::{probe, settings};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::causes;
use super::child::Starter;
use super::diagnosis::report_failure;
use super::report::{Report, text_of};
use super::step::Step;
use crate::units::bytes;

/// The smallest transfer that can be deferred.
const LEAST: usize = 4096;

/// Has a child read the file, and reports whether it could be saved.
pub fn examine(report: &mut Report, starter: &Starter, path: &Path) -> Result<()> {
    report.title(&format!("file {}", path.display()));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            report.no("file", text_of(&error), "it was there a moment ago");
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
        report.no("kind", what, "only regular files are deferred; the rest is read traditionally");
        return Ok(());
    }
    // (Files of /proc have the size 0, and are read all the same.)
    let supported = probe::file_system(path).is_ok_and(|found| found.supported);
    if supported && meta.size() < LEAST as u64 {
        let size = format!("{}, of which nothing is deferred", bytes(meta.size()));
        report.no("size", size, "small transfers are done traditionally, which is faster");
        return Ok(());
    }
    let read = starter.elided(Step::Look, path, Some(LEAST), |_| Ok(()))?;
    let deferred = read.totals.amounts.deferred_bytes;
    if read.good() && deferred > 0 {
        let immutable = causes::immutable(path);
        let guard = if immutable { "it can never change, so no lease is needed" } else { "under a lease" };
        report.ok("read", format!("{} deferred, of {}; {guard}", bytes(deferred), bytes(meta.size())));
        note_size(report, meta.size());
        match immutable {
            true => report.note("save", "it can never change", None),
            false if probe::file_system(path).is_ok_and(|found| found.name == causes::OVERLAY) => {
                report.note("save", "written in full: an overlay copies the file to its upper layer", None);
            }
            false => check_save(report, path),
        }
    } else {
        report_failure(report, starter, "read", Step::Look, &read, path)?;
        report.note("save", "not tried: it needs what reads need, and more", None);
    }
    Ok(())
}

fn check_save(report: &mut Report, path: &Path) {
    if let Err(error) = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) {
        return report.note("save", format!("you may not write to it: {}", text_of(&error.into())), None);
    }
    match probe::write_lease(path) {
        Ok(()) => report.ok("save", "could be elided: no other process has it open"),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => report.no(
            "save",
            "another process has it open; saves are elided only where no other process has",
            "wait until it is closed (fuser -v names the process), or save a copy",
        ),
        Err(error) => report.no("save", text_of(&error), "it is written traditionally"),
    }
}

fn note_size(report: &Report, size: u64) {
    let set = env::var("ELISION_MIN_BYTES").ok().and_then(|value| settings::bytes(value.as_bytes()));
    let least = set.unwrap_or(DEFAULT_MIN_BYTES) as u64;
    if size < least {
        let advice = format!("to have transfers of this size deferred: elision run --min-bytes {size}");
        report.note("size", format!("{}, below {}", bytes(size), bytes(least)), Some(&advice));
    }
}
