//! Normalisations: group, layer and batch norm.
//!
//! Mean and variance are computed in two passes. Sums run in `f32` within short blocks and in `f64` over the
//! blocks, which keeps a relative accuracy of 1e-6 over millions of pixels.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath::Silu;

use crate::axis::{AxisShape, ColumnBlock, for_each_column_block};
use crate::blocks::ranges;
use crate::isa;
use crate::pool::{for_each_chunk_mut, rows_per_task};
use crate::simd;
use crate::unary::{UnaryOp, unary_on_this_thread};

/// Scale, shift, epsilon and activation of a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct NormParams<'a> {
    /// The scale of each channel; 1 if absent.
    pub gamma: Option<&'a [f32]>,
    /// The shift of each channel; 0 if absent.
    pub beta: Option<&'a [f32]>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Applied last.
    pub activation: Option<UnaryOp>,
}

impl NormParams<'_> {
    fn check(&self, channels: usize) {
        for vector in [self.gamma, self.beta].into_iter().flatten() {
            assert_eq!(vector.len(), channels, "scale or shift length differs from the channels");
        }
    }

    fn gamma(&self, channel: usize) -> f32 {
        self.gamma.map_or(1.0, |gamma| gamma[channel])
    }

    fn beta(&self, channel: usize) -> f32 {
        self.beta.map_or(0.0, |beta| beta[channel])
    }
}

/// The sizes of a group norm's input `[batch, channels, spatial]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupNormShape {
    /// Images.
    pub batch: usize,
    /// Channels, all groups together.
    pub channels: usize,
    /// Pixels.
    pub spatial: usize,
    /// Groups of consecutive channels.
    pub groups: usize,
}

/// Elements that are summed in `f32` before their sum is added in `f64`.
const SUM_BLOCK: usize = 1024;
/// Independent `f32` sums within a block.
const LANES: usize = 64;

/// The sum of a slice.
struct Sum<'a>(&'a [f32]);

impl SimdOp for Sum<'_> {
    type Output = [f64; 1];

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> [f64; 1] {
        sums_of(
            self.0,
            #[inline(always)]
            |x| [x],
        )
    }
}

/// The sum of a slice's differences from a number, and the sum of their squares.
struct Differences<'a>(&'a [f32], f32);

impl SimdOp for Differences<'_> {
    type Output = [f64; 2];

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> [f64; 2] {
        sums_of(
            self.0,
            #[inline(always)]
            |x| {
                let x = x - self.1;
                [x, x * x]
            },
        )
    }
}

/// The sums of `N` terms of every element.
#[inline(always)]
fn sums_of<const N: usize>(data: &[f32], terms: impl Fn(f32) -> [f32; N]) -> [f64; N] {
    let mut totals = [0.0; N];
    for block in data.chunks(SUM_BLOCK) {
        let mut sums = [[0.0_f32; LANES]; N];
        let mut vectors = block.chunks_exact(LANES);
        for vector in &mut vectors {
            for (lane, x) in vector.iter().enumerate() {
                let terms = terms(*x);
                for (sums, term) in sums.iter_mut().zip(terms) {
                    sums[lane] += term;
                }
            }
        }
        for (lane, x) in vectors.remainder().iter().enumerate() {
            for (sums, term) in sums.iter_mut().zip(terms(*x)) {
                sums[lane] += term;
            }
        }
        for (total, sums) in totals.iter_mut().zip(&sums) {
            *total += total_of(sums);
        }
    }
    totals
}

/// The sum of a block's sums, by halves.
#[inline(always)]
fn total_of(sums: &[f32; LANES]) -> f64 {
    let mut wide = sums.map(f64::from);
    let mut len = LANES / 2;
    while len > 0 {
        let (low, high) = wide.split_at_mut(len);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        len /= 2;
    }
    wide[0]
}

/// The sum of a slice, accurate to about 1e-7 of the sum of magnitudes.
pub(crate) fn sum(data: &[f32]) -> f64 {
    let [sum] = isa::dispatch(Sum(data));
    sum
}

