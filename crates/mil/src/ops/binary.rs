//! Element-wise ops of two or three inputs, with NumPy's broadcasting.

use super::{OpDef, Param, Work, any, broadcast, number};
use crate::{DType, Error, OpView, TensorType};

const XY: &[Param] = &[number("x"), number("y")];
const BOOLS: &[Param] = &[Param::new("x", &[DType::Bool]), Param::new("y", &[DType::Bool])];
const COMPARABLE: &[Param] = &[any("x"), any("y")];

pub(super) static OPS: &[OpDef] = &[
    OpDef::new("add", XY, arithmetic, Work::Elements),
    OpDef::new("equal", COMPARABLE, comparison, Work::Elements),
    OpDef::new("floor_div", XY, arithmetic, Work::Elements),
    OpDef::new("greater", XY, comparison, Work::Elements),
    OpDef::new("greater_equal", COMPARABLE, comparison, Work::Elements),
    OpDef::new("less", XY, comparison, Work::Elements),
    OpDef::new("less_equal", XY, comparison, Work::Elements),
    OpDef::new("logical_and", BOOLS, comparison, Work::Elements),
    OpDef::new("logical_or", BOOLS, comparison, Work::Elements),
    OpDef::new("logical_xor", BOOLS, comparison, Work::Elements),
    OpDef::new("maximum", XY, arithmetic, Work::Elements),
    OpDef::new("minimum", XY, arithmetic, Work::Elements),
    OpDef::new("mod", XY, arithmetic, Work::Elements),
    OpDef::new("mul", XY, arithmetic, Work::Elements),
    OpDef::new("not_equal", COMPARABLE, comparison, Work::Elements),
    OpDef::new("pow", XY, arithmetic, Work::Elements),
    OpDef::new("real_div", XY, arithmetic, Work::Elements),
    // select(cond, a, b): `a` where `cond` holds, else `b`.
    OpDef::new("select", &[Param::new("cond", &[DType::Bool]), any("a"), any("b")], select, Work::Elements),
    OpDef::new("sub", XY, arithmetic, Work::Elements),
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
