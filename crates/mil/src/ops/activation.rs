//! Activations and softmax.

use super::{Default, OpDef, Param, Work, float, ints, same_as_x, string};
use crate::{Error, OpView, TensorType};

const X: &[Param] = &[float("x")];

pub(super) static OPS: &[OpDef] = &[
    // mode: EXACT (erf), TANH_APPROXIMATION or SIGMOID_APPROXIMATION (x * sigmoid(1.702 x)).
    OpDef::new("gelu", &[float("x"), string("mode").default(Default::Str("EXACT"))], gelu, Work::Elements),
    OpDef::new("leaky_relu", &[float("x"), float("alpha").constant()], same_as_x, Work::Elements),
    OpDef::new("relu", X, same_as_x, Work::Elements),
    OpDef::new("sigmoid", X, same_as_x, Work::Elements),
    OpDef::new("silu", X, same_as_x, Work::Elements),
    OpDef::new("softmax", &[float("x"), ints("axis").default(Default::Int(-1))], softmax, Work::Elements),
];

/// The modes of `gelu`.
const GELU_MODES: [&str; 3] = ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"];

fn gelu(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let mode = op.str("mode")?;
    if !GELU_MODES.contains(&mode.as_str()) {
        return Err(op.invalid(format!("unknown mode `{mode}`; known: {}", GELU_MODES.join(", "))));
    }
    same_as_x(op)
}

fn softmax(op: &OpView) -> Result<Vec<TensorType>, Error> {
    op.axis(op.int("axis")?, op.ty("x")?.rank())?;
    same_as_x(op)
}
