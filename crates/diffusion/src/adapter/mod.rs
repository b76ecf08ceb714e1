//! LoRAs and their kin: files that change a model's weights.
//!
//! [`Adapter`] reads one, in any of the forms and namings that trainers write: LoRA and LoCon, LoHa, LoKr,
//! DoRA and full differences; kohya's, LyCORIS', PEFT's, OneTrainer's and diffusers' names, over the layouts
//! of diffusers and of Stability. [`Merged`] is a model with adapters added: each weight that one changes is
//! computed when it is read, in `f32`, and rounded once to its own element type.

mod branches;
mod change;
mod delta;
mod error;
mod file;
mod kind;
mod merged;
mod targets;

use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_mil::Weights;

pub use error::AdapterError;
pub use merged::Merged;

use self::file::Layer;

/// The key of an adapter's metadata under which a reader puts the `adapter_config.json` of PEFT that lies
/// beside the file.
pub const PEFT_CONFIG: &str = "adapter_config";

/// An adapter. Its tensors are referred to, not read.
pub struct Adapter {
    layers: Vec<Arc<Layer>>,
    /// Names of tensors that belong to no layer.
    others: Vec<String>,
    made_for: Option<String>,
}

impl Adapter {
    /// Reads the tensors of a file, and what its metadata says of them.
    ///
    /// # Errors
    /// [`AdapterError::NoAdapter`], [`AdapterError::Unsupported`], [`AdapterError::Malformed`].
    pub fn read(weights: &dyn Weights, metadata: &BTreeMap<String, String>) -> Result<Self, AdapterError> {
        let (layers, others) = file::layers(weights, metadata)?;
        let made_for = kind::made_for(&layers, metadata);
        Ok(Adapter { layers: layers.into_iter().map(Arc::new).collect(), others, made_for })
    }

    /// The number of layers that it changes.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The family of models that it was made for, for people; `None` if neither its tensors nor its metadata
    /// show it.
    pub fn made_for(&self) -> Option<&str> {
        self.made_for.as_deref()
    }
}

/// The factors of an adapter's changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    /// For the UNet.
    pub unet: f32,
    /// For the text encoders.
    pub text_encoders: f32,
}

impl Strength {
    /// One factor for all.
    pub fn of(factor: f32) -> Self {
        Strength { unet: factor, text_encoders: factor }
    }

    fn for_component(self, component: &str) -> f32 {
        if component == "unet" { self.unet } else { self.text_encoders }
    }
}

/// How an adapter fits a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// The layers that the adapter has.
    pub layers: usize,
    /// The layers that the model has too.
    pub matched: usize,
    /// The names of the others, with the reason if the model has a layer of that name, and of tensors that
    /// belong to no layer.
    pub unmatched: Vec<String>,
}
