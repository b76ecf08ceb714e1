//! `cargo xtask synth`: checkpoints of published sizes with random weights ([`mixbit_app::synthetic`]).

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use mixbit_app::synthetic::Skeleton;
use mixbit_diffusion::family::{FAMILIES, Family};
use mixbit_mil::DType;

/// The arguments of `cargo xtask synth`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model
    #[arg(value_parser = PossibleValuesParser::new(FAMILIES.iter().map(|family| family.name)))]
    model: String,
    /// Write one file in the original layout, not a directory
    #[arg(long)]
    single_file: bool,
    /// The directory of the checkpoint, or its file; made if it is not there. Files of the same names are
    /// replaced
    directory: PathBuf,
    /// The seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The type of the weights
    #[arg(long, value_enum, default_value_t = Type::F16)]
    dtype: Type,
}

/// The types of published weights.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    F16,
    F32,
}

impl Type {
    fn dtype(self) -> DType {
        match self {
            Type::F16 => DType::F16,
            Type::F32 => DType::F32,
        }
    }
}

/// Writes the requested model.
///
/// # Errors
/// A file that can't be written, with its path.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let family = Family::of_name(&arguments.model).context("the model is unknown")?;
    let skeleton = Skeleton::of_family(family)?;
    let (path, seed, dtype) = (&arguments.directory, arguments.seed, arguments.dtype.dtype());
    match arguments.single_file {
        true => skeleton.write_single_file(path, seed, dtype, &())?,
        false => skeleton.write(path, seed, dtype, &())?,
    }
    let (directory, seconds) = (arguments.directory.display(), start.elapsed().as_secs_f64());
    let parameters = skeleton.parameters();
    println!("{directory}: {} with {parameters} random parameters in {seconds:.1} s", arguments.model);
    Ok(())
}
