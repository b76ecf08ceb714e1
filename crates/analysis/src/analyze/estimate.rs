//! Few measurements, then rate and distortion.
//!
//! A small error in a layer's weights reaches the output multiplied by the layer's gain, which one measurement tells:
//! the errors of other widths, weighed by what meets them, follow from it without running the network. From four bits
//! down errors are no longer small, so that the slope between two measured widths is taken there.

use std::collections::BTreeMap;

use half::f16;
use mixbit_compress::{Candidate, Layer, Scheme, Target, allocate, predicted_psnr};
use mixbit_mil::{DType, WeightRef};
use rayon::prelude::*;

use super::journal::{Journal, Key};
use super::measure::{Distortion, Encoder};
use super::verify::{Choose, Chosen};
use super::{Goal, Options};

/// How much steeper or flatter than the errors in the weights the errors in the output may run between widths.
const SLOPES: [f64; 2] = [0.3, 1.5];

/// What each layer may be stored as, and what that does.
pub(super) struct Estimate {
    names: Vec<String>,
    /// By layer: the forms, as it is last.
    forms: Vec<Vec<Option<Scheme>>>,
    candidates: Vec<Vec<Candidate>>,
    /// Weights of all layers.
    count: usize,
    /// The bytes of what is never compressed.
    rest: u64,
}

impl Estimate {
    pub(super) fn new(
        options: &Options,
        encoder: &Encoder,
        layers: &[Layer],
        measured: &[Scheme],
        journal: &Journal,
        bytes: u64,
    ) -> anyhow::Result<Self> {
        let all = layers.par_iter().map(|layer| {
            let forms: Vec<Option<Scheme>> =
                options.schemes.iter().copied().map(Some).chain([None]).collect();
            Ok((candidates(encoder, layer, &options.schemes, measured, journal)?, forms))
        });
        let (candidates, forms) = all.collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
        let count = layers.iter().map(Layer::count).sum();
        let names = layers.iter().map(|layer| layer.name.clone()).collect();
        Ok(Estimate { names, forms, candidates, count, rest: bytes - 2 * count as u64 })
    }
}

impl Choose for Estimate {
    fn choose(&self, goal: Goal) -> Option<Chosen> {
        let target = match goal {
            Goal::Bits(bits) => Target::Bytes((bits * self.count as f64 / 8.0) as u64),
            Goal::Bytes(bytes) => Target::Bytes(bytes.checked_sub(self.rest)?),
            Goal::Psnr(psnr) => Target::Psnr(psnr),
        };
        let choice = allocate(&self.candidates, target)?;
        let forms = self.names.iter().zip(&self.forms).zip(&choice);
        let layers: BTreeMap<String, Scheme> =
            forms.filter_map(|((name, forms), &index)| Some((name.clone(), forms[index]?))).collect();
        Some(Chosen { layers, predicted: Some(predicted_psnr(&self.candidates, &choice)) })
    }
}

/// What a layer may be stored as, and what that does to the output; as it is last.
fn candidates(
    encoder: &Encoder,
    layer: &Layer,
    schemes: &[Scheme],
    measured: &[Scheme],
    journal: &Journal,
) -> anyhow::Result<Vec<Candidate>> {
    let mut known: Vec<Known> = Vec::new();
    for scheme in measured {
        let key = Key::Isolated { layer: layer.name.clone(), scheme: scheme.to_string() };
        let distortion = journal.get(&key).unwrap_or_default();
        known.push(Known {
            local: local_error(encoder, layer, *scheme)?,
            distortion: distortion.iter().map(Distortion::relative).collect(),
        });
    }
    let samples = known.first().map_or(0, |known| known.distortion.len());
    let mut out = Vec::with_capacity(schemes.len() + 1);
    for scheme in schemes {
        let distortion = match measured.iter().position(|other| other == scheme) {
            Some(index) => known[index].distortion.clone(),
            None => inferred(&known, local_error(encoder, layer, *scheme)?),
        };
        out.push(Candidate { bytes: scheme.stored_len(layer.ty()) as u64, distortion });
    }
    out.push(Candidate { bytes: 2 * layer.count() as u64, distortion: vec![0.0; samples] });
    Ok(out)
}

