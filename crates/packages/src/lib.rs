//! Models in files.
//!
//! - [`source`] opens directories in the diffusers layout, [`bundle`] directories of Core ML packages;
//! - [`package`] converts models to Core ML packages;
//! - [`recipe`] reads and writes recipe files, [`palettize`] stores networks in fewer bits;
//! - [`inspect`] opens networks and weight files to look at, [`diff`] compares them;
//! - [`psnr`] are peak signal-to-noise ratios.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod diff;
pub mod inspect;
pub mod package;
pub mod palettize;
pub mod psnr;
pub mod recipe;
pub mod source;
