//! Recipe files: a scheme for each layer of a UNet, and the measurements behind it.
//!
//! The file is Apple's `<model>_palettization_recipe.json`, with one key more, [`mixbit`](Details), so that
//! Apple's scripts read ours and we read theirs. Layers are named as the modules of the checkpoint, without
//! `.weight`.
//!
//! ```
//! use mixbit_packages::recipe::RecipeFile;
//!
//! let text = r#"{"model_version": "m",
//!     "recipes": {"recipe_4.50_bit_mixedpalette": {"conv_in": 8, "conv_out": 16}}}"#;
//! let file = RecipeFile::parse(text)?;
//! let (name, recipe) = file.select("4.50")?;
//! assert_eq!(name, "recipe_4.50_bit_mixedpalette");
//! assert_eq!(recipe.layers["conv_in"].unwrap().to_string(), "palette-8");
//! assert_eq!(recipe.layers["conv_out"], None);
//! # Ok::<(), mixbit_packages::recipe::RecipeError>(())
//! ```

mod error;
mod matching;
mod read;
mod structure;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use half::f16;
use mixbit_compress::{Layer, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use error::RecipeError;
pub use matching::{Assignment, MatchError, assign, assign_by_structure};
pub use structure::{Correspondence, correspondence};

/// Bits of a weight that stays unchanged.
pub const UNTOUCHED: u32 = 16;

/// No recipe is larger: of the published ones none has 10 MB.
const LARGEST: u64 = 64 << 20;

/// A layer, and the PSNR in dB of each prompt with the layer in another scheme.
pub type Measured = (String, Vec<f64>);

/// A recipe file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecipeFile {
    /// The model's name, as on the Hugging Face Hub.
    pub model_version: String,
    /// By bits: each layer palettized alone.
    pub single_layer: BTreeMap<u32, Vec<Measured>>,
    /// By bits: each layer palettized with all that come before it.
    pub cumulative: BTreeMap<u32, Cumulative>,
    /// PSNR in dB of the model in other forms: `original`, `linear_8bit`, and each recipe.
    pub baselines: BTreeMap<String, f64>,
    /// Recipes by name.
    pub recipes: BTreeMap<String, Recipe>,
    /// The data that Apple's files lack.
    pub details: Option<Details>,
    /// Other keys, which are kept.
    pub other: Map<String, Value>,
}

/// Layers palettized one after the other, and how the model's output followed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cumulative {
    /// Layers in the order in which they were palettized.
    pub layers: Vec<Measured>,
    /// The number of weights of each of them.
    pub sizes: Vec<u64>,
}

/// A scheme for each layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// By layer; `None` for one that stays unchanged, as layers do that are not named.
    pub layers: BTreeMap<String, Option<Scheme>>,
    /// Bytes of the model's weights under this recipe, those outside of layers included.
    pub bytes: Option<u64>,
    /// Average bits of a weight of the layers that are named.
    pub bits_per_weight: Option<f64>,
    /// The PSNR that was predicted for it, in dB.
    pub predicted_psnr: Option<f64>,
    /// The PSNR that was measured with it, in dB.
    pub measured_psnr: Option<f64>,
}

/// The content of a recipe file besides Apple's keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// The version of mixbit that made it.
    pub version: String,
    /// The model that was measured.
    pub model: ModelIdentity,
    /// The setting of the measurements.
    pub calibration: Calibration,
    /// By layer: how much an error in each of its input channels matters, for palettes that take it into
    /// account.
    pub importance: BTreeMap<String, Importance>,
    /// The measurements in 8-bit integers, if there are some.
    pub int8: Option<Int8Layers>,
}

/// Measurements of a model's layers in 8-bit integers, and the layers that need floats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Int8Layers {
    /// The mean PSNR in dB that was the goal.
    pub target_psnr: f64,
    /// The mean PSNR in dB that was measured.
    pub measured_psnr: f64,
    /// The layers that keep floats.
    pub full_precision: Vec<String>,
    /// By layer: dB of each state with that layer alone in integers.
    pub single_layer: BTreeMap<String, Vec<f64>>,
}

/// The identity of the measured model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The name for people.
    pub name: String,
    /// The number of weights of its layers.
    pub weights: u64,
    /// Bytes of these as f16.
    pub bytes: u64,
    /// Checksum of the layers' names and shapes: the same for every fine-tune.
    pub layers_checksum: String,
    /// Checksum of the weights, if somebody read them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_checksum: Option<String>,
}

/// The setting of a model's measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The prompts.
    pub prompts: Vec<String>,
    /// The negative prompt; an absent one is not the same as an empty one.
    pub negative_prompt: Option<String>,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f64,
    /// Seeds of the noise.
    pub seeds: Vec<u64>,
    /// Timesteps at which the model was run.
    pub timesteps: Vec<f64>,
    /// Width and height of the images in pixels.
    pub size: [usize; 2],
}

/// The importance of each input channel of a layer: second moments of the channel's values, in relation to
/// the largest. They are rounded as the file holds them, so that a palette that is made again is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance(Vec<f16>);

impl Importance {
    /// Rounds second moments; `None` if one is negative or not finite, or all are zero.
    pub fn new(second_moments: &[f32]) -> Option<Self> {
        let most = second_moments.iter().copied().fold(0.0, f32::max);
        let is_valid = second_moments.iter().all(|value| value.is_finite() && *value >= 0.0) && most > 0.0;
        is_valid.then(|| Importance(second_moments.iter().map(|value| f16::from_f32(value / most)).collect()))
    }

