//! `mixbit metadata`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::parameters::Parameters;
use crate::picture;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A PNG file, from mixbit or any tool that writes AUTOMATIC1111's format
    file: PathBuf,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let text = picture::read_parameters(&arguments.file)?;
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{:#}", Parameters::parse(&text).to_json())?,
        false => writeln!(out, "{text}")?,
    }
    Ok(())
}
