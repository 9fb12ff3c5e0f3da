//! `elision run`: a program with the drop-in, otherwise as if it had been started directly.
//!
//! If something is missing, the program still runs, without statistics or without the drop-in, and one line says so.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use elision_core::settings;
use elision_core::settings::DEFAULT_MIN_BYTES;

use crate::collector::{self, Collector};
use crate::ending::Ending;
use crate::preload;
use crate::program::{self, Program};
use crate::report;
use crate::start;
use crate::supervise::supervise;
use crate::totals;
use crate::units;

/// Elision itself failed. These three are what env(1) uses as well.
pub const OWN_FAILURE: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a program with Elision.
#[derive(clap::Args)]
pub struct Args {
    /// When the program has ended, print what it and the programs that it started deferred and elided: as a table on standard error, or
    /// as a JSON object to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    stats: Option<Option<PathBuf>>,
    /// When the program has ended, write a page of HTML to FILE: which pages of each file were loaded, altered, elided, over time; the
    /// sums; what was declined, and what to do about it
    #[arg(long, value_name = "FILE", require_equals = true)]
    report: Option<PathBuf>,
    /// Leave reads and writes of fewer than N bytes alone. Units: K, M, G are powers of 1000; KiB, MiB, GiB of 1024 [default: 4MB]
    #[arg(long, value_name = "N", value_parser = units::size)]
    min_bytes: Option<usize>,
    /// Say on standard error that Elision is active, and why it declines a read or write
    #[arg(long)]
    verbose: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["PROGRAM", "ARGS"])]
    command: Vec<OsString>,
}

/// Runs the program. Returns only with `--stats` or `--report`, or if the program could not be started.
pub fn run(args: Args) -> Result<Ending> {
    let (name, arguments) = args.command.split_first().expect("clap demands one");
    let mut command = Command::new(name);
    command.args(arguments);
    start::hand_down(&mut command);

    // Opened first: a failure after hours would lose the report.
    let open = |path: &PathBuf, what| {
        File::create(path).with_context(|| format!("cannot write the {what} to {}", path.display()))
    };
    let to_file = |path: &PathBuf| open(path, "statistics");
    let stats = args.stats.as_ref().map(|path| path.as_ref().map(to_file).transpose()).transpose()?;
    let report = args.report.as_ref().map(|path| open(path, "report")).transpose()?;

    let settled = settle(&mut command, args.min_bytes);
    let library = library(name);
    if let Some(library) = &library {
        command.env("LD_PRELOAD", preload::prepended(library, env::var_os("LD_PRELOAD").as_deref()));
    }
    if args.verbose {
        command.env("ELISION_VERBOSE", "1");
        if let Some(library) = &library {
            eprintln!("elision: {} runs with {}", name.display(), library.display());
        }
    }

    if stats.is_none() && report.is_none() {
        return Ok(could_not_start(name, command.exec()));
    }
    let without_statistics = |command: &mut Command, why: &dyn std::fmt::Display| {
        eprintln!("elision: {} runs without statistics: {why}", name.display());
        Ok(could_not_start(name, command.exec()))
    };
    let outer = env::var_os("ELISION_STATS").filter(|path| !path.is_empty());
    let collector = match Collector::new() {
        Ok(collector) => collector,
        Err(error) => return without_statistics(&mut command, &format_args!("{error:#}")),
    };
    command.env("ELISION_STATS", collector.path());
    if report.is_some() {
        command.env("ELISION_REPORT", "1");
    }
    let status = match supervise(&mut command) {
        Ok(status) => status,
        // No second process is allowed: the program takes the place of this one.
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory) => {
            match &outer {
                Some(outer) => command.env("ELISION_STATS", outer),
                None => command.env_remove("ELISION_STATS"),
            };
            command.env_remove("ELISION_REPORT");
            return without_statistics(&mut command, &error);
        }
        Err(error) => return Ok(could_not_start(name, error)),
    };
    // The program has run: from here on only its end counts, even if the statistics fail.
    let done = collector.collect().and_then(|(lines, totals)| {
        if let Some(outer) = &outer {
            collector::pass_on(Path::new(outer), &lines)?;
        }
        let nothing = nothing(name, library.is_some(), &settled);
        match stats {
            Some(Some(mut file)) => {
                writeln!(file, "{}", totals.to_json()).context("cannot write the statistics")?
            }
            Some(None) => eprintln!("{}", totals.to_text(&nothing)),
            None => (),
        }
        if let Some(mut file) = report {
            let command = args.command.join(OsStr::new(" "));
            let stories = report::stories(&String::from_utf8_lossy(&lines));
            let page = report::page(&command.to_string_lossy(), &totals, &nothing, &stories);
            file.write_all(page.as_bytes()).context("cannot write the report")?;
        }
        Ok(())
    });
    if let Err(error) = done {
        eprintln!("elision: {error:#}");
    }
    Ok(match status.signal() {
        Some(signal) => Ending::Signal(signal),
        None => Ending::Code(status.code().unwrap_or_default() as u8),
    })
}

/// The settings, from the environment and the options.
struct Settled {
    off: bool,
    least: usize,
}

/// Settings that are not understood are replaced here, so that not each process of the tree complains.
fn settle(command: &mut Command, min_bytes: Option<usize>) -> Settled {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let on = set("ELISION").map_or(Some(true), |value| {
        let on = settings::switch(value.as_bytes());
        if on.is_none() {
            eprintln!("elision: ELISION={} is not understood: taken for off", value.display());
            command.env("ELISION", "off");
        }
        on
    });
    let least = min_bytes.or_else(|| {
        let value = set("ELISION_MIN_BYTES")?;
        let least = settings::bytes(value.as_bytes());
        if least.is_none() {
            eprintln!("elision: ELISION_MIN_BYTES={} is not understood: 4 MB it is", value.display());
            command.env_remove("ELISION_MIN_BYTES");
        }
        least
    });
    if min_bytes.is_some() {
        command.env("ELISION_MIN_BYTES", least.unwrap_or_default().to_string());
    }
    Settled { off: on != Some(true), least: least.unwrap_or(DEFAULT_MIN_BYTES) }
}

/// Why there is nothing to report.
fn nothing(name: &OsStr, loaded: bool, settled: &Settled) -> String {
    if !loaded {
        format!("{} ran without the drop-in", name.display())
    } else if settled.off {
        "ELISION says off".to_owned()
    } else {
        totals::nothing_big(settled.least)
    }
}

/// The drop-in, if it exists and can be loaded into the program; otherwise prints why not. In doubt, it is used.
fn library(name: &OsStr) -> Option<PathBuf> {
    if let Some(first) = env::var_os("LD_PRELOAD").and_then(|list| program::first_among(&list)) {
        eprintln!(
            "elision: {first} is preloaded, which must be loaded first; {} runs unchanged",
            name.display()
        );
        return None;
    }
    let program = program::find(name).and_then(|path| Program::examine(&path).ok());
    if let Some(program) = program
        && let Some(obstacle) = program.obstacles.first()
    {
        let name = name.display();
        match program.chain.len() {
            1 => eprintln!("elision: {name} {obstacle}; it runs unchanged"),
            _ => eprintln!(
                "elision: {name} is run by {}, which {obstacle}; it runs unchanged",
                program.binary().display()
            ),
        }
        return None;
    }
    preload::find()
        .inspect_err(|error| eprintln!("elision: {} runs without the drop-in: {error:#}", name.display()))
        .ok()
}

fn could_not_start(name: &OsStr, error: io::Error) -> Ending {
    eprintln!("elision: {}: {error}", name.display());
    Ending::Code(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}
