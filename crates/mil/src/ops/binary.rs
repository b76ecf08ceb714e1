//! Element-wise ops of two or three inputs, with NumPy's broadcasting.

use super::{OpDef, Param, any, broadcast, number};
use crate::{DType, Error, OpView, TensorType};

const XY: &[Param] = &[number("x"), number("y")];
const BOOLS: &[Param] = &[Param::new("x", &[DType::Bool]), Param::new("y", &[DType::Bool])];
const COMPARABLE: &[Param] = &[any("x"), any("y")];

pub(super) static OPS: &[OpDef] = &[
    OpDef::new("add", XY, arithmetic),
    OpDef::new("equal", COMPARABLE, comparison),
    OpDef::new("floor_div", XY, arithmetic),
    OpDef::new("greater", XY, comparison),
    OpDef::new("greater_equal", COMPARABLE, comparison),
    OpDef::new("less", XY, comparison),
    OpDef::new("less_equal", XY, comparison),
    OpDef::new("logical_and", BOOLS, comparison),
    OpDef::new("logical_or", BOOLS, comparison),
    OpDef::new("logical_xor", BOOLS, comparison),
    OpDef::new("maximum", XY, arithmetic),
    OpDef::new("minimum", XY, arithmetic),
    OpDef::new("mod", XY, arithmetic),
    OpDef::new("mul", XY, arithmetic),
    OpDef::new("not_equal", COMPARABLE, comparison),
    OpDef::new("pow", XY, arithmetic),
    OpDef::new("real_div", XY, arithmetic),
    // select(cond, a, b): `a` where `cond` holds, else `b`.
    OpDef::new("select", &[Param::new("cond", &[DType::Bool]), any("a"), any("b")], select),
    OpDef::new("sub", XY, arithmetic),
];

fn arithmetic(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, y) = (op.ty("x")?, op.ty("y")?);
    Ok(vec![TensorType::new(x.dtype, broadcast(op, &x.shape, &y.shape)?)])
}

fn comparison(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, y) = (op.ty("x")?, op.ty("y")?);
    Ok(vec![TensorType::new(DType::Bool, broadcast(op, &x.shape, &y.shape)?)])
}

fn select(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (cond, a, b) = (op.ty("cond")?, op.ty("a")?, op.ty("b")?);
    let shape = broadcast(op, &broadcast(op, &a.shape, &b.shape)?, &cond.shape)?;
    Ok(vec![TensorType::new(a.dtype, shape)])
}
