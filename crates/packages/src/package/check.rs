//! The output of a written package, compared with that of its source.

use std::path::{Path, PathBuf};

use mixbit_diffusion::arch::io;
use mixbit_diffusion::random::{NoiseSource, TorchSource};
use mixbit_engine::{Arithmetic, Backend, Cancel, Options, Tensor};
use mixbit_formats::coreml;
use mixbit_mil::{Function, Value};
use thiserror::Error;

use super::error::PlanError;
use super::write::Package;
use crate::psnr::apple_psnr_of;

/// Outputs that are not compared: a safety checker's decision, which may turn with the last digit of a score.
/// Apple's converter compares the scores alone.
const DECISIONS: [&str; 2] = ["filtered_images", "has_nsfw_concepts"];

/// The timestep of the trial inputs.
const TIMESTEP: f32 = 501.0;

/// Outputs that can't be compared.
#[derive(Debug, Error)]
pub enum OutputError {
    /// A network that can't be built.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A package that can't be read.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
    /// A package without a function.
    #[error("{} has no function `main`", path.display())]
    NoFunction {
        /// The package.
        path: PathBuf,
    },
    /// A package that lacks an output.
    #[error("{} has no output `{name}`", path.display())]
    NoOutput {
        /// The package.
        path: PathBuf,
        /// The output.
        name: String,
    },
    /// A network that can't be run.
    #[error(transparent)]
    Engine(#[from] mixbit_engine::Error),
}

/// Runs a package as a Core ML device does, every result rounded to its declared type, and the graph over the
/// checkpoint in `fp32`, both on the same noise. Returns the least PSNR of an output in dB, with the largest
/// magnitude as the peak; NaN if an output is not finite.
///
/// # Errors
/// [`OutputError`].
pub fn check_output(
    package: &Package,
    path: &Path,
    backend: &dyn Backend,
    cancel: &Cancel,
) -> Result<f64, OutputError> {
    let source = package.function()?;
    let written = coreml::read(path)?;
    let no_function = || OutputError::NoFunction { path: path.to_path_buf() };
    let written = written.program.main().ok_or_else(no_function)?;
    let inputs = inputs(&source)?;
    let expected = run(&source, &inputs, backend, Arithmetic::F32, cancel)?;
    let found = run(written, &inputs, backend, Arithmetic::AsDeclared, cancel)?;
    let mut least = f64::INFINITY;
    for (name, expected) in expected.iter().filter(|(name, _)| !DECISIONS.contains(&name.as_str())) {
        let no_output = || OutputError::NoOutput { path: path.to_path_buf(), name: name.clone() };
        let (_, found) = found.iter().find(|(other, _)| other == name).ok_or_else(no_output)?;
        let psnr = psnr(found, expected);
        if psnr.is_nan() {
            return Ok(psnr);
        }
        least = least.min(psnr);
    }
    Ok(least)
}

/// Trial inputs: noise, but for those whose numbers have a meaning.
fn inputs(function: &Function) -> Result<Vec<(String, Tensor)>, mixbit_engine::Error> {
    let mut noise = TorchSource::new(93);
    let vocabulary = vocabulary(function);
    let one = |value: &Value| {
        let count = value.ty.count();
        let values = match value.name.as_str() {
            io::INPUT_IDS => (0..count).map(|index| (index * 7 % vocabulary) as f32).collect(),
            io::TIMESTEP => vec![TIMESTEP; count],
            io::TIME_IDS => vec![512.0; count],
            "adjustment" => vec![0.0; count],
            _ => {
                let mut values = vec![0.0; count];
                noise.fill(&mut values);
                values
            }
        };
        Ok((value.name.clone(), Tensor::from_f32(&value.ty.shape, values)?))
    };
    function.inputs().iter().map(|&id| function.value(id)).map(one).collect()
}

/// The rows of the largest table of embeddings; 1 if there is none.
fn vocabulary(function: &Function) -> usize {
    let gathers = function.ops().iter().filter(|op| op.def.name == "gather");
    let tables = gathers.filter_map(|op| function.view(op).ty("x").ok()?.shape.first().copied());
    tables.max().unwrap_or(1).max(1)
}

fn run(
    function: &Function,
    inputs: &[(String, Tensor)],
    backend: &dyn Backend,
    arithmetic: Arithmetic,
    cancel: &Cancel,
) -> Result<Vec<(String, Vec<f32>)>, mixbit_engine::Error> {
    let mut model = backend.compile(function, &Options { arithmetic, ..Options::default() })?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = model.run_until(&given, cancel)?;
    let named = model.outputs().iter().zip(results);
    Ok(named.map(|(output, result)| (output.name.clone(), result.into_f32().unwrap_or_default())).collect())
}

fn psnr(found: &[f32], expected: &[f32]) -> f64 {
    let [found, expected] = [found, expected].map(|values| values.iter().map(|&value| f64::from(value)));
    apple_psnr_of(found, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_psnr_is_apples() {
        assert!(psnr(&[1.0, 2.0], &[1.0, 2.0]) > 200.0);
        assert!((psnr(&[1.1, -1.9], &[1.0, -2.0]) - 26.02).abs() < 0.01);
        assert!(psnr(&[f32::NAN], &[1.0]).is_nan());
    }
}
