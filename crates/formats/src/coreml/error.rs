//! Errors of Core ML models.

use thiserror::Error;

use crate::shown::shown;

/// The reason why a Core ML model can't be read or written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CoreMlError {
    /// The specification (`model.mlmodel`) is malformed.
    #[error("the specification is malformed at byte {at}: {what}")]
    Malformed {
        /// The byte of the file at which the faulty message begins.
        at: usize,
        /// The fault.
        what: String,
    },
    /// The text of a compiled program is not a program.
    #[error("{0}")]
    Text(mixbit_mil::text::ParseError),
    /// An unsupported kind of model, feature or value.
    #[error("{what} is not supported")]
    Unsupported {
        /// The kind.
        what: String,
    },
    /// The manifest, the description or the files of the model contradict each other.
    #[error("{what}")]
    Inconsistent {
        /// The contradiction.
        what: String,
    },
    /// A weight that is not in its place in the weight file.
    #[error("weight `{}` at offset {offset} of {}: {what}", shown(name), shown(file))]
    Blob {
        /// The value's name.
        name: String,
        /// The weight file, as the specification names it.
        file: String,
        /// The offset of the blob's header.
        offset: u64,
        /// The fault.
        what: String,
    },
    /// The program itself is not valid.
    #[error(transparent)]
    Program(#[from] mixbit_mil::Error),
}

impl CoreMlError {
    pub(super) fn unsupported(what: impl Into<String>) -> Self {
        CoreMlError::Unsupported { what: what.into() }
    }

    pub(super) fn inconsistent(what: impl Into<String>) -> Self {
        CoreMlError::Inconsistent { what: what.into() }
    }
}

/// A weight that is NaN or infinite in the type that it is written in.
#[derive(Clone, Debug, Error, PartialEq)]
#[error(
    "tensor `{tensor}` has {} at element {index}: {}",
    if value.is_finite() { value.to_string() } else { value.to_string().to_lowercase() },
    match value.is_finite() {
        true => "a 16-bit float holds at most 65504; the model's authors may offer another precision",
        false => "the checkpoint is damaged, as by a failed merge or download; take another copy",
    }
)]
pub struct NotFinite {
    /// The tensor's name in its checkpoint.
    pub tensor: String,
    /// The position of the first such value among the elements as they are written.
    pub index: usize,
    /// The value in the checkpoint.
    pub value: f32,
}
