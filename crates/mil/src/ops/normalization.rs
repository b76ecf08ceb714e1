//! Normalizations.

use super::{Default, OpDef, Param, Work, float, ints, resolve_axes, same_as_x};
use crate::{Error, OpView, TensorType};

const fn epsilon() -> Param {
    float("epsilon").constant().default(Default::Float(1e-5))
}

pub(super) static OPS: &[OpDef] = &[
    // gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel (axis 1).
    OpDef::new(
        "batch_norm",
        &[
            float("x"),
            float("mean").constant(),
            float("variance").constant(),
            float("gamma").constant().optional(),
            float("beta").constant().optional(),
            epsilon(),
        ],
        batch_norm,
        Work::Elements,
    ),
    // As batch_norm, with mean and variance of each image and channel taken from x itself.
    OpDef::new(
        "instance_norm",
        &[float("x"), float("gamma").constant().optional(), float("beta").constant().optional(), epsilon()],
        instance_norm,
        Work::Elements,
    ),
    // Absent axes: all.
    OpDef::new(
        "layer_norm",
        &[
            float("x"),
            ints("axes").optional(),
            float("gamma").constant().optional(),
            float("beta").constant().optional(),
            epsilon(),
        ],
        layer_norm,
        Work::Elements,
    ),
];

fn check_channels(op: &OpView, inputs: &[&str], expected: &[usize]) -> Result<(), Error> {
    for input in inputs {
        if op.get(input).is_some() && op.ty(input)?.shape != expected {
            let found = &op.ty(input)?.shape;
            return Err(op.invalid(format!("`{input}` has shape {found:?}, not {expected:?}")));
        }
    }
    Ok(())
}

fn batch_norm(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    if !(3..=5).contains(&x.rank()) {
        return Err(op.invalid(format!("`x` has rank {}, not 3 to 5", x.rank())));
    }
    check_channels(op, &["mean", "variance", "gamma", "beta"], &x.shape[1..2])?;
    same_as_x(op)
}

fn instance_norm(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    if !(3..=4).contains(&x.rank()) {
        return Err(op.invalid(format!("`x` has rank {}, not 3 or 4", x.rank())));
    }
    check_channels(op, &["gamma", "beta"], &x.shape[1..2])?;
    same_as_x(op)
}

fn layer_norm(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axes = match op.opt_ints("axes")? {
        Some(axes) => resolve_axes(op, &axes, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let normalized: Vec<usize> = axes.iter().map(|&axis| x.shape[axis]).collect();
    check_channels(op, &["gamma", "beta"], &normalized)?;
    same_as_x(op)
}
