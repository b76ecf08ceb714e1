//! Palettes for weights.
//!
//! A [`Histogram`] counts a tensor's f16 values, each with its importance; [`Palette::fit`] finds the palette of a
//! [`Width`] that has the least weighted squared error.
//!
//! ```
//! use compress::{Histogram, Palette, Width};
//! use half::f16;
//!
//! let weights = [0.0, 0.25, 1.0, 1.25].map(f16::from_f32);
//! let histogram = Histogram::new(weights.iter().map(|&w| (w, 1.0)))?;
//! let palette = Palette::fit(&histogram, Width::One);
//! assert_eq!(palette.lut(), [0.125, 1.125].map(f16::from_f32));
//! assert_eq!(palette.index(weights[2]), 1);
//! # Ok::<(), compress::Error>(())
//! ```
//!
//! Limits: f16 values only (round others first, as Core ML stores them), and one palette at a time.
#![forbid(unsafe_code)]

mod kmeans;

pub use kmeans::{Error, Histogram, Palette, Width};
