//! Why a network can't be built.

use thiserror::Error;

/// Why a network can't be built from its configuration and weights.
#[derive(Debug, Error, PartialEq)]
pub enum ArchError {
    /// No architecture goes by that class name.
    #[error("model class `{class}` is not supported; supported: {supported}")]
    UnknownClass {
        /// The class name, as `model_index.json` has it.
        class: String,
        /// The class names that are.
        supported: String,
    },
    /// A configuration field has a value that is malformed or not supported.
    #[error("config field `{field}`: {what}")]
    Config {
        /// The field's name.
        field: String,
        /// Its value, and what is supported.
        what: String,
    },
    /// An option of the caller does not fit the network.
    #[error("{option}: {what}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What does not fit.
        what: String,
    },
    /// A tensor is missing, or of another shape than the configuration asks for.
    #[error(transparent)]
    Weight(#[from] mixbit_mil::WeightError),
    /// A tensor's element type is not a float.
    #[error("tensor `{name}` has elements of type {dtype}, not floats")]
    WeightType {
        /// The tensor's name.
        name: String,
        /// The element type in the file.
        dtype: mixbit_mil::DType,
    },
    /// The graph could not be built from what the configuration and the options ask for.
    #[error(transparent)]
    Graph(#[from] mixbit_mil::Error),
}

impl ArchError {
    pub(super) fn config(field: &str, what: impl Into<String>) -> Self {
        ArchError::Config { field: field.to_string(), what: what.into() }
    }
}
