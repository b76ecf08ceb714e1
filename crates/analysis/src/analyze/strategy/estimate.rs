//! Few measurements, then a choice by rate and distortion.
//!
//! A small error in a layer's weights reaches the output multiplied by the layer's gain, which one
//! measurement gives. The errors of other widths, weighed by the layer's inputs, follow from it without
//! running the network. Errors of four bits and fewer are no longer small: there the slope between two
//! measured widths is used.

use std::collections::BTreeMap;

use half::f16;
use mixbit_compress::{Candidate, Layer, Scheme, Target, allocate, predicted_psnr};
use mixbit_mil::{DType, WeightRef};
use rayon::prelude::*;

use super::{Chooser, ChosenRecipe, Strategy};
use crate::analyze::distortion::Distortion;
use crate::analyze::encoder::CalibratedEncoder;
use crate::analyze::error::AnalyzeError;
use crate::analyze::evaluator::Evaluator;
use crate::analyze::journal::{Journal, Key};
use crate::analyze::measurements::{Measurements, Order};
use crate::analyze::options::{Goal, Options};
use crate::analyze::point::{Point, Setting};
use crate::analyze::states::measured_points;
use crate::analyze::subject::Subject;

/// The bounds of the slope of the output's error over the weights' error between widths, both in logarithms.
const SLOPES: [f64; 2] = [0.3, 1.5];

/// Measures each layer alone at few widths and states.
pub(super) struct Estimate<'o> {
    pub(super) options: &'o Options,
}

impl Strategy for Estimate<'_> {
    fn setting(&self) -> Setting {
        self.options.setting.clone()
    }

    fn points(&self) -> Vec<Point> {
        measured_points(self.options, self.options.effort.points, self.options.setting.steps)
    }

    fn schemes(&self) -> Vec<Scheme> {
        let schemes = &self.options.schemes;
        let Some(bits) = self.options.effort.bits else { return schemes.clone() };
        let is_measured = |scheme: &&Scheme| bits.contains(&scheme.width.bits());
        let measured: Vec<Scheme> = schemes.iter().filter(is_measured).copied().collect();
        if measured.is_empty() { schemes.clone() } else { measured }
    }

    fn encoder(&self, evaluator: &Evaluator<'_>) -> Result<CalibratedEncoder, AnalyzeError> {
        Ok(CalibratedEncoder::new(&evaluator.mean_squares()?))
    }

    fn encoder_evaluations(&self) -> usize {
        1
    }

    fn orders(&self, _: &[Layer], _: &Journal) -> Vec<Order> {
        Vec::new()
    }

    fn anchors(&self) -> &'static [f64] {
        &[2.25, 4.25, 6.5]
    }

    fn chooser(
        &self,
        subject: &Subject<'_>,
        measurements: &Measurements,
    ) -> Result<Box<dyn Chooser>, AnalyzeError> {
        let (schemes, measured) = (&self.options.schemes, self.schemes());
        let (encoder, journal) = (&subject.encoder, &measurements.journal);
        let of_layer = |layer| candidates(encoder, layer, schemes, &measured, journal);
        mixbit_compress::start_threads()?;
        let candidates = subject.layers.par_iter().map(of_layer).collect::<Result<_, _>>()?;
        Ok(Box::new(Allocation {
            names: subject.layers.iter().map(|layer| layer.name.clone()).collect(),
            schemes: schemes.clone(),
            candidates,
            count: subject.count(),
            fixed_bytes: subject.fixed_bytes(),
        }))
    }
}

/// A choice by rate and distortion.
struct Allocation {
    names: Vec<String>,
    schemes: Vec<Scheme>,
    /// By layer: a candidate for each scheme, and last the unchanged weight.
    candidates: Vec<Vec<Candidate>>,
    /// The number of weights of all layers.
    count: usize,
    /// The bytes of the weights that are never compressed.
    fixed_bytes: u64,
}

impl Chooser for Allocation {
    fn choose(&self, goal: Goal) -> Option<ChosenRecipe> {
        let target = match goal {
            Goal::Bits(bits) => Target::Bytes((bits * self.count as f64 / 8.0) as u64),
            Goal::Bytes(bytes) => Target::Bytes(bytes.checked_sub(self.fixed_bytes)?),
            Goal::Psnr(psnr) => Target::Psnr(psnr),
        };
        let choice = allocate(&self.candidates, target)?;
        let scheme = |(name, &index): (&String, &usize)| Some((name.clone(), *self.schemes.get(index)?));
        let layers: BTreeMap<String, Scheme> = self.names.iter().zip(&choice).filter_map(scheme).collect();
        Some(ChosenRecipe { layers, predicted: Some(predicted_psnr(&self.candidates, &choice)) })
    }
}

