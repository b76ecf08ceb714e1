//! `mixbit metadata`.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use clap::Args;

use serde_json::{Map, Value};

use super::colour::{self, Style};
use super::print_line;
use super::printable::{visible, visible_line};
use mixbit_app::parameters::Parameters;
use mixbit_app::picture::{self, PictureError};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// PNG, JPEG or WebP files, from mixbit or any tool that writes AUTOMATIC1111's format
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print a JSON object; of several files, one by each file's name
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let read = arguments.files.iter().map(|path| Ok((path, picture::read_parameters(path)?)));
    let texts = read.collect::<Result<Vec<(&PathBuf, String)>, PictureError>>()?;
    let json = |text: &str| Parameters::parse(text).to_json();
    let shown = |text: &str| if stdout().is_terminal() { visible(text) } else { text.to_string() };
    match &texts[..] {
        [(_, text)] if arguments.json => print_line(format_args!("{:#}", json(text))),
        [(_, text)] => print_line(shown(text)),
        _ if arguments.json => {
            let all: Map<String, Value> =
                texts.iter().map(|(path, text)| (path.display().to_string(), json(text))).collect();
            print_line(format_args!("{:#}", Value::from(all)))
        }
        _ => texts.iter().enumerate().try_for_each(|(index, (path, text))| {
            let blank = if index > 0 { "\n" } else { "" };
            let name = visible_line(&path.display().to_string());
            print_line(format_args!("{blank}{}\n{}", colour::on_stdout(Style::Strong, &name), shown(text)))
        }),
    }
}
