//! What the `mixbit` binary is made of.
//!
//! - [`model`] finds models: directories in the diffusers layout, and the demo model in the binary;
//! - [`parameters`] and [`picture`] are the generation parameters and the PNG files that hold them;
//! - [`bundle`] reads directories of Core ML packages, [`package`] converts models to Core ML packages;
//! - [`recipe`] reads and writes recipe files, [`palettize`] stores networks in fewer bits;
//! - [`synthetic`] writes models of published sizes with random weights;
//! - [`report`] shows an analysis: plots, tables and images;
//! - [`cli`] is the command line.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod bundle;
pub mod cli;
pub mod model;
pub mod package;
pub mod palettize;
pub mod parameters;
pub mod picture;
pub mod psnr;
pub mod recipe;
pub mod report;
pub mod synthetic;
