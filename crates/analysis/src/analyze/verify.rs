//! Recipes: chosen for each goal, run, and compared with what was expected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mixbit_compress::{Layer, Scheme};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_engine::Backend;

use super::journal::Journal;
use super::measure::{Bench, Distortion, Encoder};
use super::network::{Change, Network, Replaced};
use super::{Analysis, Goal, Point, Setting, Verified, Work, calibration, candidates, int8};

/// Bits per weight at which the estimate is compared with a run, to correct it elsewhere.
pub(super) const ANCHORS: [f64; 3] = [2.25, 4.25, 6.5];

/// Makes recipes.
pub(super) trait Choose {
    /// The best recipe for a goal, if it can be reached.
    fn choose(&self, goal: Goal) -> Option<Chosen>;
}

/// A recipe.
pub(super) struct Chosen {
    /// The form of each layer that is compressed.
    pub(super) layers: BTreeMap<String, Scheme>,
    /// The mean PSNR in dB that is expected.
    pub(super) predicted: Option<f64>,
}

/// Chooses a recipe for each goal, and runs all and the baselines on states that were not measured on. `int8` has the PSNR
/// that is asked for of the network in integers, and all layers.
pub(super) fn recipes(
    work: &mut Work<'_>,
    analysis: &mut Analysis,
    bench: Bench<'_>,
    encoder: &Encoder,
    layers: &[Layer],
    chooser: &dyn Choose,
    int8: Option<(f64, &[Layer], &Journal)>,
) -> anyhow::Result<()> {
    let setting = &work.options.setting;
    let (samples, _, _) =
        calibration::samples(work.model, work.backend, setting, &analysis.verified_points, work.stop)?;
    let mut verifier =
        Verifier { bench: Bench::new(bench.network, samples)?, encoder, layers, bytes: analysis.bytes };
    let uniform = [None].into_iter().chain(work.options.schemes.iter().copied().map(Some));
    let uniform: Vec<Option<Scheme>> = uniform.chain([Some(Scheme::linear())]).collect();
    let anchors: Vec<Chosen> = ANCHORS
        .iter()
        .filter_map(|&bits| chooser.choose(Goal::Bits(bits)))
        .filter(|chosen| chosen.predicted.is_some())
        .collect();
    let total = uniform.len() + anchors.len() + work.options.goals.len();
    let mut done = 0;
    let mut step = |work: &mut Work<'_>| {
        done += 1;
        work.observer.verified(done, total);
    };
    for scheme in uniform {
        let name = scheme.map_or("original".to_string(), |scheme| scheme.to_string());
        let all = layers.iter().filter_map(|layer| Some((layer.name.clone(), scheme?))).collect();
        analysis.baselines.push(verifier.run(name, all, None)?);
        step(work);
    }
    let mut correction = Correction::default();
    for chosen in anchors {
        let verified = verifier.run(String::new(), chosen.layers, None)?;
        correction.points.extend(chosen.predicted.map(|predicted| (predicted, verified.psnr() - predicted)));
        step(work);
    }
    correction.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    for &asked in &work.options.goals {
        let goal = match asked {
            Goal::Psnr(psnr) => Goal::Psnr(correction.undone(psnr)),
            goal => goal,
        };
        if let Some(chosen) = chooser.choose(goal) {
            let predicted = chosen.predicted.map(|predicted| correction.applied(predicted));
            let verified = verifier.run(String::new(), chosen.layers, predicted)?;
            let name = unused_name(&analysis.recipes, &verified);
            analysis.recipes.push(Verified { name, ..verified });
        } else {
            analysis.unreached.push(asked);
        }
        step(work);
    }
    if let Some((target, all, journal)) = int8 {
        analysis.int8 = Some(int8::choose(work, target, &mut verifier.bench, all, journal)?);
    }
    Ok(())
}

/// Apple's name for a recipe, with a number if another recipe has it.
fn unused_name(recipes: &[Verified], verified: &Verified) -> String {
    let base = format!("recipe_{:.2}_bit_mixedpalette", verified.bits);
    let is_free =
        |name: &String| recipes.iter().all(|other| other.name != *name || other.layers == verified.layers);
    let numbered = (2..).map(|number| format!("{base}_{number}"));
    std::iter::once(base.clone()).chain(numbered).find(is_free).unwrap_or(base)
}

