//! Models in the diffusers layout.

use std::path::Path;
use std::sync::Arc;

use mixbit_diffusion::model::{FileError, ModelFiles};
use mixbit_formats::Diffusers;
use mixbit_mil::{Bytes, Weights};
use serde_json::Value;

/// A model in the diffusers layout, in a directory or in the binary.
#[derive(Debug)]
pub struct DiffusersModel {
    files: Diffusers,
    name: String,
    variant: Option<String>,
}

/// What a directory is called.
pub fn directory_name(path: &Path) -> String {
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

    /// A model of files in memory, by their paths in its directory.
    ///
    /// # Errors
    /// If they are no model.
    pub fn from_files(
        name: &str,
        files: impl IntoIterator<Item = (String, Bytes)>,
    ) -> Result<Self, mixbit_formats::Error> {
        let files = Diffusers::from_files(name, files)?;
        Ok(DiffusersModel { files, name: name.to_string(), variant: None })
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
