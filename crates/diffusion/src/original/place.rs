//! The places of networks in a file, and their tensors under the names of diffusers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mixbit_mil::{WeightRef, Weights};
use serde_json::{Value, json};

use super::error::OriginalError;
use super::kind::Edm;
use super::names::{Names, View};
use super::structure::{Naming, Tensors};

/// How a network's tensors are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartNaming {
    /// A UNet, in any of its namings.
    Unet(Naming),
    /// An autoencoder of `ldm`.
    VaeOriginal,
    /// An autoencoder of diffusers.
    VaeDiffusers,
    /// A text encoder of transformers.
    Transformers,
    /// A text encoder of OpenCLIP.
    OpenClip,
}

/// A network that was found in a file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) prefix: &'static str,
    pub(super) naming: PartNaming,
}

/// The place of a network in some files.
struct Spot {
    component: &'static str,
    prefix: &'static str,
    /// A tensor that is there if the network is.
    mark: &'static str,
    naming: PartNaming,
}

macro_rules! spots {
    ($($component:literal: $naming:expr, $mark:literal, [$($prefix:literal),* $(,)?]);* $(;)?) => {
        &[$($(Spot { component: $component, prefix: $prefix, mark: $mark, naming: $naming }),*),*]
    };
}

/// The averages of a UNet, whose names have lost their dots.
const AVERAGED_UNET: Found =
    Found { prefix: "model_ema.diffusion_model", naming: PartNaming::Unet(Naming::OriginalAverages) };

/// Every place, in the order in which they are looked for. Stability's, CompVis', diffusers' and ComfyUI's
/// files have them.
static SPOTS: &[Spot] = spots![
    "unet": PartNaming::Unet(Naming::Original), "input_blocks.0.0.weight",
        ["model.diffusion_model.", "diffusion_model.", ""];
    "unet": PartNaming::Unet(Naming::Diffusers), "conv_in.weight",
        ["model.diffusion_model.", "unet.", ""];
    "vae": PartNaming::VaeOriginal, "decoder.mid.block_1.norm1.weight", ["first_stage_model.", "vae.", ""];
    "vae": PartNaming::VaeDiffusers, "decoder.mid_block.resnets.0.norm1.weight",
        ["first_stage_model.", "vae.", ""];
    "text_encoder": PartNaming::Transformers, "text_model.embeddings.token_embedding.weight",
        ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer.",
         "text_encoders.clip_l.transformer.", "text_encoder."];
    "text_encoder": PartNaming::Transformers, "embeddings.token_embedding.weight",
        ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."];
    "text_encoder": PartNaming::OpenClip, "token_embedding.weight", ["cond_stage_model.model."];
    "text_encoder_2": PartNaming::OpenClip, "token_embedding.weight",
        ["conditioner.embedders.1.model.", "conditioner.embedders.0.model."];
    "text_encoder_2": PartNaming::Transformers, "text_model.embeddings.token_embedding.weight",
        ["conditioner.embedders.1.transformer.", "text_encoders.clip_g.transformer.", "text_encoder_2."];
];

/// Tensors by which a ControlNet is told from a UNet.
pub(super) const CONTROLNET_MARKS: [&str; 4] = [
    "control_model.input_hint_block.0.weight",
    "input_hint_block.0.weight",
    "controlnet_cond_embedding.conv_in.weight",
    "control_model.time_embed.0.weight",
];

/// The networks in a file, by their folders.
pub(super) fn find(
    weights: &dyn Weights,
    averages: bool,
) -> Result<BTreeMap<&'static str, Found>, OriginalError> {
    let has = |name: &str| weights.get(name).is_some();
    let is_controlnet = CONTROLNET_MARKS.iter().any(|mark| has(mark));
    let mut found: BTreeMap<&'static str, Found> = BTreeMap::new();
    for spot in SPOTS {
        let is_bare_controlnet = is_controlnet && spot.component == "unet" && spot.prefix.is_empty();
        if !is_bare_controlnet
            && !found.contains_key(spot.component)
            && has(&format!("{}{}", spot.prefix, spot.mark))
        {
            found.insert(spot.component, Found { prefix: spot.prefix, naming: spot.naming });
        }
    }
    let has_averages = has(&AVERAGED_UNET.tensors(weights).full_name("input_blocks.0.0.weight"));
    match (averages, has_averages) {
        (true, true) => drop(found.insert("unet", AVERAGED_UNET)),
        (true, false) => return Err(OriginalError::NoAverages),
        (false, true) if !found.contains_key("unet") => return Err(OriginalError::AveragesAlone),
        _ => {}
    }
    Ok(found)
}

