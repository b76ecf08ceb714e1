//! Fixture models.

use std::path::Path;
use std::sync::Arc;

use mixbit_diffusion::model::{DiffusionModel, FileError, ModelFiles};
use mixbit_formats::Diffusers;
use mixbit_mil::Weights;
use serde_json::Value;

/// A model's directory in the diffusers layout.
struct Directory(Diffusers);

impl ModelFiles for Directory {
    fn class(&self) -> &str {
        self.0.class()
    }

    fn component(&self, name: &str) -> Option<&str> {
        self.0.components().get(name)?.as_ref().map(|component| component.class.as_str())
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.0.options().get(name).cloned()
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        Ok(self.0.json(component, file)?)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        Ok(self.0.optional_text(component, file)?)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        Ok(Arc::new(self.0.weights(component, None)?))
    }
}

/// The files of the model in a directory.
pub(crate) fn open(path: &Path) -> Result<impl ModelFiles + use<>, Box<dyn std::error::Error>> {
    Ok(Directory(Diffusers::open(path)?))
}

/// The model in a directory.
pub(crate) fn model(path: &Path) -> Result<Arc<DiffusionModel>, Box<dyn std::error::Error>> {
    Ok(Arc::new(DiffusionModel::from_files(&open(path)?)?))
}
