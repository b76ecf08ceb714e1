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
use mixbit_kernels::AxisShape;
use mixbit_mil::OpView;

pub(crate) use activation::kernel;
pub(crate) use convolution::{lower_conv, lower_gated_conv};
pub(crate) use linear::{lower_gated_linear, lower_linear};

use crate::plan::PlanBuilder;

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

/// Sorted adjacent axes as one; `None` if they are not adjacent, or there are none.
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
