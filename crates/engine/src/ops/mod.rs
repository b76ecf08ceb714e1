//! What every op does: its naive definition and how the CPU backend runs it.

mod activation;
mod attention;
mod binary;
mod constexpr;
mod convolution;
mod einsum;
mod linear;
mod normalization;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

use mixbit_kernels::{AxisShape, UnaryOp};
use mixbit_mil::{OpView, ValueId};

pub(crate) use activation::activation;
pub(crate) use convolution::{lower_conv, lower_gated_conv};
pub(crate) use linear::{lower_gated_linear, lower_linear, rows};

use crate::cpu::{Io, Lowering};
use crate::reference::Operands;
use crate::{Error, Tensor};

/// What an op of the MIL table does.
pub(crate) struct Binding {
    /// MIL's name.
    pub(crate) op: &'static str,
    /// The naive definition, in f32 with sums in f64.
    pub(crate) reference: fn(&Operands) -> Result<Vec<Tensor>, Error>,
    /// Adds the steps that run it to a plan.
    pub(crate) lower: fn(&OpView, &mut Lowering) -> Result<(), Error>,
}

/// Every op that the engine runs, by family, as in [`mixbit_mil::ops::OPS`].
static BINDINGS: &[&[Binding]] = &[
    activation::BINDINGS,
    binary::BINDINGS,
    constexpr::BINDINGS,
    convolution::BINDINGS,
    linear::BINDINGS,
    normalization::BINDINGS,
    reduction::BINDINGS,
    scatter_gather::BINDINGS,
    shape::BINDINGS,
    unary::BINDINGS,
];

/// What the op of that name does.
pub(crate) fn binding(op: &str) -> Option<&'static Binding> {
    BINDINGS.iter().flat_map(|family| family.iter()).find(|binding| binding.op == op)
}

/// How the step of a linear layer or a convolution ends: what is done to a tile of the result before it is stored.
pub(crate) struct Ending {
    /// The step's label.
    pub(crate) label: String,
    /// What the step makes.
    pub(crate) output: ValueId,
    /// Added, of a convolution: a value for each channel, of every image or of each.
    pub(crate) shift: Option<ValueId>,
    /// Added: of the result's shape.
    pub(crate) residual: Option<ValueId>,
    /// Applied to the sum.
    pub(crate) activation: Option<UnaryOp>,
}

impl Ending {
    /// Nothing follows.
    pub(crate) fn of(op: &OpView) -> Self {
        let output = op.op().outputs[0];
        Ending { label: op.label(), output, shift: None, residual: None, activation: None }
    }

    /// What a step reads that begins with `x`.
    fn reads(&self, x: ValueId) -> Vec<ValueId> {
        [Some(x), self.shift, self.residual].into_iter().flatten().collect()
    }

    /// The shift and the residual among what such a step reads.
    fn operands<'a>(&self, io: &Io<'a>) -> (Option<&'a [f32]>, Option<&'a [f32]>) {
        let mut rest = io.floats[1..].iter().copied();
        let shift = self.shift.and_then(|_| rest.next());
        (shift, self.residual.and_then(|_| rest.next()))
    }
}

/// A layer whose outputs are the values and then the gates of a gated unit: `values * activation(gates)`.
pub(crate) struct Gated {
    /// The step's label.
    pub(crate) label: String,
    /// The product.
    pub(crate) output: ValueId,
    pub(crate) activation: UnaryOp,
}

/// Row-major distances between elements along each axis.
pub(crate) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}

/// Distances that read a tensor of `shape` as if broadcast to `out`: 0 along repeated axes.
pub(crate) fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let missing = out.len() - shape.len();
    (0..out.len())
        .map(|axis| if axis < missing || shape[axis - missing] == 1 { 0 } else { own[axis - missing] })
        .collect()
}

/// The offsets that a walk over `shape` in row-major order visits.
pub(crate) fn offsets(shape: &[usize], strides: &[isize], start: usize) -> Vec<usize> {
    let count = shape.iter().product();
    let mut out = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    let mut at = start as isize;
    for _ in 0..count {
        out.push(at as usize);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis] as isize;
            index[axis] = 0;
        }
    }
    out
}

/// A shape seen from one axis: the product of the extents before it, its own, and the product of those after.
pub(crate) fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// The `axes` of an op, all if it does not say, sorted.
pub(crate) fn axes(op: &OpView) -> Result<Vec<usize>, Error> {
    let rank = op.ty("x")?.rank();
    let Some(axes) = op.opt_ints("axes")? else { return Ok((0..rank).collect()) };
    let mut axes = axes.iter().map(|&axis| op.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    axes.sort_unstable();
    Ok(axes)
}

/// Extents and strides for [`offsets`]: along `axes`, and along the others.
pub(crate) fn walks(shape: &[usize], axes: &[usize]) -> [(Vec<usize>, Vec<isize>); 2] {
    let all = strides(shape);
    [true, false].map(|wanted| {
        let picked = (0..shape.len()).filter(|axis| axes.contains(axis) == wanted);
        picked.map(|axis| (shape[axis], all[axis])).unzip()
    })
}

/// Sorted axes that follow one another, as the kernels see them; `None` if they don't, or there are none.
pub(crate) fn neighbours(shape: &[usize], axes: &[usize]) -> Option<AxisShape> {
    let (&first, &last) = (axes.first()?, axes.last()?);
    let is_run = axes.windows(2).all(|pair| pair[1] == pair[0] + 1);
    is_run.then(|| AxisShape {
        outer: shape[..first].iter().product(),
        axis: shape[first..=last].iter().product(),
        inner: shape[last + 1..].iter().product(),
    })
}

/// The greater of two numbers; NaN if either is.
pub(crate) fn maximum(x: f64, y: f64) -> f64 {
    if x.is_nan() || x > y { x } else { y }
}

/// The lesser of two numbers; NaN if either is.
pub(crate) fn minimum(x: f64, y: f64) -> f64 {
    if x.is_nan() || x < y { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_of_the_table_is_bound() {
        for def in mixbit_mil::ops::OPS.iter().flat_map(|family| family.iter()) {
            assert!(binding(def.name).is_some(), "`{}` has no binding", def.name);
        }
        for bound in BINDINGS.iter().flat_map(|family| family.iter()) {
            assert!(mixbit_mil::ops::lookup(bound.op).is_some(), "`{}` is not in the table", bound.op);
        }
    }

    #[test]
    fn walks_visit_in_row_major_order() {
        assert_eq!(offsets(&[2, 3], &strides(&[2, 3]), 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(offsets(&[3, 2], &[1, 3], 0), [0, 3, 1, 4, 2, 5]);
        assert_eq!(offsets(&[2, 2], &broadcast_strides(&[2], &[2, 2]), 0), [0, 1, 0, 1]);
        assert_eq!(offsets(&[], &[], 5), [5]);
        assert_eq!(offsets(&[0, 2], &[2, 1], 0), Vec::<usize>::new());
    }
}
