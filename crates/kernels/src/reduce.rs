//! Reductions along an axis.

use rten_simd::{Isa, SimdOp};

use crate::axis::AxisShape;
use crate::isa;
use crate::norm::sum;
use crate::pool::{for_each_chunk_mut, rows_per_task};

/// A reduction of the elements along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum; 0 for an empty axis.
    Sum,
    /// The mean; NaN for an empty axis.
    Mean,
    /// The maximum; NaN if any element is; negative infinity for an empty axis.
    Max,
    /// The minimum; NaN if any element is; infinity for an empty axis.
    Min,
}

/// Columns that are reduced at once.
const WIDTH: usize = 64;

/// Reduces `input[outer, axis, inner]` along the axis into `out[outer, inner]`. Sums are computed in `f64`.
///
/// # Panics
///
/// When lengths differ from the shape's.
pub fn reduce(op: ReduceOp, shape: &AxisShape, input: &[f32], out: &mut [f32]) {
    check(shape, input.len(), out.len());
    let AxisShape { axis, inner, .. } = *shape;
    if inner == 1 {
        let rows = rows_per_task(axis);
        for_each_chunk_mut(out, rows, |task, chunk| {
            for (index, out) in chunk.iter_mut().enumerate() {
                let row = task * rows + index;
                *out = reduce_row(op, &input[row * axis..(row + 1) * axis]);
            }
        });
        return;
    }
    if out.is_empty() {
        return;
    }
    let planes = rows_per_task(axis * inner);
    for_each_chunk_mut(out, planes * inner, |task, chunk| {
        for (index, out) in chunk.chunks_exact_mut(inner).enumerate() {
            let start = (task * planes + index) * axis * inner;
            let plane = &input[start..start + axis * inner];
            for_each_chunk_mut(out, WIDTH, |block, out| {
                isa::dispatch(ReduceColumns { op, plane, inner, first: block * WIDTH, out });
            });
        }
    });
}

fn check(shape: &AxisShape, input: usize, out: usize) {
    assert_eq!(input, shape.element_count(), "input length differs from the shape's");
    assert_eq!(out, shape.outer * shape.inner, "output length differs from the shape's");
}

/// The greater, or NaN.
#[inline(always)]
fn greater(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

/// The lesser, or NaN.
#[inline(always)]
fn lesser(x: f32, y: f32) -> f32 {
    if x < y || x.is_nan() { x } else { y }
}

fn reduce_row(op: ReduceOp, row: &[f32]) -> f32 {
    match op {
        ReduceOp::Sum => sum(row) as f32,
        ReduceOp::Mean => (sum(row) / row.len() as f64) as f32,
        ReduceOp::Max => isa::dispatch(Extreme(row, f32::NEG_INFINITY, greater)),
        ReduceOp::Min => isa::dispatch(Extreme(row, f32::INFINITY, lesser)),
    }
}

/// Folds a slice with an associative, commutative function.
struct Extreme<'a, F>(&'a [f32], f32, F);

impl<F: Fn(f32, f32) -> f32> SimdOp for Extreme<'_, F> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> f32 {
        let mut lanes = [self.1; 32];
        let mut vectors = self.0.chunks_exact(32);
        for vector in &mut vectors {
            for (lane, x) in lanes.iter_mut().zip(vector) {
                *lane = self.2(*lane, *x);
            }
        }
        vectors.remainder().iter().chain(&lanes).copied().fold(self.1, &self.2)
    }
}

/// Reduces some columns of `plane[axis, inner]`.
struct ReduceColumns<'a> {
    op: ReduceOp,
    plane: &'a [f32],
    inner: usize,
    first: usize,
    out: &'a mut [f32],
}

impl SimdOp for ReduceColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { op, plane, inner, first, out } = self;
        let width = out.len();
        let rows = plane.chunks_exact(inner).map(|row| &row[first..first + width]);
        match op {
            ReduceOp::Sum | ReduceOp::Mean => {
                let mut sums = [0.0_f64; WIDTH];
                for row in rows {
                    for (sum, x) in sums.iter_mut().zip(row) {
                        *sum += f64::from(*x);
                    }
                }
                let axis = (plane.len() / inner) as f64;
                let scale = if op == ReduceOp::Mean { axis } else { 1.0 };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = (sum / scale) as f32;
                }
            }
            ReduceOp::Max => {
                out.fill(f32::NEG_INFINITY);
                for row in rows {
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = greater(*out, *x);
                    }
                }
            }
            ReduceOp::Min => {
                out.fill(f32::INFINITY);
                for row in rows {
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = lesser(*out, *x);
                    }
                }
            }
        }
    }
}

/// Writes the index of the first maximum along the axis of `input[outer, axis, inner]` to
/// `out[outer, inner]`. NaN counts as the maximum.
///
/// # Panics
///
/// When lengths differ from the shape's, or the axis is empty but the output is not.
pub fn argmax<T: Copy + PartialOrd + Sync>(shape: &AxisShape, input: &[T], out: &mut [usize]) {
    check(shape, input.len(), out.len());
    assert!(shape.axis > 0 || out.is_empty(), "argmax along an empty axis");
    let rows = rows_per_task(shape.axis);
    for_each_chunk_mut(out, rows, |task, chunk| {
        for (index, out) in chunk.iter_mut().enumerate() {
            let place = task * rows + index;
            let start = place / shape.inner * shape.axis * shape.inner + place % shape.inner;
            let at = |index: usize| input[start + index * shape.inner];
            // NaN is unequal to itself. Nothing exceeds it.
            let is_nan = |value: T| value.partial_cmp(&value).is_none();
            let mut best = 0;
            for index in 1..shape.axis {
                if !is_nan(at(best)) && (at(index) > at(best) || is_nan(at(index))) {
                    best = index;
                }
            }
            *out = best;
        }
    });
}

#[cfg(test)]
mod tests;
