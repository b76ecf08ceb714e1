//! Matrix products: `out[M, N] = left[M, K] * right[K, N]`, blocked, packed and run on all threads.
//!
//! The scheme is Goto and van de Geijn's ("Anatomy of high-performance matrix multiplication", 2008). Both
//! sides are packed block by block into panels that stay in cache ([`pack`]; [`blocking`] has the sizes), and
//! a micro-kernel keeps one `mr` x `nr` tile of the output in registers ([`product`]). The epilogue is
//! applied to a tile on its way to memory ([`epilogue`]).
//!
//! An output element is summed over the depth in the same order whatever tile or thread computes it.

mod blocking;
mod dot;
pub(crate) mod epilogue;
pub(crate) mod format;
pub(crate) mod operand;
pub(crate) mod pack;
pub(crate) mod prefetch;
pub(crate) mod product;
pub(crate) mod source;
pub(crate) mod tile;

use dot::{DOT_ROWS, dot_rows};
use epilogue::{Bias, Epilogue, TileEpilogue};
use format::{Format, PackedSide};
use operand::{Operand, Side};
use product::run;
use tile::Target;

use crate::matrix::{Mat, MatMut, WeightSlice};
use crate::precision::Precision;

/// True if [`gemm`] packs a right side with contiguous columns, for a left side of `rows` rows.
pub fn packs_columns(rows: usize) -> bool {
    rows > DOT_ROWS
}

/// Multiplies `left[M, K]` by `right[K, N]` into `out[M, N]`, whose column stride must be 1.
///
/// If the epilogue has a [gate](Epilogue::gate), the right side is `[K, 2 N]`: values, then gates.
///
/// Operands are converted to `precision` while they are packed: all of the side with fewer lanes, or 16 MB of
/// it at a time, and a few panels of the other one in each thread. A product of up to four rows by a right
/// side with contiguous columns is computed in `f32` in any precision, because reading the columns takes as
/// long. Packing scratch stays with the thread between calls.
///
/// # Panics
///
/// When sizes do not agree, a bias has the wrong length, `out`'s column stride is not 1, or a packed operand
/// was packed for the other side, another precision, or [without gates](crate::PackedMatrix::gated).
pub fn gemm(
    out: MatMut<'_>,
    left: Operand<'_>,
    right: Operand<'_>,
    precision: Precision,
    epilogue: &Epilogue<'_>,
) {
    let (rows, left_depth) = left.sizes(PackedSide::Left);
    let (cols, depth) = right.sizes(PackedSide::Right);
    assert_eq!(left_depth, depth, "depths of the two sides differ");
    let gated = epilogue.gate.map(|_| PackedSide::Right);
    let product_cols = if gated.is_some() { 2 * out.cols } else { out.cols };
    assert_eq!((out.rows, product_cols), (rows, cols), "output size differs from the product's");
    let epilogue = TileEpilogue::new(epilogue, rows, out.cols);
    let target = Target::new(out);
    if !packs_columns(rows)
        && gated.is_none()
        && let Operand::Matrix(Mat { data: WeightSlice::F32(data), row_stride, col_stride: 1, .. }) = left
        && let Operand::Matrix(right @ Mat { row_stride: 1, .. }) = right
    {
        let left = Mat { data, rows, cols: depth, row_stride, col_stride: 1 };
        return dot_rows(&target, left, right.data.elements(), right.col_stride, &epilogue);
    }
    let (left, right) = (left.side(PackedSide::Left), right.side(PackedSide::Right));
    run(&target, left, &[right], depth, Format::of(precision), &epilogue, gated);
}

/// Multiplies `left[M, K]` by a batch of `rights[K, N]` of one size into a batch of matrices `out[M, N]`, one
/// after the other. Packs the left side once for all.
///
/// The `bias` has `N` values for each matrix of the batch. The right sides may be one operand that is
/// [packed as a batch](crate::PackedMatrix::batch).
///
/// # Panics
///
/// When sizes do not agree, the bias or `out` has the wrong length, or a packed operand was packed for the
/// other side or another precision.
pub fn gemm_batched(
    out: &mut [f32],
    left: Operand<'_>,
    rights: &[Operand<'_>],
    precision: Precision,
    bias: Option<&[f32]>,
) {
    let batch = rights.iter().map(Operand::batch).sum::<usize>();
    let Some(first) = rights.first() else { return assert!(out.is_empty(), "output length") };
    let (rows, depth) = left.sizes(PackedSide::Left);
    let (cols, _) = first.sizes(PackedSide::Right);
    assert!(
        rights.iter().all(|right| right.sizes(PackedSide::Right) == (cols, depth)),
        "sizes of the sides differ"
    );
    assert_eq!(out.len(), batch * rows * cols, "output length differs from the products'");
    assert!(bias.is_none_or(|bias| bias.len() == batch * cols), "bias length differs from the columns");
    if out.is_empty() {
        return;
    }
    let bias = bias.map_or(Bias::None, Bias::PerColumn);
    let epilogue = Epilogue { bias, ..Epilogue::default() };
    let epilogue = TileEpilogue { epilogue, bias_stride: cols, ..TileEpilogue::default() };
    let target = Target::batched(out, batch, rows, cols, rows * cols);
    let left = left.side(PackedSide::Left);
    let rights: Vec<Side<'_>> = rights.iter().map(|right| right.side(PackedSide::Right)).collect();
    run(&target, left, &rights, depth, Format::of(precision), &epilogue, None);
}

#[cfg(test)]
mod tests;
