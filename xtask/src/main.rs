//! Development tasks, run as `cargo xtask TASK`.
#![forbid(unsafe_code)]

mod bench_analyze;
mod bench_convert;
mod bench_palettize;
mod bench_peers;
mod check;
mod conformance;
mod demo_eval;
mod packages;
mod rules;
mod statistics;
mod synth;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about)]
enum Task {
    /// Run what CI runs: formatting, lints, tests, documentation, packages, and the rules below
    Check(check::Arguments),
    /// Check who depends on whom, unsafe code, circles of files, and the paths in documents
    Rules,
    /// Pack the published crates, and check the size of each archive
    Package(packages::Arguments),
    /// Compare written Core ML packages with Apple's; needs Python 3.11 and the package index
    Conformance(conformance::Arguments),
    /// Analyze the demo model by each method, and compare costs and recipes
    BenchAnalyze(bench_analyze::Arguments),
    /// Convert a checkpoint's UNet to a Core ML package, and compare with a copy of its weights
    BenchConvert(bench_convert::Arguments),
    /// Palettize a checkpoint's UNet by a seeded recipe, and measure time and memory
    BenchPalettize(bench_palettize::Arguments),
    /// Run a network in mixbit, OpenVINO and PyTorch in turn, and compare times, memory and results; needs
    /// Python
    BenchPeers(bench_peers::Arguments),
    /// Write a checkpoint of a published model's size with random weights, in the diffusers layout
    Synth(synth::Arguments),
    /// Draw the demo model's held-out captions and measure colours, positions and shapes from the pixels
    DemoEval(demo_eval::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Check(arguments) => check::run(&arguments),
        Task::Rules => rules::run(),
        Task::Package(arguments) => packages::run(&arguments),
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::BenchAnalyze(arguments) => bench_analyze::run(&arguments),
        Task::BenchConvert(arguments) => bench_convert::run(&arguments),
        Task::BenchPalettize(arguments) => bench_palettize::run(&arguments),
        Task::BenchPeers(arguments) => bench_peers::run(&arguments),
        Task::Synth(arguments) => synth::run(&arguments),
        Task::DemoEval(arguments) => demo_eval::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository that this binary was built in.
fn repository() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(&manifest).to_path_buf()
}
