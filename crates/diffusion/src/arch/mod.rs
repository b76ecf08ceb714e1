//! Stable Diffusion's networks as MIL graphs.
//!
//! A network is built from its `config.json`, read into a `Config`, and a source of weights
//! ([`mixbit_mil::Weights`]). [`text_encoder`], [`unet`], [`vae`] and [`safety_checker`] each have a `Config`
//! and `build` functions. [`ARCHITECTURES`] lists the class names.
//!
//! The default graphs use the ops that Apple's converter writes for the same network (its `ORIGINAL`
//! attention). They can therefore be written to a Core ML package unchanged.
//!
//! Every field of a configuration is either implemented or rejected by name. Constants keep their checkpoint
//! names. Building reads no weights.

mod clip;
mod error;
mod fields;
mod heads;
mod inventory;
pub mod io;
mod layers;
mod resnet;
pub mod safety_checker;
pub mod text_encoder;
pub mod unet;
pub mod vae;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use mixbit_mil::{Constant, DType, Def, Function, Opset, Weights};
use serde_json::Value;

pub use error::ArchError;
pub use inventory::required_tensors;
pub use layers::Activation;

/// The MIL form of attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionImplementation {
    /// Batched matrix products over all heads; Apple's `ORIGINAL`.
    #[default]
    Original,
    /// Each head separately, as the Neural Engine prefers; Apple's `SPLIT_EINSUM`.
    SplitEinsum,
    /// Each head and each chunk of 512 queries separately; Apple's `SPLIT_EINSUM_V2`.
    SplitEinsumV2,
}

impl AttentionImplementation {
    /// Every implementation.
    pub const ALL: [AttentionImplementation; 3] = [
        AttentionImplementation::Original,
        AttentionImplementation::SplitEinsum,
        AttentionImplementation::SplitEinsumV2,
    ];

    /// The name in Apple's converter.
    pub fn name(self) -> &'static str {
        match self {
            AttentionImplementation::Original => "ORIGINAL",
            AttentionImplementation::SplitEinsum => "SPLIT_EINSUM",
            AttentionImplementation::SplitEinsumV2 => "SPLIT_EINSUM_V2",
        }
    }
}

/// The options of a graph. MIL shapes are static, so every size needs its own graph over the same weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Batch size. A UNet with classifier-free guidance takes two samples for each image.
    pub batch: usize,
    /// Height of the latent image.
    pub height: usize,
    /// Width of the latent image.
    pub width: usize,
    /// Text tokens.
    pub tokens: usize,
    /// Length of `time_ids` per sample, for UNets that take it: 6, or 5 with an aesthetic score.
    pub time_ids: usize,
    /// The compute type, `fp16` or `fp32`.
    pub dtype: DType,
    /// The available ops.
    pub opset: Opset,
    /// The form of attention.
    pub attention: AttentionImplementation,
    /// True if the UNet takes the residuals of ControlNets as inputs.
    pub control_residuals: bool,
}

impl Default for GraphOptions {
    /// One image of 512 by 512 pixels in `fp32`.
    fn default() -> Self {
        GraphOptions {
            batch: 1,
            height: 64,
            width: 64,
            tokens: 77,
            time_ids: 6,
            dtype: DType::F32,
            opset: Opset::Ios16,
            attention: AttentionImplementation::Original,
            control_residuals: false,
        }
    }
}

impl GraphOptions {
    /// Height and width, times `scale`.
    ///
    /// # Errors
    /// A height, width, batch size or number of tokens out of range.
    fn size(&self, scale: usize) -> Result<[usize; 2], ArchError> {
        let check = |option: &'static str, extent: usize| {
            if (1..=fields::MAX_EXTENT).contains(&extent) {
                return Ok(extent);
            }
            let what = format!("must be 1 to {}, not {extent}", fields::MAX_EXTENT);
            Err(ArchError::Option { option, what })
        };
        check("batch", self.batch)?;
        check("tokens", self.tokens)?;
        Ok([check("height", self.height)? * scale, check("width", self.width)? * scale])
    }
}

/// The configuration of a network of any supported class.
#[derive(Clone, Debug)]
pub enum Config {
    /// A CLIP text encoder.
    TextEncoder(text_encoder::Config),
    /// A denoising UNet.
    Unet(Box<unet::Config>),
    /// A ControlNet.
    ControlNet(Box<unet::control::Config>),
    /// An image autoencoder.
    Vae(vae::Config),
    /// A safety checker.
    SafetyChecker(safety_checker::Config),
}

/// A network class of diffusers or transformers.
pub struct Architecture {
    /// The class name in `model_index.json`.
    pub class: &'static str,
    read: fn(&Value) -> Result<Config, ArchError>,
}

impl Architecture {
    /// Reads the class's `config.json`.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn config(&self, config: &Value) -> Result<Config, ArchError> {
        (self.read)(config)
    }
}

/// Every supported class.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        class: "CLIPTextModel",
        read: |config| text_encoder::Config::from_json(config).map(Config::TextEncoder),
    },
    Architecture {
        class: "CLIPTextModelWithProjection",
        read: |config| text_encoder::Config::with_projection(config).map(Config::TextEncoder),
    },
    Architecture {
        class: "UNet2DConditionModel",
        read: |config| unet::Config::from_json(config).map(|config| Config::Unet(Box::new(config))),
    },
    Architecture {
        class: "ControlNetModel",
        read: |config| {
            unet::control::Config::from_json(config).map(|config| Config::ControlNet(Box::new(config)))
        },
    },
    Architecture { class: "AutoencoderKL", read: |config| vae::Config::from_json(config).map(Config::Vae) },
    Architecture {
        class: "StableDiffusionSafetyChecker",
        read: |config| safety_checker::Config::from_json(config).map(Config::SafetyChecker),
    },
];

/// The architecture of a class.
///
/// # Errors
/// [`ArchError::UnknownClass`].
pub fn lookup(class: &str) -> Result<&'static Architecture, ArchError> {
    ARCHITECTURES.iter().find(|architecture| architecture.class == class).ok_or_else(|| {
        let supported: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.class).collect();
        ArchError::UnknownClass { class: class.to_string(), supported: supported.join(", ") }
    })
}

/// The names of checkpoint tensors that no constant of the given graphs uses.
pub fn unused_weights(weights: &dyn Weights, functions: &[&Function]) -> Vec<String> {
    let used: BTreeSet<&str> = functions
        .iter()
        .flat_map(|function| function.values())
        .filter_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) => Some(weight.name()),
            _ => None,
        })
        .collect();
    weights.names().into_iter().filter(|name| !used.contains(name)).map(str::to_string).collect()
}
