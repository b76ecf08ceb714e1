//! How far each layer of a UNet can be compressed: what each width does to its output, and recipes made of that.
//!
//! Two methods measure ([`METHODS`]):
//!
//! - `exhaustive` is Apple's: every layer at every width alone, then all layers one after the other in the order of their
//!   harm, and for each layer the fewest bits that stay above a threshold on the latter curve;
//! - `estimate` measures each layer alone at few widths and states, infers the other widths from the errors that they
//!   make in the layer's own output, and chooses by rate and distortion ([`mixbit_compress::allocate`]). Palettes are fitted to
//!   what matters: an error counts by the mean square of the input channel that it meets.
//!
//! Measurements are kept as they are made, so that an analysis goes on after a kill, and several machines can share one.
//! Recipes are verified on prompts and states that were not measured on.
//!
//! *Invariant:* the result depends on the model and the options alone, not on how the work was shared or interrupted.

mod calibration;
mod estimate;
mod exhaustive;
mod file;
mod int8;
mod journal;
mod measure;
mod network;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use mixbit_compress::{Layer, Scheme, Width};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_engine::Backend;

pub use calibration::{PROMPTS, Point, Setting};
pub use int8::Int8;
pub use verify::{Fitted, psnr};

use journal::{Journal, Key};
use measure::{Bench, Distortion, Encoder};
use network::{Change, Network, Replaced};

use mixbit_packages::recipe::ModelIdentity;

/// A way to measure.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// The name on the command line.
    pub name: &'static str,
    /// One line of what it does.
    pub about: &'static str,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Estimate,
    Exhaustive,
}

/// Every method; the first is the default.
pub static METHODS: &[Method] = &[
    Method { name: "estimate", about: "few measurements, then rate and distortion", kind: Kind::Estimate },
    Method {
        name: "exhaustive",
        about: "Apple's: every layer at every width, alone and together",
        kind: Kind::Exhaustive,
    },
];

/// How much is measured.
#[derive(Debug, PartialEq, Eq)]
pub struct Effort {
    /// The name on the command line.
    pub name: &'static str,
    /// One line of what it means.
    pub about: &'static str,
    /// The states that are measured on.
    points: usize,
    /// The bits that are measured; all without.
    bits: Option<&'static [u32]>,
}

/// Every effort; the second is the default.
pub static EFFORTS: &[Effort] = &[
    Effort { name: "low", about: "one width on one state", points: 1, bits: Some(&[4]) },
    Effort { name: "medium", about: "two widths on two states", points: 2, bits: Some(&[2, 4]) },
    Effort { name: "high", about: "every width on eight states", points: 8, bits: None },
];

/// What a recipe is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most so many bits per weight of the layers that can be compressed.
    Bits(f64),
    /// At most so many bytes for all weights of the network.
    Bytes(u64),
    /// At least this mean PSNR in dB.
    Psnr(f64),
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::Bits(bits) => write!(f, "{bits} bits per weight"),
            Goal::Bytes(bytes) => write!(f, "{:.1} MB", *bytes as f64 / 1e6),
            Goal::Psnr(psnr) => write!(f, "{psnr} dB"),
        }
    }
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one, from 0.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Shard { index: 0, count: 1 };
}

/// How to analyze.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to measure.
    pub method: &'static Method,
    /// How much to measure; the exhaustive method measures all.
    pub effort: &'static Effort,
    /// What layers may be stored as, beside as they are.
    pub schemes: Vec<Scheme>,
    /// Layers of at most so many weights stay as they are.
    pub min_size: usize,
    /// The recipes to make.
    pub goals: Vec<Goal>,
    /// The least mean PSNR in dB of the network in 8-bit integers, for which layers are left in floats; without, layers are
    /// not measured in integers.
    pub int8: Option<f64>,
    /// Prompts, by turns to measure on and to verify with.
    pub prompts: Vec<String>,
    /// The first seed.
    pub seed: u64,
    /// How images are drawn.
    pub setting: Setting,
    /// What of the work to do; nothing is measured without, only what is there taken.
    pub shard: Option<Shard>,
    /// Where measurements are kept.
    pub directory: PathBuf,
}

/// The states that the exhaustive method measures on: Apple's script has eight prompts.
const EXHAUSTIVE_POINTS: usize = 8;

