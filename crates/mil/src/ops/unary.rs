//! Element-wise ops of one input.

use super::{ANY, Default, FLOATS, OpDef, Param, Work, any, float, number, same_as_x, string};
use crate::{DType, Error, OpView, TensorType};

const X: &[Param] = &[float("x")];
const NUMBER: &[Param] = &[number("x")];

pub(super) static OPS: &[OpDef] = &[
    OpDef::new("abs", NUMBER, same_as_x, Work::Elements),
    OpDef::new("cast", &[Param::new("x", ANY), string("dtype")], cast, Work::Moves),
    OpDef::new("ceil", X, same_as_x, Work::Elements),
    OpDef::new(
        "clip",
        &[float("x"), float("alpha").constant(), float("beta").constant()],
        same_as_x,
        Work::Elements,
    ),
    OpDef::new("cos", X, same_as_x, Work::Elements),
    OpDef::new("erf", X, same_as_x, Work::Elements),
    OpDef::new("exp", X, same_as_x, Work::Elements),
    OpDef::new("exp2", NUMBER, same_as_x, Work::Elements),
    OpDef::new("floor", X, same_as_x, Work::Elements),
    OpDef::new("identity", &[any("x")], same_as_x, Work::Moves),
    OpDef::new("inverse", &[float("x"), epsilon(1e-4)], same_as_x, Work::Elements),
    OpDef::new("log", &[float("x"), epsilon(1e-45)], same_as_x, Work::Elements),
    OpDef::new("logical_not", &[Param::new("x", &[DType::Bool])], same_as_x, Work::Elements),
    OpDef::new("round", X, same_as_x, Work::Elements),
    OpDef::new("rsqrt", &[float("x"), epsilon(1e-12)], same_as_x, Work::Elements),
    OpDef::new("sign", NUMBER, same_as_x, Work::Elements),
    OpDef::new("sin", X, same_as_x, Work::Elements),
    OpDef::new("sqrt", X, same_as_x, Work::Elements),
    OpDef::new("square", NUMBER, same_as_x, Work::Elements),
    OpDef::new("tanh", X, same_as_x, Work::Elements),
];

const fn epsilon(value: f32) -> Param {
    Param::new("epsilon", FLOATS).same_type().constant().default(Default::Float(value))
}

fn cast(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let name = op.str("dtype")?;
    let dtype = DType::from_name(&name).filter(|dtype| ANY.contains(dtype));
    let dtype = dtype.ok_or_else(|| op.invalid(format!("can't cast to `{name}`")))?;
    Ok(vec![op.ty("x")?.with_dtype(dtype)])
}
