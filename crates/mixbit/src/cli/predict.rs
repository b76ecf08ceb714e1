//! `mixbit predict`.

use std::io::{Write, stderr};
use std::path::PathBuf;

use clap::Args;
use mixbit_engine::Options;
use mixbit_formats::npy::{Npz, write_npz};
use mixbit_packages::predict::{Prediction, Predictor};

use super::backends::Machine;
use super::progress::Progress;
use super::{interrupt, print_line, profile, values};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit predict Unet.mlpackage --inputs in.npz -o out.npz
  mixbit predict Unet.mlmodelc --inputs in.npz -o out.npz --precision f16 --profile")]
pub(super) struct Arguments {
    /// A Core ML package (.mlpackage) or compiled model (.mlmodelc)
    package: PathBuf,
    /// The inputs by name: an archive of NumPy's `savez`. An image is the tensor that the program takes
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The archive for the outputs by name, in the types that the package declares
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Which function of the package, if it has several [default: the package's]
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// What the network is computed in; f16 rounds as a device does
    #[arg(long, value_parser = values::precisions(), default_value = "f32")]
    precision: String,
    /// Also print where the time went, by kind of op
    #[arg(long)]
    profile: bool,
    /// Threads to compute with [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print only the file's name
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    let inputs = Npz::open(&arguments.inputs)?;
    let predictor = Predictor::open(&arguments.package, arguments.function.as_deref())?;
    let backend = Machine::new(arguments.threads.map(usize::from))?.backend;
    let arithmetic = values::precision(&arguments.precision, &*backend).arithmetic();
    let options = Options { arithmetic, ..Options::default() };
    let Prediction { outputs, timings } = {
        let _waiting = progress.wait("running the network");
        predictor.run(&inputs, &*backend, &options, &cancel)?
    };
    write_npz(&arguments.output, &outputs)?;
    if arguments.profile {
        let name = arguments.package.file_name().unwrap_or_default().to_string_lossy();
        let _ = write!(stderr(), "{}", profile::timings(&name, &timings));
    }
    print_line(arguments.output.display())
}
