//! The options of an analysis.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use mixbit_compress::{Scheme, Width};

use super::point::Setting;

/// A method of analysis.
#[derive(Debug)]
pub struct AnalysisMethod {
    /// The name on the command line.
    pub name: &'static str,
    /// A description in one line.
    pub about: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Estimate,
    Exhaustive,
}

/// Every method; the first is the default.
pub static METHODS: &[AnalysisMethod] = &[
    AnalysisMethod {
        name: "estimate",
        about: "few measurements, then rate and distortion",
        kind: Kind::Estimate,
    },
    AnalysisMethod {
        name: "exhaustive",
        about: "Apple's: every layer at every width, alone and together",
        kind: Kind::Exhaustive,
    },
];

/// An amount of measuring.
#[derive(Debug, PartialEq, Eq)]
pub struct Effort {
    /// The name on the command line.
    pub name: &'static str,
    /// A description in one line.
    pub about: &'static str,
    /// The number of states to measure on.
    pub(super) points: usize,
    /// The widths to measure, in bits; `None` for all.
    pub(super) bits: Option<&'static [u32]>,
}

/// Every effort; the second is the default.
pub static EFFORTS: &[Effort] = &[
    Effort { name: "low", about: "one width on one state", points: 1, bits: Some(&[4]) },
    Effort { name: "medium", about: "two widths on two states", points: 2, bits: Some(&[2, 4]) },
    Effort { name: "high", about: "every width on eight states", points: 8, bits: None },
];

/// The goal of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// An upper bound of the bits per weight, averaged over the layers that can be compressed.
    Bits(f64),
    /// An upper bound of the bytes of all weights of the network.
    Bytes(u64),
    /// A lower bound of the mean PSNR in dB.
    Psnr(f64),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Bits(bits) => write!(f, "{bits} bits per weight"),
            Goal::Bytes(bytes) => write!(f, "{:.1} MB", *bytes as f64 / 1e6),
            Goal::Psnr(psnr) => write!(f, "{psnr} dB"),
        }
    }
}

/// A share of the measurements, for one of several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The shard's position, from 0.
    pub index: usize,
    /// The number of shards.
    pub count: usize,
}

impl Shard {
    /// All measurements.
    pub const WHOLE: Self = Shard { index: 0, count: 1 };

    /// True if the shard has the piece of work at `position`.
    pub(super) fn has(self, position: usize) -> bool {
        position % self.count == self.index
    }
}

/// A recipe of an earlier analysis of the same model with the same options.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlierRecipe {
    /// The name.
    pub name: String,
    /// The scheme of each compressed layer.
    pub layers: BTreeMap<String, Scheme>,
    /// The predicted mean PSNR in dB.
    pub predicted: Option<f64>,
}

/// The options of an analysis.
#[derive(Clone, Debug)]
pub struct Options {
    /// The method.
    pub method: &'static AnalysisMethod,
    /// The amount of measuring; the exhaustive method measures everything.
    pub effort: &'static Effort,
    /// The schemes to choose from for each layer, besides leaving it unchanged.
    pub schemes: Vec<Scheme>,
    /// Layers of at most this many weights stay unchanged.
    pub min_size: usize,
    /// The goals, one recipe each.
    pub goals: Vec<Goal>,
    /// The recipes of an earlier analysis, which are kept.
    pub earlier: Vec<EarlierRecipe>,
    /// The least mean PSNR in dB of the network in 8-bit integers. Layers that would lower it keep floats.
    /// `None` skips the measurements in integers.
    pub int8: Option<f64>,
    /// At least two prompts, alternately for measurement and for verification.
    pub prompts: Vec<String>,
    /// The seed of the first image.
    pub seed: u64,
    /// The settings of the images that are measured on.
    pub setting: Setting,
    /// The share of the measurements to make. `None` measures nothing and takes what the directory has.
    pub shard: Option<Shard>,
    /// The directory of the measurements.
    pub directory: PathBuf,
}

/// Palettes of one table per weight, at every width that the oldest deployment targets have. Apple's recipes
/// choose from these.
pub fn schemes_of_recipes() -> Vec<Scheme> {
    [Width::One, Width::Two, Width::Four, Width::Six, Width::Eight].map(Scheme::palette).into()
}
