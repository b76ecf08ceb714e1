//! Finding models.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use mixbit_diffusion::model::{DiffusionModel, FileError, ModelFiles};
use mixbit_formats::Diffusers;
use mixbit_mil::Weights;
use serde_json::Value;

use crate::bundle::Bundle;

/// A model in the diffusers layout, in a directory or in the binary.
#[derive(Debug)]
pub struct DiffusersModel {
    files: Diffusers,
    name: String,
    variant: Option<String>,
}

/// A model that is ready to run, and its name for people.
///
/// `path` is a directory in the diffusers layout, or one of Core ML packages; without it, the model in the binary is
/// meant. `variant` chooses among the weights of the former.
///
/// # Errors
/// If there is no model that can be run.
pub fn load(path: Option<&Path>, variant: Option<&str>) -> anyhow::Result<(DiffusionModel, String)> {
    if let Some(path) = path.filter(|path| Bundle::is_at(path)) {
        let model = Bundle::open(path)?.model();
        return Ok((model.with_context(|| path.display().to_string())?, directory_name(path)));
    }
    let files = DiffusersModel::open_or_demo(path, variant)?;
    let model = DiffusionModel::from_files(&files).with_context(|| files.name().to_string())?;
    Ok((model, files.name))
}

/// What a directory is called.
fn directory_name(path: &Path) -> String {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    canonical.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

impl DiffusersModel {
    /// Opens a directory. `variant` chooses among the weights, as in diffusers: `fp16` takes
    /// `diffusion_pytorch_model.fp16.safetensors`.
    ///
    /// # Errors
    /// If it holds no model.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, mixbit_formats::Error> {
        let files = Diffusers::open(path)?;
        Ok(DiffusersModel { files, name: directory_name(path), variant: variant.map(str::to_string) })
    }

    /// The model in the binary; `None` if it was built without.
    ///
    /// # Errors
    /// If its files are malformed.
    pub fn demo() -> Result<Option<Self>, mixbit_formats::Error> {
        demo::files()
            .map(|files| {
                let files = Diffusers::from_files("the demo model", files)?;
                Ok(DiffusersModel { files, name: "mixbit demo".to_string(), variant: None })
            })
            .transpose()
    }

    /// Opens a directory, or the model in the binary if there is none.
    ///
    /// # Errors
    /// If the directory holds no model, or the binary was built without one.
    pub fn open_or_demo(path: Option<&Path>, variant: Option<&str>) -> anyhow::Result<Self> {
        match path {
            Some(path) => Ok(Self::open(path, variant)?),
            None => {
                Self::demo()?.context("this build has no model in it: give a model's directory with --model")
            }
        }
    }

    /// The name for people: the directory's.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ModelFiles for DiffusersModel {
    fn class(&self) -> &str {
        self.files.class()
    }

    fn component(&self, name: &str) -> Option<&str> {
        self.files.components().get(name)?.as_ref().map(|component| component.class.as_str())
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.files.options().get(name).cloned()
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        Ok(self.files.json(component, file)?)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        Ok(self.files.optional_text(component, file)?)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        Ok(Arc::new(self.files.weights(component, self.variant.as_deref())?))
    }
}

/// A component by itself: a directory with `config.json` and weights.
#[derive(Debug)]
pub struct NamedComponent {
    files: Diffusers,
    folder: String,
    name: String,
}

impl NamedComponent {
    /// Opens a component's directory, to be known as `name`, or as the directory is called.
    ///
    /// # Errors
    /// If it has no `config.json` that says its class.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self, mixbit_formats::Error> {
        let (files, folder) = Diffusers::open_component(path)?;
        let name = name.unwrap_or(&folder).to_string();
        Ok(NamedComponent { files, folder, name })
    }

    /// The name that it is known as.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn folder<'a>(&'a self, component: &'a str) -> &'a str {
        if component == self.name { &self.folder } else { component }
    }
}

impl ModelFiles for NamedComponent {
    fn class(&self) -> &str {
        self.files.class()
    }

    fn component(&self, name: &str) -> Option<&str> {
        let component = self.files.components().get(self.folder(name))?.as_ref()?;
        (name == self.name).then_some(component.class.as_str())
    }

    fn option(&self, _: &str) -> Option<Value> {
        None
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        Ok(self.files.json(self.folder(component), file)?)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        Ok(self.files.optional_text(self.folder(component), file)?)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        Ok(Arc::new(self.files.weights(self.folder(component), None)?))
    }
}

#[cfg(not(feature = "demo-model"))]
mod demo {
    use mixbit_mil::Bytes;

    pub(super) fn files() -> Option<Vec<(String, Bytes)>> {
        None
    }
}

#[cfg(feature = "demo-model")]
mod demo {
    use mixbit_mil::Bytes;

    macro_rules! files {
        ($($path:literal),* $(,)?) => {
            [$(($path, include_bytes!(concat!("../../../models/demo/", $path)).as_slice())),*]
        };
    }

    pub(super) fn files() -> Option<Vec<(String, Bytes)>> {
        let files = files![
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "tokenizer_2/merges.txt",
            "tokenizer_2/special_tokens_map.json",
            "tokenizer_2/tokenizer_config.json",
            "tokenizer_2/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        Some(files.map(|(path, bytes)| (path.to_string(), Bytes::new(bytes))).into())
    }
}
