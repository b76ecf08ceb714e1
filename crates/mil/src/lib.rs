//! Core ML's Model Intermediate Language (MIL) as a Rust value.
//!
//! Every model in mixbit is one [`Function`]. The graph that is run, analyzed, palettized and written to a
//! package is the same value. Key types:
//!
//! - [`Function`]: values and ops in static single assignment form, with static shapes; [`Program`] holds
//!   several.
//! - [`OpDef`]: the declaration of an op: inputs, defaults, work, type inference; [`ops::lookup`] finds one.
//! - [`Builder`]: builds a function op by op; [`verify`] checks every rule of a finished one.
//! - [`WeightRef`]: a checkpoint tensor by name, read when it is used. [`Weights`] is a source of them,
//!   [`Overlay`] one with some replaced.
//! - [`Progress`]: the receiver of a long operation's progress, which can stop it.
//!
//! The crate knows no files, threads or execution. Control flow (`cond`, `while_loop`), lists and state are
//! not represented: Stable Diffusion's models have none.
#![forbid(unsafe_code)]

mod assemble;
mod bisect;
mod branches;
mod builder;
mod bytes;
pub mod constexpr;
mod dtype;
mod error;
mod literal;
pub mod ops;
mod opset;
pub mod passes;
mod program;
mod progress;
mod segments;
pub mod text;
mod types;
mod verify;
mod weights;

pub use assemble::{Assembler, Declared};
pub use bisect::{bisect, join};
pub use branches::{Branch, with_branches};
pub use builder::{Builder, OpBuilder, Source, identifier, is_identifier};
pub use bytes::{Bytes, Owner};
pub use dtype::DType;
pub use error::Error;
pub use literal::Literal;
pub use opset::Opset;
pub use program::{
    Arg, Constant, Def, Function, Op, OpDef, OpView, Program, Value, ValueId, Work, multiply_adds,
};
pub use progress::{Progress, Stopped, Tally, Unit};
pub use segments::{cut_after, segments, single_value_cuts};
pub use types::TensorType;
pub use verify::verify;
pub use weights::{BlockEncoding, Computed, Encoding, Identity, Overlay, WeightError, WeightRef, Weights};
