//! A complete model: text encoders, UNet, autoencoder and the settings in its files.
//!
//! [`DiffusionModel::from_files`] reads a model in the diffusers layout. All differences between families are
//! resolved here from the model's configuration: the latent scale, the text encoder layer, and zeros for an
//! absent negative prompt. The [`session`](crate::session) has no family-specific code.

mod error;
mod files;
mod latent;
mod pipeline;
mod scheduler;
mod text_states;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use mixbit_mil::{Constant, DType, Def, Function, Weights};
use serde_json::Value;

pub use error::ModelError;
pub use files::{FileError, ModelFiles, ModelFilesLayer};
pub use latent::LatentFormat;
pub use scheduler::ModelScheduler;
pub use text_states::TextStatesLayout;

use crate::arch::text_encoder::{self, Outputs};
use crate::arch::{self, ArchError, Config, GraphOptions, unet, vae};
use crate::tokenizer::{Tokenizer, TokenizerError, TokenizerFiles};

/// The folders of text encoders and their tokenizers, in the order that concatenates their hidden states.
pub const TEXT_ENCODERS: [(&str, &str); 2] =
    [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];

/// The key of `model_index.json` for the model's default settings.
const DEFAULTS: &str = "_mixbit";

/// A model that can be run. It refers to weights without reading them. Clones share the networks.
#[derive(Clone, Debug)]
pub struct DiffusionModel {
    /// The text encoders, in the order that concatenates their hidden states.
    pub text_encoders: Vec<TextEncoder>,
    /// The denoising network: see [`unet::build`] for its inputs.
    pub unet: Unet,
    /// The image autoencoder.
    pub autoencoder: Autoencoder,
    /// The model's own scheduler.
    pub scheduler: ModelScheduler,
    /// True if an absent negative prompt has zeros as its embeddings, not those of an empty prompt.
    pub zeros_for_absent_negative: bool,
    /// The model's recommended settings.
    pub defaults: Defaults,
}

/// A text encoder and its tokenizer.
#[derive(Clone, Debug)]
pub struct TextEncoder {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The graph: see [`text_encoder::build`].
    pub network: Network,
    /// The name of the graph's output that the UNet attends to.
    pub states: &'static str,
}

/// The denoising network.
#[derive(Clone, Debug)]
pub struct Unet {
    /// The graph: see [`unet::build`].
    pub network: Network,
    /// Length of `time_ids` per image, if the network takes them.
    pub time_ids: Option<usize>,
    /// True if the network takes the guidance scale as an input (`timestep_cond`), so that guidance needs no
    /// second evaluation.
    pub takes_guidance: bool,
}

/// The image autoencoder.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    /// The encoder, for image to image: see [`vae::build_encoder`]. Some packages come without one.
    pub encoder: Option<Network>,
    /// The decoder: see [`vae::build_decoder`].
    pub decoder: Network,
    /// The relation of its latents to the UNet's.
    pub latent: LatentFormat,
    /// True if it needs `fp32` when the other networks run in `fp16`. As in diffusers, only Stable Diffusion
    /// XL sets it.
    pub force_upcast: bool,
}

/// A model's recommended settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Inference steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f32,
}

type Build = dyn Fn(&GraphOptions) -> Result<Function, ArchError> + Send + Sync;

/// One of a model's networks, which has a graph for every size. Clones are equal; separately created networks
/// never are.
#[derive(Clone)]
pub struct Network(Arc<Definition>);

struct Definition {
    component: String,
    build: Box<Build>,
    full_precision: BTreeSet<String>,
}

impl Network {
    /// A network with the given build function. `component` is its folder, for messages.
    pub fn new(
        component: impl Into<String>,
        build: impl Fn(&GraphOptions) -> Result<Function, ArchError> + Send + Sync + 'static,
    ) -> Self {
        Network::with_full_precision(component, build, BTreeSet::new())
    }

    /// A network whose layers with these weights must not use integer arithmetic.
    pub fn with_full_precision(
        component: impl Into<String>,
        build: impl Fn(&GraphOptions) -> Result<Function, ArchError> + Send + Sync + 'static,
        weights: BTreeSet<String>,
    ) -> Self {
        let build = Box::new(build);
        Network(Arc::new(Definition { component: component.into(), build, full_precision: weights }))
    }

