//! What CI runs, in one command.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::repository;

/// The arguments of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run what takes hours too: fuzzing, performance, compiling every packed crate
    #[arg(long)]
    full: bool,
}

/// Runs `.ci/check.sh`, which needs bash.
///
/// # Errors
/// If the script can't be run, or a check fails.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let tier = if arguments.full { "full" } else { "quick" };
    let status = Command::new("bash")
        .args([".ci/check.sh", tier])
        .current_dir(repository())
        .status()
        .context("bash can't be run")?;
    ensure!(status.success(), "a check failed: see above");
    Ok(())
}
