use mixbit_mil::TensorType;
use thiserror::Error;

use crate::shown::shown;

/// The most bytes of a header, as in the reference implementation.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// The reason why a safetensors file can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SafeTensorsError {
    /// Too few bytes to hold a header length.
    #[error("the file has {len} bytes, too few for safetensors: was it cut off?")]
    TooShort {
        /// The file's size.
        len: usize,
    },
    /// The placeholder that Git leaves where a large file was not downloaded.
    #[error("the file is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")]
    LfsPointer,
    /// A header length beyond [`HEADER_LIMIT`].
    #[error("the header claims {len} bytes, the limit is {HEADER_LIMIT}: this is not a safetensors file")]
    HeaderTooLong {
        /// The claimed length.
        len: u64,
    },
    /// A header that ends after the file.
    #[error("the header claims {len} bytes, the file has {available} after its length: was it cut off?")]
    HeaderBeyondFile {
        /// The claimed length.
        len: u64,
        /// The bytes after the length.
        available: usize,
    },
    /// A header that is not the JSON object of the format.
    #[error("the header is malformed: {what}")]
    Header {
        /// The parser's reason.
        what: String,
    },
    /// A name that appears twice.
    #[error("tensor `{}` is in the header twice", shown(tensor))]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// An element type that is not supported.
    #[error("tensor `{}` has elements of type {}, which is not supported", shown(tensor), shown(dtype))]
    DType {
        /// The tensor's name.
        tensor: String,
        /// The type's name in the header.
        dtype: String,
    },
    /// A shape whose size in bytes overflows.
    #[error("tensor `{}` of shape {shape:?} is larger than any memory", shown(tensor))]
    Overflow {
        /// The tensor's name.
        tensor: String,
        /// The shape in the header.
        shape: Vec<u64>,
    },
    /// A byte range that ends before it starts or after the file.
    #[error(
        "tensor `{}` lies at bytes {begin} to {end} of data with {available} bytes: was the file cut off?",
        shown(tensor)
    )]
    Range {
        /// The tensor's name.
        tensor: String,
        /// Start offset in the data.
        begin: u64,
        /// End offset in the data.
        end: u64,
        /// The data bytes that the file has.
        available: usize,
    },
    /// A byte range that does not hold the shape.
    #[error("tensor `{}` of type {ty} has {found} bytes", shown(tensor))]
    Size {
        /// The tensor's name.
        tensor: String,
        /// The declared type.
        ty: TensorType,
        /// The range's length.
        found: u64,
    },
    /// A tensor that does not start where the one before it ends.
    #[error(
        "tensor `{}` starts at byte {begin} of the data, the one before it ends at {expected}",
        shown(tensor)
    )]
    Gap {
        /// The tensor's name.
        tensor: String,
        /// Its start.
        begin: usize,
        /// The end of the tensor before it.
        expected: usize,
    },
    /// Data after the last tensor.
    #[error("the tensors end at byte {end} of the data, the file has {available}")]
    Trailing {
        /// The end of the last tensor.
        end: usize,
        /// The data bytes that the file has.
        available: usize,
    },
}
