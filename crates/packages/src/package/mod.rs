//! Models as Core ML packages, under the names that Apple's `ml-stable-diffusion` gives them.
//!
//! - [`PARTS`] lists the networks of a model: what each package is called, and what it is for;
//! - [`plan`] says which packages a model becomes, each a graph over the checkpoint's weights;
//! - [`Package::write`] writes one.
//!
//! A package made here carries its component's configuration as user-defined metadata ([`keys`]), so that it is enough
//! by itself: for other sizes, for recipes by checkpoint names, for the scheduler and the scale of the latents.

mod check;
mod plan;
mod vocabulary;
mod write;

use mixbit_mil::Opset;

pub use check::check_output;
pub use plan::{Options, PlanError, Source, plan};
pub use vocabulary::write_vocabulary;
pub use write::{Package, PackageError};

/// A network of a model, as Apple's tools know it.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The end of the package's name: `Stable_Diffusion_version_<model>_<name>.mlpackage`.
    pub name: &'static str,
    /// The name in a `Resources` directory, before `.mlmodelc`.
    pub compiled: &'static str,
    /// The part that is asked for when this one is meant: both text encoders are converted as one.
    pub asked_as: &'static str,
    /// One line of what it does.
    pub about: &'static str,
}

/// Every part.
pub static PARTS: &[Part] = &[
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

const TEXT_ENCODER: Part = Part {
    name: "text_encoder",
    compiled: "TextEncoder",
    asked_as: "text_encoder",
    about: "Turns the tokens of a prompt into the states that the UNet attends to",
};
const TEXT_ENCODER_2: Part = Part {
    name: "text_encoder_2",
    compiled: "TextEncoder2",
    asked_as: "text_encoder",
    about: "Turns the tokens of a prompt into further states, and into one vector for the whole prompt",
};
const UNET: Part = Part {
    name: "unet",
    compiled: "Unet",
    asked_as: "unet",
    about: "Predicts the noise in the latents of an image",
};
const REFINER: Part = Part {
    name: "refiner",
    compiled: "UnetRefiner",
    asked_as: "refiner",
    about: "Predicts the noise in the latents of an image that is nearly done",
};
const CONTROL_UNET: Part = Part {
    name: "control-unet",
    compiled: "ControlledUnet",
    asked_as: "control-unet",
    about: "Predicts the noise in the latents of an image, led by a ControlNet's residuals",
};
const CONTROLNET: Part = Part {
    name: "controlnet",
    compiled: "controlnet",
    asked_as: "controlnet",
    about: "Turns an image of edges, depth or poses into residuals that lead a UNet",
};
const VAE_DECODER: Part = Part {
    name: "vae_decoder",
    compiled: "VAEDecoder",
    asked_as: "vae_decoder",
    about: "Turns latents into an image",
};
const VAE_ENCODER: Part = Part {
    name: "vae_encoder",
    compiled: "VAEEncoder",
    asked_as: "vae_encoder",
    about: "Turns an image into latents",
};
pub const SAFETY_CHECKER: Part = Part {
    name: "safety_checker",
    compiled: "SafetyChecker",
    asked_as: "safety_checker",
    about: "Tells whether an image shows what should not be shown, and blacks it out",
};

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
    /// How the package was palettized: a scheme, or a recipe's name and checksum.
    pub const RECIPE: &str = "mixbit.recipe";
    /// Layers that `--precision int8` does not quantize, separated by spaces.
    pub const FULL_PRECISION: &str = "mixbit.full_precision";
    /// A text encoder's `tokenizer_config.json`.
    pub const TOKENIZER: &str = "mixbit.tokenizer";
}

/// A system that a package must run on, and later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeploymentTarget {
    /// The names on the command line: macOS and iOS.
    pub names: [&'static str; 2],
    /// The ops that it has.
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
