//! Compiles and runs MIL functions.
//!
//! - [`Backend`] turns a [`mixbit_mil::Function`] into a [`Model`]; a crate of its own implements it for a
//!   device.
//! - [`Reference`] is the backend that runs every op naively, and the oracle of all others.
//! - [`Tensor`] is what goes in and comes out.
//!
//! ```
//! use mixbit_engine::{Backend, Options, Reference, Tensor};
//! use mixbit_mil::{Builder, DType, Opset, TensorType};
//!
//! let mut b = Builder::new("main", Opset::Ios16);
//! let x = b.input("x", TensorType::new(DType::F32, [2, 3]))?;
//! let y = b.op("softmax").arg("x", x).arg("axis", -1).named("y").add()?;
//! let function = b.finish(&[y])?;
//!
//! let mut model = Reference.compile(&function, &Options::default())?;
//! let x = Tensor::from_f32(&[2, 3], vec![0.0; 6])?;
//! let y = model.run(&[("x", &x)])?.remove(0);
//! assert!((y.as_f32().unwrap()[0] - 1.0 / 3.0).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The engine knows no models' names and reads no files: weights come through [`mixbit_mil::WeightRef`].
#![forbid(unsafe_code)]

mod backend;
mod budget;
mod cancel;
mod compare;
mod error;
pub mod fuse;
pub mod geometry;
mod ops;
mod reference;
mod tensor;

pub use backend::{Arithmetic, Backend, Executable, Model, Options, Signature, Timing, TracedStep};
pub use budget::{MemoryBudget, Reservation};
pub use cancel::Cancel;
pub use compare::{OpDifference, compare};
pub use error::Error;
pub use fuse::fuse;
pub use reference::{Reference, evaluate, stored_bytes};
pub use tensor::{Data, Tensor};
