//! The naive definition of every op.

mod activation;
mod attention;
mod binary;
mod constexpr;
mod convolution;
mod einsum;
mod linear;
mod normalization;
mod operands;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

use crate::geometry::strides;
use crate::{Error, Tensor};
pub(crate) use operands::Operands;

/// The meaning of an op of the MIL table.
pub(crate) struct Definition {
    /// MIL's name.
    pub(crate) op: &'static str,
    /// Computes the results, in `f32` with sums in `f64`.
    pub(crate) eval: fn(&Operands) -> Result<Vec<Tensor>, Error>,
}

/// Every definition, by family, as in [`mixbit_mil::ops::OPS`].
static DEFINITIONS: &[&[Definition]] = &[
    activation::DEFINITIONS,
    binary::DEFINITIONS,
    constexpr::DEFINITIONS,
    convolution::DEFINITIONS,
    linear::DEFINITIONS,
    normalization::DEFINITIONS,
    reduction::DEFINITIONS,
    scatter_gather::DEFINITIONS,
    shape::DEFINITIONS,
    unary::DEFINITIONS,
];

/// The definition of an op.
pub(crate) fn definition(op: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().flat_map(|family| family.iter()).find(|definition| definition.op == op)
}

/// Extents and strides for [`offsets`](crate::geometry::offsets): along `axes`, and along the others.
fn walks(shape: &[usize], axes: &[usize]) -> [(Vec<usize>, Vec<isize>); 2] {
    let all = strides(shape);
    [true, false].map(|wanted| {
        let picked = (0..shape.len()).filter(|axis| axes.contains(axis) == wanted);
        picked.map(|axis| (shape[axis], all[axis])).unzip()
    })
}

/// The greater of two numbers; NaN if either is.
fn maximum(x: f64, y: f64) -> f64 {
    if x.is_nan() || x > y { x } else { y }
}

/// The lesser of two numbers; NaN if either is.
fn minimum(x: f64, y: f64) -> f64 {
    if x.is_nan() || x < y { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_of_the_table_is_defined() {
        for def in mixbit_mil::ops::OPS.iter().flat_map(|family| family.iter()) {
            assert!(definition(def.name).is_some(), "`{}` has no definition", def.name);
        }
        for defined in DEFINITIONS.iter().flat_map(|family| family.iter()) {
            assert!(mixbit_mil::ops::lookup(defined.op).is_some(), "`{}` is not in the table", defined.op);
        }
    }
}
