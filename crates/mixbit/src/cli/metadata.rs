//! `mixbit metadata`.

use std::path::PathBuf;

use clap::Args;

use super::print_line;
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
    match arguments.json {
        true => print_line(format_args!("{:#}", Parameters::parse(&text).to_json())),
        false => print_line(text),
    }
}
