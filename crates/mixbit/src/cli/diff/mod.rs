//! `mixbit diff`.

mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use mixbit_packages::diff::{NetworkPairs, compare, open_both};

use self::report::Report;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::print_line;
use super::progress::Progress;

#[derive(Debug, Args)]
#[command(after_help = "The exit code is 0 if both are the same, 1 if they differ, 2 if that can't be told.

Examples:
  mixbit diff stable-diffusion-v1-5 converted             (what conversion changed)
  mixbit diff converted/x_unet.mlpackage palettized/x_unet.mlpackage --all
  mixbit diff a.safetensors b.safetensors --json")]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a Core ML package (.mlpackage or .mlmodelc), a directory
    /// of them, a model in one file, or a file of tensors
    a: PathBuf,
    /// What to compare it with: any of these; a single network is compared with its like in a model
    b: PathBuf,
    /// List every tensor that differs, not only the ten that differ most
    #[arg(long, visible_alias = "layers", conflicts_with = "json")]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    files: ModelFileOptions,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        vec![Asked::plain(&mut self.a), Asked::plain(&mut self.b)]
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let NetworkPairs { pairs, only } = open_both([&arguments.a, &arguments.b], &arguments.files.open()?)?;
    let counter = Progress::new(arguments.quiet).bytes("comparing");
    let comparisons = compare(&pairs, &counter)?;
    drop(counter);
    let report = Report { paths: [&arguments.a, &arguments.b], comparisons, only };
    match arguments.json {
        true => print_line(format_args!("{:#}", report.to_json()))?,
        false => print_line(report.to_text(arguments.all).trim_end())?,
    }
    Ok(if report.is_same() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
