//! Gathering by index.

use mixbit_mil::OpView;

use super::{Binding, around};
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Data, Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "gather", reference: gather, lower: lower_gather },
    Binding { op: "gather_nd", reference: gather_nd, lower: |op, plan| plan.by_reference(op, gather_nd) },
];

/// An index that may count from the end.
fn resolve(op: &OpView, index: i32, extent: usize) -> Result<usize, Error> {
    let wrapped = if index < 0 { i64::from(index) + extent as i64 } else { index.into() };
    usize::try_from(wrapped).ok().filter(|&index| index < extent).ok_or_else(|| Error::Index {
        op: op.label(),
        index: index.into(),
        extent,
    })
}

fn indices(op: &Operands) -> Result<Tensor, Error> {
    let indices = op.tensor("indices")?;
    match indices.data() {
        Data::Int(_) => Ok(indices),
        Data::Float(_) => Err(op.view.invalid("`indices` must be integers").into()),
    }
}

/// Copies stretches of `inner` elements from the given starts.
fn copy(op: &Operands, x: &Tensor, starts: &[usize], inner: usize) -> Result<Vec<Tensor>, Error> {
    let data = match x.data() {
        Data::Float(values) => {
            Data::Float(starts.iter().flat_map(|&at| values[at..at + inner].iter().copied()).collect())
        }
        Data::Int(values) => {
            Data::Int(starts.iter().flat_map(|&at| values[at..at + inner].iter().copied()).collect())
        }
    };
    op.result(data)
}

fn gather(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, indices) = (op.tensor("x")?, indices(op)?);
    let axis = op.view.axis(op.view.int("axis")?, x.shape().len())?;
    let [outer, extent, inner] = around(x.shape(), axis);
    let mut starts = Vec::new();
    for row in 0..outer {
        for &index in indices.as_i32().unwrap_or_default() {
            starts.push((row * extent + resolve(&op.view, index, extent)?) * inner);
        }
    }
    copy(op, &x, &starts, inner)
}

fn gather_nd(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, indices) = (op.tensor("x")?, indices(op)?);
    let depth = indices.shape().last().copied().unwrap_or(1).max(1);
    let inner: usize = x.shape()[depth..].iter().product();
    let mut starts = Vec::new();
    for index in indices.as_i32().unwrap_or_default().chunks_exact(depth) {
        let mut at = 0;
        for (axis, &index) in index.iter().enumerate() {
            at = at * x.shape()[axis] + resolve(&op.view, index, x.shape()[axis])?;
        }
        starts.push(at * inner);
    }
    copy(op, &x, &starts, inner)
}

/// Rows of a constant table, which stays as stored; other forms take the naive way.
fn lower_gather(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let x = op.ty("x")?;
    let [outer, extent, width] = around(&x.shape, op.axis(op.int("axis")?, x.rank())?);
    let x = op.value("x")?;
    let Some(table) = (outer == 1).then(|| plan.table(x)).flatten() else {
        return plan.by_reference(op, gather);
    };
    let (function, node) = (plan.shared(), op.op().clone());
    plan.step(op.label(), &[op.value("indices")?], &op.op().outputs, move |io| {
        let view = function.view(&node);
        let rows = io.ints[0].iter().map(|&index| resolve(&view, index, extent));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        mixbit_kernels::gather_weight_rows(table.slice(&mut None)?, width, &rows, io.out[0]);
        Ok(())
    })
}
