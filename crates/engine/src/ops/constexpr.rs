//! Compressed constants. Both backends decode them by `mixbit_mil::constexpr::decoded` before they bind ops; these bindings
//! are the same definition for one op by itself.

use mixbit_mil::Constant;

use super::Binding;
use crate::reference::Operands;
use crate::{Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    decoded("constexpr_affine_dequantize"),
    decoded("constexpr_blockwise_shift_scale"),
    decoded("constexpr_cast"),
    decoded("constexpr_lut_to_dense"),
    decoded("constexpr_sparse_to_dense"),
];

const fn decoded(op: &'static str) -> Binding {
    Binding { op, reference: decode, lower: |op, plan| plan.by_reference(op, decode) }
}

fn decode(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let weight = mixbit_mil::constexpr::decoded_op(&op.view, &|_| None)?;
    Ok(vec![Tensor::of_constant(&Constant::Weight(weight))?])
}