/// The size and the error of a layer under each scheme, and last those of the unchanged weight.
fn candidates(
    encoder: &CalibratedEncoder,
    layer: &Layer,
    schemes: &[Scheme],
    measured: &[Scheme],
    journal: &Journal,
) -> Result<Vec<Candidate>, AnalyzeError> {
    let mut known: Vec<Known> = Vec::new();
    for scheme in measured {
        let distortion = journal.get(&Key::isolated(&layer.name, scheme)).unwrap_or_default();
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

/// A measured scheme.
struct Known {
    /// The error in the layer's own output.
    local: f64,
    /// The error in the network's output, by sample.
    distortion: Vec<f64>,
}

impl Known {
    /// The mean over samples of the error's logarithm.
    fn level(&self) -> f64 {
        let logarithms = self.distortion.iter().map(|value| value.max(1e-30).ln());
        logarithms.sum::<f64>() / self.distortion.len().max(1) as f64
    }
}

/// The predicted errors in the network's output for an error in a layer's own output.
fn inferred(known: &[Known], local: f64) -> Vec<f64> {
    let distance = |known: &&Known| (known.local.max(1e-30).ln() - local.max(1e-30).ln()).abs();
    let Some(nearest) = known.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
        return Vec::new();
    };
    let coarsest = known.iter().max_by(|a, b| a.local.total_cmp(&b.local)).unwrap_or(nearest);
    let finest = known.iter().min_by(|a, b| a.local.total_cmp(&b.local)).unwrap_or(nearest);
    // The network is linear for errors below the finest measured one.
    let slope = if coarsest.local > finest.local && local > finest.local {
        let rise = (coarsest.level() - finest.level()) / (coarsest.local.ln() - finest.local.max(1e-30).ln());
        rise.clamp(SLOPES[0], SLOPES[1])
    } else {
        1.0
    };
    let factor = (local.max(1e-30) / nearest.local.max(1e-30)).powf(slope);
    nearest.distortion.iter().map(|value| value * factor).collect()
}

/// The error of a scheme in a layer's own output: squared errors of the weights, each weighed by the mean
/// square of its input channel.
fn local_error(encoder: &CalibratedEncoder, layer: &Layer, scheme: Scheme) -> Result<f64, AnalyzeError> {
    let original = halves(&layer.weight)?;
    let found = halves(&encoder.encode(layer, scheme)?)?;
    let shape = &layer.ty().shape;
    let window: usize = shape.iter().skip(2).product();
    let mean_square = encoder.mean_square(&layer.name);
    let one = |(index, (a, b)): (usize, (f16, f16))| {
        let weight = mean_square.map_or(1.0, |squares| f64::from(squares[index / window % squares.len()]));
        weight * f64::from(a.to_f32() - b.to_f32()).powi(2)
    };
    Ok(original.into_iter().zip(found).enumerate().map(one).sum())
}

fn halves(weight: &WeightRef) -> Result<Vec<f16>, AnalyzeError> {
    let narrow = weight.cast(DType::F16);
    let bytes = narrow.read().map_err(mixbit_mil::Error::from)?;
    Ok(bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finer_widths_follow_their_own_error_and_coarser_ones_the_slope() {
        let known =
            |local: f64, distortion: f64| Known { local, distortion: vec![distortion, 2.0 * distortion] };
        // One measurement: in proportion.
        let one = inferred(&[known(1.0, 0.01)], 0.1);
        assert!((one[0] - 0.001).abs() < 1e-12 && (one[1] - 0.002).abs() < 1e-12);
        // The output's error grows half as fast as the weights', in logarithms.
        let two = [known(1.0, 0.01), known(100.0, 0.1)];
        assert!((inferred(&two, 10_000.0)[0] - 1.0).abs() < 1e-9);
        assert!((inferred(&two, 0.01)[0] - 1e-4).abs() < 1e-12);
        // An error of zero infers finite errors.
        assert!(inferred(&[known(0.0, 0.0)], 0.0).iter().all(|value| value.is_finite()));
        assert!(inferred(&[known(0.0, 0.0), known(1.0, 0.1)], 0.5).iter().all(|value| value.is_finite()));
    }
}