/// A recipe to be run.
#[derive(Clone, Copy, Debug)]
pub struct Fitted<'a> {
    /// The form of each layer that is compressed.
    pub layers: &'a BTreeMap<String, Scheme>,
    /// What palettes are fitted to: the mean square of each input channel by layer.
    pub importance: &'a BTreeMap<String, Vec<f32>>,
}

/// The PSNR in dB of denoised latents in some states, by recipe and by state.
///
/// # Errors
/// If the network can't be run or a layer's weights can't be compressed.
pub fn psnr(
    model: &DiffusionModel,
    backend: &Arc<dyn Backend>,
    setting: &Setting,
    points: &[Point],
    recipes: &[Fitted<'_>],
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let (samples, graph, _) = calibration::samples(model, backend, setting, points, stop)?;
    let network = Network::new(&graph, &**backend, stop.clone())?;
    let (layers, bytes) = (candidates(&network, 0)?, network.bytes());
    let mut bench = Bench::new(network, samples)?;
    let mut all = Vec::new();
    for recipe in recipes {
        let encoder = Encoder::weighing(recipe.importance.clone());
        let mut verifier = Verifier { bench, encoder: &encoder, layers: &layers, bytes };
        all.push(verifier.run(String::new(), recipe.layers.clone(), None)?.measured);
        bench = verifier.bench;
    }
    Ok(all)
}

/// What the estimate is off by, between recipes for which it is known.
#[derive(Default)]
struct Correction {
    /// The estimate and what to add, ascending.
    points: Vec<(f64, f64)>,
}

impl Correction {
    fn applied(&self, predicted: f64) -> f64 {
        let above = self.points.partition_point(|(point, _)| *point < predicted);
        let added = match (above.checked_sub(1).map(|below| self.points[below]), self.points.get(above)) {
            (Some((low, a)), Some(&(high, b))) if high > low => {
                a + (b - a) * (predicted - low) / (high - low)
            }
            (Some((_, only)), _) | (None, Some(&(_, only))) => only,
            (None, None) => 0.0,
        };
        predicted + added
    }

    /// The estimate that is corrected to a PSNR.
    fn undone(&self, psnr: f64) -> f64 {
        let (mut low, mut high) = (psnr - 40.0, psnr + 40.0);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            if self.applied(middle) < psnr { low = middle } else { high = middle }
        }
        high
    }
}

struct Verifier<'b, 'e> {
    bench: Bench<'b>,
    encoder: &'e Encoder,
    layers: &'e [Layer],
    /// The bytes of all weights as they are.
    bytes: u64,
}

impl Verifier<'_, '_> {
    fn run(
        &mut self,
        name: String,
        chosen: BTreeMap<String, Scheme>,
        predicted: Option<f64>,
    ) -> anyhow::Result<Verified> {
        let mut replaced = Replaced::new();
        let (mut bytes, mut own) = (self.bytes, 0);
        for layer in self.layers {
            let whole = 2 * layer.count() as u64;
            own += whole;
            if let Some(scheme) = chosen.get(&layer.name) {
                replaced.insert(&layer.name, self.encoder.encoded(layer, *scheme)?);
                let stored = scheme.stored_len(layer.ty()) as u64;
                bytes = bytes - whole + stored;
                own = own - whole + stored;
            }
        }
        let distortion = self.bench.distortion(&Change::Weights(&replaced))?;
        let count: usize = self.layers.iter().map(Layer::count).sum();
        Ok(Verified {
            name,
            layers: chosen,
            bytes,
            bits: 8.0 * own as f64 / count as f64,
            predicted,
            measured: distortion.iter().map(Distortion::psnr).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_corrected_between_what_is_known() {
        let correction = Correction { points: vec![(30.0, -2.0), (50.0, 0.0)] };
        assert_eq!(correction.applied(40.0), 39.0);
        assert_eq!((correction.applied(10.0), correction.applied(70.0)), (8.0, 70.0));
        assert!((correction.undone(39.0) - 40.0).abs() < 1e-6);
        assert_eq!(Correction::default().applied(12.0), 12.0);
    }
}
