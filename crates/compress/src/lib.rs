//! Mixed-bit compression: which layers a graph has, the ways to store their weights in fewer bits, and what to choose.
//!
//! - [`Method`] is a way to store a weight in fewer bits, [`METHODS`] lists all; a [`Scheme`] is one of them at a width.
//! - [`Histogram`] and [`Palette`] are exact weighted one-dimensional k-means, which the palettes are made by.
//! - [`layers`] lists the weights of a function that can be compressed; [`apply`] compresses those that are chosen.
//!
//! ```
//! use mixbit_compress::{Scheme, apply, layers};
//! use mixbit_mil::{Builder, Bytes, DType, Opset, TensorType, WeightRef};
//!
//! let ty = TensorType::new(DType::F16, [8, 16]);
//! let weight = WeightRef::new("mid.proj.weight", ty, Bytes::new(vec![0x3c; 256]))?;
//! let mut b = Builder::new("main", Opset::Ios16);
//! let x = b.input("x", TensorType::new(DType::F16, [1, 16]))?;
//! let w = b.weight(weight);
//! let y = b.op("linear").arg("x", x).arg("weight", w).add()?;
//! let function = b.finish(&[y])?;
//! assert_eq!(layers(&function)[0].name, "mid.proj");
//!
//! let four_bits: Scheme = "palette-4".parse()?;
//! let small = apply(&function, &|_| Some(four_bits.into()), &())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate knows no files and no executor: it works on [`mixbit_mil::Function`]s.
#![forbid(unsafe_code)]

mod allocate;
mod apply;
mod error;
mod kmeans;
mod layer;
mod method;
mod pack;

pub use allocate::{Candidate, Target, allocate, predicted_psnr};
pub use apply::{Choice, apply};
pub use error::Error;
pub use kmeans::{Histogram, Palette, Width};
pub use layer::{Layer, layers};
pub use method::{METHODS, Method, Scheme};
