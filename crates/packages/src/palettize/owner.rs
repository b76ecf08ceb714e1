//! The model that packages belong to.

use std::sync::Arc;

use mixbit_diffusion::model::{FileError, ModelFiles};
use mixbit_formats::coreml::Metadata;
use mixbit_mil::Weights;
use serde_json::Value;

use crate::package::{CONTROLNET, PACKAGE_KINDS, PackageKind, REFINER, keys, provenance};

/// The model that packages are made of, as far as it is known.
#[derive(Default)]
pub(super) struct Owner {
    /// Its name in the packages' metadata.
    pub(super) version: String,
    /// The names of the kinds of packages that it can have.
    pub(super) kinds: Vec<&'static str>,
    /// The channels of the text states that its UNet takes, as its configuration says them.
    pub(super) text_channels: Option<Value>,
    /// The weights of its components that no option replaces, by the components' names.
    pub(super) weights: Vec<(&'static str, Arc<dyn Weights>)>,
}

/// A configuration's key for the channels of the text states.
const TEXT_CHANNELS: &str = "cross_attention_dim";

impl Owner {
    /// A model of files, under the name that its packages carry.
    ///
    /// # Errors
    /// If the weights of a component can't be opened.
    pub(super) fn of_files(version: &str, files: &dyn ModelFiles) -> Result<Self, FileError> {
        let has = |component: &str| files.component(component).is_some();
        let can_have = |kind: &&PackageKind| match kind.name {
            "text_encoder" | "text_encoder_2" | "safety_checker" => has(kind.name),
            // Refiners take the states of an XL model's second text encoder.
            "refiner" => has("text_encoder_2"),
            _ => true,
        };
        let components = ["text_encoder", "text_encoder_2", "unet"].into_iter().filter(|name| has(name));
        let weights = components.map(|name| Ok((name, files.weights(name)?)));
        Ok(Owner {
            version: version.to_string(),
            kinds: PACKAGE_KINDS.iter().filter(can_have).map(|kind| kind.name).collect(),
            text_channels: files.json("unet", "config.json")?.get(TEXT_CHANNELS).cloned(),
            weights: weights.collect::<Result<_, FileError>>()?,
        })
    }

    /// The model of packages that are read, all those of its directory.
    pub(super) fn of_packages<'m>(
        packages: impl Iterator<Item = (Option<&'static PackageKind>, &'m Metadata)> + Clone,
        kinds: Vec<&'static str>,
    ) -> Option<Self> {
        let is_own = |kind: &PackageKind| ![REFINER.name, CONTROLNET.name].contains(&kind.name);
        let own = packages.filter_map(|(kind, metadata)| Some((kind.filter(|kind| is_own(kind))?, metadata)));
        let mut versions = own.clone().map(|(_, metadata)| &metadata.version);
        let version = versions.next()?.clone();
        let config =
            own.clone().filter(|(kind, _)| kind.is_unet).find_map(|(_, metadata)| config_of(metadata));
        Some(Owner {
            // Packages of several models say nothing of others.
            version: if versions.all(|other| *other == version) { version } else { String::new() },
            kinds,
            text_channels: config.and_then(|config| config.get(TEXT_CHANNELS).cloned()),
            weights: Vec::new(),
        })
    }

    /// The reason why a package that is there is of another model; `None` if nothing says so.
    pub(super) fn disowns(&self, kind: &'static PackageKind, found: &Metadata) -> Option<String> {
        if kind.name == CONTROLNET.name {
            let channels = config_of(found)?.get(TEXT_CHANNELS).cloned();
            let differs =
                self.text_channels.is_some() && channels.is_some() && channels != self.text_channels;
            return differs.then(|| "it is a ControlNet for other models".to_string());
        }
        let is_named = |version: &str| version.chars().any(char::is_alphabetic);
        let [own, other] = [&self.version, &found.version];
        if kind.name != REFINER.name && is_named(own) && is_named(other) && own != other {
            return Some(format!("it is of the model `{other}`, not `{own}`"));
        }
        if !self.kinds.contains(&kind.name) {
            return Some(format!("the model has no {}", kind.name));
        }
        let says = |key: &str| found.user_defined.get(key);
        let (component, source) = (says(keys::COMPONENT)?, says(keys::SOURCE)?);
        let (_, weights) = self.weights.iter().find(|(name, _)| name == component)?;
        // A refiner's component is `unet`, of the refiner's own model. A palettized package may be made of
        // another package, whose graph its source is.
        let is_comparable = kind.name != REFINER.name && says(keys::RECIPE).is_none();
        let differs = is_comparable && *source != provenance::of_weights(&**weights);
        differs.then(|| "it was made of other weights than this model's".to_string())
    }
}

fn config_of(metadata: &Metadata) -> Option<Value> {
    serde_json::from_str(metadata.user_defined.get(keys::CONFIG)?).ok()
}
