//! Checkpoints in the original layouts: one file for a whole model, as model sites have them.
//!
//! [`Original`] finds the networks in a file's tensors and tells the family, what the UNet predicts, and what
//! the family's configuration must say otherwise. [`OriginalFiles`] then is a model in the diffusers layout
//! over the file: every tensor has diffusers' name and form, and none is read.

mod controlnet;
mod error;
mod kind;
mod names;
mod place;
mod structure;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mixbit_mil::Weights;
use serde_json::Value;

pub use controlnet::ControlNetFile;
pub use error::OriginalError;
pub use kind::{Edm, PARAMETERIZATION, Training};
pub use names::{Names, Place, View};

use self::place::{Found, PartNaming};
use self::structure::{Naming, Structure};
use crate::arch::{self, Config};
use crate::family::{Family, FamilyFiles, UnetTraits};
use crate::model::{FileError, ModelFiles, TEXT_ENCODERS, pooled_channels};

/// The channels of the pooled prompt embeddings of Stable Diffusion XL, and of the sinusoid of each size.
const POOLED: usize = 1280;
const SINUSOID: usize = 256;

/// The folders of networks that a file may have.
const NETWORKS: [&str; 4] = ["unet", "vae", TEXT_ENCODERS[0].0, TEXT_ENCODERS[1].0];

/// The networks in a file's tensors.
pub struct Original {
    weights: Arc<dyn Weights>,
    found: BTreeMap<&'static str, Found>,
    structure: Option<Structure>,
    training: Training,
    family: &'static Family,
}

impl Original {
    /// The networks in a file, and what its metadata and keys say of them. With `averages`, the UNet is that
    /// of the running averages.
    ///
    /// # Errors
    /// [`OriginalError::NoNetwork`] if there is none, [`OriginalError::NoAverages`],
    /// [`OriginalError::AveragesAlone`].
    pub fn find(
        weights: Arc<dyn Weights>,
        metadata: &BTreeMap<String, String>,
        averages: bool,
    ) -> Result<Self, OriginalError> {
        let found = place::find(&*weights, averages)?;
        if found.is_empty() {
            return Err(OriginalError::NoNetwork { first: weights.names().first().map(|it| it.to_string()) });
        }
        let unet = found.get("unet").map(|unet| unet.tensors(&*weights));
        let structure = unet.as_ref().and_then(Structure::read);
        let is_second = structure.as_ref().is_some_and(|it| it.text_channels == Some(1024));
        let training = match &unet {
            Some(unet) => Training::of(&*weights, metadata, unet, is_second),
            None => Training::default(),
        };
        let family = family_of(structure.as_ref(), &training, &found, &*weights);
        Ok(Original { weights, found, structure, training, family })
    }

    /// The folders of the networks that the file has.
    pub fn networks(&self) -> impl Iterator<Item = &'static str> {
        NETWORKS.into_iter().filter(|name| self.found.contains_key(name))
    }

    /// The networks of the family that the file lacks.
    pub fn missing(&self) -> Vec<&'static str> {
        let family = self.family.files();
        let lacks = |name: &&'static str| family.component(name).is_some() && !self.found.contains_key(name);
        NETWORKS.into_iter().filter(lacks).collect()
    }

    /// The family whose models are the most like it.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// What the file says of the UNet's training.
    pub fn training(&self) -> &Training {
        &self.training
    }

    /// A network's configuration: `config`'s, or else the family's with what the tensors say otherwise.
    fn config(&self, component: &str, base: &Base) -> Result<Value, OriginalError> {
        let given =
            |files: &dyn ModelFiles| files.json(component, "config.json").map_err(OriginalError::File);
        if let Some(config) = &base.config {
            return given(&**config);
        }
        let family = self.family.files();
        if family.component(component).is_none() {
            let component = component.to_string();
            return Err(OriginalError::OtherNetwork { component, family: self.family.title });
        }
        let own = given(&family)?;
        let unusual = |what: String| OriginalError::Unusual {
            component: component.to_string(),
            family: self.family.title,
            what,
        };
        let tensors = self.found[component].tensors(&*self.weights);
        match (component, &self.structure) {
            ("unet", Some(structure)) => {
                structure.check_published(&own).map_err(unusual)?;
                structure.configuration(&own).map_err(unusual)
            }
            ("vae", _) => place::vae_config(&tensors, own, self.training.edm.as_ref()).map_err(unusual),
            _ => place::text_config(&tensors, &self.found[component], own).map_err(unusual),
        }
    }
}

