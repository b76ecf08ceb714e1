//! Apple's way: layers together in the order of their harm, and a threshold on that curve.

use std::collections::BTreeMap;

use mixbit_compress::{Layer, Scheme};

use super::journal::{Journal, Key};
use super::measure::Distortion;
use super::verify::{Choose, Chosen};
use super::{Analysis, Goal, Options, mean};

/// For each scheme, the layers from the least harmful alone to the most.
pub(super) fn orders(options: &Options, layers: &[Layer], journal: &Journal) -> Vec<(Scheme, Vec<usize>)> {
    let order = |&scheme: &Scheme| {
        let harmless = |index: usize| -> f64 {
            let key = Key::Isolated { layer: layers[index].name.clone(), scheme: scheme.to_string() };
            rounded(journal.get(&key).unwrap_or_default())
        };
        let mut order: Vec<usize> = (0..layers.len()).collect();
        // Stable, so that of equal ones the first in the network stays first.
        order.sort_by(|&a, &b| harmless(b).total_cmp(&harmless(a)));
        (scheme, order)
    };
    options.schemes.iter().map(order).collect()
}

/// The mean PSNR, each one rounded to a tenth as in Apple's files.
fn rounded(distortion: &[Distortion]) -> f64 {
    mean(&distortion.iter().map(|one| tenth(one.psnr())).collect::<Vec<_>>())
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A layer on the curves.
struct Levels {
    name: String,
    /// Its weights.
    count: usize,
    /// The mean PSNR at this layer by scheme, from the fewest bits on.
    levels: Vec<(Scheme, f64)>,
}

/// For each layer, the fewest bits whose curve is above a threshold at that layer.
pub(super) struct Thresholds {
    layers: Vec<Levels>,
    /// The bytes of what is never compressed.
    rest: u64,
}

impl Thresholds {
    pub(super) fn new(analysis: &Analysis) -> Self {
        let mut curves: Vec<(Scheme, BTreeMap<&str, f64>)> = analysis
            .cumulative
            .iter()
            .map(|(scheme, curve)| {
                let level =
                    |values: &[f64]| mean(&values.iter().map(|&value| tenth(value)).collect::<Vec<_>>());
                (*scheme, curve.iter().map(|(layer, values)| (layer.as_str(), level(values))).collect())
            })
            .collect();
        curves.sort_by_key(|(scheme, _)| scheme.width);
        let layer = |candidate: &super::Candidate| {
            let levels = curves.iter().map(|(scheme, curve)| (*scheme, curve[candidate.name.as_str()]));
            Levels { name: candidate.name.clone(), count: candidate.count(), levels: levels.collect() }
        };
        let layers: Vec<Levels> = analysis.candidates.iter().map(layer).collect();
        let count: usize = layers.iter().map(|layer| layer.count).sum();
        Thresholds { layers, rest: analysis.bytes - 2 * count as u64 }
    }

    fn at(&self, threshold: f64) -> BTreeMap<String, Scheme> {
        let one = |layer: &Levels| {
            let found = layer.levels.iter().find(|(_, level)| *level > threshold)?;
            Some((layer.name.clone(), found.0))
        };
        self.layers.iter().filter_map(one).collect()
    }

    /// Bits of all layers, as Apple's script counts them: tables are not counted.
    fn bits(&self, chosen: &BTreeMap<String, Scheme>) -> u64 {
        let one = |layer: &Levels| {
            layer.count as u64 * chosen.get(&layer.name).map_or(16, |scheme| u64::from(scheme.width.bits()))
        };
        self.layers.iter().map(one).sum()
    }
}

impl Choose for Thresholds {
    /// The largest recipe within a size; or that of a PSNR as the threshold.
    fn choose(&self, goal: Goal) -> Option<Chosen> {
        let count: usize = self.layers.iter().map(|layer| layer.count).sum();
        let budget = match goal {
            Goal::Bits(bits) => (bits * count as f64) as u64,
            Goal::Bytes(bytes) => 8 * bytes.checked_sub(self.rest)?,
            Goal::Psnr(psnr) => return Some(Chosen { layers: self.at(psnr), predicted: None }),
        };
        let mut thresholds: Vec<f64> =
            self.layers.iter().flat_map(|layer| layer.levels.iter().map(|(_, level)| *level)).collect();
        thresholds.push(f64::NEG_INFINITY);
        thresholds.sort_by(f64::total_cmp);
        thresholds.dedup();
        let recipes = thresholds.into_iter().map(|threshold| self.at(threshold));
        let fitting = recipes.filter(|chosen| self.bits(chosen) <= budget);
        let layers = fitting.max_by_key(|chosen| self.bits(chosen))?;
        Some(Chosen { layers, predicted: None })
    }
}
