//! Softmax along an axis.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use crate::axis::{AxisShape, ColumnBlock, WIDTH, for_each_column_block};
use crate::isa;
use crate::math::exp_nonpositive;
use crate::pool::{for_each_chunk_mut, rows_per_task};

/// Softmax along the axis of `input[outer, axis, inner]` into `out`.
///
/// # Panics
///
/// When lengths differ from the shape's.
pub fn softmax(shape: &AxisShape, input: &[f32], out: &mut [f32]) {
    let len = shape.element_count();
    assert_eq!((input.len(), out.len()), (len, len), "input or output length differs from the shape's");
    if len == 0 {
        return;
    }
    if shape.inner == 1 {
        let rows = rows_per_task(shape.axis);
        for_each_chunk_mut(out, rows * shape.axis, |task, chunk| {
            let start = task * rows * shape.axis;
            chunk.copy_from_slice(&input[start..start + chunk.len()]);
            for row in chunk.chunks_exact_mut(shape.axis) {
                isa::dispatch(Row(row));
            }
        });
    } else {
        for_each_column_block(shape, out, |first, mut block| {
            isa::dispatch(Columns { input: &input[first..], block: &mut block });
        });
    }
}

/// Softmax of a slice in place.
struct Row<'a>(&'a mut [f32]);

impl SimdOp for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let row = self.0;
        let mut max = ops.splat(f32::MIN);
        let mut vectors = row.chunks_exact(ops.len());
        for vector in &mut vectors {
            max = ops.max(max, ops.load(vector));
        }
        let max =
            max.to_array().into_iter().chain(vectors.remainder().iter().copied()).fold(f32::MIN, f32::max);
        let max = ops.splat(max);
        let mut sum = ops.zero();
        let mut vectors = row.chunks_exact_mut(ops.len());
        for vector in &mut vectors {
            let weight = exp_nonpositive(isa, ops.sub(ops.load(vector), max));
            ops.store(weight, vector);
            sum = ops.add(sum, weight);
        }
        let rest = vectors.into_remainder();
        let (last, mask) = ops.load_pad(rest);
        let last = ops.select(exp_nonpositive(isa, ops.sub(last, max)), ops.zero(), mask);
        rest.copy_from_slice(&last.to_array().as_ref()[..rest.len()]);
        let inverse = ops.splat(1.0 / ops.sum(ops.add(sum, last)));
        isa::map_in_place(
            isa,
            row,
            #[inline(always)]
            |x| ops.mul(x, inverse),
        );
    }
}

/// Softmax of a block of columns.
struct Columns<'a, 'b> {
    /// The input from the block's first element on.
    input: &'a [f32],
    block: &'a mut ColumnBlock<'b>,
}

impl SimdOp for Columns<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { input, block } = self;
        let (rows, width, stride) = (block.rows(), block.width(), block.stride());
        let mut max = [f32::MIN; WIDTH];
        for index in 0..rows {
            for (max, x) in max.iter_mut().zip(&input[index * stride..][..width]) {
                *max = max.max(*x);
            }
        }
        let mut sums = [0.0_f64; WIDTH];
        for index in 0..rows {
            let out = block.row_mut(index);
            for ((out, x), max) in out.iter_mut().zip(&input[index * stride..]).zip(&max) {
                *out = x - max;
            }
            isa::map_in_place(
                isa,
                out,
                #[inline(always)]
                |x| exp_nonpositive(isa, x),
            );
            for (sum, weight) in sums.iter_mut().zip(out.iter()) {
                *sum += f64::from(*weight);
            }
        }
        let inverse = sums.map(|sum| (1.0 / sum) as f32);
        for index in 0..rows {
            for (out, inverse) in block.row_mut(index).iter_mut().zip(&inverse) {
                *out *= inverse;
            }
        }
    }
}

#[cfg(test)]
mod tests;