impl fmt::Display for Original {
    /// What it is, for people: `SDXL, v-prediction with zero-terminal SNR (marker keys)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.title)?;
        match self.structure.as_ref().map(|structure| structure.in_channels) {
            Some(9) => f.write_str(" inpainting")?,
            Some(8) => f.write_str(" editing")?,
            _ => {}
        }
        let training = self.training.to_string();
        if training.is_empty() { Ok(()) } else { write!(f, ", {training}") }
    }
}

/// What completes a file.
#[derive(Default)]
pub struct Base {
    /// Configurations, tokenizers and a scheduler in place of the family's.
    pub config: Option<Box<dyn ModelFiles>>,
    /// A model from which networks come that the file lacks.
    pub model: Option<Box<dyn ModelFiles>>,
}

/// A file in an original layout as a model in the diffusers layout.
pub struct OriginalFiles {
    original: Original,
    base: Base,
    family: FamilyFiles,
    configs: BTreeMap<&'static str, Value>,
    scheduler: Value,
}

impl OriginalFiles {
    /// A file with what completes it.
    ///
    /// # Errors
    /// [`OriginalError::Incomplete`] if networks are missing and nothing completes it; a structure or a
    /// tensor that no family has.
    pub fn new(original: Original, base: Base) -> Result<Self, OriginalError> {
        let mut configs = BTreeMap::new();
        for component in original.networks() {
            configs.insert(component, original.config(component, &base)?);
        }
        let family = original.family.files();
        let mut files = OriginalFiles { original, base, family, configs, scheduler: Value::Null };
        if files.settings().component("scheduler").is_some() {
            let own =
                files.settings().json("scheduler", "scheduler_config.json").map_err(OriginalError::File)?;
            files.scheduler = files.original.training.scheduler(own);
        }
        files.check()?;
        Ok(files)
    }

    /// The file's networks and what it says of them.
    pub fn original(&self) -> &Original {
        &self.original
    }

