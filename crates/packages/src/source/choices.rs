//! A model with some of its files replaced by what the user chose.

use std::path::Path;
use std::sync::Arc;

use mixbit_diffusion::model::{FileError, ModelFiles, ModelFilesLayer};
use mixbit_diffusion::original::{Base, Original, OriginalError, OriginalFiles};
use mixbit_mil::Weights;
use serde_json::Value;

use super::{Component, DIFFUSERS, OpenOptions, SINGLE_FILE, open, single_file};
use crate::error::OpenError;
use crate::package::fit;

const VAE: &str = "vae";
const SCHEDULER: &str = "scheduler";
const CONFIG: &str = "config.json";

/// A model with another autoencoder or another training of its UNet.
pub(super) struct Chosen {
    base: Box<dyn ModelFiles>,
    vae: Option<Box<dyn ModelFiles>>,
    prediction_type: Option<String>,
    rescale_zero_snr: bool,
}

impl Chosen {
    /// The files with what the options choose.
    ///
    /// # Errors
    /// If the autoencoder can't be opened.
    pub(super) fn new(base: Box<dyn ModelFiles>, options: &OpenOptions) -> Result<Self, OpenError> {
        let vae = options.vae.as_deref().map(|path| fitting(path, &*base)).transpose()?;
        Ok(Chosen {
            vae,
            base,
            prediction_type: options.prediction_type.clone(),
            rescale_zero_snr: options.rescale_zero_snr,
        })
    }
}

/// The autoencoder of a path, whose latents are the model's.
fn fitting(path: &Path, model: &dyn ModelFiles) -> Result<Box<dyn ModelFiles>, OpenError> {
    let vae = autoencoder(path, model)?;
    let unusable = |source| OpenError::Model { model: path.display().to_string(), source: Box::new(source) };
    match fit::of_autoencoder(model, &*vae).map_err(unusable)? {
        Some(what) => Err(OpenError::Package { path: path.to_path_buf(), what }),
        None => Ok(vae),
    }
}

/// The autoencoder of a path: of a model, of a component's directory, or of a file. A file has the
/// configuration of the model's own, the scale of latents among it.
///
/// # Errors
/// If there is none.
fn autoencoder(path: &Path, model: &dyn ModelFiles) -> Result<Box<dyn ModelFiles>, OpenError> {
    if path.is_dir() && !path.join("model_index.json").is_file() && path.join(CONFIG).is_file() {
        return Ok(Box::new(Component::open(path, Some(VAE))?));
    }
    if !path.is_file() {
        return open(Some(path), &OpenOptions::default(), [&DIFFUSERS])?.into_files();
    }
    let unusable = |source| OpenError::Original { path: path.to_path_buf(), source: Box::new(source) };
    let (file, metadata) = single_file::read(path)?;
    let original = Original::find(file, &metadata, false).map_err(unusable)?;
    if !original.networks().any(|network| network == VAE) {
        let what = "it holds no autoencoder".to_string();
        return Err(OpenError::Package { path: path.to_path_buf(), what });
    }
    if original.networks().count() > 1 {
        return open(Some(path), &OpenOptions::default(), [&SINGLE_FILE])?.into_files();
    }
    let config = model.json(VAE, CONFIG).map_err(|source| unusable(OriginalError::File(source)))?;
    let class = model.component(VAE).unwrap_or("AutoencoderKL").to_string();
    let base = Base { config: Some(Box::new(VaeConfig { class, config })), model: None };
    Ok(Box::new(OriginalFiles::new(original, base).map_err(unusable)?))
}

/// The configuration of an autoencoder, as a model of that alone.
struct VaeConfig {
    class: String,
    config: Value,
}

impl ModelFiles for VaeConfig {
    fn class(&self) -> &str {
        &self.class
    }

    fn component(&self, name: &str) -> Option<&str> {
        (name == VAE).then_some(&self.class)
    }

    fn option(&self, _: &str) -> Option<Value> {
        None
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        match (component, file) {
            (VAE, CONFIG) => Ok(self.config.clone()),
            _ => Err(format!("an autoencoder has no {component}/{file}").into()),
        }
    }

    fn text(&self, _: &str, _: &str) -> Result<Option<String>, FileError> {
        Ok(None)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        Err(format!("a configuration has no weights of {component}").into())
    }
}

impl ModelFilesLayer for Chosen {
    fn base(&self) -> &dyn ModelFiles {
        &*self.base
    }

    fn component(&self, name: &str) -> Option<&str> {
        match (&self.vae, name) {
            (Some(vae), VAE) => vae.component(VAE),
            _ => self.base.component(name),
        }
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        match (component, &self.vae) {
            (VAE, Some(vae)) => vae.json(component, file),
            (SCHEDULER, _) => {
                let mut scheduler = self.base.json(component, file)?;
                if let (Value::Object(fields), Some(name)) = (&mut scheduler, &self.prediction_type) {
                    fields.insert("prediction_type".to_string(), name.as_str().into());
                }
                if let (Value::Object(fields), true) = (&mut scheduler, self.rescale_zero_snr) {
                    fields.insert("rescale_betas_zero_snr".to_string(), true.into());
                }
                Ok(scheduler)
            }
            _ => self.base.json(component, file),
        }
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        match (component, &self.vae) {
            (VAE, Some(vae)) => vae.weights(component),
            _ => self.base.weights(component),
        }
    }
}