/// Mean and (biased) variance of a slice.
fn moments(data: &[f32]) -> (f32, f32) {
    let count = data.len() as f64;
    let centre = (sum(data) / count) as f32;
    // The mean of the differences corrects the rounding of the centre to f32.
    let [rest, squares] = isa::dispatch(Differences(data, centre)).map(|sum| sum / count);
    ((f64::from(centre) + rest) as f32, (squares - rest * rest).max(0.0) as f32)
}

/// `(x - mean) * scale + shift`, then the activation.
struct Affine<'a> {
    data: &'a mut [f32],
    mean: f32,
    scale: f32,
    shift: f32,
    activation: Option<UnaryOp>,
}

impl SimdOp for Affine<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let (mean, scale, shift) = (ops.splat(self.mean), ops.splat(self.scale), ops.splat(self.shift));
        let Self { data, activation, .. } = self;
        // Closures are inlined into the dispatched body only if they have the attribute.
        if activation == Some(UnaryOp::Silu) {
            isa::map_in_place(
                isa,
                data,
                #[inline(always)]
                |x| Silu {}.eval(isa, ops.mul_add(ops.sub(x, mean), scale, shift)),
            );
            return;
        }
        isa::map_in_place(
            isa,
            data,
            #[inline(always)]
            |x| ops.mul_add(ops.sub(x, mean), scale, shift),
        );
        if let Some(activation) = activation {
            unary_on_this_thread(activation, data);
        }
    }
}

/// Group norm of `input[batch, channels, spatial]` into `out`. Each group of each image has its own
/// statistics; each channel has its own scale and shift.
///
/// # Panics
///
/// When lengths differ from the shape's or the groups do not divide the channels.
pub fn group_norm(shape: &GroupNormShape, input: &[f32], params: &NormParams<'_>, out: &mut [f32]) {
    assert!(
        shape.groups > 0 && shape.channels.is_multiple_of(shape.groups),
        "{} channels do not divide into {} groups",
        shape.channels,
        shape.groups
    );
    let len = shape.batch * shape.channels * shape.spatial;
    assert_eq!((input.len(), out.len()), (len, len), "input or output length differs from the shape's");
    params.check(shape.channels);
    let channels = shape.channels / shape.groups;
    let group_len = channels * shape.spatial;
    if len == 0 {
        return;
    }
    let groups_per_task = rows_per_task(group_len);
    for_each_chunk_mut(out, groups_per_task * group_len, |task, chunk| {
        for (index, out) in chunk.chunks_exact_mut(group_len).enumerate() {
            let group = task * groups_per_task + index;
            let data = &input[group * group_len..(group + 1) * group_len];
            let (mean, variance) = moments(data);
            let inverse = 1.0 / (variance + params.epsilon).sqrt();
            let first_channel = group % shape.groups * channels;
            let planes = data.chunks_exact(shape.spatial).zip(out.chunks_exact_mut(shape.spatial));
            for (channel, (data, out)) in planes.enumerate() {
                let channel = first_channel + channel;
                out.copy_from_slice(data);
                isa::dispatch(Affine {
                    data: out,
                    mean,
                    scale: inverse * params.gamma(channel),
                    shift: params.beta(channel),
                    activation: params.activation,
                });
            }
        }
    });
}

