//! The layers that keep floats where the rest of the network is computed in 8-bit integers.
//!
//! Every layer is measured alone with its weights and inputs quantized as by `--precision int8`. The errors
//! of layers add up, as they do for palettes, so the layers that keep floats follow from rate and distortion.
//! The rate is time.

use std::collections::BTreeSet;

use mixbit_compress::{Candidate, Layer, Target, allocate, predicted_psnr};
use mixbit_mil::{Progress, Unit};

use super::distortion::{Distortion, psnrs};
use super::error::AnalyzeError;
use super::evaluator::Evaluator;
use super::journal::Key;
use super::measurements::Measurements;
use super::network::Change;
use super::outcome::Int8;

/// The time of a multiply-add in floats, relative to one in 8-bit integers.
const FLOAT_COST: u64 = 4;

/// The number of choices that are run before the last one is accepted below its target.
const TRIES: u64 = 4;

/// Chooses the layers that keep floats among all layers of the network, and runs it with the others
/// quantized.
///
/// A choice whose PSNR is below the target is made again for a target that is higher by the difference.
///
/// # Errors
/// If the network can't be run, or the work was cancelled.
pub(super) fn choose(
    evaluator: &mut Evaluator<'_>,
    layers: &[Layer],
    measurements: &Measurements,
    target: f64,
    progress: &dyn Progress,
) -> Result<Int8, AnalyzeError> {
    let costs: Vec<u64> = layers.iter().map(|layer| evaluator.network.multiply_adds(&layer.name)).collect();
    let candidates: Vec<Vec<Candidate>> =
        layers.iter().zip(&costs).map(|(layer, &cost)| candidates(layer, cost, measurements)).collect();
    let mut requested = target;
    let mut tries = 0;
    loop {
        // Floats in every layer reach any target.
        let choice = allocate(&candidates, Target::Psnr(requested)).unwrap_or_else(|| vec![1; layers.len()]);
        let is_quantized = |index: &usize| choice[*index] == 0;
        let indices = || (0..layers.len()).filter(is_quantized);
        let quantized: BTreeSet<&str> = indices().map(|index| layers[index].name.as_str()).collect();
        let distortion = evaluator.distortion(&Change::Int8(&quantized))?;
        tries += 1;
        progress.advance(tries, TRIES, Unit::Measurements)?;
        let work: u64 = indices().map(|index| costs[index]).sum();
        let names = layers.iter().map(|layer| &layer.name);
        let int8 = Int8 {
            target,
            single_layer: measurements.int8(layers),
            full_precision: names.filter(|name| !quantized.contains(name.as_str())).cloned().collect(),
            share: work as f64 / costs.iter().sum::<u64>().max(1) as f64,
            measured: psnrs(&distortion),
        };
        if int8.mean_psnr() >= target || quantized.is_empty() || tries == TRIES {
            progress.advance(TRIES, TRIES, Unit::Measurements)?;
            return Ok(int8);
        }
        let predicted = predicted_psnr(&candidates, &choice);
        requested = requested.max(predicted) + (target - int8.mean_psnr()) + 0.1;
    }
}

/// A layer in 8-bit integers, and in floats. The rate is the layer's time.
fn candidates(layer: &Layer, cost: u64, measurements: &Measurements) -> Vec<Candidate> {
    let measured = measurements.journal.get(&Key::int8(&layer.name)).unwrap_or_default();
    let distortion: Vec<f64> = measured.iter().map(Distortion::relative).collect();
    let exact = Candidate { bytes: FLOAT_COST * cost, distortion: vec![0.0; distortion.len()] };
    vec![Candidate { bytes: cost, distortion }, exact]
}
