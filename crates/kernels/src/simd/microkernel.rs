//! The micro-kernel: one `MR` x `nr` tile of a product, summed in registers.

use std::ops::Range;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::isa;

/// Tile rows where there are 32 vector registers.
pub(crate) const WIDE_MR: usize = 12;
/// The alternative to [`WIDE_MR`] for products whose rows fit it better, such as two prompts of 77 tokens.
pub(crate) const LOWER_MR: usize = 11;
/// Tile rows where there are 16 vector registers.
pub(crate) const NARROW_MR: usize = 6;
/// Vectors in a tile row.
pub(crate) const TILE_VECTORS: usize = 2;

/// True if this instruction set has the registers for [`WIDE_MR`] rows. Constant once compiled.
#[inline(always)]
pub(crate) fn is_wide<I: Isa>(isa: I) -> bool {
    isa.f32().len() == 16
}

/// The micro-kernel's tile: rows and columns of the output in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
}

/// The tile shape of this CPU's instruction set.
pub(crate) fn tile_shape() -> TileShape {
    struct Shape;
    impl SimdOp for Shape {
        type Output = TileShape;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> TileShape {
            let mr = if is_wide(isa) { WIDE_MR } else { NARROW_MR };
            TileShape { mr, nr: TILE_VECTORS * isa.f32().len() }
        }
    }
    isa::dispatch(Shape)
}

/// The tile height that wastes least time on missing rows and on tile ends, each end worth half a row.
/// `heights` are the candidates where there are 32 registers; elsewhere the height is [`NARROW_MR`].
pub(crate) fn best_height(rows: usize, heights: &[usize]) -> usize {
    let mr = tile_shape().mr;
    if mr != WIDE_MR {
        return mr;
    }
    let cost = |height: usize| rows.div_ceil(height) * (2 * height + 1);
    heights.iter().copied().min_by_key(|height| cost(*height)).unwrap_or(mr)
}

/// A tile of sums in registers.
pub(crate) type Tile<I, const MR: usize> = [[<I as Isa>::F32; TILE_VECTORS]; MR];

/// Software prefetch, interleaved with a micro-kernel in portions: issued all at once, it would stall the
/// core.
pub(crate) trait Prefetch: Copy {
    /// The number of portions.
    const PORTIONS: usize;

    /// Prefetches one portion.
    fn issue(self, portion: usize);

    /// The range of a panel's words that is multiplied after the given portion.
    #[inline(always)]
    fn words(portion: usize, words: usize) -> Range<usize> {
        portion * words / Self::PORTIONS..(portion + 1) * words / Self::PORTIONS
    }
}

/// No prefetch.
impl Prefetch for () {
    const PORTIONS: usize = 1;

    #[inline(always)]
    fn issue(self, _portion: usize) {}
}

/// Multiplies panels of one format.
pub(crate) trait Microkernel<I: Isa> {
    /// The product of a left panel, `MR` lanes wide, and a right panel over `words` words of each lane, with
    /// `prefetch` interleaved.
    fn multiply<const MR: usize, P: Prefetch>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<I, MR>;
}

/// A computation that multiplies panels, generic over their format.
pub(crate) trait PanelOp {
    type Output;

    /// Runs with the micro-kernel `K`.
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) -> Self::Output;
}

/// The micro-kernel of words that are `f32`.
pub(crate) struct F32Kernel;

impl<I: Isa> Microkernel<I> for F32Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        assert!(left.len() >= words * MR && right.len() >= words * TILE_VECTORS * len);
        let mut sums = [[ops.zero(); TILE_VECTORS]; MR];
        let (mut left, mut right) = (left.as_ptr().cast::<f32>(), right.as_ptr().cast::<f32>());
        for portion in 0..P::PORTIONS {
            prefetch.issue(portion);
            for _ in P::words(portion, words) {
                let mut columns = [ops.zero(); TILE_VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    // SAFETY: `right` has `words` rows of `TILE_VECTORS * len` words, checked above.
                    *column = unsafe { ops.load_ptr(right.add(vector * len)) };
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `left` has `words` rows of `MR` words, checked above.
                    let value = ops.splat(unsafe { *left.add(row) });
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = ops.mul_add(value, column, *sum);
                    }
                }
                // SAFETY: at most one past the end of the checked extent, after the last row.
                (left, right) = unsafe { (left.add(MR), right.add(TILE_VECTORS * len)) };
            }
        }
        sums
    }
}

/// The micro-kernel of words that are `f32` with a scale for each lane behind them.
pub(crate) struct ScaledF32Kernel;

impl<I: Isa> Microkernel<I> for ScaledF32Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        let mut sums = <F32Kernel as Microkernel<I>>::multiply::<MR, P>(isa, words, left, right, prefetch);
        let rows = &left[words * MR..][..MR];
        let columns = &right[words * TILE_VECTORS * len..][..TILE_VECTORS * len];
        let columns: &[f32] = bytemuck::cast_slice(columns);
        for (sums, scale) in sums.iter_mut().zip(rows) {
            let scale = ops.splat(f32::from_bits(*scale));
            for (sum, columns) in sums.iter_mut().zip(columns.chunks_exact(len)) {
                *sum = ops.mul(*sum, ops.mul(scale, ops.load(columns)));
            }
        }
        sums
    }
}
