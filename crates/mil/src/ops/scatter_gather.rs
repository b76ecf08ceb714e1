//! Gathering by index.

use super::{ANY, Default, INDICES, OpDef, Param, Work, any, bools, ints};
use crate::{Error, OpView, Opset, TensorType};

const fn indices() -> Param {
    Param::new("indices", INDICES)
}

const fn batch_dims() -> Param {
    ints("batch_dims").default(Default::Int(0)).since(Opset::Ios16)
}

const fn validate() -> Param {
    bools("validate_indices").default(Default::Bool(false)).since(Opset::Ios17)
}

// Negative indices count from the end.
pub(super) static OPS: &[OpDef] = &[
    OpDef::new(
        "gather",
        &[any("x"), indices(), ints("axis").default(Default::Int(0)), batch_dims(), validate()],
        gather,
        Work::Moves,
    ),
    OpDef::new(
        "gather_nd",
        &[Param::new("x", ANY), indices(), batch_dims(), validate()],
        gather_nd,
        Work::Moves,
    ),
];

fn only_batch_zero(op: &OpView) -> Result<(), Error> {
    match op.int("batch_dims")? {
        0 => Ok(()),
        other => Err(op.invalid(format!("batch_dims {other} is not supported"))),
    }
}

fn gather(op: &OpView) -> Result<Vec<TensorType>, Error> {
    only_batch_zero(op)?;
    let (x, indices) = (op.ty("x")?, op.ty("indices")?);
    let axis = op.axis(op.int("axis")?, x.rank())?;
    if x.shape[axis] == 0 && indices.count() > 0 {
        return Err(op.invalid("nothing to gather along an axis of extent 0"));
    }
    let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn gather_nd(op: &OpView) -> Result<Vec<TensorType>, Error> {
    only_batch_zero(op)?;
    let (x, indices) = (op.ty("x")?, op.ty("indices")?);
    let depth = indices.shape.last().copied().filter(|&depth| (1..=x.rank()).contains(&depth));
    let depth = depth.ok_or_else(|| op.invalid(format!("indices {indices} don't fit x {x}")))?;
    if x.shape[..depth].contains(&0) && indices.count() > 0 {
        return Err(op.invalid("nothing to gather along an axis of extent 0"));
    }
    let shape = [&indices.shape[..indices.rank() - 1], &x.shape[depth..]].concat();
    Ok(vec![TensorType::new(x.dtype, shape)])
}
