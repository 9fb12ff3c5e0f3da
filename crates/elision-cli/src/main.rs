//! The `elision` command: run a program with deferred reads and elided writes, find out what the machine
//! allows, and see the difference.

mod demo;
mod doctor;
mod ending;
mod preload;
mod program;
mod run;
mod start;
mod supervise;
mod totals;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use ending::Ending;

/// Gives the standard read and write a different implementation: a big read returns at once, and its pages are
/// loaded when they are touched, or never; a big write writes only the pages that were altered.
#[derive(Parser)]
#[command(name = "elision", version, after_help = LESSON, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Run a program with the drop-in; exit status and signals are the program's own
    #[command(after_help = RUN_LESSON)]
    Run(run::Args),
    /// Try it: read, save and let others change a file here, or read the file that is named; and say what to do about each no
    #[command(after_help = DOCTOR_LESSON)]
    Doctor(doctor::Args),
    #[command(hide = true)]
    DoctorStep(doctor::StepArgs),
    /// Edit a big file traditionally and with Elision, and compare
    Demo(demo::Args),
}

const LESSON: &str = "\
Examples:
  elision run -- python3 edit.py big.bin     run a program with Elision
  elision run --stats python3 edit.py        and print what it deferred and elided
  elision run --stats=out.json make          the same as JSON, for the whole tree of processes
  elision doctor                             does it work here, under the limits that hold?
  elision doctor big.bin                     can this file be deferred?
  elision doctor python3                     can this program be reached?
  elision demo                               see the difference on a 1 GiB file

Environment of a program that runs with Elision:
  ELISION=off          do nothing: every call is the traditional one (also no, false, 0)
  ELISION_MIN_BYTES=N  leave reads and writes of fewer than N bytes alone (65536, 64KiB, 1M)
  ELISION_STATS=FILE   append one line of JSON to FILE when a process ends
  ELISION_VERBOSE=1    confirm on standard error that it is active, and say why it declines

The command itself looks for the drop-in where ELISION_PRELOAD says, else beside itself and in ../lib.";

const RUN_LESSON: &str = "\
Exit status: the program's own, and if a signal ended it, by that signal. 127 if it was not found, 126 if it \
could not be run, 125 if elision itself failed before it was started, 2 if the command line was not understood.

The drop-in reaches programs that are dynamically linked against glibc and not set-uid. Any other is named \
in one line on standard error, and runs unchanged, as it does where the drop-in is missing. An existing LD_PRELOAD \
is kept.";

const DOCTOR_LESSON: &str = "\
A child does what a program would do under `elision run`:
  read               a big file is read, and looked at
  save               one byte of it is altered, and all of it written back
  save again         the same memory is written to the same place several times
  save, opened anew  what was read through one descriptor is written through another
  break              another process changes the file while a buffer stands for it
In a directory this is done with a scratch file of 8 MiB, which is removed. \
A file that is named is read, and never changed. A program that is named is looked at, and not run.

Each line starts with ok, no (not possible: why, and below what to do), or -- (good to know).

Exit status: 0 if everything asked about is possible, 1 if something is not, 2 if it was asked wrongly.

Examples:
  elision doctor                              in the current directory
  elision doctor /var/lib/data                in another
  elision doctor big.bin                      can this file be deferred, and saved?
  elision doctor python3                      can this program be reached?
  docker run --cap-add SYS_PTRACE IMAGE elision doctor
                                              what a container lacks is often this";

fn main() -> ExitCode {
    let (ending, own_failure) = match Cli::parse().command {
        Job::Run(args) => (run::run(args), run::OWN_FAILURE),
        Job::Doctor(args) => (doctor::run(args), doctor::ASKED_WRONGLY),
        Job::DoctorStep(args) => (doctor::step(args), doctor::ASKED_WRONGLY),
        Job::Demo(args) => (demo::run(args), 1),
    };
    // By now every temporary file has been dropped, and with it removed.
    match ending {
        Ok(Ending::Code(code)) => ExitCode::from(code),
        Ok(Ending::Signal(signal)) => ending::die_by(signal),
        Err(error) => {
            eprintln!("elision: {error:#}");
            ExitCode::from(own_failure)
        }
    }
}
