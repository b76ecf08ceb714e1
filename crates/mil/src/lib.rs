//! Core ML's Model Intermediate Language (MIL) as a Rust value.
mod bytes;
mod dtype;
mod types;
mod weights;

pub use bytes::Bytes;
pub use dtype::DType;
pub use types::TensorType;
pub use weights::{WeightError, WeightRef, Weights};
