use thiserror::Error;

use crate::shown::shown;

/// The most bytes of a GGUF header.
pub const HEADER_LIMIT: usize = 100_000_000;

/// The reason why a GGUF file can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GgufError {
    /// A header that ends after the file, or after [`HEADER_LIMIT`].
    #[error("the GGUF header ends at byte {at}, in {what}: was the file cut off?")]
    CutOff {
        /// The offset of the incomplete part.
        at: usize,
        /// The part.
        what: &'static str,
    },
    /// A version that is not supported.
    #[error("the file has version {version} of GGUF, and mixbit reads 2 and 3: convert it again")]
    Version {
        /// The version.
        version: u32,
    },
    /// Numbers in another byte order.
    #[error("the file was written for big-endian machines, which is not supported: convert it again")]
    ByteOrder,
    /// A header that breaks the format.
    #[error("the GGUF header is malformed: {}", shown(what))]
    Header {
        /// The fault.
        what: String,
    },
    /// An element type that is not supported.
    #[error(
        "tensor `{}` is quantized as {kind}, which is not supported: use Q4_0 to Q8_0 or a K-quant",
        shown(tensor)
    )]
    Type {
        /// The tensor's name.
        tensor: String,
        /// The type's name, or its number.
        kind: String,
    },
    /// A tensor whose parts contradict each other.
    #[error("tensor `{}`: {what}", shown(tensor))]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// The fault.
        what: String,
    },
}
