//! Carrying out a [`Step`], in a child of the doctor.

use std::io;
use std::path::Path;
use std::process::{Command, exit};

use anyhow::{Result, bail};
use elision_core::probe;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::causes::CAUSES;
use super::report::text_of;
use super::scratch;
use super::step::{Args, Step};
use crate::preload;

/// Carries out one step. The caller prints the error.
pub fn perform(args: &Args) -> Result<()> {
    // Where a filter refuses this, the child ends at the end of its input.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let path = args.path.as_path();
    match args.step {
        Step::Fill => scratch::fill(path),
        Step::Read | Step::Look => scratch::read(path, args.step == Step::Read),
        Step::Save => scratch::save(path),
        Step::Again => scratch::save_again(path),
        Step::Reopen => scratch::reopen(path),
        Step::Keep => scratch::keep(path),
        Step::Probe => {
            let Some(cause) = CAUSES.get(args.number) else { bail!("there is no such cause") };
            exit_with((cause.probe)(path))
        }
        Step::Call => {
            let Some(&(_, call)) = probe::calls().get(args.number) else { bail!("there is no such call") };
            exit_with(probe::call(call))
        }
        Step::Spawn => spawn(args.number, path),
    }
}

/// On an error: prints it and exits with its number.
fn exit_with(outcome: io::Result<()>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    println!("{}", text_of(&error));
    exit(error.raw_os_error().unwrap_or(255))
}

/// Starts `number` processes, each by the one before.
fn spawn(number: usize, path: &Path) -> Result<()> {
    let Some(next) = number.checked_sub(1) else { return Ok(()) };
    let mut command = Command::new(preload::this_command()?);
    match command.args(["doctor-step", "spawn"]).arg(path).arg(next.to_string()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => exit(status.code().unwrap_or(255)),
        Err(error) => exit_with(Err(error)),
    }
}