    /// A new network with this one's graphs, transformed by `change`.
    pub fn map(
        &self,
        change: impl Fn(Function) -> Result<Function, ArchError> + Send + Sync + 'static,
    ) -> Self {
        let original = self.clone();
        let build = move |options: &GraphOptions| change((original.0.build)(options)?);
        Network::with_full_precision(self.component(), build, self.full_precision().clone())
    }

    /// Names of weights whose layers must not use integer arithmetic.
    pub fn full_precision(&self) -> &BTreeSet<String> {
        &self.0.full_precision
    }

    /// The network's folder.
    pub fn component(&self) -> &str {
        &self.0.component
    }

    /// The graph for one size.
    ///
    /// # Errors
    /// A missing or misshapen weight, or options that don't fit the network, with the component's name.
    pub fn graph(&self, options: &GraphOptions) -> Result<Function, ModelError> {
        (self.0.build)(options)
            .map_err(|source| ModelError::Network { component: self.component().to_string(), source })
    }

    /// The name of the first weight of a graph that holds an infinity or a NaN.
    ///
    /// It reads every weight, to explain a result that is not finite.
    pub fn not_finite_weight(graph: &Function) -> Option<String> {
        graph.values().iter().find_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) => {
                let weight = weight.cast(DType::F32);
                let bytes = weight.read().ok()?;
                let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                values.any(|value| !value.is_finite()).then(|| weight.name().to_string())
            }
            _ => None,
        })
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Network {}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.component())
    }
}

impl DiffusionModel {
    /// Reads a model in the diffusers layout: its configurations, its tokenizers and the names of its
    /// weights.
    ///
    /// # Errors
    /// [`ModelError`] with the component, the file or the field that is missing, malformed or not supported.
    pub fn from_files(files: &dyn ModelFiles) -> Result<Self, ModelError> {
        let pipeline_error =
            |what: &str| ModelError::Pipeline { class: files.class().to_string(), what: what.to_string() };
        check_pipeline(files)?;
        let places = TEXT_ENCODERS.iter().flat_map(|(encoder, tokenizer)| [*encoder, *tokenizer]);
        for place in places.chain(["unet", "vae", "scheduler"]) {
            if files.option(place).is_some() {
                let what = format!("its `{place}` in model_index.json is not a library and a class");
                return Err(pipeline_error(&what));
            }
        }
        for needed in ["unet", "vae", "scheduler"] {
            if files.component(needed).is_none() {
                return Err(pipeline_error(&format!("it has no `{needed}`")));
            }
        }
        let Config::Unet(unet_config) = component_config(files, "unet")? else {
            return Err(pipeline_error("its `unet` is not a UNet2DConditionModel"));
        };
        let Config::Vae(vae_config) = component_config(files, "vae")? else {
            return Err(pipeline_error("its `vae` is not an AutoencoderKL"));
        };
        if unet_config.in_channels != vae_config.latent_channels {
            return Err(pipeline_error(&format!(
                "its UNet takes {} channels and its autoencoder makes {}: inpainting, depth and editing models take \
                 an image beside the prompt",
                unet_config.in_channels, vae_config.latent_channels
            )));
        }
        if unet_config.class_labels.is_some() {
            return Err(pipeline_error("its UNet takes `class_labels`, which text to image does not have"));
        }
        let takes_sizes = unet_config.takes_sizes();
        let (text_encoders, pooled) = text_encoders(files, &unet_config)?;
        let pooled = pooled.ok_or_else(|| pipeline_error("it has no text encoder"))?;
        let time_ids = unet_config
            .time_id_count(pooled)
            .map_err(|source| ModelError::Network { component: "unet".to_string(), source })?;
        let latent = LatentFormat::of(&vae_config);
        Ok(DiffusionModel {
            defaults: defaults(files, &unet_config, &latent)?,
            text_encoders,
            unet: Unet {
                time_ids,
                takes_guidance: unet_config.time.condition.is_some(),
                network: unet_network(*unet_config, weights(files, "unet")?, files.full_precision("unet")),
            },
            autoencoder: autoencoder(vae_config, weights(files, "vae")?, latent, takes_sizes),
            scheduler: ModelScheduler::from_files(files)?,
            zeros_for_absent_negative: takes_sizes && zeros_for_absent_negative(files),
        })
    }

    /// True if the model contains a network.
    pub fn has(&self, network: &Network) -> bool {
        let mut text_encoders = self.text_encoders.iter().map(|encoder| &encoder.network);
        text_encoders.any(|own| own == network)
            || self.unet.network == *network
            || self.autoencoder.decoder == *network
            || self.autoencoder.encoder.as_ref() == Some(network)
    }
}

