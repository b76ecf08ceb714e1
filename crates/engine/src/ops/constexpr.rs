//! Compressed constants. Backends decode them by `mixbit_mil::constexpr::decoded` before they look up
//! definitions; these are the same definition for one op by itself.

use mixbit_mil::Constant;

use super::{Definition, Operands};
use crate::{Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "constexpr_affine_dequantize", eval: decode },
    Definition { op: "constexpr_blockwise_shift_scale", eval: decode },
    Definition { op: "constexpr_cast", eval: decode },
    Definition { op: "constexpr_lut_to_dense", eval: decode },
    Definition { op: "constexpr_lut_to_sparse", eval: decode },
    Definition { op: "constexpr_sparse_blockwise_shift_scale", eval: decode },
    Definition { op: "constexpr_sparse_to_dense", eval: decode },
];

fn decode(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let weights = mixbit_mil::constexpr::decoded_op(&op.view, &|_| None)?;
    weights.into_iter().map(|weight| Tensor::of_constant(&Constant::Weight(weight))).collect()
}