/// The states that the recipes are verified on, and the images that they are of.
const VERIFIED: [usize; 2] = [16, 8];

/// What an analysis is told of what it does; all may be ignored.
pub trait Observer {
    /// So many measurements of so many are there.
    fn measured(&mut self, done: usize, total: usize);

    /// A recipe or baseline was run.
    fn verified(&mut self, done: usize, total: usize);
}

/// A layer that can be compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// The weight's shape.
    pub shape: Vec<usize>,
}

impl Candidate {
    /// The number of weights.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// PSNR in dB by sample.
pub type Curve = Vec<(String, Vec<f64>)>;

/// A way to store the network, and what it does to denoised latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The name.
    pub name: String,
    /// The form of each layer; those that are not named stay as they are.
    pub layers: BTreeMap<String, Scheme>,
    /// The bytes of all weights of the network.
    pub bytes: u64,
    /// Bits per weight of the layers that can be compressed.
    pub bits: f64,
    /// The mean PSNR in dB that was expected of a recipe.
    pub predicted: Option<f64>,
    /// The PSNR in dB of each state that was verified.
    pub measured: Vec<f64>,
}

impl Verified {
    /// The mean PSNR in dB.
    pub fn psnr(&self) -> f64 {
        mean(&self.measured)
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// The layers that can be compressed, in the order of their use.
    pub candidates: Vec<Candidate>,
    /// The model by its layers; the name is whose asks.
    pub identity: ModelIdentity,
    /// The bytes of the network's weights as they are, all of 16 bits.
    pub bytes: u64,
    /// By scheme: the PSNR of the output with one layer in that form.
    pub single_layer: Vec<(Scheme, Curve)>,
    /// By scheme: with all layers up to and with that one, in the order of their harm; the exhaustive method's.
    pub cumulative: Vec<(Scheme, Curve)>,
    /// The mean square of each input channel by layer, which palettes are fitted to; empty for the exhaustive method.
    pub importance: BTreeMap<String, Vec<f32>>,
    /// All layers in one form, and linear 8-bit.
    pub baselines: Vec<Verified>,
    /// The recipes, in the order of the goals.
    pub recipes: Vec<Verified>,
    /// Goals that no recipe reaches.
    pub unreached: Vec<Goal>,
    /// The network in 8-bit integers, if that was asked for.
    pub int8: Option<Int8>,
    /// The states that were measured on.
    pub points: Vec<Point>,
    /// Their timesteps.
    pub timesteps: Vec<f64>,
    /// The states that recipes were verified on.
    pub verified_points: Vec<Point>,
    /// What measuring takes in evaluations of the network for one image: a part of the network counts by its share of the
    /// multiply-adds.
    pub evaluations: f64,
    /// The same for the algorithm as it is published, every measurement a whole run.
    pub whole_evaluations: f64,
}

/// What one process did.
#[derive(Debug)]
pub enum Outcome {
    /// Everything.
    Done(Box<Analysis>),
    /// Its part; other parts are missing still.
    Partial {
        /// Measurements that are there.
        done: usize,
        /// Of how many.
        total: usize,
    },
}

/// A measurement of one layer alone.
struct Probe<'l> {
    key: Key,
    layer: &'l Layer,
    /// The layer's number, by which shards share the work.
    index: usize,
    /// The form of its weight; without, it is computed in 8-bit integers.
    scheme: Option<Scheme>,
}

/// A model that is being analyzed.
struct Work<'w> {
    model: &'w DiffusionModel,
    backend: &'w Arc<dyn Backend>,
    options: &'w Options,
    stop: &'w Arc<AtomicBool>,
    observer: &'w mut dyn Observer,
}

/// Measures what of the work is this shard's; if everything is there then, makes the recipes and verifies them.
///
/// # Errors
/// If the network can't be run, measurements can't be kept, or those that are there are of something else.
pub fn analyze(
    model: &DiffusionModel,
    backend: &Arc<dyn Backend>,
    options: &Options,
    stop: &Arc<AtomicBool>,
    observer: &mut dyn Observer,
) -> anyhow::Result<Outcome> {
    if options.prompts.len() < 2 {
        bail!("two prompts at least are needed: one to measure on and one to verify with");
    }
    if options.schemes.is_empty() {
        bail!("there is no width to choose");
    }
    Work { model, backend, options, stop, observer }.run()
}

