//! Starting a child for a [`Step`], with a limit on its time.
#![allow(unsafe_code)] // One call of poll.

use std::env;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use super::step::{HOLDING, Step};
use crate::collector::Collector;
use crate::totals::Totals;
use crate::{ending, preload, start};

/// A child that takes longer is killed.
const LONGEST: Duration = Duration::from_secs(15);
/// A child that takes longer is mentioned.
const NOTICEABLE: Duration = Duration::from_secs(1);
/// The milliseconds between two looks at the clock.
const TICK: i32 = 50;

/// How a child ended.
pub enum End {
    /// By exiting, with this status.
    Exited(i32),
    /// By a signal that the doctor did not send.
    Killed(i32),
    /// Not in time: it was killed.
    Late,
    /// It could not be started.
    NotStarted(io::Error),
}

/// The result of a child.
pub struct Outcome {
    pub end: End,
    /// Its standard output.
    pub said: String,
    /// Its statistics.
    pub totals: Totals,
}

impl Outcome {
    pub fn good(&self) -> bool {
        matches!(self.end, End::Exited(0))
    }
}

/// The error for a signal that ends the doctor, after everything has been cleaned up.
#[derive(Debug)]
pub struct Interrupted(pub i32);

impl fmt::Display for Interrupted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "signal {}", self.0)
    }
}

impl Error for Interrupted {}

/// Starts children.
pub struct Starter {
    command: PathBuf,
    library: PathBuf,
}

impl Starter {
    pub fn new(library: PathBuf) -> Result<Starter> {
        start::keep_children();
        ending::note_signals();
        Ok(Starter { command: preload::this_command()?, library })
    }

    fn command(&self, step: Step, path: &Path, number: usize) -> Command {
        let mut command = Command::new(&self.command);
        let step = step.to_possible_value().expect("none is skipped");
        command.args(["doctor-step", step.get_name()]).arg(path).arg(number.to_string());
        command.env_remove("ELISION_STATS").env_remove("ELISION_VERBOSE").env_remove("ELISION_MIN_BYTES");
        command
    }

    /// Runs a child without the drop-in.
    pub fn plainly(&self, step: Step, path: &Path, number: usize) -> Result<Outcome> {
        let mut command = self.command(step, path, number);
        command.env("ELISION", "off");
        self.run(command, |_| Ok(()))
    }

    /// Runs a child with the drop-in, as `elision run` would. When the child holds a buffer, calls `meanwhile` with a function that says
    /// whether there is time left.
    pub fn elided(
        &self,
        step: Step,
        path: &Path,
        min_bytes: Option<usize>,
        meanwhile: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<()>,
    ) -> Result<Outcome> {
        let collector = Collector::new()?;
        let mut command = self.command(step, path, 0);
        command.env("LD_PRELOAD", preload::prepended(&self.library, env::var_os("LD_PRELOAD").as_deref()));
        command.env("ELISION_STATS", collector.path());
        if let Some(bytes) = min_bytes {
            command.env("ELISION_MIN_BYTES", bytes.to_string());
        }
        let outcome = self.run(command, meanwhile)?;
        Ok(Outcome { totals: collector.collect()?.1, ..outcome })
    }

    fn run(
        &self,
        mut command: Command,
        meanwhile: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<()>,
    ) -> Result<Outcome> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // No pre_exec, so std uses no fork, for which a filter may kill.
        let begun = Instant::now();
        let mut outcome = Outcome { end: End::Late, said: String::new(), totals: Totals::default() };
        let mut child = match command.spawn() {
            Ok(child) => Running(child),
            Err(error) => return Ok(Outcome { end: End::NotStarted(error), ..outcome }),
        };
        let mut lines = child.0.stdout.take().expect("piped");
        let mut meanwhile = Some(meanwhile);
        let mut told = false;
        loop {
            if let Some(signal) = ending::noted() {
                return Err(Interrupted(signal).into());
            }
            if begun.elapsed() > LONGEST {
                return Ok(outcome);
            }
            if begun.elapsed() > NOTICEABLE && !told && io::stderr().is_terminal() {
                eprintln!("elision: waiting for a step that takes longer than usual (at most {LONGEST:?})");
                told = true;
            }
            if !wait_readable(lines.as_fd(), TICK) {
                continue;
            }
            let mut piece = [0; 1024];
            let count = match lines.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if count == 0 {
                break;
            }
            outcome.said += &String::from_utf8_lossy(&piece[..count]);
            if outcome.said.starts_with(HOLDING)
                && let Some(meanwhile) = meanwhile.take()
            {
                meanwhile(&mut || {
                    wait_readable(lines.as_fd(), 1);
                    begun.elapsed() < LONGEST / 3
                })?;
                // The child goes on at the end of its input.
                child.0.stdin = None;
            }
        }
        let status = child.0.wait()?;
        outcome.end = match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Killed(signal.unwrap_or(0)),
        };
        Ok(outcome)
    }
}

/// A child that is killed if it is no longer waited for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a descriptor can be read or its other end is closed, a signal comes, or so many milliseconds have passed. (By poll, which every
/// Rust program calls at its start: no filter forbids it.)
fn wait_readable(fd: BorrowedFd<'_>, milliseconds: i32) -> bool {
    let mut wanted = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: reads and writes one pollfd.
    unsafe { libc::poll(&mut wanted, 1, milliseconds) > 0 }
}
