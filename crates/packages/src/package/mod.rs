//! Models as Core ML packages, under the names that Apple's `ml-stable-diffusion` gives them.
//!
//! - [`PACKAGE_KINDS`] lists the networks of a model: the name of each package, and its purpose;
//! - [`plan`] lists the packages that a model becomes, each a graph over the checkpoint's weights;
//! - [`Job`](crate::palettize::Job) writes them.
//!
//! A package made here carries its component's configuration as user-defined metadata ([`keys`]). It is
//! complete by itself: for other sizes, for recipes by checkpoint names, for the scheduler and the scale of
//! the latents.

mod check;
mod error;
pub(crate) mod fit;
mod plan;
pub(crate) mod provenance;
mod vocabulary;
mod write;

use std::path::Path;

use mixbit_mil::Opset;

pub use check::{OutputError, check_output};
pub use error::{PackageError, PlanError};
pub use plan::{ConversionOptions, ConversionSource, left_out_safety_checker, plan};
pub(crate) use vocabulary::VOCABULARY;
pub use vocabulary::{VocabularyError, added_tokens, added_words, vocabulary};
pub use write::Package;

/// A network of a model, as Apple's tools name it.
#[derive(Debug, PartialEq, Eq)]
pub struct PackageKind {
    /// The end of the package's name: `Stable_Diffusion_version_<model>_<name>.mlpackage`.
    pub name: &'static str,
    /// The name in a `Resources` directory, before `.mlmodelc`.
    pub compiled: &'static str,
    /// The name on the command line: both text encoders are converted as one.
    pub asked_as: &'static str,
    /// The purpose, in one line.
    pub about: &'static str,
    /// True if it predicts noise: recipes are for UNets.
    pub is_unet: bool,
    /// True if it is palettized when a whole model is. Autoencoders and safety checkers are not, as with
    /// Apple's converter.
    pub is_palettized: bool,
}

/// Every kind of package.
pub static PACKAGE_KINDS: &[PackageKind] = &[
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    REFINER,
    CONTROL_UNET,
    CONTROLNET,
    VAE_DECODER,
    VAE_ENCODER,
    SAFETY_CHECKER,
];

const TEXT_ENCODER: PackageKind = PackageKind {
    name: "text_encoder",
    compiled: "TextEncoder",
    asked_as: "text_encoder",
    about: "Turns the tokens of a prompt into the states that the UNet attends to",
    is_unet: false,
    is_palettized: true,
};
const TEXT_ENCODER_2: PackageKind = PackageKind {
    name: "text_encoder_2",
    compiled: "TextEncoder2",
    asked_as: "text_encoder",
    about: "Turns the tokens of a prompt into further states, and into one vector for the whole prompt",
    is_unet: false,
    is_palettized: true,
};
const UNET: PackageKind = PackageKind {
    name: "unet",
    compiled: "Unet",
    asked_as: "unet",
    about: "Predicts the noise in the latents of an image",
    is_unet: true,
    is_palettized: true,
};
pub(crate) const REFINER: PackageKind = PackageKind {
    name: "refiner",
    compiled: "UnetRefiner",
    asked_as: "refiner",
    about: "Predicts the noise in the latents of an image that is nearly done",
    is_unet: true,
    is_palettized: true,
};
const CONTROL_UNET: PackageKind = PackageKind {
    name: "control-unet",
    compiled: "ControlledUnet",
    asked_as: "control-unet",
    about: "Predicts the noise in the latents of an image, led by a ControlNet's residuals",
    is_unet: true,
    is_palettized: true,
};
pub(crate) const CONTROLNET: PackageKind = PackageKind {
    name: "controlnet",
    compiled: "controlnet",
    asked_as: "controlnet",
    about: "Turns an image of edges, depth or poses into residuals that lead a UNet",
    is_unet: false,
    is_palettized: true,
};
const VAE_DECODER: PackageKind = PackageKind {
    name: "vae_decoder",
    compiled: "VAEDecoder",
    asked_as: "vae_decoder",
    about: "Turns latents into an image",
    is_unet: false,
    is_palettized: false,
};
const VAE_ENCODER: PackageKind = PackageKind {
    name: "vae_encoder",
    compiled: "VAEEncoder",
    asked_as: "vae_encoder",
    about: "Turns an image into latents",
    is_unet: false,
    is_palettized: false,
};
pub(crate) const SAFETY_CHECKER: PackageKind = PackageKind {
    name: "safety_checker",
    compiled: "SafetyChecker",
    asked_as: "safety_checker",
    about: "Tells whether an image shows what should not be shown, and blacks it out",
    is_unet: false,
    is_palettized: false,
};

/// The start of the names of ControlNets' packages.
pub(crate) const CONTROLNET_PREFIX: &str = "ControlNet_";

/// The ends of a kind's names, in packages and compiled: of a whole network, and of the two halves of one
/// that is cut.
pub(crate) const WHOLE: [&str; 2] = ["", ""];
pub(crate) const CHUNKS: [[&str; 2]; 2] = [["_chunk1", "Chunk1"], ["_chunk2", "Chunk2"]];