/// A scheme that was measured: its error in the layer's own output, and in the network's.
struct Known {
    local: f64,
    distortion: Vec<f64>,
}

impl Known {
    /// The mean over samples of the error's logarithm.
    fn level(&self) -> f64 {
        let logarithms = self.distortion.iter().map(|value| value.max(1e-30).ln());
        logarithms.sum::<f64>() / self.distortion.len().max(1) as f64
    }
}

/// The errors in the output that an error of a layer is expected to cause.
fn inferred(known: &[Known], local: f64) -> Vec<f64> {
    let distance = |known: &&Known| (known.local.max(1e-30).ln() - local.max(1e-30).ln()).abs();
    let Some(nearest) = known.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
        return Vec::new();
    };
    let coarsest = known.iter().max_by(|a, b| a.local.total_cmp(&b.local)).unwrap_or(nearest);
    let finest = known.iter().min_by(|a, b| a.local.total_cmp(&b.local)).unwrap_or(nearest);
    // Finer than all that was measured the network is linear.
    let slope = if coarsest.local > finest.local && local > finest.local {
        let rise = (coarsest.level() - finest.level()) / (coarsest.local.ln() - finest.local.max(1e-30).ln());
        rise.clamp(SLOPES[0], SLOPES[1])
    } else {
        1.0
    };
    let factor = (local.max(1e-30) / nearest.local.max(1e-30)).powf(slope);
    nearest.distortion.iter().map(|value| value * factor).collect()
}

/// The error that a scheme makes in a layer's own output: squares of the weights' errors, each counted by the mean square
/// of the input channel that it meets.
fn local_error(encoder: &Encoder, layer: &Layer, scheme: Scheme) -> anyhow::Result<f64> {
    let original = halves(&layer.weight)?;
    let found = halves(&encoder.encoded(layer, scheme)?)?;
    let shape = &layer.ty().shape;
    let window: usize = shape.iter().skip(2).product();
    let importance = encoder.importance(&layer.name);
    let one = |(index, (a, b)): (usize, (f16, f16))| {
        let weight =
            importance.map_or(1.0, |importance| f64::from(importance[index / window % importance.len()]));
        weight * f64::from(a.to_f32() - b.to_f32()).powi(2)
    };
    Ok(original.into_iter().zip(found).enumerate().map(one).sum())
}

fn halves(weight: &WeightRef) -> anyhow::Result<Vec<f16>> {
    let narrow = weight.cast(DType::F16);
    let bytes = narrow.read()?;
    Ok(bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finer_widths_follow_their_own_error_and_coarser_ones_the_slope() {
        let known =
            |local: f64, distortion: f64| Known { local, distortion: vec![distortion, 2.0 * distortion] };
        // From one measurement on, in proportion.
        let one = inferred(&[known(1.0, 0.01)], 0.1);
        assert!((one[0] - 0.001).abs() < 1e-12 && (one[1] - 0.002).abs() < 1e-12);
        // The output's error grows half as fast as the weights', in logarithms.
        let two = [known(1.0, 0.01), known(100.0, 0.1)];
        assert!((inferred(&two, 10_000.0)[0] - 1.0).abs() < 1e-9);
        assert!((inferred(&two, 0.01)[0] - 1e-4).abs() < 1e-12);
        // Errors of nothing infer nothing that is not finite.
        assert!(inferred(&[known(0.0, 0.0)], 0.0).iter().all(|value| value.is_finite()));
        assert!(inferred(&[known(0.0, 0.0), known(1.0, 0.1)], 0.5).iter().all(|value| value.is_finite()));
    }
}