    /// By input channel.
    pub fn values(&self) -> Vec<f32> {
        self.0.iter().map(|value| value.to_f32()).collect()
    }
}

impl ModelIdentity {
    /// That of a model with these layers. No weight is read.
    pub fn of(name: &str, layers: &[Layer]) -> Self {
        let line = |layer: &Layer| {
            // Matrices are matrices as kernels too.
            let shape = &layer.ty().shape;
            let end = shape.iter().rposition(|&extent| extent != 1).map_or(0, |last| last + 1).max(2);
            format!("{} {:?}\n", layer.name, &shape[..end.min(shape.len())])
        };
        let lines: BTreeSet<String> = layers.iter().map(line).collect();
        let digest = mixbit_formats::sha256(lines.into_iter().collect::<String>().as_bytes());
        let hex = mixbit_formats::hex(&digest);
        let weights: u64 = layers.iter().map(|layer| layer.count() as u64).sum();
        ModelIdentity {
            name: name.to_string(),
            weights,
            bytes: 2 * weights,
            layers_checksum: format!("sha256:{hex}"),
            weights_checksum: None,
        }
    }
}

impl RecipeFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RecipeError::File`], with the defect and its place.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        Self::parse(&mixbit_formats::read_text(path, LARGEST)?)
            .map_err(|source| RecipeError::File { path: path.to_path_buf(), source: Box::new(source) })
    }

    /// Reads text.
    ///
    /// # Errors
    /// Text that is not JSON, a key that is missing or of another kind, a layer with a width that there is
    /// not.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        read::parse(text)
    }

    /// A checksum of a recipe of the file and of the importance of the channels of its layers, for the
    /// metadata of packages; empty if there is no such recipe.
    pub fn checksum(&self, name: &str) -> String {
        let Some(recipe) = self.recipes.get(name) else { return String::new() };
        let importance = self.details.iter().flat_map(|details| &details.importance);
        let of_layers: Vec<_> = importance.filter(|(layer, _)| recipe.layers.contains_key(*layer)).collect();
        if of_layers.is_empty() {
            return recipe.checksum();
        }
        let lines = of_layers.into_iter().map(|(layer, importance)| format!("{layer} {:?}\n", importance.0));
        short(&(recipe.checksum() + "\n" + &lines.collect::<String>()))
    }

    /// The file's text: the same for the same content.
    pub fn to_text(&self) -> String {
        write::text(self)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> Result<(), RecipeError> {
        use std::io::Write;
        let text = self.to_text();
        Ok(mixbit_formats::write_atomically(path, |file| file.write_all(text.as_bytes()))?)
    }

    /// The recipe of that name, or the only one whose name it is a part of. A number is a number of bits per
    /// weight: the recipe with the nearest is taken, the smaller of two as near.
    ///
    /// # Errors
    /// [`RecipeError::NoRecipe`] or [`RecipeError::Ambiguous`], with the names that there are.
    pub fn select(&self, asked: &str) -> Result<(&str, &Recipe), RecipeError> {
        if let Some((name, recipe)) = self.recipes.get_key_value(asked) {
            return Ok((name, recipe));
        }
        if let Some(nearest) = asked.parse().ok().and_then(|bits| self.nearest(bits)) {
            return Ok(nearest);
        }
        let found: Vec<_> = self.recipes.iter().filter(|(name, _)| name.contains(asked)).collect();
        match found[..] {
            [(name, recipe)] => Ok((name, recipe)),
            [] => Err(RecipeError::NoRecipe {
                asked: asked.to_string(),
                names: self.recipes.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
            _ => Err(RecipeError::Ambiguous {
                asked: asked.to_string(),
                names: found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The recipe with the number of bits per weight that is nearest to `bits`.
    fn nearest(&self, bits: f64) -> Option<(&str, &Recipe)> {
        let known = self.recipes.iter().filter_map(|(name, recipe)| Some((name, recipe, recipe.bits(name)?)));
        let known = known.filter(|_| bits.is_finite() && bits > 0.0);
        let (name, recipe, _) = known.min_by(|(_, _, a), (_, _, b)| {
            (a - bits).abs().total_cmp(&(b - bits).abs()).then_with(|| a.total_cmp(b))
        })?;
        Some((name, recipe))
    }
}

impl Recipe {
    /// Average bits of a weight: as they were counted, or else as the recipe's name says.
    pub fn bits(&self, name: &str) -> Option<f64> {
        let named = || name.split('_').find_map(|word| word.parse().ok());
        self.bits_per_weight.or_else(named)
    }

    /// A checksum of the layers and their schemes.
    fn checksum(&self) -> String {
        let line = |(layer, scheme): (&String, &Option<Scheme>)| match scheme {
            Some(scheme) => format!("{layer} {scheme}\n"),
            None => format!("{layer} {UNTOUCHED}\n"),
        };
        short(&self.layers.iter().map(line).collect::<String>())
    }
}

/// The first 8 bytes of the checksum of a text.
fn short(text: &str) -> String {
    mixbit_formats::hex(&mixbit_formats::sha256(text.as_bytes())[..8])
}

/// Bits of a weight, as Apple's recipes write them.
fn bits(scheme: Option<Scheme>) -> u32 {
    scheme.map_or(UNTOUCHED, |scheme| scheme.width.bits())
}

#[cfg(test)]
mod tests;
