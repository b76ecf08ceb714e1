//! Models in files: opening, converting, palettizing, comparing.
//!
//! - [`source`] finds models: directories in the diffusers layout, and [`bundle`]s of Core ML packages;
//! - [`package`] converts models to Core ML packages;
//! - [`recipe`] reads and writes recipe files, [`palettize`] stores networks in fewer bits;
//! - [`inspect`] opens networks and weight files to look at, [`diff`] compares them;
//! - [`psnr`] are peak signal-to-noise ratios.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use mixbit_packages::source::{OpenOptions, SOURCES, open};
//!
//! let opened = open(Some(Path::new("stable-diffusion-v1-5")), &OpenOptions::default(), SOURCES)?;
//! println!("{}, {} text encoders", opened.name(), opened.model()?.text_encoders.len());
//! # Ok::<(), mixbit_packages::OpenError>(())
//! ```
#![forbid(unsafe_code)]

pub mod bundle;
pub mod diff;
mod error;
mod existing;
pub mod inspect;
pub mod package;
pub mod palettize;
pub mod psnr;
pub mod recipe;
pub mod source;

pub use error::OpenError;
pub use existing::ExistsError;
