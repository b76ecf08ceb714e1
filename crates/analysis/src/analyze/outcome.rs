//! The results of an analysis.

use std::collections::BTreeMap;

use mixbit_compress::Scheme;
use mixbit_packages::recipe::ModelIdentity;

use super::options::Goal;
use super::point::Point;

/// A layer that can be compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The layer's name.
    pub name: String,
    /// The shape of its weight.
    pub shape: Vec<usize>,
}

impl Candidate {
    /// The number of weights.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// PSNR in dB by layer and by state.
pub type Curve = Vec<(String, Vec<f64>)>;

/// A network with compressed layers, and the PSNR of its denoised latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The name of the recipe or baseline.
    pub name: String,
    /// The scheme of each compressed layer. The other layers are unchanged.
    pub layers: BTreeMap<String, Scheme>,
    /// The bytes of all weights of the network.
    pub bytes: u64,
    /// Bits per weight of the layers that can be compressed.
    pub bits: f64,
    /// The predicted mean PSNR in dB of a recipe.
    pub predicted: Option<f64>,
    /// The PSNR in dB of each state of the verification.
    pub measured: Vec<f64>,
}

impl Verified {
    /// The mean PSNR in dB.
    pub fn mean_psnr(&self) -> f64 {
        mean(&self.measured)
    }
}

/// A network in 8-bit integers, and the layers that keep floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    /// The requested mean PSNR in dB.
    pub target: f64,
    /// PSNR in dB with one layer quantized, by layer and by state.
    pub single_layer: Curve,
    /// The layers that keep floats, in the order of their use.
    pub full_precision: Vec<String>,
    /// The fraction of the layers' multiply-adds that is computed in integers.
    pub share: f64,
    /// The PSNR in dB with all other layers quantized, for each state of the verification.
    pub measured: Vec<f64>,
}

impl Int8 {
    /// The mean PSNR in dB.
    pub fn mean_psnr(&self) -> f64 {
        mean(&self.measured)
    }
}

/// The result of an analysis.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// The layers that can be compressed, in the order of their use.
    pub candidates: Vec<Candidate>,
    /// The model's identity by its layers, without a name.
    pub identity: ModelIdentity,
    /// The bytes of the network's unchanged weights at 16 bits each.
    pub bytes: u64,
    /// PSNR with one layer compressed, by scheme.
    pub single_layer: Vec<(Scheme, Curve)>,
    /// PSNR with all layers up to and including one compressed, in the order of their harm, by scheme. Only
    /// the exhaustive method measures it.
    pub cumulative: Vec<(Scheme, Curve)>,
    /// The mean square of each input channel by layer, which weighs the errors of palettes. Empty for the
    /// exhaustive method.
    pub importance: BTreeMap<String, Vec<f32>>,
    /// The unchanged network, the network with all layers in one scheme, and linear 8-bit.
    pub baselines: Vec<Verified>,
    /// The recipes, in the order of the goals.
    pub recipes: Vec<Verified>,
    /// The goals that no recipe reaches.
    pub unreached: Vec<Goal>,
    /// The network in 8-bit integers, if requested.
    pub int8: Option<Int8>,
    /// The states of the measurements.
    pub points: Vec<Point>,
    /// The timesteps of these states.
    pub timesteps: Vec<f64>,
    /// The states of the verification.
    pub verified_points: Vec<Point>,
    /// The cost of the measurements in evaluations of the network for one image. A part of the network counts
    /// by its share of the multiply-adds.
    pub evaluations: f64,
    /// The same cost if every measurement ran the whole network, as in the published algorithm.
    pub whole_evaluations: f64,
}

/// The result of one process.
#[derive(Debug)]
pub enum Outcome {
    /// All measurements exist, and the recipes are made.
    Done(Box<Analysis>),
    /// Measurements of other shards are missing.
    Partial {
        /// The number of measurements that exist.
        done: usize,
        /// The number of all measurements.
        total: usize,
    },
}

/// The arithmetic mean; 0 for no values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
