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

    /// The class of a component, such as `CLIPTextModel` for `text_encoder`; `None` if the model does not have it.
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
