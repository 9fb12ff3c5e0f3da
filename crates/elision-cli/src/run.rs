//! `elision run`: a program with the drop-in, as nearly as possible as if it had been started by itself.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use bytesize::ByteSize;

use crate::Ending;
use crate::preload;
use crate::program::{self, Program};
use crate::signals;
use crate::supervise::{Fate, supervise};
use crate::totals::Collector;

/// Something of ours went wrong. This and the next two are what env(1) and its kin use.
pub const OWN_FAILURE: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a program with Elision.
#[derive(clap::Args)]
pub struct Args {
    /// When the program has ended, print what it and its children deferred and elided: as a table on standard
    /// error, or as a JSON object to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    stats: Option<Option<PathBuf>>,
    /// Leave reads and writes of fewer than N bytes alone (64KiB is 65536, 64K is 64000)
    #[arg(long, value_name = "N")]
    min_bytes: Option<ByteSize>,
    /// Have the drop-in confirm on standard error that it is active, and say why it declines
    #[arg(long)]
    verbose: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["PROGRAM", "ARGS"])]
    command: Vec<OsString>,
}

/// Runs it. Returns only if there is a supervisor, or if the program could not be started.
pub fn run(args: Args) -> Result<Ending> {
    let (name, arguments) = args.command.split_first().expect("clap demands one");
    let mut command = Command::new(name);
    command.args(arguments);
    signals::hand_down_start(&mut command);

    if within_reach(name) {
        let library = preload::find()?;
        command.env("LD_PRELOAD", preload::prepended(&library, env::var_os("LD_PRELOAD").as_deref()));
    }
    if let Some(bytes) = args.min_bytes {
        command.env("ELISION_MIN_BYTES", bytes.as_u64().to_string());
    }
    if args.verbose {
        command.env("ELISION_VERBOSE", "1");
    }

    let Some(report) = args.stats else {
        return Ok(could_not_start(name, command.exec()));
    };
    // Opened first: a program that ran for hours should not find then that its report has nowhere to go.
    let report = report.map(|path| {
        File::create(&path).with_context(|| format!("cannot write the statistics to {}", path.display()))
    });
    let report = report.transpose()?;
    let collector = Collector::new()?;
    command.env("ELISION_STATS", collector.path());
    let fate = match supervise(&mut command) {
        Ok(fate) => fate,
        Err(error) => return Ok(could_not_start(name, error)),
    };
    let totals = collector.collect()?;
    match report {
        Some(mut file) => writeln!(file, "{}", totals.to_json()).context("cannot write the statistics")?,
        None => eprintln!("{}", totals.to_text()),
    }
    Ok(match fate {
        Fate::Exited(code) => Ending::Code(code as u8),
        Fate::Killed(signal) => Ending::Signal(signal),
    })
}

/// Can the drop-in get into the program? If not, says so. What cannot be judged is given the benefit of the
/// doubt; whether it can be started at all is for exec to find out.
fn within_reach(name: &OsString) -> bool {
    if let Some(first) = env::var_os("LD_PRELOAD").and_then(|list| program::first_among(&list)) {
        eprintln!(
            "elision: {first} is preloaded, which must be loaded first; {} runs unchanged",
            name.display()
        );
        return false;
    }
    let Some(Ok(program)) = program::find(name).map(|path| Program::examine(&path)) else { return true };
    let Some(obstacle) = program.obstacles.first() else { return true };
    let name = name.display();
    match program.chain.len() {
        1 => eprintln!("elision: {name} {obstacle}; it runs unchanged"),
        _ => eprintln!(
            "elision: {name} is run by {}, which {obstacle}; it runs unchanged",
            program.binary().display()
        ),
    }
    false
}

fn could_not_start(name: &OsString, error: io::Error) -> Ending {
    eprintln!("elision: {}: {error}", name.display());
    Ending::Code(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}
