//! What a model directory must give.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use mixbit_mil::Weights;
use serde_json::Value;

/// Why a file of a model can't be used; the message names the file.
pub type FileError = Box<dyn Error + Send + Sync>;

/// A model in the diffusers layout, wherever it lies.
pub trait ModelFiles {
    /// The pipeline's class, such as `StableDiffusionXLPipeline`.
    fn class(&self) -> &str;

    /// The class of a component, such as `CLIPTextModel` for `text_encoder`; `None` if the model does not
    /// have it.
    fn component(&self, name: &str) -> Option<&str>;

    /// A value of `model_index.json` that is not a component.
    fn option(&self, name: &str) -> Option<Value>;

    /// A JSON file of a component.
    ///
    /// # Errors
    /// If it is absent or malformed.
    fn json(&self, component: &str, file: &str) -> Result<Value, FileError>;

    /// A text file of a component, `None` if it is absent.
    ///
    /// # Errors
    /// If it is there and can't be read.
    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError>;

    /// The weights of a component.
    ///
    /// # Errors
    /// If they are absent or malformed.
    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError>;

    /// Names of a component's weights whose layers lose too much where products are computed in integers
    /// ([`Precision::Int8`](crate::session::Precision::Int8)). None, if nobody measured that.
    fn full_precision(&self, _component: &str) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

/// A model's files with some of them changed: a layer over [`base`](Self::base), to which every method
/// forwards that the layer does not write itself. A layer is [`ModelFiles`], too.
pub trait ModelFilesLayer {
    /// The files below.
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
    /// If the file is absent or malformed.
    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        self.base().json(component, file)
    }

    /// See [`ModelFiles::text`].
    ///
    /// # Errors
    /// If the file is there and can't be read.
    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        self.base().text(component, file)
    }

    /// See [`ModelFiles::weights`].
    ///
    /// # Errors
    /// If the weights are absent or malformed.
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
