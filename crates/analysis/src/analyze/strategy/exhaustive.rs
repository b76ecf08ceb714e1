//! Apple's method: layers together in the order of their harm, and a threshold on that curve.

use std::collections::BTreeMap;

use mixbit_compress::{Layer, Scheme};

use super::{Chooser, ChosenRecipe, Strategy};
use crate::analyze::distortion::psnrs;
use crate::analyze::encoder::CalibratedEncoder;
use crate::analyze::error::AnalyzeError;
use crate::analyze::evaluator::Evaluator;
use crate::analyze::journal::{Journal, Key};
use crate::analyze::measurements::{Measurements, Order};
use crate::analyze::options::{Goal, Options};
use crate::analyze::outcome::mean;
use crate::analyze::point::{Point, Setting};
use crate::analyze::states::measured_points;
use crate::analyze::subject::Subject;

/// The number of states to measure on: Apple's script has eight prompts.
const POINTS: usize = 8;

/// Measures every layer at every width, alone and together.
pub(super) struct Exhaustive<'o> {
    pub(super) options: &'o Options,
}

impl Strategy for Exhaustive<'_> {
    /// One step from noise, as in Apple's script.
    fn setting(&self) -> Setting {
        Setting { steps: 1, ..self.options.setting.clone() }
    }

    fn points(&self) -> Vec<Point> {
        measured_points(self.options, POINTS, 1)
    }

    fn schemes(&self) -> Vec<Scheme> {
        self.options.schemes.clone()
    }

    fn encoder(&self, _: &Evaluator<'_>) -> Result<CalibratedEncoder, AnalyzeError> {
        Ok(CalibratedEncoder::default())
    }

    fn encoder_evaluations(&self) -> usize {
        0
    }

    /// For each scheme, the layers from the least harmful alone to the most.
    fn orders(&self, layers: &[Layer], journal: &Journal) -> Vec<Order> {
        let order = |&scheme: &Scheme| {
            let psnr = |layer: &Layer| -> f64 {
                let distortion = journal.get(&Key::isolated(&layer.name, &scheme)).unwrap_or_default();
                rounded_mean(&psnrs(distortion))
            };
            let psnr: Vec<f64> = layers.iter().map(psnr).collect();
            let mut layers: Vec<usize> = (0..layers.len()).collect();
            // Stable: of equally harmful layers the first in the network stays first.
            layers.sort_by(|&a, &b| psnr[b].total_cmp(&psnr[a]));
            Order { scheme, layers }
        };
        self.options.schemes.iter().map(order).collect()
    }

    fn anchors(&self) -> &'static [f64] {
        &[]
    }

    fn chooser(
        &self,
        subject: &Subject<'_>,
        measurements: &Measurements,
    ) -> Result<Box<dyn Chooser>, AnalyzeError> {
        Ok(Box::new(Thresholds::new(subject, measurements)))
    }
}

/// The mean of PSNRs, each rounded to a tenth as in Apple's files.
fn rounded_mean(psnrs: &[f64]) -> f64 {
    mean(&psnrs.iter().map(|psnr| (psnr * 10.0).round() / 10.0).collect::<Vec<_>>())
}

/// A layer on the curves.
struct Levels {
    name: String,
    /// The number of weights.
    count: usize,
    /// The mean PSNR at this layer by scheme, the fewest bits first.
    levels: Vec<(Scheme, f64)>,
}

/// A choice by a threshold: each layer gets the fewest bits whose curve is above the threshold at that layer.
struct Thresholds {
    layers: Vec<Levels>,
    /// The bytes of the weights that are never compressed.
    fixed_bytes: u64,
}

impl Thresholds {
    fn new(subject: &Subject<'_>, measurements: &Measurements) -> Self {
        let mut schemes: Vec<Scheme> = measurements.orders.iter().map(|order| order.scheme).collect();
        schemes.sort_by_key(|scheme| scheme.width);
        let layer = |layer: &Layer| {
            let level = |scheme: &Scheme| {
                let key = Key::cumulative(&layer.name, scheme);
                let distortion = measurements.journal.get(&key).unwrap_or_default();
                (*scheme, rounded_mean(&psnrs(distortion)))
            };
            let levels = schemes.iter().map(level).collect();
            Levels { name: layer.name.clone(), count: layer.count(), levels }
        };
        let layers = subject.layers.iter().map(layer).collect();
        Thresholds { layers, fixed_bytes: subject.fixed_bytes() }
    }

    fn at(&self, threshold: f64) -> BTreeMap<String, Scheme> {
        let one = |layer: &Levels| {
            let found = layer.levels.iter().find(|(_, level)| *level > threshold)?;
            Some((layer.name.clone(), found.0))
        };
        self.layers.iter().filter_map(one).collect()
    }

    /// The bits of all layers as Apple's script counts them: without tables.
    fn bits(&self, schemes: &BTreeMap<String, Scheme>) -> u64 {
        let one = |layer: &Levels| {
            layer.count as u64 * schemes.get(&layer.name).map_or(16, |scheme| u64::from(scheme.width.bits()))
        };
        self.layers.iter().map(one).sum()
    }
}

impl Chooser for Thresholds {
    /// The largest recipe within a size. A PSNR is the threshold itself.
    fn choose(&self, goal: Goal) -> Option<ChosenRecipe> {
        let count: usize = self.layers.iter().map(|layer| layer.count).sum();
        let budget = match goal {
            Goal::Bits(bits) => (bits * count as f64) as u64,
            Goal::Bytes(bytes) => 8 * bytes.checked_sub(self.fixed_bytes)?,
            Goal::Psnr(psnr) => return Some(ChosenRecipe { layers: self.at(psnr), predicted: None }),
        };
        let mut thresholds: Vec<f64> =
            self.layers.iter().flat_map(|layer| layer.levels.iter().map(|(_, level)| *level)).collect();
        thresholds.push(f64::NEG_INFINITY);
        thresholds.sort_by(f64::total_cmp);
        thresholds.dedup();
        let recipes = thresholds.into_iter().map(|threshold| self.at(threshold));
        let fitting = recipes.filter(|schemes| self.bits(schemes) <= budget);
        let layers = fitting.max_by_key(|schemes| self.bits(schemes))?;
        Some(ChosenRecipe { layers, predicted: None })
    }
}
