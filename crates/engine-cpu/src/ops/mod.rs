//! The kernel calls that every op becomes.

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

use mixbit_engine::Error;
use mixbit_kernels::{AxisShape, UnaryOp};
use mixbit_mil::{OpView, ValueId};

pub(crate) use activation::activation;
pub(crate) use convolution::{lower_conv, lower_gated_conv};
pub(crate) use linear::{lower_gated_linear, lower_linear};

use crate::plan::{Io, PlanBuilder};

/// The way in which the CPU runs an op of the MIL table.
pub(crate) struct Lowering {
    /// MIL's name.
    pub(crate) op: &'static str,
    /// Adds the op's steps to a plan.
    pub(crate) lower: fn(&OpView, &mut PlanBuilder) -> Result<(), Error>,
}

/// Every lowering, by family, as in [`mixbit_mil::ops::OPS`].
static LOWERINGS: &[&[Lowering]] = &[
    activation::LOWERINGS,
    binary::LOWERINGS,
    constexpr::LOWERINGS,
    convolution::LOWERINGS,
    linear::LOWERINGS,
    normalization::LOWERINGS,
    reduction::LOWERINGS,
    scatter_gather::LOWERINGS,
    shape::LOWERINGS,
    unary::LOWERINGS,
];

/// The lowering of an op.
pub(crate) fn lowering(op: &str) -> Option<&'static Lowering> {
    LOWERINGS.iter().flat_map(|family| family.iter()).find(|lowering| lowering.op == op)
}

/// An op that runs by its naive definition.
const fn by_definition(op: &'static str) -> Lowering {
    Lowering { op, lower: |op, plan| plan.by_definition(op) }
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

/// Sorted axes that follow one another, as the kernels see them; `None` if they don't, or there are none.
pub(crate) fn adjacent(shape: &[usize], axes: &[usize]) -> Option<AxisShape> {
    let (&first, &last) = (axes.first()?, axes.last()?);
    let is_run = axes.windows(2).all(|pair| pair[1] == pair[0] + 1);
    is_run.then(|| AxisShape {
        outer: shape[..first].iter().product(),
        axis: shape[first..=last].iter().product(),
        inner: shape[last + 1..].iter().product(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_of_the_table_is_lowered() {
        for def in mixbit_mil::ops::OPS.iter().flat_map(|family| family.iter()) {
            assert!(lowering(def.name).is_some(), "`{}` has no lowering", def.name);
        }
        for lowered in LOWERINGS.iter().flat_map(|family| family.iter()) {
            assert!(mixbit_mil::ops::lookup(lowered.op).is_some(), "`{}` is not in the table", lowered.op);
        }
    }
}
