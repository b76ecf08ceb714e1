//! `mixbit metadata`.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use clap::Args;

use super::print_line;
use super::printable::visible;
use mixbit_app::parameters::Parameters;
use mixbit_app::picture;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A PNG, JPEG or WebP file, from mixbit or any tool that writes AUTOMATIC1111's format
    file: PathBuf,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let text = picture::read_parameters(&arguments.file)?;
    match arguments.json {
        true => print_line(format_args!("{:#}", Parameters::parse(&text).to_json())),
        false if stdout().is_terminal() => print_line(visible(&text)),
        false => print_line(text),
    }
}
