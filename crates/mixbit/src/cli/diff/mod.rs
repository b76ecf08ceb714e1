//! `mixbit diff`.

mod networks;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use mixbit_mil::{Function, constexpr};

use self::networks::{Networks, open_both};
use self::report::Report;
use super::print_line;
use super::progress::Progress;
use mixbit_packages::diff::structure::Structure;
use mixbit_packages::diff::tensors::{Distance, Matched, distances, matched};
use mixbit_packages::inspect::{Part, Tensor};

#[derive(Debug, Args)]
#[command(after_help = "The exit code is 0 if both are the same, 1 if they differ, 2 if that can't be told.

Examples:
  mixbit diff stable-diffusion-v1-5 converted             (what conversion changed)
  mixbit diff converted/x_unet.mlpackage palettized/x_unet.mlpackage --all
  mixbit diff a.safetensors b.safetensors --json")]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a Core ML package (.mlpackage or .mlmodelc), a directory of them, or a
    /// safetensors file
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
}

/// Two networks, compared.
struct Comparison<'a> {
    parts: &'a [Part; 2],
    structure: Structure,
    tensors: Matched<'a>,
    /// One for each pair of tensors.
    distances: Vec<Distance>,
}

impl Comparison<'_> {
    fn is_same(&self) -> bool {
        self.structure.is_same()
            && self.distances.iter().all(|distance| *distance == Distance::Equal)
            && self.tensors.only.iter().all(|only| only.is_empty())
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Networks { pairs, only } = open_both([&arguments.a, &arguments.b])?;
    let comparisons = compare(&pairs, &Progress::new(arguments.quiet))?;
    let report = Report { paths: [&arguments.a, &arguments.b], comparisons, only };
    match arguments.json {
        true => print_line(format_args!("{:#}", report.to_json()))?,
        false => print_line(report.to_text(arguments.all).trim_end())?,
    }
    Ok(if report.is_same() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare<'a>(pairs: &'a [[Part; 2]], progress: &Progress) -> anyhow::Result<Vec<Comparison<'a>>> {
    let mut comparisons = Vec::new();
    for parts in pairs {
        let [a, b] = parts.each_ref().map(|part| part.function.as_ref().map(constexpr::decoded).transpose());
        let graphs: [Option<Function>; 2] = [a?, b?];
        let graphs = graphs.each_ref().map(Option::as_ref);
        let tensors = matched(parts.each_ref().map(|part| &part.tensors[..]), graphs);
        comparisons.push(Comparison {
            parts,
            structure: Structure::compare(parts.each_ref(), graphs, &tensors.pairs),
            tensors,
            distances: Vec::new(),
        });
    }
    let all: Vec<[&Tensor; 2]> = comparisons.iter().flat_map(|one| &one.tensors.pairs).copied().collect();
    let total = all.iter().flatten().map(|tensor| tensor.bytes() as u64).sum();
    let counter = progress.bytes("comparing".to_string());
    let mut distances = distances(&all, &mut |done| counter.advance_bytes(done, total))?.into_iter();
    for comparison in &mut comparisons {
        comparison.distances = distances.by_ref().take(comparison.tensors.pairs.len()).collect();
    }
    Ok(comparisons)
}