/// Layer norm over the axis of `input[outer, axis, inner]` into `out`.
///
/// # Panics
///
/// When lengths differ from the shape's.
pub fn layer_norm(shape: &AxisShape, input: &[f32], params: &NormParams<'_>, out: &mut [f32]) {
    let len = shape.element_count();
    assert_eq!((input.len(), out.len()), (len, len), "input or output length differs from the shape's");
    params.check(shape.axis);
    if len == 0 {
        return;
    }
    if shape.inner == 1 {
        // Each element is read three times.
        let rows = rows_per_task(3 * shape.axis);
        for_each_chunk_mut(out, rows * shape.axis, |task, chunk| {
            let input = &input[task * rows * shape.axis..][..chunk.len()];
            for (input, row) in input.chunks_exact(shape.axis).zip(chunk.chunks_exact_mut(shape.axis)) {
                let (mean, variance) = moments(input);
                let inverse = 1.0 / (variance + params.epsilon).sqrt();
                isa::dispatch(NormalizeRow { input, row, mean, inverse, params });
            }
        });
        return;
    }
    for_each_column_block(shape, out, |first, mut block| {
        isa::dispatch(NormalizeColumns { input: &input[first..], block: &mut block, params });
    });
}

/// `(row - mean) * inverse * gamma + beta`, element by element.
struct NormalizeRow<'a> {
    input: &'a [f32],
    row: &'a mut [f32],
    mean: f32,
    inverse: f32,
    params: &'a NormParams<'a>,
}

impl SimdOp for NormalizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self { input, row, mean, inverse, params } = self;
        match (params.gamma, params.beta) {
            (Some(gamma), Some(beta)) => {
                for (((out, x), gamma), beta) in row.iter_mut().zip(input).zip(gamma).zip(beta) {
                    *out = (x - mean) * (inverse * gamma) + beta;
                }
            }
            _ => {
                for (index, (out, x)) in row.iter_mut().zip(input).enumerate() {
                    *out = (x - mean) * (inverse * params.gamma(index)) + params.beta(index);
                }
            }
        }
        if let Some(activation) = params.activation {
            unary_on_this_thread(activation, row);
        }
    }
}

/// Layer norm of a block of columns.
struct NormalizeColumns<'a, 'b> {
    /// The input from the block's first element on.
    input: &'a [f32],
    block: &'a mut ColumnBlock<'b>,
    params: &'a NormParams<'a>,
}

/// Vectors of columns that are normalized together.
const COLUMN_VECTORS: usize = 4;
/// Rows that are summed before their sum is added to the total: sums of sums lose fewer digits.
const ROWS_SUMMED: usize = 32;
/// Distance, in rows, from the row that is read to the one that is prefetched.
const PREFETCH_ROWS: usize = 8;

impl SimdOp for NormalizeColumns<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(mut self, isa: I) {
        let len = isa.f32().len();
        let width = self.block.width();
        let mut first = 0;
        while first < width {
            if width - first >= COLUMN_VECTORS * len {
                self.normalize::<I, COLUMN_VECTORS>(isa, first, COLUMN_VECTORS * len);
                first += COLUMN_VECTORS * len;
            } else {
                self.normalize::<I, 1>(isa, first, len.min(width - first));
                first += len;
            }
        }
    }
}

/// `V` vectors of a row, or part of one.
#[inline(always)]
fn columns<I: Isa, const V: usize>(isa: I, row: &[f32]) -> [I::F32; V] {
    let ops = isa.f32();
    let len = ops.len();
    let mut values = [ops.zero(); V];
    if row.len() == V * len {
        for (value, row) in values.iter_mut().zip(row.chunks_exact(len)) {
            *value = ops.load(row);
        }
    } else {
        values[0] = ops.load_pad(row).0;
    }
    values
}

