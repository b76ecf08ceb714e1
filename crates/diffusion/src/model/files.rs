//! The interface to a model's files.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use mixbit_mil::Weights;
use serde_json::Value;

/// An error of reading a model's file. The message names the file.
pub type FileError = Box<dyn Error + Send + Sync>;

/// A model in the diffusers layout, from any storage.
pub trait ModelFiles {
    /// The pipeline's class, such as `StableDiffusionXLPipeline`.
    fn class(&self) -> &str;

    /// The class of a component, such as `CLIPTextModel` for `text_encoder`; `None` if it is absent.
    fn component(&self, name: &str) -> Option<&str>;

    /// A value of `model_index.json` that is not a component.
    fn option(&self, name: &str) -> Option<Value>;

    /// A JSON file of a component.
    ///
    /// # Errors
    /// The file is absent or malformed.
    fn json(&self, component: &str, file: &str) -> Result<Value, FileError>;

    /// A text file of a component, `None` if it is absent.
    ///
    /// # Errors
    /// The file exists but can't be read.
    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError>;

    /// The weights of a component.
    ///
    /// # Errors
    /// The weights are absent or malformed.
    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError>;

    /// Names of a component's weights whose layers lose too much accuracy in integer arithmetic
    /// ([`Precision::Int8`](crate::session::Precision::Int8)). Empty if no measurement is available.
    fn full_precision(&self, _component: &str) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

/// A layer that overrides some of a model's files. Methods forward to [`base`](Self::base) by default. Every
/// layer implements [`ModelFiles`].
pub trait ModelFilesLayer {
    /// The underlying files.
    fn base(&self) -> &dyn ModelFiles;

    /// See [`ModelFiles::class`].
    fn class(&self) -> &str {
        self.base().class()
    }

    /// See [`ModelFiles::component`].
    fn component(&self, name: &str) -> Option<&str> {
        self.base().component(name)
    }

    /// See [`ModelFiles::option`].
    fn option(&self, name: &str) -> Option<Value> {
        self.base().option(name)
    }

    /// See [`ModelFiles::json`].
    ///
    /// # Errors
    /// The file is absent or malformed.
    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        self.base().json(component, file)
    }

    /// See [`ModelFiles::text`].
    ///
    /// # Errors
    /// The file exists but can't be read.
    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        self.base().text(component, file)
    }

    /// See [`ModelFiles::weights`].
    ///
    /// # Errors
    /// The weights are absent or malformed.
    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        self.base().weights(component)
    }

    /// See [`ModelFiles::full_precision`].
    fn full_precision(&self, component: &str) -> BTreeSet<String> {
        self.base().full_precision(component)
    }
}

impl<L: ModelFilesLayer> ModelFiles for L {
    fn class(&self) -> &str {
        ModelFilesLayer::class(self)
    }

    fn component(&self, name: &str) -> Option<&str> {
        ModelFilesLayer::component(self, name)
    }

    fn option(&self, name: &str) -> Option<Value> {
        ModelFilesLayer::option(self, name)
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        ModelFilesLayer::json(self, component, file)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        ModelFilesLayer::text(self, component, file)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        ModelFilesLayer::weights(self, component)
    }

    fn full_precision(&self, component: &str) -> BTreeSet<String> {
        ModelFilesLayer::full_precision(self, component)
    }
}