impl PackageKind {
    /// The kind of a package or compiled model by its file name without extension, whole or a chunk.
    pub fn of_stem(stem: &str) -> Option<&'static PackageKind> {
        let ends = [WHOLE, CHUNKS[0], CHUNKS[1]];
        PACKAGE_KINDS.iter().find(|kind| ends.iter().any(|&ends| kind.has_stem(stem, ends)))
    }

    /// The name of a package in a `Resources` directory, without `.mlmodelc`, by its file name without
    /// extension; `None` for a package under a name of its own.
    pub(crate) fn compiled_name(stem: &str) -> Option<String> {
        if let Some(net) = stem.strip_prefix(CONTROLNET_PREFIX) {
            return Some(format!("controlnet/{}", title_case(net)));
        }
        let kind = Self::of_stem(stem)?;
        let ends = [CHUNKS[0], CHUNKS[1], WHOLE].into_iter().find(|&ends| kind.has_stem(stem, ends))?;
        Some(format!("{}{}", kind.compiled, ends[1]))
    }

    /// True if a file name without extension is this kind's with these ends.
    pub(crate) fn has_stem(&self, stem: &str, [package, compiled]: [&str; 2]) -> bool {
        let end = format!("{}{package}", self.name);
        stem == end || stem.ends_with(&format!("_{end}")) || stem == format!("{}{compiled}", self.compiled)
    }
}

/// True if a path is named as a Core ML model.
pub fn is_package(path: &Path) -> bool {
    let is_one_of = |extension| ["mlpackage", "mlmodelc", "mlmodel"].iter().any(|known| extension == *known);
    path.extension().is_some_and(is_one_of)
}

/// User-defined metadata of the packages.
pub mod keys {
    /// Apple's converter's version, which Apple's tools expect on UNets.
    pub const APPLE_VERSION: &str = "com.github.apple.ml-stable-diffusion.version";
    /// The version of mixbit that wrote the package.
    pub const VERSION: &str = "mixbit.version";
    /// The component's folder in the checkpoint.
    pub const COMPONENT: &str = "mixbit.component";
    /// The component's class.
    pub const CLASS: &str = "mixbit.class";
    /// The component's `config.json`.
    pub const CONFIG: &str = "mixbit.config";
    /// The model's `scheduler_config.json`.
    pub const SCHEDULER: &str = "mixbit.scheduler";
    /// The model's `model_index.json`.
    pub const MODEL_INDEX: &str = "mixbit.model_index";
    /// The scheme that the package was palettized by, or the recipe's name and checksum.
    pub const RECIPE: &str = "mixbit.recipe";
    /// Layers that `--precision int8` does not quantize, separated by spaces.
    pub const FULL_PRECISION: &str = "mixbit.full_precision";
    /// A text encoder's `tokenizer_config.json`, with the special and added tokens of all tokenizer files.
    pub const TOKENIZER: &str = "mixbit.tokenizer";
    /// The checksum of the weights that the package was made of.
    pub const SOURCE: &str = "mixbit.source";
    /// The options that it was made with: a JSON object by their names on the command line.
    pub const OPTIONS: &str = "mixbit.options";
}

/// The oldest system that a package must run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeploymentTarget {
    /// The names on the command line: macOS and iOS.
    pub names: [&'static str; 2],
    /// Its ops.
    pub opset: Opset,
    /// The version of the specification.
    pub specification_version: u32,
}

/// Every deployment target.
pub static DEPLOYMENT_TARGETS: &[DeploymentTarget] = &[
    DeploymentTarget { names: ["macOS13", "iOS16"], opset: Opset::Ios16, specification_version: 7 },
    DeploymentTarget { names: ["macOS14", "iOS17"], opset: Opset::Ios17, specification_version: 8 },
    DeploymentTarget { names: ["macOS15", "iOS18"], opset: Opset::Ios18, specification_version: 9 },
];

impl DeploymentTarget {
    /// The target of a macOS or iOS name, in any case.
    pub fn of_name(name: &str) -> Option<&'static DeploymentTarget> {
        DEPLOYMENT_TARGETS
            .iter()
            .find(|target| target.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }

    /// The oldest target that has an opset.
    pub fn of_opset(opset: Opset) -> Option<&'static DeploymentTarget> {
        DEPLOYMENT_TARGETS.iter().find(|target| target.opset >= opset)
    }
}

impl Default for &'static DeploymentTarget {
    fn default() -> Self {
        &DEPLOYMENT_TARGETS[0]
    }
}

/// A model's name as a part of file names.
fn file_name(model: &str) -> String {
    model.replace(['/', ' '], "_")
}

/// Words joined as in a type's name: `lllyasviel/sd-controlnet-depth` as `LllyasvielSdControlnetDepth`.
fn title_case(name: &str) -> String {
    let word = |word: &str| -> String {
        let mut characters = word.chars();
        characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
    };
    name.split(['_', '-', '/']).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_apples() {
        assert_eq!(file_name("stabilityai/stable-diffusion-2-1"), "stabilityai_stable-diffusion-2-1");
        assert_eq!(title_case("lllyasviel/sd-controlnet-depth"), "LllyasvielSdControlnetDepth");
    }
}