/// Refuses models of other architectures by the class of their pipeline, even if their parts could be run.
///
/// # Errors
/// [`ModelError::Pipeline`], with a program that runs the model.
pub fn check_pipeline(files: &dyn ModelFiles) -> Result<(), ModelError> {
    match pipeline::refusal(files.class()) {
        Some(what) => Err(ModelError::Pipeline { class: files.class().to_string(), what }),
        None => Ok(()),
    }
}

/// True if a model that takes sizes gets zeros for an absent negative prompt.
pub fn zeros_for_absent_negative(files: &dyn ModelFiles) -> bool {
    let chosen = files.option("force_zeros_for_empty_prompt");
    chosen.and_then(|value| value.as_bool()).unwrap_or(true)
}

fn unet_network(
    config: unet::Config,
    weights: Arc<dyn Weights>,
    full_precision: BTreeSet<String>,
) -> Network {
    let build = move |options: &GraphOptions| unet::build(&config, &*weights, options);
    Network::with_full_precision("unet", build, full_precision)
}

fn autoencoder(
    config: vae::Config,
    weights: Arc<dyn Weights>,
    latent: LatentFormat,
    heeds_upcast: bool,
) -> Autoencoder {
    let force_upcast = heeds_upcast && config.force_upcast;
    let (encoder, encoder_weights) = (config.clone(), weights.clone());
    let encode = move |options: &GraphOptions| vae::build_encoder(&encoder, &*encoder_weights, options);
    let decode = move |options: &GraphOptions| vae::build_decoder(&config, &*weights, options);
    Autoencoder {
        encoder: Some(Network::new("vae", encode)),
        decoder: Network::new("vae", decode),
        latent,
        force_upcast,
    }
}

/// The model's text encoders, and the channels of the last one's pooled output.
fn text_encoders(
    files: &dyn ModelFiles,
    unet: &unet::Config,
) -> Result<(Vec<TextEncoder>, Option<usize>), ModelError> {
    let (mut encoders, mut pooled) = (Vec::new(), None);
    let present = TEXT_ENCODERS.iter().filter(|(component, _)| files.component(component).is_some());
    let last = present.clone().count().saturating_sub(1);
    for (index, &(component, tokenizer)) in present.enumerate() {
        let Config::TextEncoder(config) = component_config(files, component)? else {
            return Err(not_a_text_encoder(files, component));
        };
        let tokenizer = read_tokenizer(files, tokenizer)?;
        let tokenizer = fitting(tokenizer, config.vocab_size)
            .map_err(|what| ModelError::Mismatch { component: component.to_string(), what })?;
        let outputs = Outputs { pooled: unet.takes_sizes() && index == last, ..unet.text_outputs() };
        pooled = Some(config.pooled_channels());
        let weights = weights(files, component)?;
        let build = move |options: &GraphOptions| text_encoder::build(&config, &*weights, options, outputs);
        encoders.push(TextEncoder {
            tokenizer: Arc::new(tokenizer),
            network: Network::new(component, build),
            states: outputs.hidden_name(),
        });
    }
    Ok((encoders, pooled))
}

/// A tokenizer for a text encoder with a number of embeddings. Added tokens may go beyond them: a prompt that
/// uses one is refused.
///
/// # Errors
/// If the vocabulary itself, or a token of every prompt, goes beyond the embeddings.
fn fitting(tokenizer: Tokenizer, embeddings: usize) -> Result<Tokenizer, String> {
    let ids = tokenizer.base_size();
    tokenizer.with_embeddings(embeddings).ok_or_else(|| {
        format!(
            "its tokenizer makes {ids} ids and the text encoder has {embeddings} embeddings: they are of \
             different models"
        )
    })
}

/// The tokenizer of a component's files.
///
/// # Errors
/// [`ModelError::File`], or [`ModelError::Tokenizer`] with the component's name.
pub fn read_tokenizer(files: &dyn ModelFiles, component: &str) -> Result<Tokenizer, ModelError> {
    with_tokenizer_files(files, component, |contents| Tokenizer::new(&contents))
}

/// A `tokenizer_config.json` that says what all the tokenizer's files say besides the vocabulary and the
/// merges; `None` without a tokenizer.
///
/// # Errors
/// Those of [`read_tokenizer`].
pub fn merged_tokenizer_config(
    files: &dyn ModelFiles,
    component: &str,
) -> Result<Option<String>, ModelError> {
    with_tokenizer_files(files, component, |contents| {
        let is_there = contents.tokenizer.is_some() || contents.vocab.is_some();
        is_there.then(|| contents.merged_config()).transpose()
    })
}

