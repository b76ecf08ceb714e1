//! Errors of programs.

use thiserror::Error;

use crate::{Opset, WeightError};

/// The reason why a program can't be built or is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The op table has no such op.
    #[error("unknown op `{0}`")]
    UnknownOp(String),
    /// The op has no such input.
    #[error("op `{op}` has no input `{input}`")]
    UnknownInput {
        /// The op's type.
        op: String,
        /// The input's name.
        input: String,
    },
    /// A required input is absent.
    #[error("{op}: input `{input}` is missing")]
    MissingInput {
        /// The op, as `type name`.
        op: String,
        /// The input's name.
        input: String,
    },
    /// An input is computed at run time, but must be a constant.
    #[error("{op}: input `{input}` must be a constant")]
    NotConst {
        /// The op, as `type name`.
        op: String,
        /// The input's name.
        input: String,
    },
    /// Types or values of the inputs don't fit the op.
    #[error("{op}: {what}")]
    Invalid {
        /// The op, as `type name`.
        op: String,
        /// The misfit.
        what: String,
    },
    /// The op or one of its inputs is newer than the function's opset.
    #[error("{op}: `{what}` needs opset {needs}, the function has {has}")]
    Opset {
        /// The op, as `type name`.
        op: String,
        /// The op type or input.
        what: String,
        /// The opset that introduced it.
        needs: Opset,
        /// The function's opset.
        has: Opset,
    },
    /// The graph itself is malformed: order, names, recorded types.
    #[error("{0}")]
    Graph(String),
    /// A weight that can't be used.
    #[error(transparent)]
    Weight(#[from] WeightError),
}