impl Found {
    /// The network's tensors. Of text encoders and autoencoders, only names count.
    pub(super) fn tensors<'w>(&self, weights: &'w dyn Weights) -> Tensors<'w> {
        let naming = match self.naming {
            PartNaming::Unet(naming) => naming,
            _ => Naming::Diffusers,
        };
        Tensors { weights, prefix: self.prefix.to_string(), naming }
    }
}

/// The width of a text encoder.
pub(super) fn text_width(tensors: &Tensors) -> Option<usize> {
    shape_of_embeddings(tensors).map(|[_, width]| width)
}

/// Tokens and width of a text encoder's embeddings.
fn shape_of_embeddings(tensors: &Tensors) -> Option<[usize; 2]> {
    let names = ["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"];
    let names = names.into_iter().chain(["token_embedding.weight"]);
    let weight = names.into_iter().find_map(|name| tensors.weights.get(&tensors.full_name(name)))?;
    weight.ty().shape[..].try_into().ok()
}

/// A text encoder's configuration: the family's, with the tokens, positions and layers of the tensors.
pub(super) fn text_config(tensors: &Tensors, found: &Found, own: Value) -> Result<Value, String> {
    let mut config = own;
    let Some([tokens, width]) = shape_of_embeddings(tensors) else { return Ok(config) };
    if config["hidden_size"].as_u64() != Some(width as u64) {
        return Err(format!("{width} channels"));
    }
    config["vocab_size"] = json!(tokens);
    let prefix =
        if tensors.has("text_model.embeddings.position_embedding.weight") { "text_model." } else { "" };
    let (layers, positions) = match found.naming {
        PartNaming::OpenClip => ("transformer.resblocks".to_string(), "positional_embedding".to_string()),
        _ => (format!("{prefix}encoder.layers"), format!("{prefix}embeddings.position_embedding.weight")),
    };
    let norm = if found.naming == PartNaming::OpenClip { "ln_1.weight" } else { "layer_norm1.weight" };
    let count = (0u64..).take_while(|index| tensors.has(&format!("{layers}.{index}.{norm}"))).count() as u64;
    // Stable Diffusion 2 uses the last layer but one: the family has one layer less than the file.
    if config["num_hidden_layers"].as_u64().is_some_and(|own| count < own) {
        config["num_hidden_layers"] = json!(count);
    }
    if let Some(positions) = tensors.weights.get(&tensors.full_name(&positions)) {
        config["max_position_embeddings"] = json!(positions.ty().shape.first());
    }
    Ok(config)
}

/// An autoencoder's configuration: the family's, with the latents' moments of models that have them.
pub(super) fn vae_config(tensors: &Tensors, own: Value, edm: Option<&Edm>) -> Result<Value, String> {
    let mut config = own;
    if let Some(conv_in) = tensors.weights.get(&tensors.full_name("decoder.conv_in.weight")) {
        let (latents, widest) = (conv_in.ty().shape.get(1), conv_in.ty().shape.first());
        if latents.map(|latents| json!(latents)) != Some(config["latent_channels"].clone()) {
            return Err(format!("{} channels of latents", latents.copied().unwrap_or(0)));
        }
        let own = config["block_out_channels"].as_array().and_then(|channels| channels.last()).cloned();
        if widest.map(|widest| json!(widest)) != own {
            return Err(format!("a level of {} channels", widest.copied().unwrap_or(0)));
        }
    }
    if let Some([mean, std]) = edm.and_then(|edm| edm.moments.as_ref()) {
        config["latents_mean"] = json!(mean);
        config["latents_std"] = json!(std);
        config["scaling_factor"] = json!(0.5);
    }
    Ok(config)
}

/// What is wrong with a network's tensors, before its folder is known.
pub(super) enum Problem {
    Missing(Vec<String>),
    Unknown(Vec<String>),
}

impl Problem {
    pub(super) fn of(self, component: &str) -> OriginalError {
        let component = component.to_string();
        match self {
            Problem::Missing(names) => {
                OriginalError::Missing { component, first: names[0].clone(), count: names.len() }
            }
            Problem::Unknown(names) => {
                OriginalError::Unknown { component, first: names[0].clone(), count: names.len() }
            }
        }
    }
}

/// A network's tensors under diffusers' names.
pub(super) struct Mapped {
    tensors: BTreeMap<String, WeightRef>,
}

