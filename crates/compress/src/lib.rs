//! Mixed-bit compression of a graph's weights: methods, plans, and the choice of bits by rate and distortion.
//!
//! - [`layers`] lists the weights of a function that can be compressed.
//! - A [`Method`] stores a weight in fewer bits; [`METHODS`] lists all. A [`Scheme`] is a method at one of
//!   its widths.
//! - A [`Plan`] has the scheme of each layer, and the [`Calibration`] to fit it to. An [`Encoder`] carries it
//!   out.
//! - [`allocate`] chooses schemes under a budget.
//! - [`Histogram`] and [`Palette`] are exact weighted k-means in one dimension, which fits palettes.
//!
//! ```
//! use mixbit_compress::{Encoder, Scheme, layers, uniform};
//! use mixbit_mil::{Builder, Bytes, DType, Opset, TensorType, WeightRef};
//!
//! let ty = TensorType::new(DType::F16, [8, 16]);
//! let weight = WeightRef::new("mid.proj.weight", ty, Bytes::new(vec![0x3c; 256]))?;
//! let mut b = Builder::new("main", Opset::Ios16);
//! let x = b.input("x", TensorType::new(DType::F16, [1, 16]))?;
//! let w = b.weight(weight);
//! let y = b.op("linear").arg("x", x).arg("weight", w).add()?;
//! let function = b.finish(&[y])?;
//! let found = layers(&function);
//! assert_eq!(found[0].name, "mid.proj");
//!
//! let four_bits: Scheme = "palette-4".parse()?;
//! let small = Encoder::new().apply(&function, &uniform(&found, four_bits, 0), &())?;
//! assert_eq!(layers(&small)[0].weight.stored_len(), 64 + 32);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate knows no files and no executor. It works on [`mixbit_mil::Function`]s and numbers.
#![forbid(unsafe_code)]

mod allocate;
mod calibration;
mod encoder;
mod error;
mod kmeans;
mod layer;
mod method;
mod pack;
mod plan;

pub use allocate::{Candidate, Target, allocate, predicted_psnr};
pub use calibration::{Calibration, Gram, Needs};
pub use encoder::{Encoder, start_threads};
pub use error::Error;
pub use kmeans::{Histogram, Palette, Width};
pub use layer::{Layer, layers};
pub use method::{Indices, METHODS, Method, Scheme, palettized};
pub use plan::{LayerPlan, Plan, uniform};
