//! Bytes to values and back: every parser of files that came from elsewhere.
//!
//! Three types carry it:
//!
//! - [`SafeTensors`]: one safetensors file, memory-mapped, checked against the whole format when it is opened;
//!   [`safetensors::write`] makes one, tensor by tensor;
//! - [`Checkpoint`]: the weights of one model, one file or many shards;
//! - [`Diffusers`]: a model directory as diffusers saves it, or the same tree in memory.
//!
//! The first two are [`mixbit_mil::Weights`]. [`coreml`] reads and writes Core ML models, [`npy`] reads NumPy's files, [`write_atomically`] writes any file whole or not at all.
//!
//! ```
//! use mixbit_formats::{SafeTensors, safetensors::{self, TensorSpec}};
//! use mixbit_mil::{DType, TensorType, Weights};
//!
//! let mut file = Vec::new();
//! let tensors = [TensorSpec { name: "bias".to_string(), ty: TensorType::new(DType::F32, [2]) }];
//! safetensors::write_to(&mut file, &Default::default(), &tensors, |_, writer| {
//!     [1.0f32, 2.0].iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
//! })?;
//! let weights = SafeTensors::from_bytes(mixbit_mil::Bytes::new(file))?;
//! assert_eq!(weights.require("bias", &[2])?.read()?.len(), 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Limits: this crate knows no model's name; PyTorch pickles (`.bin`, `.ckpt`) are refused with advice; a mapped file
//! must not be changed in place while it is used (see [`map_file`]).

#![deny(unsafe_code)]

mod atomic;
pub mod base64;
mod checkpoint;
pub mod coreml;
pub mod diffusers;
mod error;
mod files;
mod json;
mod map;
pub mod npy;
pub mod safetensors;
mod sha256;

pub use atomic::write_atomically;
pub use checkpoint::Checkpoint;
pub use diffusers::Diffusers;
pub use error::Error;
pub use map::map_file;
pub use safetensors::SafeTensors;
pub use sha256::sha256;
