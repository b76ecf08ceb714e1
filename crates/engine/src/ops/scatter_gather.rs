//! Gathering by index.

use super::{Definition, Operands};
use crate::geometry::{around, resolve_index};
use crate::{Data, Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] =
    &[Definition { op: "gather", eval: gather }, Definition { op: "gather_nd", eval: gather_nd }];

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
            starts.push((row * extent + resolve_index(&op.view, index, extent)?) * inner);
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
            at = at * x.shape()[axis] + resolve_index(&op.view, index, x.shape()[axis])?;
        }
        starts.push(at * inner);
    }
    copy(op, &x, &starts, inner)
}
