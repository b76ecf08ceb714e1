//! Adapters that can't be used.

use mixbit_mil::WeightError;
use thiserror::Error;

use crate::model::{FileError, ModelError};

/// The reason why an adapter can't be used.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// No tensor is an adapter's.
    #[error("it holds no LoRA{}", first.as_ref().map_or(String::new(), |name| format!(
        " (its first tensor is `{name}`)"
    )))]
    NoAdapter {
        /// The first tensor's name.
        first: Option<String>,
    },
    /// A kind of adapter that is not supported.
    #[error(
        "{kind} adapters are not supported (`{tensor}`): LoRA, LoCon, LoHa, LoKr, DoRA and full \
             differences are"
    )]
    Unsupported {
        /// The kind's name.
        kind: &'static str,
        /// A tensor that shows it.
        tensor: String,
    },
    /// Parts of a layer that are missing or don't fit each other.
    #[error("`{layer}`: {what}")]
    Malformed {
        /// The layer's name in the adapter.
        layer: String,
        /// The defect.
        what: String,
    },
    /// An adapter for other models.
    #[error("it was made for {made_for}, and this model is {model}")]
    OtherModel {
        /// The family that it was made for, for people.
        made_for: String,
        /// The model's family, for people.
        model: String,
    },
    /// None of its layers is in the model.
    #[error("none of its {layers} layers is in this model ({model}); the first is `{first}`{}",
        made_for.as_ref().map_or(String::new(), |made_for| format!(": it was made for {made_for}")))]
    NoMatch {
        /// The number of layers.
        layers: usize,
        /// The first layer's name in the adapter.
        first: String,
        /// The family that it was made for, for people, if it shows.
        made_for: Option<String>,
        /// The model's family, for people.
        model: String,
    },
    /// A tensor that can't be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A configuration of the model that can't be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of the model that can't be read.
    #[error(transparent)]
    File(FileError),
}
