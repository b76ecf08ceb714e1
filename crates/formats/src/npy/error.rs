use mixbit_mil::TensorType;
use thiserror::Error;

use crate::shown::shown;

/// The reason why an `.npy` or `.npz` file can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NpyError {
    /// A malformed file.
    #[error("the file is malformed: {what}")]
    Malformed {
        /// The fault.
        what: String,
    },
    /// An unsupported kind of array or archive.
    #[error("{what} is not supported")]
    Unsupported {
        /// The kind.
        what: String,
    },
    /// More or fewer bytes than the shape takes.
    #[error("an array of type {ty} has {found} bytes")]
    Size {
        /// The header's type and shape.
        ty: TensorType,
        /// The bytes after the header.
        found: usize,
    },
    /// An unusable member of an archive.
    #[error("array `{}`: {problem}", shown(name))]
    Member {
        /// The array's name.
        name: String,
        /// The fault.
        problem: Box<NpyError>,
    },
}
