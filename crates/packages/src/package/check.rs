//! Whether a written package computes what its source does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use mixbit_diffusion::random::{NoiseSource, TorchSource};
use mixbit_engine::{Arithmetic, Backend, Cancel, Options, Tensor};
use mixbit_formats::coreml;
use mixbit_mil::{Function, Value};

use super::Package;
use crate::psnr::{apple_psnr, mean_square, peak};

/// Outputs that are not compared: a safety checker's decision, which may turn with the last digit of a score. Apple's
/// converter compares the scores alone.
const DECISIONS: [&str; 2] = ["filtered_images", "has_nsfw_concepts"];

/// The timestep that networks are tried at.
const TIMESTEP: f32 = 501.0;

/// Runs a package as a Core ML device does, every result rounded to what it is declared as, and the graph over the
/// checkpoint in `fp32`, both on the same noise. Gives the PSNR in dB, with the largest magnitude as the peak, of the
/// output where it is least.
///
/// # Errors
/// If one of the two can't be run.
pub fn check_output(
    package: &Package,
    path: &Path,
    backend: &dyn Backend,
    stop: Option<Arc<AtomicBool>>,
) -> anyhow::Result<f64> {
    let source = package.function()?;
    let written = coreml::read(path)?;
    let written = written.program.main().with_context(|| format!("{} has no function", path.display()))?;
    let inputs = inputs(&source)?;
    let expected = run(&source, &inputs, backend, Arithmetic::F32, stop.clone())?;
    let found = run(written, &inputs, backend, Arithmetic::AsDeclared, stop)?;
    let mut least = f64::INFINITY;
    for (name, expected) in expected.iter().filter(|(name, _)| !DECISIONS.contains(&name.as_str())) {
        let (_, found) = found
            .iter()
            .find(|(other, _)| other == name)
            .with_context(|| format!("{} has no output `{name}`", path.display()))?;
        let psnr = psnr(found, expected);
        // NaN is worse than all.
        least = if psnr.is_nan() { psnr } else { least.min(psnr) };
        if least.is_nan() {
            break;
        }
    }
    Ok(least)
}

/// Noise for every input, but for those that are numbers with a meaning.
fn inputs(function: &Function) -> anyhow::Result<Vec<(String, Tensor)>> {
    let mut noise = TorchSource::new(93);
    let vocabulary = vocabulary(function);
    let one = |value: &Value| {
        let count = value.ty.count();
        let values = match value.name.as_str() {
            "input_ids" => (0..count).map(|index| (index * 7 % vocabulary) as f32).collect(),
            "timestep" => vec![TIMESTEP; count],
            "time_ids" => vec![512.0; count],
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

/// How many tokens the function has embeddings for, if it has any.
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
    stop: Option<Arc<AtomicBool>>,
) -> anyhow::Result<Vec<(String, Vec<f32>)>> {
    let mut model = backend.compile(function, &Options { arithmetic, ..Options::default() })?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = model.run_until(&given, &stop.map(Cancel::from).unwrap_or_default())?;
    let named = model.outputs().iter().zip(results);
    Ok(named.map(|(output, result)| (output.name.clone(), result.into_f32().unwrap_or_default())).collect())
}

fn psnr(found: &[f32], expected: &[f32]) -> f64 {
    let [found, expected] = [found, expected].map(|values| values.iter().map(|&value| f64::from(value)));
    apple_psnr(peak(expected.clone()), mean_square(found.zip(expected)))
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
