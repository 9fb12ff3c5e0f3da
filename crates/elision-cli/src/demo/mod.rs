//! `elision demo`: one ordinary program edits two equal big files, one without and one with Elision. It reads a file as a whole, changes
//! three records and saves it, in each of the three ways that programs have.
//!
//! Then both files are compared with what the edit should give, and the costs are shown side by side.

mod job;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use elision_core::probe;
use elision_core::settings::DEFAULT_MIN_BYTES;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::statvfs;
use serde_json::Value;
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::collector::Collector;
use crate::ending::{self, Ending};
use crate::totals::{self, Totals};
use crate::units::{self, bytes};
use crate::{preload, start};
use job::{Job, WAYS};

/// Shows the difference on a big file.
#[derive(clap::Args)]
pub struct Args {
    /// The size of the file, of which two are made, such as 500M or 1GiB
    #[arg(long, default_value = "1GiB", value_parser = units::size)]
    size: usize,
    /// The directory for the files [default: $TMPDIR; if that is not set, /tmp, or /var/tmp if /tmp is too small]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Set before the files are removed because of a signal.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the comparison. The exit status is 0 only if both files are right.
pub fn run(args: Args) -> Result<Ending> {
    let ending = compare(args);
    // The comparison fails when its files are removed. The thread that removes them ends the process.
    while INTERRUPTED.load(SeqCst) {
        thread::park();
    }
    ending
}

fn compare(args: Args) -> Result<Ending> {
    let job = Job::new(args.size as u64)?;
    let library = preload::find()?;
    let editor = editor()?;
    let place = choose_place(args.dir, job.bytes())?;

    start::keep_children();
    // Handled before there is anything to clean up.
    let signals = Signals::new(ending::signals())?;
    let dir = tempfile::Builder::new().prefix("elision-demo-").tempdir_in(&place);
    let dir = dir.with_context(|| format!("cannot make a directory in {}", place.display()))?;
    clean_up_when_interrupted(signals, &dir);

    eprintln!("elision: making two files of {} in {}", bytes(job.bytes()), dir.path().display());
    warn_if_unsupported(&place);
    let (plain, elided) = (dir.path().join("traditional"), dir.path().join("elided"));
    let progress = progress_bar(2 * job.bytes(), "making the files");
    for path in [&plain, &elided] {
        job.make(path, &progress).with_context(|| format!("cannot make {}", path.display()))?;
    }
    progress.finish_and_clear();

    let traditional = {
        let mut command = job.command(&editor, &plain);
        // This command may itself have been started with the drop-in.
        command.env("ELISION", "off");
        measure(command).context("the traditional run")?
    };
    // The second run should not share the disk with writes that the first has left.
    File::open(&plain)?.sync_all()?;
    let collector = Collector::new()?;
    let with_elision = {
        let mut command = job.command(&editor, &elided);
        command.env_remove("ELISION").env_remove("ELISION_MIN_BYTES");
        command.env("LD_PRELOAD", preload::prepended(&library, env::var_os("LD_PRELOAD").as_deref()));
        command.env("ELISION_STATS", collector.path());
        measure(command).context("the run with Elision")?
    };
    let (_, totals) = collector.collect()?;

    let progress = progress_bar(2 * job.bytes(), "comparing the files");
    let verdict = [&plain, &elided].into_iter().try_for_each(|path| job.check(path, &progress));
    progress.finish_and_clear();
    println!("{}", comparison(&traditional, &with_elision));
    println!("{}", totals.to_text(&totals::nothing_big(DEFAULT_MIN_BYTES)));
    verdict?;
    for run in [&traditional, &with_elision] {
        ensure!(run.number("found") == job.found(), "a run found the wrong value in its record");
    }
    println!("Both files are identical, and as they should be.{}", explain(&totals));
    Ok(Ending::Code(0))
}

/// A directory with room for both files, for one that is to be renamed, and some to spare.
fn choose_place(asked: Option<PathBuf>, size: u64) -> Result<PathBuf> {
    let needed = 3 * size + size / 16;
    let set = || env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let places = match asked.or_else(set) {
        Some(place) => vec![place],
        None => vec!["/tmp".into(), "/var/tmp".into()],
    };
    let mut seen = String::new();
    for place in places {
        let room = statvfs(&place).with_context(|| format!("cannot use {}", place.display()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free >= needed {
            return Ok(place);
        }
        seen += &format!("\n  {} has {}", place.display(), bytes(free));
    }
    bail!("three files of {} need more room than there is; see --size and --dir{seen}", bytes(size))
}

fn warn_if_unsupported(place: &Path) {
    match probe::file_system(place) {
        Ok(found) if !found.supported => eprintln!(
            "elision: nothing is deferred on {}; name a directory on ext4, XFS, btrfs or tmpfs with --dir",
            found.name
        ),
        _ => {}
    }
}

/// The editing program, which is built beside this one, and installed there or (by packages) in ../lib/elision.
fn editor() -> Result<PathBuf> {
    let command = env::current_exe().context("cannot tell where this executable is")?;
    let path = command.with_file_name("elision-demo-edit");
    let packaged = command.with_file_name("../lib/elision/elision-demo-edit");
    if !path.exists() && packaged.exists() {
        return Ok(packaged);
    }
    ensure!(path.exists(), "{} is missing; {}", path.display(), preload::BUILD);
    Ok(path)
}

/// Starts a thread that waits for a signal, removes the files, and ends the process.
fn clean_up_when_interrupted(mut signals: Signals, dir: &TempDir) {
    let dir = dir.path().to_owned();
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        INTERRUPTED.store(true, SeqCst);
        // The main thread may be making a file there.
        while fs::remove_dir_all(&dir).is_err_and(|_| dir.exists()) {}
        ending::die_by(signal)
    });
}

fn progress_bar(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(what)
}

/// The cost of one run.
struct Run {
    whole: Duration,
    account: Value,
}

impl Run {
    fn number(&self, name: &str) -> u64 {
        self.account[name].as_u64().unwrap_or(0)
    }
}

/// Runs the editing program and reads the account that it prints.
fn measure(mut command: Command) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    start::die_with_us(&mut command);
    let begun = Instant::now();
    let mut child = command.spawn().context("cannot start the program")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
    let status = child.wait()?;
    let whole = begun.elapsed();
    ensure!(status.success(), "the program failed: {status}");
    let account = serde_json::from_str(&line).with_context(|| format!("the program printed {line:?}"))?;
    Ok(Run { whole, account })
}

