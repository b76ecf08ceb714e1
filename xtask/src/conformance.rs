//! The comparison of mixbit's packages with Apple's converter's.

use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::repository;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Run only the cases with this word in their description
    word: Option<String>,
}

/// Runs `tools/conformance/run.sh`.
///
/// # Errors
/// If it can't be run, or a package does not conform.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let script = repository().join("tools/conformance/run.sh");
    let status = Command::new(&script).args(&arguments.word).status();
    let status = status.with_context(|| format!("can't run {}", script.display()))?;
    if !status.success() {
        bail!("the packages do not conform, or could not be compared ({status})");
    }
    Ok(())
}