    /// The folders of networks that come from the model that completes the file.
    pub fn borrowed(&self) -> Vec<&'static str> {
        let is_borrowed = |name: &&'static str| {
            !self.configs.contains_key(name)
                && self.completing().is_some_and(|base| base.component(name).is_some())
        };
        NETWORKS.into_iter().filter(is_borrowed).collect()
    }

    /// Where configurations come from, besides the networks' own.
    fn settings(&self) -> &dyn ModelFiles {
        let given = self.base.config.as_deref().or(self.base.model.as_deref());
        given.unwrap_or(&self.family)
    }

    /// The model from which networks come that the file lacks.
    fn completing(&self) -> Option<&dyn ModelFiles> {
        self.base.model.as_deref().or(self.base.config.as_deref())
    }

    /// Checks that every network is there and of the architecture that its names say.
    fn check(&self) -> Result<(), OriginalError> {
        let missing: Vec<&str> = NETWORKS
            .into_iter()
            .filter(|name| self.settings().component(name).is_some() && !self.configs.contains_key(name))
            .filter(|name| self.completing().is_none_or(|base| base.component(name).is_none()))
            .collect();
        if !missing.is_empty() {
            let missing = missing.iter().map(|name| name.to_string()).collect();
            return Err(OriginalError::Incomplete { missing, kind: self.original.to_string() });
        }
        let text = |config: &Value| config["cross_attention_dim"].as_u64();
        let (Some(model), Some(own)) = (&self.base.model, self.configs.get("unet")) else { return Ok(()) };
        let base = model.json("unet", "config.json").map_err(OriginalError::File)?;
        match text(&base) == text(own) {
            true => Ok(()),
            false => Err(OriginalError::OtherBase { kind: self.original.to_string() }),
        }
    }

    fn mapped(&self, component: &str) -> Result<Arc<dyn Weights>, OriginalError> {
        let found = &self.original.found[component];
        let class = ModelFiles::component(self, component).unwrap_or_default();
        let network = |source| OriginalError::Network { component: component.to_string(), source };
        let config = arch::lookup(class)
            .and_then(|architecture| architecture.config(&self.configs[component]))
            .map_err(network)?;
        let pooled = pooled_channels(self).unwrap_or(0);
        let needed = config.tensors(pooled).map_err(network)?;
        let names = match (&config, found.naming) {
            (Config::Unet(config), PartNaming::Unet(Naming::Original | Naming::OriginalAverages)) => {
                Some(Names::unet(config))
            }
            (Config::ControlNet(config), PartNaming::Unet(Naming::Original)) => {
                Some(Names::controlnet(config))
            }
            (Config::Vae(config), PartNaming::VaeOriginal) => Some(Names::vae(config)),
            (Config::TextEncoder(_), PartNaming::OpenClip) => Some(Names::open_clip()),
            _ => None,
        };
        let mapped = place::Mapped::new(self.original.weights.clone(), found, names.as_ref(), &needed)
            .map_err(|problem| problem.of(component))?;
        Ok(Arc::new(mapped))
    }
}

impl ModelFiles for OriginalFiles {
    fn class(&self) -> &str {
        self.settings().class()
    }

    fn component(&self, name: &str) -> Option<&str> {
        if name == "scheduler" {
            return self.scheduler["_class_name"].as_str().or_else(|| self.settings().component(name));
        }
        let is_network = NETWORKS.contains(&name) || ["safety_checker", "feature_extractor"].contains(&name);
        match (is_network, self.configs.contains_key(name)) {
            (true, false) => self.completing()?.component(name),
            _ => self.settings().component(name),
        }
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.settings().option(name)
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        match (component, file) {
            ("scheduler", "scheduler_config.json") => Ok(self.scheduler.clone()),
            (component, "config.json") => match self.configs.get(component) {
                Some(config) => Ok(config.clone()),
                None => self.completing().unwrap_or(&self.family).json(component, file),
            },
            _ => self.settings().json(component, file),
        }
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        self.settings().text(component, file)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        if self.configs.contains_key(component) {
            return Ok(self.mapped(component)?);
        }
        self.completing().unwrap_or(&self.family).weights(component)
    }
}

/// The family of a UNet's structure; without a UNet, of the other networks.
fn family_of(
    structure: Option<&Structure>,
    training: &Training,
    found: &BTreeMap<&'static str, Found>,
    weights: &dyn Weights,
) -> &'static Family {
    let Some(structure) = structure else {
        let width = found.get("text_encoder").and_then(|text| place::text_width(&text.tensors(weights)));
        let is_xl = found.contains_key("text_encoder_2");
        let text_channels = if is_xl { Some(2048) } else { width };
        let time_ids = is_xl.then_some(6);
        return Family::nearest(UnetTraits { text_channels, time_ids, latent_height: 64 });
    };
    let sizes = |added: usize| added.checked_sub(POOLED).filter(|rest| rest.is_multiple_of(SINUSOID));
    let predicts_v = training.prediction_type == Some("v_prediction");
    Family::nearest(UnetTraits {
        text_channels: structure.text_channels,
        time_ids: structure.added_channels.and_then(sizes).map(|rest| rest / SINUSOID),
        latent_height: if predicts_v { 96 } else { 64 },
    })
}
