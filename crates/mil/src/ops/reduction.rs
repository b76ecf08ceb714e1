//! Reductions.

use super::{Default, OpDef, Param, Work, bools, ints, number, resolve_axes, string};
use crate::{DType, Error, OpView, Opset, TensorType};

// Absent axes: all.
const REDUCE: &[Param] =
    &[number("x"), ints("axes").optional(), bools("keep_dims").default(Default::Bool(false))];
const ARG: &[Param] = &[
    number("x"),
    ints("axis").default(Default::Int(-1)),
    bools("keep_dims").default(Default::Bool(false)),
    string("output_dtype").default(Default::Str("int32")).since(Opset::Ios17),
];

pub(super) static OPS: &[OpDef] = &[
    OpDef::new("reduce_argmax", ARG, reduce_arg, Work::Elements),
    OpDef::new("reduce_argmin", ARG, reduce_arg, Work::Elements),
    OpDef::new("reduce_l2_norm", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_max", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_mean", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_min", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_prod", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_sum", REDUCE, reduce, Work::Elements),
    OpDef::new("reduce_sum_square", REDUCE, reduce, Work::Elements),
];

fn reduced(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let kept = shape.iter().enumerate().filter_map(|(axis, &extent)| match axes.contains(&axis) {
        true => keep.then_some(1),
        false => Some(extent),
    });
    kept.collect()
}

fn reduce(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axes = match op.opt_ints("axes")? {
        Some(axes) => resolve_axes(op, &axes, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if axes.iter().any(|&axis| x.shape[axis] == 0) {
        return Err(op.invalid("nothing to reduce along an axis of extent 0"));
    }
    Ok(vec![TensorType::new(x.dtype, reduced(&x.shape, &axes, op.bool("keep_dims")?))])
}

fn reduce_arg(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let x = op.ty("x")?;
    let axis = op.axis(op.int("axis")?, x.rank())?;
    if x.shape[axis] == 0 {
        return Err(op.invalid("nothing to reduce along an axis of extent 0"));
    }
    let name = op.str("output_dtype")?;
    let dtype = DType::from_name(&name).filter(|dtype| matches!(dtype, DType::I32 | DType::U16));
    let dtype = dtype.ok_or_else(|| op.invalid(format!("`output_dtype` can't be `{name}`")))?;
    Ok(vec![TensorType::new(dtype, reduced(&x.shape, &[axis], op.bool("keep_dims")?))])
}
