//! The tensors of a model by the names that adapters have for their modules.
//!
//! Most adapters write underscores for dots, which cannot be undone. The model's own names are therefore
//! written so too, and looked up.

use std::collections::BTreeMap;

use mixbit_mil::Weights;

use super::error::AdapterError;
use crate::arch::Config;
use crate::model::{ModelFiles, TEXT_ENCODERS, component_config};
use crate::original::{Names, View};

/// Beginnings of names that say nothing of the component.
const WRAPPERS: [&str; 6] = [
    "base_model_model_",
    "lora_",
    "lycoris_",
    "model_diffusion_model_",
    "diffusion_model_",
    "transformer_text_model_",
];

/// Beginnings of names that say the component. Of several that fit, the first counts.
const COMPONENTS: [(&str, Part); 11] = [
    ("unet_", Part::Unet),
    ("text_encoder_2_", Part::Second),
    ("text_encoders_clip_g_transformer_", Part::Second),
    ("clip_g_", Part::Second),
    ("te2_", Part::Second),
    ("text_encoder_", Part::First),
    ("text_encoders_clip_l_transformer_", Part::First),
    ("clip_l_", Part::First),
    ("te1_", Part::First),
    ("te_", Part::First),
    ("te0_", Part::First),
];

/// The part of a model that a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Unet,
    First,
    Second,
}

/// A tensor of the model.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) component: &'static str,
    pub(super) tensor: String,
    /// The part of the adapter's module that the tensor is, where they differ: a part, and of how many.
    pub(super) rows: (usize, usize),
}

/// The tensors of one module.
#[derive(Clone, Debug, Default)]
pub(super) struct Module {
    pub(super) weight: Vec<Target>,
    pub(super) bias: Vec<Target>,
}

/// The tensors of a model, by module.
pub(super) struct Targets {
    modules: BTreeMap<(&'static str, String), Module>,
    components: Vec<&'static str>,
    /// The channels of the prompt embeddings.
    pub(super) text_channels: Option<usize>,
}

impl Targets {
    /// The tensors of a model's UNet and text encoders.
    ///
    /// # Errors
    /// A configuration or weights that can't be read.
    pub(super) fn of(files: &dyn ModelFiles) -> Result<Self, AdapterError> {
        let mut targets = Targets { modules: BTreeMap::new(), components: Vec::new(), text_channels: None };
        let names = ["unet", TEXT_ENCODERS[0].0, TEXT_ENCODERS[1].0];
        for component in names.into_iter().filter(|name| files.component(name).is_some()) {
            let config = component_config(files, component)?;
            let weights = files.weights(component).map_err(AdapterError::File)?;
            targets.components.push(component);
            match &config {
                Config::Unet(config) => {
                    targets.text_channels = config.text_channels;
                    targets.add_unet(&Names::unet(config), &*weights);
                }
                _ => targets.add_text_encoder(component, &*weights),
            }
        }
        Ok(targets)
    }

    fn add_unet(&mut self, original: &Names, weights: &dyn Weights) {
        for name in weights.names() {
            self.add("unet", name, name, (0, 1));
            if let Some(module) = name.strip_suffix(".to_out.0.weight") {
                // diffusers' attention processors had one layer there.
                self.add("unet", &format!("{module}.to_out.weight"), name, (0, 1));
            }
            if let Some(original) = original.original_of(name) {
                self.add("unet", &original, name, (0, 1));
            }
        }
    }

    fn add_text_encoder(&mut self, component: &'static str, weights: &dyn Weights) {
        // transformers 5 leaves `text_model.` out.
        const PREFIX: &str = "text_model.";
        let open_clip = Names::open_clip();
        for name in weights.names() {
            let short = name.strip_prefix(PREFIX).unwrap_or(name);
            self.add(component, short, name, (0, 1));
            self.add(component, &format!("{PREFIX}{short}"), name, (0, 1));
            for (own, other) in [
                (".q_proj.", ".to_q."),
                (".k_proj.", ".to_k."),
                (".v_proj.", ".to_v."),
                (".out_proj.", ".to_out."),
            ] {
                if short.contains(own) {
                    self.add(component, &format!("{PREFIX}{}", short.replace(own, other)), name, (0, 1));
                }
            }
            if let Some(place) = open_clip.place(name) {
                let rows = match place.view {
                    View::Whole => (0, 1),
                    View::Rows { part, of } => (part, of),
                    View::Transposed => continue,
                };
                self.add(component, &place.name, name, rows);
            }
        }
    }

    /// Adds a tensor under a name, which ends as the tensor's does.
    fn add(&mut self, component: &'static str, name: &str, tensor: &str, rows: (usize, usize)) {
        let flat = name.replace('.', "_");
        let (module, is_weight) = match (flat.strip_suffix("_weight"), flat.strip_suffix("_bias")) {
            (Some(module), _) => (module, true),
            (None, Some(module)) => (module, false),
            (None, None) => return,
        };
        let module = self.modules.entry((component, module.to_string())).or_default();
        let targets = if is_weight { &mut module.weight } else { &mut module.bias };
        if !targets.iter().any(|target| target.tensor == tensor) {
            targets.push(Target { component, tensor: tensor.to_string(), rows });
        }
    }

    /// The module that an adapter's name means.
    pub(super) fn find(&self, name: &str) -> Option<&Module> {
        let flat = name.replace('.', "_").replace("_processor_", "_");
        let (mut rest, mut part) = (flat.as_str(), None);
        loop {
            let look = |component: &'static str| self.modules.get(&(component, rest.to_string()));
            if let Some(found) = self.candidates(part).find_map(look) {
                return Some(found);
            }
            if let Some(shorter) = WRAPPERS.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
                rest = shorter;
                continue;
            }
            let inside =
                COMPONENTS.iter().find_map(|(prefix, part)| Some((rest.strip_prefix(prefix)?, *part)));
            match (inside, part) {
                (Some((shorter, of)), None) => (rest, part) = (shorter, Some(of)),
                _ => return None,
            }
        }
    }

    /// The components that a name may mean.
    fn candidates(&self, part: Option<Part>) -> impl Iterator<Item = &'static str> {
        let encoders = || self.components.iter().copied().filter(|component| *component != "unet");
        let components: Vec<&'static str> = match part {
            None => self.components.clone(),
            Some(Part::Unet) => vec!["unet"],
            // A model with one text encoder may have it as its second.
            Some(Part::First) => encoders().take(1).collect(),
            Some(Part::Second) => vec![TEXT_ENCODERS[1].0],
        };
        components.into_iter()
    }
}