/// Both runs side by side.
fn comparison(plain: &Run, elided: &Run) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "traditional", "with Elision", "ratio"]);
    let mut row = |name: &str, (plain, elided): (u64, u64), show: fn(u64) -> String| {
        table.add_row([name.into(), show(plain), show(elided), ratio(plain, elided)]);
    };
    let both = |name: &str| (plain.number(name), elided.number(name));
    row("whole program", (plain.whole.as_micros() as u64, elided.whole.as_micros() as u64), duration);
    let ways = ["in place", "to another file, renamed", "over the file (O_TRUNC)"];
    for (way, name) in WAYS.iter().zip(ways) {
        row(&format!("  saved {name}"), both(&format!("{way}_us")), duration);
    }
    row("bytes that calls read", both("rchar"), bytes);
    row("bytes that calls wrote", both("wchar"), bytes);
    row("bytes fetched from storage", both("read_bytes"), bytes);
    row("bytes sent to storage", both("write_bytes"), bytes);
    row("peak memory", both("peak_bytes"), bytes);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

fn ratio(plain: u64, elided: u64) -> String {
    match (plain, elided) {
        (0, 0) => "same".into(),
        (_, 0) => "all saved".into(),
        (0, _) => "from nothing".into(),
        _ if plain >= 10 * elided => format!("{:.0} times less", plain as f64 / elided as f64),
        _ => format!("{:.2}", elided as f64 / plain as f64),
    }
}

/// If nothing was saved, why not.
fn explain(totals: &Totals) -> String {
    if totals.amounts.deferred_bytes > 0 || totals.amounts.elided_bytes > 0 {
        return String::new();
    }
    let reasons = totals.declined.keys().cloned().collect::<Vec<_>>().join(", ");
    let reasons = if reasons.is_empty() { "the drop-in reported nothing".into() } else { reasons };
    format!("\nNothing was deferred or elided: {reasons}. `elision doctor` says more.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_room_is_refused_and_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let refused = choose_place(Some(dir.path().into()), 1 << 60).expect_err("an exbibyte").to_string();
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        assert_eq!(choose_place(Some(dir.path().into()), 1).expect("room for two bytes"), dir.path());
    }

    #[test]
    fn ratios_read_well() {
        assert_eq!(ratio(1000, 10), "100 times less");
        assert_eq!(ratio(1000, 500), "0.50");
        assert_eq!(ratio(10, 0), "all saved");
        assert_eq!(ratio(0, 0), "same");
        assert_eq!(ratio(0, 5), "from nothing");
    }
}
