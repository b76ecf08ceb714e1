//! What the programs share.
//!
//! - [`model`] finds models: directories in the diffusers layout, Core ML packages, and the [`demo`] model in the binary;
//! - [`parameters`] and [`picture`] are the generation parameters and the PNG files that hold them;
//! - [`synthetic`] writes models of published sizes with random weights.
#![forbid(unsafe_code)]

pub mod demo;
pub mod model;
pub mod parameters;
pub mod picture;
pub mod synthetic;
