//! The tasks that the doctor gives to child processes.

use std::path::PathBuf;

/// What a child prints when it holds a buffer and waits for the end of its input.
pub const HOLDING: &str = "holding";

/// A task for a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Step {
    /// Fill the scratch file. (Without the drop-in.)
    Fill,
    /// Read the whole file, and compare parts of it.
    Read,
    /// As `Read`, without comparing: others may be changing the file.
    Look,
    /// Read all, alter one byte, write all back through the same descriptor.
    Save,
    /// Write the same memory to the same place several times.
    Again,
    /// Read all through one descriptor, alter one byte, write all back through another.
    Reopen,
    /// Read all, wait until the file has been changed, and compare the buffer with the old contents.
    Keep,
    /// Probe one cause. (Without the drop-in.)
    Probe,
    /// Make one system call. (Without the drop-in.)
    Call,
    /// Start another process, which starts another. (Without the drop-in.)
    Spawn,
}

/// Carries out one step of `elision doctor`. Internal.
#[derive(clap::Args)]
pub struct Args {
    pub step: Step,
    pub path: PathBuf,
    /// Probe: the index of the cause. Call: the index of the system call. Spawn: the number of processes
    #[arg(default_value_t = 0)]
    pub number: usize,
}