impl Work<'_> {
    fn run(mut self) -> anyhow::Result<Outcome> {
        let points = self.points();
        let setting = self.setting();
        let (samples, graph, steps) =
            calibration::samples(self.model, self.backend, &setting, &points, self.stop)?;
        let batch = samples.first().map_or(1, calibration::Sample::rows) as f64;
        let timesteps = samples.iter().map(|sample| sample.timestep).collect();
        let network = Network::new(&graph, &**self.backend, self.stop.clone())?;
        let layers = candidates(&network, self.options.min_size)?;
        let all: Vec<Layer> = match self.options.int8 {
            Some(_) => network.layers().cloned().collect(),
            None => Vec::new(),
        };
        let bytes = network.bytes();
        let mut bench = Bench::new(network, samples)?;
        let encoder = match self.options.method.kind {
            Kind::Estimate => Encoder::weighing(bench.importance()?),
            Kind::Exhaustive => Encoder::default(),
        };
        let measured = self.measured(&layers, &points, &setting, &bench);
        let mut journal = Journal::open(&self.options.directory, self.options.shard, &measured)?;
        let mut isolated = self.isolated_probes(&layers);
        let together = match self.options.method.kind {
            Kind::Estimate => 0,
            Kind::Exhaustive => isolated.len(),
        };
        isolated.extend(all.iter().enumerate().map(|(index, layer)| Probe {
            key: int8::key(layer),
            layer,
            index,
            scheme: None,
        }));
        let total = isolated.len() + together;
        let done = self.measure(&mut bench, &encoder, &isolated, &mut journal, total)?;
        if done < isolated.len() {
            return Ok(Outcome::Partial { done, total });
        }
        let orders = match self.options.method.kind {
            Kind::Estimate => Vec::new(),
            Kind::Exhaustive => exhaustive::orders(self.options, &layers, &journal),
        };
        if !orders.is_empty() {
            let done = self.cumulate(&mut bench, &encoder, &layers, &orders, &mut journal, (done, total))?;
            if done < total {
                return Ok(Outcome::Partial { done, total });
            }
        }
        let evaluations = batch * (self.evaluations(&bench, &layers, &orders, points.len()) + steps as f64);
        let whole_evaluations = batch * (total * points.len()) as f64;
        let curve = |key: &dyn Fn(&str) -> Key, names: &mut dyn Iterator<Item = &str>| -> Curve {
            let psnr = |name: &str| {
                journal.get(&key(name)).unwrap_or_default().iter().map(Distortion::psnr).collect()
            };
            names.map(|name| (name.to_string(), psnr(name))).collect()
        };
        let single_layer = self.measured_schemes().into_iter().map(|scheme| {
            let key = |layer: &str| Key::Isolated { layer: layer.to_string(), scheme: scheme.to_string() };
            (scheme, curve(&key, &mut layers.iter().map(|layer| layer.name.as_str())))
        });
        let cumulative = orders.iter().map(|(scheme, order)| {
            let key = |layer: &str| Key::Cumulative { layer: layer.to_string(), scheme: scheme.to_string() };
            (*scheme, curve(&key, &mut order.iter().map(|&index| layers[index].name.as_str())))
        });
        let mut analysis = Analysis {
            candidates: layers
                .iter()
                .map(|layer| Candidate { name: layer.name.clone(), shape: layer.ty().shape.clone() })
                .collect(),
            identity: ModelIdentity::of("", &layers),
            bytes,
            single_layer: single_layer.collect(),
            cumulative: cumulative.collect(),
            importance: encoder.importance.clone(),
            baselines: Vec::new(),
            recipes: Vec::new(),
            unreached: Vec::new(),
            int8: None,
            verified_points: self.verified_points(&points),
            points,
            timesteps,
            evaluations,
            whole_evaluations,
        };
        let chooser: Box<dyn verify::Choose> = match self.options.method.kind {
            Kind::Estimate => {
                let schemes = self.measured_schemes();
                Box::new(estimate::Estimate::new(self.options, &encoder, &layers, &schemes, &journal, bytes)?)
            }
            Kind::Exhaustive => Box::new(exhaustive::Thresholds::new(&analysis)),
        };
        let int8 = self.options.int8.map(|target| (target, all.as_slice(), &journal));
        verify::recipes(&mut self, &mut analysis, bench, &encoder, &layers, &*chooser, int8)?;
        Ok(Outcome::Done(Box::new(analysis)))
    }

    /// The schemes that are measured; the others are inferred.
    fn measured_schemes(&self) -> Vec<Scheme> {
        let bits = match self.options.method.kind {
            Kind::Exhaustive => None,
            Kind::Estimate => self.options.effort.bits,
        };
        let schemes = self.options.schemes.iter();
        let chosen: Vec<Scheme> = schemes
            .filter(|scheme| bits.is_none_or(|bits| bits.contains(&scheme.width.bits())))
            .copied()
            .collect();
        if chosen.is_empty() { self.options.schemes.clone() } else { chosen }
    }

    fn isolated_probes<'l>(&self, layers: &'l [Layer]) -> Vec<Probe<'l>> {
        let schemes = self.measured_schemes();
        let of_layer = |(index, layer): (usize, &'l Layer)| {
            let probe = |scheme: &Scheme| {
                let key = Key::Isolated { layer: layer.name.clone(), scheme: scheme.to_string() };
                Probe { key, layer, index, scheme: Some(*scheme) }
            };
            schemes.iter().map(probe).collect::<Vec<_>>()
        };
        layers.iter().enumerate().flat_map(of_layer).collect()
    }

    /// Measures layers alone that are this shard's and not there yet; gives how many are there.
    fn measure(
        &mut self,
        bench: &mut Bench<'_>,
        encoder: &Encoder,
        probes: &[Probe<'_>],
        journal: &mut Journal,
        total: usize,
    ) -> anyhow::Result<usize> {
        let there =
            |journal: &Journal| probes.iter().filter(|probe| journal.get(&probe.key).is_some()).count();
        let mut done = there(journal);
        self.observer.measured(done, total);
        for Probe { key, layer, index, scheme } in probes {
            if !self.is_own(*index) || journal.get(key).is_some() {
                continue;
            }
            let distortion = match scheme {
                Some(scheme) => {
                    let replaced = Replaced::from([(layer.name.as_str(), encoder.encoded(layer, *scheme)?)]);
                    bench.distortion(&Change::Weights(&replaced))?
                }
                None => bench.distortion(&Change::Int8(&BTreeSet::from([layer.name.as_str()])))?,
            };
            journal.insert(key.clone(), distortion)?;
            done += 1;
            self.observer.measured(done, total);
        }
        journal.reload()?;
        Ok(there(journal))
    }

    /// Measures layers together, in each order; gives how many measurements are there.
    fn cumulate(
        &mut self,
        bench: &mut Bench<'_>,
        encoder: &Encoder,
        layers: &[Layer],
        orders: &[(Scheme, Vec<usize>)],
        journal: &mut Journal,
        (before, total): (usize, usize),
    ) -> anyhow::Result<usize> {
        let key = |scheme: &Scheme, index: usize| Key::Cumulative {
            layer: layers[index].name.clone(),
            scheme: scheme.to_string(),
        };
        let keys: Vec<Key> =
            orders.iter().flat_map(|(scheme, order)| order.iter().map(|&index| key(scheme, index))).collect();
        let there = |journal: &Journal| keys.iter().filter(|key| journal.get(key).is_some()).count();
        let mut done = there(journal);
        self.observer.measured(before + done, total);
        for (scheme, order) in orders {
            let mut replaced = Replaced::new();
            for (position, &index) in order.iter().enumerate() {
                let layer = &layers[index];
                replaced.insert(&layer.name, encoder.encoded(layer, *scheme)?);
                let key = key(scheme, index);
                if !self.is_own(position) || journal.get(&key).is_some() {
                    continue;
                }
                journal.insert(key, bench.distortion(&Change::Weights(&replaced))?)?;
                done += 1;
                self.observer.measured(before + done, total);
            }
        }
        journal.reload()?;
        Ok(before + there(journal))
    }

    /// Whether a piece of the work is this shard's.
    fn is_own(&self, index: usize) -> bool {
        self.options.shard.is_some_and(|shard| index % shard.count == shard.index)
    }

    /// Runs of the whole network that all measurements amount to, whoever made them.
    fn evaluations(
        &self,
        bench: &Bench<'_>,
        layers: &[Layer],
        orders: &[(Scheme, Vec<usize>)],
        points: usize,
    ) -> f64 {
        let alone: f64 = layers.iter().map(|layer| bench.network.share(&layer.name)).sum();
        let together = |(_, order): &(Scheme, Vec<usize>)| -> f64 {
            let mut most = 0.0f64;
            let one = |&index: &usize| {
                most = most.max(bench.network.share(&layers[index].name));
                most
            };
            order.iter().map(one).sum()
        };
        let together: f64 = orders.iter().map(together).sum();
        let (moments, anchors) = match self.options.method.kind {
            Kind::Estimate => (1.0, (verify::ANCHORS.len() * VERIFIED[0]) as f64),
            Kind::Exhaustive => (0.0, 0.0),
        };
        // Every state takes a run of the original.
        points as f64 * (self.measured_schemes().len() as f64 * alone + together + 1.0 + moments) + anchors
    }

    fn setting(&self) -> Setting {
        match self.options.method.kind {
            // As Apple's: one step from noise.
            Kind::Exhaustive => Setting { steps: 1, ..self.options.setting.clone() },
            Kind::Estimate => self.options.setting.clone(),
        }
    }

    /// The states to measure on: from the first to the last steps, each of an image of its own.
    fn points(&self) -> Vec<Point> {
        let (count, steps) = match self.options.method.kind {
            Kind::Exhaustive => (EXHAUSTIVE_POINTS, 1),
            Kind::Estimate => (self.options.effort.points, self.options.setting.steps.max(1)),
        };
        let prompts: Vec<&String> = self.options.prompts.iter().step_by(2).collect();
        let point = |index: usize| Point {
            prompt: prompts[index % prompts.len()].clone(),
            seed: self.options.seed + index as u64,
            evaluation: (1 + (steps - 1) * index / count).min(steps - 1),
        };
        (0..count).map(point).collect()
    }

    /// The states to verify with: other prompts, other noise and, where there are enough, other steps, from the first to
    /// the last.
    fn verified_points(&self, measured: &[Point]) -> Vec<Point> {
        let steps = self.options.setting.steps.max(1);
        let [states, images] = VERIFIED;
        let prompts: Vec<&String> = self.options.prompts.iter().skip(1).step_by(2).collect();
        let point = |index: usize| {
            let even = steps * index / states;
            let is_free = |at: &usize| measured.iter().all(|point| point.evaluation != *at);
            Point {
                prompt: prompts[index % images % prompts.len()].clone(),
                seed: self.options.seed + 1000 + (index % images) as u64,
                evaluation: (even..steps).find(is_free).unwrap_or(even),
            }
        };
        (0..states).map(point).collect()
    }

    /// What is measured, in short: files of other measurements are not mixed up with these.
    fn measured(&self, layers: &[Layer], points: &[Point], setting: &Setting, bench: &Bench<'_>) -> String {
        let mut hash = Hash::new();
        for layer in layers {
            hash.text(&format!("{} {:?}", layer.name, layer.ty().shape));
        }
        bench.fingerprint().iter().for_each(|bits| hash.bytes(&bits.to_le_bytes()));
        hash.text(&format!("{points:?} {setting:?}"));
        let schemes: Vec<String> = self.measured_schemes().iter().map(Scheme::to_string).collect();
        format!(
            "{} of {} on {} states, {:016x}",
            self.options.method.name,
            schemes.join(" "),
            points.len(),
            hash.0
        )
    }
}

/// The layers of a network that can be compressed.
fn candidates(network: &Network<'_>, min_size: usize) -> anyhow::Result<Vec<Layer>> {
    let layers: Vec<Layer> = network.layers().filter(|layer| layer.count() > min_size).cloned().collect();
    if let Some(layer) = layers.iter().find(|layer| layer.weight.encoding().is_some()) {
        bail!("layer `{}` is compressed already: analyze the model that it was made from", layer.name);
    }
    if layers.is_empty() {
        bail!("no layer has more than {min_size} weights; give a smaller --min-size");
    }
    Ok(layers)
}

/// FNV-1a.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }
}

/// One palette for the whole weight, at every width that the oldest systems have: what Apple's recipes choose from.
pub fn schemes_of_recipes() -> Vec<Scheme> {
    [Width::One, Width::Two, Width::Four, Width::Six, Width::Eight].map(Scheme::palette).into()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