impl Mapped {
    /// The tensors that a network needs, from their places; without `names`, all that have its prefix.
    pub(super) fn new(
        weights: Arc<dyn Weights>,
        found: &Found,
        names: Option<&Names>,
        needed: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, Problem> {
        let Some(names) = names else { return Mapped::under_prefix(&*weights, found, needed) };
        let of_network = found.tensors(&*weights);
        let (mut tensors, mut used, mut missing) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for (name, shape) in needed {
            let Some(place) = names.place(name) else {
                missing.push(name.clone());
                continue;
            };
            let mut full = of_network.full_name(&place.name);
            let mut view = place.view;
            if view == View::Transposed && weights.get(&full).is_none() {
                // Some files have it as a linear layer's weight.
                (full, view) = (format!("{full}.weight"), View::Whole);
            }
            match weights.get(&full).and_then(|weight| viewed(weight, view, shape)) {
                Some(weight) => {
                    tensors.insert(name.clone(), weight.renamed(name));
                    used.insert(full);
                }
                None => missing.push(full),
            }
        }
        // An autoencoder may come without its encoder, which only some uses need.
        if found.naming == PartNaming::VaeOriginal && !of_network.has("encoder.conv_in.weight") {
            let of_encoder = |name: &String| {
                let name = &name[found.prefix.len()..];
                name.starts_with("encoder.") || name.starts_with("quant_conv")
            };
            missing.retain(|name| !of_encoder(name));
        }
        let unknown: Vec<String> = weights
            .names()
            .into_iter()
            .filter(|name| name.starts_with(found.prefix) && !used.contains(*name))
            .filter(|name| is_foreign(found.naming, &name[found.prefix.len()..]))
            .map(str::to_string)
            .collect();
        match (missing.is_empty(), unknown.is_empty()) {
            (true, true) => Ok(Mapped { tensors }),
            // Both at once: the layout is another's, which an unknown tensor says best.
            (_, false) => Err(Problem::Unknown(unknown)),
            (false, true) => Err(Problem::Missing(missing)),
        }
    }

    fn under_prefix(
        weights: &dyn Weights,
        found: &Found,
        needed: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, Problem> {
        let names = weights.names();
        let own = names.into_iter().filter_map(|name| Some((name, name.strip_prefix(found.prefix)?)));
        let tensors = own
            .filter(|(_, name)| !name.ends_with("position_ids"))
            .filter_map(|(full, name)| Some((name.to_string(), weights.get(full)?.renamed(name))));
        let tensors: BTreeMap<String, WeightRef> = tensors.collect();
        let unknown: Vec<String> = tensors
            .keys()
            .filter(|name| !needed.contains_key(*name) && is_foreign(found.naming, name))
            .map(|name| format!("{}{name}", found.prefix))
            .collect();
        if unknown.is_empty() { Ok(Mapped { tensors }) } else { Err(Problem::Unknown(unknown)) }
    }
}

/// True if a tensor that nothing used is a part of the network itself: the architecture is another one then.
fn is_foreign(naming: PartNaming, name: &str) -> bool {
    let parts: &[&str] = match naming {
        PartNaming::Unet(Naming::Original) => {
            &["input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb", "out."]
        }
        PartNaming::Unet(Naming::Diffusers) => &[
            "conv_in.",
            "conv_norm_out.",
            "conv_out.",
            "down_blocks.",
            "mid_block.",
            "up_blocks.",
            "time_embedding.",
            "add_embedding.",
            "class_embedding.",
            "controlnet_",
        ],
        PartNaming::VaeOriginal => &["encoder.", "decoder.", "quant_conv.", "post_quant_conv."],
        _ => &[],
    };
    parts.iter().any(|part| name.starts_with(part))
}

/// A tensor in the form that a network needs; `None` if it has none.
fn viewed(weight: WeightRef, view: View, shape: &[usize]) -> Option<WeightRef> {
    let weight = match view {
        View::Whole => weight,
        View::Rows { part, of } => {
            let rows = weight.ty().shape.first()? / of;
            weight.slice(0, part * rows, rows).ok()?
        }
        View::Transposed => weight.transpose(&[1, 0]).ok()?,
    };
    // Linear layers are convolutions of 1x1 in some files, and the other way round.
    let plain = |shape: &[usize]| -> Vec<usize> {
        let kept = shape.iter().rposition(|extent| *extent != 1).map_or(0, |last| last + 1);
        shape[..kept].to_vec()
    };
    match weight.ty().shape != shape && plain(&weight.ty().shape) == plain(shape) {
        true => weight.reshape(shape).ok(),
        false => Some(weight),
    }
}

impl Weights for Mapped {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.tensors.get(name).cloned()
    }
}
