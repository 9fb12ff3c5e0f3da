//! The `elision` command: runs programs with deferred reads and elided writes, tells what works on a machine, and shows the difference.

mod collector;
mod demo;
mod doctor;
mod embedded;
mod ending;
mod manual;
mod preload;
mod program;
mod report;
mod run;
mod start;
mod supervise;
mod top;
mod totals;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use ending::Ending;

/// Runs programs with deferred reads and elided writes.
///
/// A big read returns at once, and each page is loaded when the program first touches it, or never. A big write stores only the pages
/// that the program has altered. The program and its files stay as they are.
#[derive(Parser)]
#[command(name = "elision", version, after_help = HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Run a program with Elision; its output, signals and exit status are its own
    ///
    /// Runs PROGRAM with the drop-in, a library that LD_PRELOAD loads into it and into the programs that it starts. Nothing else changes:
    /// output, signals and exit status are the program's own.
    #[command(after_help = RUN_HELP)]
    Run(run::Args),
    /// Check whether Elision works here, with a file or for a program, and what to do where it does not
    ///
    /// Tries deferred reads and elided saves, and says for each whether it works, why not, and what to do.
    #[command(after_help = DOCTOR_HELP)]
    Doctor(doctor::Args),
    #[command(hide = true)]
    DoctorStep(doctor::StepArgs),
    /// Watch what running programs have deferred, loaded and altered
    ///
    /// Shows each program that has deferred something, and its files: how much is deferred, loaded, and in memory of the program's own.
    /// Programs of other users are seen by root alone.
    #[command(after_help = TOP_HELP)]
    Top(top::Args),
    /// Edit a big file without and with Elision, and compare time, bytes and memory
    ///
    /// Makes two equal files. An ordinary program reads all of a file, changes three records, and writes all of it back: the first file
    /// without Elision, the second with it. Prints both costs side by side, checks every byte, and removes the files.
    #[command(after_help = DEMO_HELP)]
    Demo(demo::Args),
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(manual::CompletionArgs),
    /// Write the manual pages into a directory, for packages
    #[command(hide = true)]
    Man(manual::ManArgs),
}

const HELP: &str = "\
Examples:
  elision run -- python3 edit.py big.bin        run a program with Elision
  elision run --stats -- python3 edit.py        and print what it deferred and elided
  elision run --stats=out.json -- make          the same as JSON, for make and all that it starts
  elision run --report=out.html -- ./simulate   a page that shows each file's pages over time
  elision doctor                                does it work in this directory?
  elision doctor big.bin                        can this file be deferred, and its saves elided?
  elision doctor python3                        can this program be run with Elision?
  elision top                                   watch what running programs have deferred
  elision demo                                  see the difference on a file of 1 GiB

Environment of a program that runs with Elision:
  ELISION=off          switch Elision off (also no, false, 0)
  ELISION_MIN_BYTES=N  leave reads and writes of fewer than N bytes alone [default: 4MB]
  ELISION_TRUNCATE=now empty files that are opened to be saved (O_TRUNC) at once, and write them in full
  ELISION_SHARE=off    write copies in full, also where they could share blocks with what they are copies of
  ELISION_STATS=FILE   append one line of JSON to FILE when a process ends
  ELISION_VERBOSE=1    say on standard error that Elision is active, and what it declines

Environment of the command itself:
  ELISION_PRELOAD=FILE the drop-in [default: libelision_preload.so beside the command or in ../lib, else the one inside the
                       command, which is put into ~/.cache/elision]";

const RUN_HELP: &str = "\
Examples:
  elision run -- python3 edit.py big.bin
  elision run --stats --min-bytes 64KiB -- ./simulate

Programs that cannot be run with Elision run unchanged, and one line on standard error says why: programs that are statically \
linked, linked against another C library than glibc, or set-uid. So does every program if the drop-in is missing. An existing \
LD_PRELOAD is kept.

Exit status:
  the program's own, or death by the signal that ended the program
  2    the command line is wrong
  125  elision failed before it started the program
  126  the program could not be executed
  127  the program was not found";

const DOCTOR_HELP: &str = "\
What is tried, as a program under `elision run` would do it:
  read               read a big file
  save               alter one byte of it, and write all of it back
  save again         write the same memory to the same place several times
  save, opened anew  read through one descriptor, and write through another
  break              another process changes the file while a buffer of it exists
In a directory, this is done with a scratch file of 8 MiB, which is removed. A file is read, and never changed. A program is examined, \
and not run.

Each line starts with ok, no (why not, and below what to do), or -- (good to know).

Exit status:
  0  everything that was asked about is possible
  1  something is not
  2  the command line is wrong, or there is no such file or program

Examples:
  elision doctor                              in the current directory
  elision doctor /var/lib/data                in another directory
  elision doctor big.bin                      can this file be deferred, and its saves elided?
  elision doctor python3                      can this program be run with Elision?
  docker run --cap-add SYS_PTRACE IMAGE elision doctor
                                              containers often lack this capability";

const TOP_HELP: &str = "\
Keys: q, Esc or Ctrl-C end it; the arrows and page keys move.

Files that can never change (squashfs, fs-verity and the like) are not shown: no lease tells of them.

Examples:
  elision top             all programs of yours
  elision top 4711        one process
  elision top --once      print the table, and end

Exit status:
  0  it was shown
  1  the process has deferred nothing, or the terminal cannot be drawn on
  2  the command line is wrong";

const DEMO_HELP: &str = "\
Examples:
  elision demo
  elision demo --size 256MiB --dir /var/tmp

Exit status:
  0  both files are as they should be
  1  they are not, or the demo failed
  2  the command line is wrong";

const COMPLETIONS_HELP: &str = "\
Examples:
  elision completions bash > ~/.local/share/bash-completion/completions/elision
  elision completions fish > ~/.config/fish/completions/elision.fish
  elision completions zsh > _elision       in a directory of $fpath";

fn main() -> ExitCode {
    let (ending, own_failure) = match Cli::parse().command {
        Job::Run(args) => (run::run(args), run::OWN_FAILURE),
        Job::Doctor(args) => (doctor::run(args), doctor::ASKED_WRONGLY),
        Job::DoctorStep(args) => (doctor::step(args), doctor::ASKED_WRONGLY),
        Job::Top(args) => (top::run(args), 1),
        Job::Demo(args) => (demo::run(args), 1),
        Job::Completions(args) => (manual::completions(Cli::command(), args), 1),
        Job::Man(args) => (manual::man(Cli::command(), args), 1),
    };
    // All temporary files have been removed by now.
    match ending {
        Ok(Ending::Code(code)) => ExitCode::from(code),
        Ok(Ending::Signal(signal)) => ending::die_by(signal),
        Err(error) => {
            eprintln!("elision: {error:#}");
            ExitCode::from(own_failure)
        }
    }
}
