//! Writing one package.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mixbit_diffusion::arch::io;
use mixbit_formats::coreml::{self, Feature, Form, Metadata};
use mixbit_mil::{Function, Program, ValueId, Weights};

use super::error::{PackageError, PlanError};
use super::{PackageKind, keys, provenance};

pub(super) type Build = Box<dyn Fn() -> Result<Function, PlanError> + Send + Sync>;

/// A package that can be written.
pub struct Package {
    /// The file's name without `.mlpackage`.
    pub name: String,
    /// The name in a `Resources` directory without `.mlmodelc`.
    pub compiled: String,
    /// The kind of network; both chunks of a network have its kind.
    pub kind: &'static PackageKind,
    pub(super) model_version: String,
    pub(super) specification_version: u32,
    pub(super) user_defined: BTreeMap<String, String>,
    pub(super) source: Arc<ComponentWeights>,
    pub(super) build: Build,
}

/// The weights of a component, and their checksum once somebody asked for it.
pub(super) struct ComponentWeights {
    pub(super) weights: Arc<dyn Weights>,
    pub(super) checksum: OnceLock<String>,
}

impl Package {
    /// The package's path in a directory.
    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.mlpackage", self.name))
    }

    /// The compiled model's path in a `Resources` directory.
    pub fn compiled_path(&self, resources: &Path) -> PathBuf {
        resources.join(format!("{}.mlmodelc", self.compiled))
    }

    /// The graph. No weight is read.
    ///
    /// # Errors
    /// A missing or misshapen weight, or options that the network does not fit.
    pub fn function(&self) -> Result<Function, PlanError> {
        (self.build)()
    }

    /// The model, for a file, with its source and options in its metadata. Samples of the weights are read.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn model(&self) -> Result<coreml::Model, PackageError> {
        let function = mixbit_mil::passes::DEAD_CODE.run(&self.function()?);
        mixbit_mil::verify(&function)
            .map_err(|source| PackageError::Graph { package: self.name.clone(), source })?;
        let checksum = || provenance::of_weights(&*self.source.weights);
        let source = self.source.checksum.get_or_init(checksum).clone();
        let source = [(keys::SOURCE.to_string(), source)];
        let features = |ids: &[ValueId]| ids.iter().map(|&id| feature(&function, id)).collect();
        Ok(coreml::Model {
            specification_version: self.specification_version,
            class: self.name.clone(),
            inputs: features(function.inputs()),
            outputs: features(function.outputs()),
            metadata: Metadata {
                short_description: self.kind.about.to_string(),
                version: self.model_version.clone(),
                author: format!("See the model card of {}", self.model_version),
                license: format!("See the model card of {}", self.model_version),
                user_defined: self.user_defined.clone().into_iter().chain(source).collect(),
            },
            program: Program::new(function),
            form: Form::default(),
        })
    }
}

fn feature(function: &Function, id: ValueId) -> Feature {
    let value = function.value(id);
    let about = FEATURES.iter().find(|(name, _)| *name == value.name);
    Feature::array(value.name.as_str(), about.map_or("", |(_, about)| about), value.ty.clone())
}

/// Descriptions of inputs and outputs, for people who look at a package.
static FEATURES: &[(&str, &str)] = &[
    (io::INPUT_IDS, "The ids of the prompt's tokens, as floats"),
    (io::LAST_HIDDEN_STATE, "The text states that the UNet attends to"),
    (io::HIDDEN_EMBEDS, "The text states of the last layer but one, which the UNet attends to"),
    (io::POOLED_OUTPUTS, "One vector for the whole prompt"),
    (io::SAMPLE, "The noisy latents, scaled as the scheduler asks"),
    (io::TIMESTEP, "The timestep of each sample"),
    (io::ENCODER_HIDDEN_STATES, "The text states, channels first"),
    (io::TIME_IDS, "Original size, crop and target size (or aesthetic score), height before width"),
    (io::TEXT_EMBEDS, "The second text encoder's pooled output"),
    (io::TIMESTEP_COND, "The embedding of the guidance scale"),
    (io::CONTROLNET_COND, "The conditioning image, 0 to 1"),
    (io::NOISE_PRED, "What the model predicts for each sample: noise or velocity"),
    (io::Z, "The latents, divided by the scaling factor"),
    (io::IMAGE, "The image, -1 to 1"),
    (io::X, "The image, -1 to 1"),
    (io::LATENT, "The means of the latents, then their log variances"),
    (io::CLIP_INPUT, "The image, resized and normalized as CLIP takes it"),
    (io::IMAGES, "The image as the decoder gives it, channels last"),
    (
        io::ADJUSTMENT,
        "What is added to the scores of the concepts that ask for special care; 0 is the model's own rule",
    ),
    (io::FILTERED_IMAGES, "The image, or zeros if it is flagged"),
    (io::HAS_NSFW_CONCEPTS, "1 if the image is flagged, else 0"),
    (
        io::CONCEPT_SCORES,
        "How much the image resembles each concept, less its threshold; one above 0 flags it",
    ),
];
