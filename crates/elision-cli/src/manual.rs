//! Manual pages and completions, from the same description as `--help`.

use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

use crate::ending::Ending;

#[derive(clap::Args)]
pub struct CompletionArgs {
    /// For which shell
    shell: Shell,
}

/// Prints the completions.
pub fn completions(mut command: Command, args: CompletionArgs) -> Result<Ending> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "elision", &mut text);
    io::Write::write_all(&mut io::stdout(), &text).context("cannot print the completions")?;
    Ok(Ending::Code(0))
}

#[derive(clap::Args)]
pub struct ManArgs {
    /// The directory for the pages
    dir: PathBuf,
}

/// Writes `elision.1` and a page for each command.
pub fn man(command: Command, args: ManArgs) -> Result<Ending> {
    let cannot = || format!("cannot write manual pages to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).with_context(cannot)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), &args.dir).with_context(cannot)?;
    Ok(Ending::Code(0))
}