impl NormalizeColumns<'_, '_> {
    /// Normalizes `count` columns from `first` on: `V` vectors or, if `V` is 1, part of one.
    #[inline(always)]
    fn normalize<I: Isa, const V: usize>(&mut self, isa: I, first: usize, count: usize) {
        let ops = isa.f32();
        let len = ops.len();
        let Self { input, block, params } = self;
        let (axis, stride) = (block.rows(), block.stride());
        let start = |index: usize| index * stride + first;
        // Means of differences from the first row keep their digits where all values are far from zero.
        let origin = columns::<I, V>(isa, &input[start(0)..][..count]);
        let mut sums = [ops.zero(); V];
        for rows in ranges(axis, ROWS_SUMMED) {
            let mut part = [ops.zero(); V];
            for index in rows {
                let ahead = (index + PREFETCH_ROWS).min(axis - 1);
                simd::prefetch_line(input[start(ahead)..].as_ptr());
                let row = columns::<I, V>(isa, &input[start(index)..][..count]);
                for ((part, x), origin) in part.iter_mut().zip(row).zip(origin) {
                    *part = ops.add(*part, ops.sub(x, origin));
                }
            }
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum = ops.add(*sum, part);
            }
        }
        let share = ops.splat(1.0 / axis as f32);
        let mut means = [ops.zero(); V];
        for ((mean, sum), origin) in means.iter_mut().zip(sums).zip(origin) {
            *mean = ops.mul_add(sum, share, origin);
        }
        let mut squares = [ops.zero(); V];
        for rows in ranges(axis, ROWS_SUMMED) {
            let mut part = [ops.zero(); V];
            for index in rows {
                let row = columns::<I, V>(isa, &input[start(index)..][..count]);
                for ((part, x), mean) in part.iter_mut().zip(row).zip(means) {
                    let difference = ops.sub(x, mean);
                    *part = ops.mul_add(difference, difference, *part);
                }
            }
            for (sum, part) in squares.iter_mut().zip(part) {
                *sum = ops.add(*sum, part);
            }
        }
        let mut inverses = [ops.zero(); V];
        for (inverse, sum) in inverses.iter_mut().zip(squares) {
            let mut variances = [0.0; 16];
            ops.store(ops.mul_add(sum, share, ops.splat(params.epsilon)), &mut variances[..len]);
            let roots = variances.map(|variance| 1.0 / variance.sqrt());
            *inverse = ops.load(&roots[..len]);
        }
        for index in 0..axis {
            let (gamma, beta) = (ops.splat(params.gamma(index)), ops.splat(params.beta(index)));
            let out = &mut block.row_mut(index)[first..first + count];
            let row = columns::<I, V>(isa, &input[start(index)..][..count]);
            for (vector, x) in row.into_iter().enumerate() {
                let scale = ops.mul(inverses[vector], gamma);
                let value = ops.mul_add(ops.sub(x, means[vector]), scale, beta);
                let place = &mut out[vector * len..];
                if count == V * len {
                    ops.store(value, &mut place[..len]);
                } else {
                    // SAFETY: `place` has as many elements as the mask.
                    unsafe { ops.store_ptr_mask(value, place.as_mut_ptr(), ops.first_n_mask(count)) };
                }
            }
            if let Some(activation) = params.activation {
                unary_on_this_thread(activation, out);
            }
        }
    }
}

/// Batch norm of `input[outer, axis, inner]` into `out`, with given means and variances along the axis.
///
/// # Panics
///
/// When lengths differ from the shape's.
pub fn batch_norm(
    shape: &AxisShape,
    input: &[f32],
    mean: &[f32],
    variance: &[f32],
    params: &NormParams<'_>,
    out: &mut [f32],
) {
    let len = shape.element_count();
    assert_eq!((input.len(), out.len()), (len, len), "input or output length differs from the shape's");
    assert_eq!((mean.len(), variance.len()), (shape.axis, shape.axis), "statistics differ from the axis");
    params.check(shape.axis);
    if len == 0 {
        return;
    }
    let rows = rows_per_task(shape.inner);
    for_each_chunk_mut(out, rows * shape.inner, |task, chunk| {
        let start = task * rows * shape.inner;
        chunk.copy_from_slice(&input[start..start + chunk.len()]);
        for (index, row) in chunk.chunks_exact_mut(shape.inner).enumerate() {
            let channel = (task * rows + index) % shape.axis;
            isa::dispatch(Affine {
                data: row,
                mean: mean[channel],
                scale: params.gamma(channel) / (variance[channel] + params.epsilon).sqrt(),
                shift: params.beta(channel),
                activation: params.activation,
            });
        }
    });
}

#[cfg(test)]
mod tests;
