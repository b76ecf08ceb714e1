//! The errors of compiling and running a function.

use mixbit_mil::TensorType;
use thiserror::Error;

/// The reason why a function can't be compiled or run.
#[derive(Debug, Error)]
pub enum Error {
    /// The function is not valid.
    #[error(transparent)]
    Program(#[from] mixbit_mil::Error),
    /// The backend does not run an op of the function, or not in this form.
    #[error("{backend} can't run {op}: {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// The op, as `type name`.
        op: String,
        /// The unsupported property.
        what: String,
    },
    /// The threads of a backend can't be started.
    #[error("the worker threads can't be started: {0}")]
    Threads(String),
    /// A constant has a type that the engine does not support.
    #[error("values of type {ty} are not supported, only floats and integers of at most 32 bits")]
    ElementType {
        /// The value's type.
        ty: TensorType,
    },
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
    /// The intermediate results, or copies of weights, don't fit into memory.
    #[error("needs {needed:.1} GB for intermediate results, more than is free; try a smaller --size")]
    Memory {
        /// The memory that all models need together, in units of 10^9 bytes.
        needed: f64,
    },
    /// The number of elements differs from the shape's.
    #[error("{found} elements don't fill a tensor of shape {shape:?}")]
    Elements {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The elements that were given.
        found: usize,
    },
    /// A backend did not hand out an output.
    #[error("the backend did not make output `{name}`")]
    OutputMissing {
        /// The output's name.
        name: String,
    },
    /// An input of the function was not given.
    #[error("input `{name}` of type {ty} was not given")]
    InputMissing {
        /// The input's name.
        name: String,
        /// The declared type.
        ty: TensorType,
    },
    /// The function has no input of that name.
    #[error("the program has no input `{name}`; it has {known}")]
    InputUnknown {
        /// The name that was given.
        name: String,
        /// The names that it has.
        known: String,
    },
    /// An input was given more than once.
    #[error("input `{name}` was given twice")]
    InputRepeated {
        /// The input's name.
        name: String,
    },
    /// A given tensor does not have the declared type.
    #[error("input `{name}` must be {expected}, but has shape {found:?} of {kind}")]
    InputType {
        /// The input's name.
        name: String,
        /// The declared type.
        expected: TensorType,
        /// The shape that was given.
        found: Vec<usize>,
        /// The kind of numbers that were given: floats or integers.
        kind: &'static str,
    },
    /// An index read from a tensor does not exist in the tensor that it points into.
    #[error("{op}: index {index} is not in an axis of extent {extent}")]
    Index {
        /// The op, as `type name`.
        op: String,
        /// The index.
        index: i64,
        /// The extent of the axis.
        extent: usize,
    },
}
