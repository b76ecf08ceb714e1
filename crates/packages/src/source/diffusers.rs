//! Models and components in the diffusers layout.

use std::path::Path;
use std::sync::Arc;

use mixbit_diffusion::model::{FileError, ModelFiles, ModelFilesLayer};
use mixbit_formats::Diffusers;
use mixbit_mil::{Bytes, Weights};
use serde_json::Value;

/// A model in the diffusers layout, in a directory or in memory.
#[derive(Debug)]
pub struct DiffusersModel {
    files: Diffusers,
    variant: Option<String>,
}

impl DiffusersModel {
    /// Opens a directory. `variant` chooses among the weights ([`OpenOptions`](super::OpenOptions)).
    ///
    /// # Errors
    /// If it holds no model, or no weights of the variant.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, mixbit_formats::Error> {
        let files = Diffusers::open(path)?;
        if let Some(variant) = variant {
            files.require_variant(variant)?;
        }
        Ok(DiffusersModel { files, variant: variant.map(str::to_string) })
    }

    /// True if a directory is a model in the diffusers layout, or one that the Hugging Face client
    /// downloaded.
    pub fn is_at(path: &Path) -> bool {
        path.join("model_index.json").is_file() || path.join("snapshots").is_dir()
    }

    /// A model of files in memory, by their paths in its directory. `label` stands for the directory in
    /// messages.
    ///
    /// # Errors
    /// If they are no model.
    pub fn from_files(
        label: &str,
        files: impl IntoIterator<Item = (String, Bytes)>,
    ) -> Result<Self, mixbit_formats::Error> {
        Ok(DiffusersModel { files: Diffusers::from_files(label, files)?, variant: None })
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
pub struct Component {
    model: DiffusersModel,
    folder: String,
    name: String,
}

impl Component {
    /// Opens a component's directory under a name, by default the directory's.
    ///
    /// # Errors
    /// If it has no `config.json` that says its class.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self, mixbit_formats::Error> {
        let (files, folder) = Diffusers::open_component(path)?;
        let name = name.unwrap_or(&folder).to_string();
        Ok(Component { model: DiffusersModel { files, variant: None }, folder, name })
    }

    /// The component's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn folder<'a>(&'a self, component: &'a str) -> &'a str {
        if component == self.name { &self.folder } else { component }
    }
}

impl ModelFilesLayer for Component {
    fn base(&self) -> &dyn ModelFiles {
        &self.model
    }

    fn component(&self, name: &str) -> Option<&str> {
        self.base().component(self.folder(name)).filter(|_| name == self.name)
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        self.base().json(self.folder(component), file)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        self.base().text(self.folder(component), file)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        self.base().weights(self.folder(component))
    }
}
