//! Which layers keep floats where the rest of the network is computed in 8-bit integers.
//!
//! Every layer is measured alone with its weights and its inputs quantized as `--precision int8` does it. Errors of layers
//! add up, as those of widths do, so that the layers to leave alone follow from a rate and a distortion: the rate is time.

use std::collections::BTreeSet;

use mixbit_compress::{Candidate, Layer, Target, allocate, predicted_psnr};

use super::journal::{Journal, Key};
use super::measure::{Bench, Distortion};
use super::network::Change;
use super::{Curve, Work, mean};

/// Time of a multiply-add in floats, in that of one in 8-bit integers.
const FLOAT_COST: u64 = 4;

/// Choices that are verified before the last one is taken as it is.
const TRIES: usize = 4;

/// What computing in 8-bit integers does, and the layers that should not be.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    /// The mean PSNR in dB that was asked for.
    pub target: f64,
    /// PSNR in dB with one layer quantized, by state.
    pub single_layer: Curve,
    /// The layers that keep floats, in the order of their use.
    pub full_precision: Vec<String>,
    /// The part of the layers' multiply-adds that is done in integers.
    pub share: f64,
    /// The PSNR in dB with all other layers quantized, for each state that was verified.
    pub measured: Vec<f64>,
}

impl Int8 {
    /// The mean PSNR in dB.
    pub fn psnr(&self) -> f64 {
        mean(&self.measured)
    }
}

/// The key of a layer's measurement.
pub(super) fn key(layer: &Layer) -> Key {
    Key::Int8 { layer: layer.name.clone() }
}

/// Chooses the layers that keep floats, and runs the network with the others quantized. `layers` are all of the network;
/// where the choice comes off worse than expected, it is made again for as much more.
pub(super) fn choose(
    work: &mut Work<'_>,
    target: f64,
    bench: &mut Bench<'_>,
    layers: &[Layer],
    journal: &Journal,
) -> anyhow::Result<Int8> {
    let costs: Vec<u64> = layers.iter().map(|layer| bench.network.multiply_adds(&layer.name)).collect();
    let found = |layer: &Layer| journal.get(&key(layer)).unwrap_or_default();
    let candidates: Vec<Vec<Candidate>> = layers
        .iter()
        .zip(&costs)
        .map(|(layer, &cost)| {
            let distortion: Vec<f64> = found(layer).iter().map(Distortion::relative).collect();
            let exact = Candidate { bytes: FLOAT_COST * cost, distortion: vec![0.0; distortion.len()] };
            vec![Candidate { bytes: cost, distortion }, exact]
        })
        .collect();
    let single_layer =
        layers.iter().map(|layer| (layer.name.clone(), found(layer).iter().map(Distortion::psnr).collect()));
    let mut int8 = Int8 {
        target,
        single_layer: single_layer.collect(),
        full_precision: Vec::new(),
        share: 1.0,
        measured: Vec::new(),
    };
    let mut asked = target;
    for attempt in 0..TRIES {
        // Everything in floats reaches any goal.
        let choice = allocate(&candidates, Target::Psnr(asked)).unwrap_or_else(|| vec![1; layers.len()]);
        let is_quantized = |index: usize| choice[index] == 0;
        let chosen: BTreeSet<&str> = layers
            .iter()
            .enumerate()
            .filter(|(index, _)| is_quantized(*index))
            .map(|(_, layer)| layer.name.as_str())
            .collect();
        let quantized: u64 =
            (0..layers.len()).filter(|&index| is_quantized(index)).map(|index| costs[index]).sum();
        int8.share = quantized as f64 / costs.iter().sum::<u64>().max(1) as f64;
        int8.full_precision = layers
            .iter()
            .filter(|layer| !chosen.contains(layer.name.as_str()))
            .map(|layer| layer.name.clone())
            .collect();
        let distortion = bench.distortion(&Change::Int8(&chosen))?;
        int8.measured = distortion.iter().map(Distortion::psnr).collect();
        work.observer.verified(attempt + 1, TRIES);
        if int8.psnr() >= target || chosen.is_empty() {
            break;
        }
        let expected = predicted_psnr(&candidates, &choice);
        asked = asked.max(expected) + (target - int8.psnr()) + 0.1;
    }
    work.observer.verified(TRIES, TRIES);
    Ok(int8)
}
