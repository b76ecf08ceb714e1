//! Compressed constants, by their definitions: a plan is made after [`mixbit_mil::constexpr::decoded`], so
//! none is left in it.

use super::{Lowering, by_definition};

pub(super) static LOWERINGS: &[Lowering] = &[
    by_definition("constexpr_affine_dequantize"),
    by_definition("constexpr_blockwise_shift_scale"),
    by_definition("constexpr_cast"),
    by_definition("constexpr_lut_to_dense"),
    by_definition("constexpr_lut_to_sparse"),
    by_definition("constexpr_sparse_blockwise_shift_scale"),
    by_definition("constexpr_sparse_to_dense"),
];
