//! `mixbit metadata`.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use clap::Args;

use super::print_line;
use mixbit_app::parameters::Parameters;
use mixbit_app::picture;

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
        false if stdout().is_terminal() => print_line(visible(&text)),
        false => print_line(text),
    }
}

/// Escapes control characters, because text from a foreign file must not control the terminal.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => visible.push(c),
            _ if c.is_control() => visible.extend(c.escape_default()),
            _ => visible.push(c),
        }
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(visible("a\tcat\n\u{1b}[31m猫\r\u{9b}1m"), "a\tcat\n\\u{1b}[31m猫\\r\\u{9b}1m");
    }
}
