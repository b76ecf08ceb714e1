//! Readers and writers of model files: safetensors, PyTorch, GGUF, diffusers directories, Core ML models and
//! NumPy arrays.
//!
//! Key types:
//!
//! - [`SafeTensors`]: one safetensors file, memory-mapped and fully validated when it is opened.
//!   [`safetensors::write`] writes one, tensor by tensor;
//! - [`TensorFile`]: one file of tensors in safetensors, of PyTorch ([`Torch`]) or of GGUF ([`Gguf`]), by its
//!   content. Weights that are stored with scales are read as the products;
//! - [`Checkpoint`]: the weights of one model, one file or many shards;
//! - [`Diffusers`]: a model directory in the diffusers layout, on disk or in memory;
//! - [`coreml::Model`]: a Core ML package or compiled model.
//!
//! The first three are [`mixbit_mil::Weights`]. [`npy`] reads NumPy's files. [`write_atomically`] writes any
//! file whole or not at all; a [`Claim`] keeps other processes from an output. [`sha256`](sha256()) and
//! [`base64`] are here for whoever stores them in files.
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
//! Limits: no model is known by name. No pickle is run: see [`torch`]. A mapped file must not be changed in
//! place while it is used (see [`map_file`]).

#![deny(unsafe_code)]

mod archive;
mod atomic;
pub mod base64;
mod checkpoint;
mod claim;
pub mod coreml;
pub mod diffusers;
mod disk;
mod error;
#[cfg(feature = "fault-injection")]
mod fault;
mod files;
mod float8;
pub mod gguf;
pub mod json;
mod lfs;
mod map;
pub mod npy;
pub mod safetensors;
mod scales;
mod sha256;
mod shown;
mod tensor_file;
pub mod torch;
mod zip;

pub use archive::unpack;
pub use atomic::{Writer, make_directory, make_subdirectory, write_atomically, write_where_asked};
pub use checkpoint::Checkpoint;
pub use claim::{Claim, remove_leftovers};
pub use diffusers::Diffusers;
pub use disk::{NewFile, free_space};
pub use error::Error;
pub use files::{read_model_text, read_text};
pub use gguf::Gguf;
pub use map::{map_file, open_file};
pub use safetensors::SafeTensors;
pub use scales::ScaleError;
pub use sha256::{Sha256, hex, sha256};
pub use tensor_file::{TensorFile, TensorFormat};
pub use torch::Torch;
