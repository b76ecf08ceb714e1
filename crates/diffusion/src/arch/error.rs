//! Errors of building a network.

use thiserror::Error;

/// An error of building a network from its configuration and weights.
#[derive(Debug, Error, PartialEq)]
pub enum ArchError {
    /// No architecture has that class name.
    #[error("model class `{class}` is not supported; supported: {supported}")]
    UnknownClass {
        /// The class name in `model_index.json`.
        class: String,
        /// The supported class names.
        supported: String,
    },
    /// A configuration field has a value that is malformed or not supported.
    #[error("config field `{field}`: {what}")]
    Config {
        /// The field's name.
        field: String,
        /// The value found and the supported values.
        what: String,
    },
    /// An option of the caller does not fit the network.
    #[error("{option}: {what}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The mismatch.
        what: String,
    },
    /// A tensor is missing, or its shape does not match the configuration.
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
    /// The graph for the configuration and the options is not valid.
    #[error(transparent)]
    Graph(#[from] mixbit_mil::Error),
}

impl ArchError {
    pub(super) fn config(field: &str, what: impl Into<String>) -> Self {
        ArchError::Config { field: field.to_string(), what: what.into() }
    }
}
