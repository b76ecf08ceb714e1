//! The op table: one declaration per op.
//!
//! A declaration has everything that the rest of the code needs to know about an op's form: its inputs in
//! order, their defaults and element types, its opset, its work, and the inference of its results' types. The
//! builder, the verifier, MIL text and the package reader and writer are generic over it. Semantics are those
//! of the MIL reference (coremltools, `converters/mil/mil/ops/defs`). The engine's reference executor is
//! their executable form.

mod activation;
mod binary;
mod constexpr;
mod convolution;
mod linear;
mod normalization;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

pub use convolution::ConvGeometry;
pub use linear::Equation;
pub use shape::{AxisSlice, permutation};

pub use crate::program::{Default, OpDef, Param, Work};
use crate::{DType, Error, OpView, TensorType};

/// Every op that mixbit knows, by family.
pub static OPS: &[&[OpDef]] = &[
    activation::OPS,
    binary::OPS,
    constexpr::OPS,
    convolution::OPS,
    linear::OPS,
    normalization::OPS,
    reduction::OPS,
    scatter_gather::OPS,
    shape::OPS,
    unary::OPS,
];

/// The declaration of the op type called `name`.
pub fn lookup(name: &str) -> Option<&'static OpDef> {
    OPS.iter().flat_map(|family| family.iter()).find(|def| def.name == name)
}

const FLOATS: &[DType] = &[DType::F16, DType::F32];
const NUMBERS: &[DType] = &[DType::F16, DType::F32, DType::I32];
const ANY: &[DType] = &[
    DType::F16,
    DType::F32,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::Bool,
];
const INDICES: &[DType] = &[DType::I32, DType::I16, DType::U16, DType::I8, DType::U8];

/// A float tensor of the op's element type.
const fn float(name: &'static str) -> Param {
    Param::new(name, FLOATS).same_type()
}

/// A number tensor of the op's element type.
const fn number(name: &'static str) -> Param {
    Param::new(name, NUMBERS).same_type()
}

/// A tensor of any element type, shared with the op's others.
const fn any(name: &'static str) -> Param {
    Param::new(name, ANY).same_type()
}

/// Constant integers.
const fn ints(name: &'static str) -> Param {
    Param::new(name, &[DType::I32]).constant()
}

/// Constant truth values.
const fn bools(name: &'static str) -> Param {
    Param::new(name, &[DType::Bool]).constant()
}

/// A constant string.
const fn string(name: &'static str) -> Param {
    Param::new(name, &[DType::Str]).constant()
}

/// One result of the same type as `x`.
fn same_as_x(op: &OpView) -> Result<Vec<TensorType>, Error> {
    Ok(vec![op.ty("x")?.clone()])
}

/// The shape of an element-wise combination, by NumPy's broadcasting rules.
pub(crate) fn broadcast(op: &OpView, a: &[usize], b: &[usize]) -> Result<Vec<usize>, Error> {
    let rank = a.len().max(b.len());
    let extent =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|axis| match (extent(a, axis), extent(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(op.invalid(format!("shapes {a:?} and {b:?} don't broadcast"))),
        })
        .collect()
}

/// Constant axes, resolved, checked to be distinct, and sorted.
fn resolve_axes(op: &OpView, axes: &[i64], rank: usize) -> Result<Vec<usize>, Error> {
    let mut resolved = axes.iter().map(|&axis| op.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    resolved.sort_unstable();
    if resolved.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(op.invalid(format!("axes {axes:?} name an axis twice")));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = OPS.iter().flat_map(|family| family.iter()).map(|def| def.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for def in OPS.iter().flat_map(|family| family.iter()) {
            for param in def.params {
                assert_eq!(
                    def.params.iter().filter(|other| other.name == param.name).count(),
                    1,
                    "{}",
                    def.name
                );
            }
        }
    }

    /// Every declaration has its work. The products are listed here; those of a weight are layers.
    #[test]
    fn every_op_says_its_work() {
        let all = || OPS.iter().flat_map(|family| family.iter());
        let products = all().filter(|def| matches!(def.work, Work::Products(_))).map(|def| def.name);
        assert_eq!(
            products.collect::<Vec<_>>(),
            ["conv", "einsum", "linear", "matmul", "scaled_dot_product_attention"]
        );
        let weights = all().filter_map(|def| Some((def, def.weight?)));
        for (def, weight) in weights.clone() {
            assert!(matches!(def.work, Work::Products(_)), "{}", def.name);
            assert!(def.param_index(weight).is_some(), "{} has no input `{weight}`", def.name);
        }
        assert_eq!(weights.map(|(def, _)| def.name).collect::<Vec<_>>(), ["conv", "linear"]);
    }
}
