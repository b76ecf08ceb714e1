//! Products of a few rows by a matrix whose columns are contiguous: dot products, with nothing packed.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::epilogue::TileEpilogue;
use super::product::SHARE_FROM;
use super::tile::{Corner, Target};
use crate::blocks::ranges;
use crate::elements::Elements;
use crate::isa;
use crate::matrix::MatRef;
use crate::pool::run_tasks;

/// Output rows up to which dot products beat packing the right side.
pub(crate) const DOT_ROWS: usize = 4;
/// Output columns in a task.
const DOT_COLS: usize = 64;
/// Depth that is widened at once.
const DOT_DEPTH: usize = 1024;

/// Multiplies at most [`DOT_ROWS`] rows, whose column stride is 1, by columns that begin `stride` elements
/// apart.
pub(crate) fn dot_rows(
    target: &Target,
    left: MatRef<'_>,
    right: &dyn Elements,
    stride: usize,
    epilogue: &TileEpilogue<'_>,
) {
    if target.rows == 0 || target.cols == 0 {
        return;
    }
    let cols = target.cols;
    let share = target.rows * cols * left.cols >= SHARE_FROM;
    run_tasks(share, cols.div_ceil(DOT_COLS), |task| {
        let start = task * DOT_COLS;
        let count = DOT_COLS.min(cols - start);
        let mut sums = [[0.0; DOT_COLS]; DOT_ROWS];
        let mut widened = [0.0; DOT_DEPTH];
        for offset in 0..count {
            for depths in ranges(left.cols, DOT_DEPTH) {
                let from = (start + offset) * stride;
                let weights = &mut widened[..depths.len()];
                right.widen_run(from + depths.start, weights);
                for (row, sums) in sums.iter_mut().enumerate().take(target.rows) {
                    let values = &left.data[row * left.row_stride..][depths.clone()];
                    sums[offset] += isa::dispatch(Dot(values, weights));
                }
            }
        }
        for (row, sums) in sums.iter_mut().enumerate().take(target.rows) {
            let (sums, corner) = (&mut sums[..count], Corner { matrix: 0, row, col: start });
            epilogue.apply_row(corner, sums);
            // SAFETY: every task has columns of its own.
            unsafe { target.row_mut(corner, count) }.copy_from_slice(sums);
        }
    });
}

/// The dot product of two equally long slices.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl SimdOp for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f32 {
        let ops = isa.f32();
        let len = ops.len();
        let mut sums = [ops.zero(); 4];
        let (mut xs, mut ys) = (self.0.chunks_exact(4 * len), self.1.chunks_exact(4 * len));
        for (x, y) in (&mut xs).zip(&mut ys) {
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = ops.mul_add(ops.load(&x[index * len..]), ops.load(&y[index * len..]), *sum);
            }
        }
        for (x, y) in xs.remainder().chunks(len).zip(ys.remainder().chunks(len)) {
            sums[0] = ops.mul_add(ops.load_pad(x).0, ops.load_pad(y).0, sums[0]);
        }
        ops.sum(ops.add(ops.add(sums[0], sums[1]), ops.add(sums[2], sums[3])))
    }
}