fn with_tokenizer_files<T>(
    files: &dyn ModelFiles,
    component: &str,
    read: impl FnOnce(TokenizerFiles<'_>) -> Result<T, TokenizerError>,
) -> Result<T, ModelError> {
    let text = |file| files.text(component, file).map_err(ModelError::File);
    let [vocab, merges, tokenizer, config, special_tokens_map, added_tokens] = [
        text("vocab.json")?,
        text("merges.txt")?,
        text("tokenizer.json")?,
        text("tokenizer_config.json")?,
        text("special_tokens_map.json")?,
        text("added_tokens.json")?,
    ];
    let contents = TokenizerFiles {
        vocab: vocab.as_deref(),
        merges: merges.as_deref(),
        tokenizer: tokenizer.as_deref(),
        config: config.as_deref(),
        special_tokens_map: special_tokens_map.as_deref(),
        added_tokens: added_tokens.as_deref(),
    };
    read(contents).map_err(|source| ModelError::Tokenizer { component: component.to_string(), source })
}

fn json(files: &dyn ModelFiles, component: &str, file: &str) -> Result<Value, ModelError> {
    files.json(component, file).map_err(ModelError::File)
}

fn weights(files: &dyn ModelFiles, component: &str) -> Result<Arc<dyn Weights>, ModelError> {
    files.weights(component).map_err(ModelError::File)
}

/// A component's configuration, read according to its class.
///
/// # Errors
/// An absent or malformed file, an unknown class, or an unsupported field, with the component's name.
pub fn component_config(files: &dyn ModelFiles, component: &str) -> Result<Config, ModelError> {
    let network = |source| ModelError::Network { component: component.to_string(), source };
    let architecture = arch::lookup(files.component(component).unwrap_or_default()).map_err(network)?;
    architecture.config(&json(files, component, "config.json")?).map_err(network)
}

/// The channels of the last text encoder's pooled output; 0 if there is no text encoder.
///
/// # Errors
/// Those of [`component_config`], and a component that is not a text encoder.
pub fn pooled_channels(files: &dyn ModelFiles) -> Result<usize, ModelError> {
    let present = TEXT_ENCODERS.iter().rev().find(|(component, _)| files.component(component).is_some());
    let Some((component, _)) = present else { return Ok(0) };
    match component_config(files, component)? {
        Config::TextEncoder(config) => Ok(config.pooled_channels()),
        _ => Err(not_a_text_encoder(files, component)),
    }
}

fn not_a_text_encoder(files: &dyn ModelFiles, component: &str) -> ModelError {
    let what = format!("its `{component}` is not a CLIP text encoder");
    ModelError::Pipeline { class: files.class().to_string(), what }
}

fn defaults(
    files: &dyn ModelFiles,
    unet: &unet::Config,
    latent: &LatentFormat,
) -> Result<Defaults, ModelError> {
    let [height, width] = unet.sample_size.unwrap_or([64, 64]);
    let mut defaults = Defaults {
        size: [width * latent.scale, height * latent.scale],
        steps: Defaults::STEPS,
        guidance_scale: Defaults::GUIDANCE_SCALE,
    };
    let Some(chosen) = files.option(DEFAULTS) else { return Ok(defaults) };
    let wrong = |field: &str| ModelError::Pipeline {
        class: files.class().to_string(),
        what: format!("`{DEFAULTS}.{field}` in model_index.json must be a positive number"),
    };
    if let Some(steps) = chosen.get("steps") {
        let steps = steps.as_u64().and_then(|steps| usize::try_from(steps).ok());
        defaults.steps = steps.filter(|&steps| steps > 0).ok_or_else(|| wrong("steps"))?;
    }
    if let Some(scale) = chosen.get("guidance_scale") {
        let scale = scale.as_f64().filter(|scale| scale.is_finite() && *scale > 0.0);
        defaults.guidance_scale = scale.ok_or_else(|| wrong("guidance_scale"))? as f32;
    }
    Ok(defaults)
}

impl Defaults {
    /// Steps if the model sets none.
    pub const STEPS: usize = 25;
    /// The guidance scale if the model sets none.
    pub const GUIDANCE_SCALE: f32 = 7.5;
}
