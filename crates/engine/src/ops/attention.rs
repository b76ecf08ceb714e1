//! Scaled dot-product attention.

use std::ops::Range;

use mixbit_kernels::{Attention, AttentionShape, HeadLayout, Heads, Mat, MatRef, Precision};
use mixbit_mil::OpView;

use super::{broadcast_strides, offsets};
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Data, Error, Tensor};

/// What a mask of truth values adds to scores.
fn additive(seen: &[i32]) -> Vec<f32> {
    seen.iter().map(|&seen| if seen != 0 { 0.0 } else { f32::NEG_INFINITY }).collect()
}

/// softmax(query key^T / sqrt(channels) + mask) value; zeros where every key is hidden.
pub(super) fn reference(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (query, key, value) = (op.tensor("query")?, op.tensor("key")?, op.tensor("value")?);
    let rank = query.shape().len();
    let (queries, channels) = (query.shape()[rank - 2], query.shape()[rank - 1]);
    let (keys, width) = (key.shape()[rank - 2], value.shape()[rank - 1]);
    let scores_shape = [&query.shape()[..rank - 1], &[keys]].concat();
    let mask = op.optional("attn_mask")?;
    let mask_places =
        mask.as_ref().map(|mask| offsets(&scores_shape, &broadcast_strides(mask.shape(), &scores_shape), 0));
    let floats = |tensor: &Tensor| tensor.as_f32().map(<[f32]>::to_vec).unwrap_or_default();
    let (q, k, v) = (floats(&query), floats(&key), floats(&value));
    let mask = mask.as_ref().map(|mask| match mask.data() {
        Data::Float(values) => values.clone(),
        Data::Int(seen) => additive(seen),
    });
    let batches: usize = query.shape()[..rank - 2].iter().product();
    let mut out = Vec::with_capacity(op.out(0).count());
    for row in 0..batches * queries {
        let batch = row / queries.max(1);
        let score = |at: usize| {
            let products = (0..channels)
                .map(|c| f64::from(q[row * channels + c]) * f64::from(k[(batch * keys + at) * channels + c]));
            let bias = match (&mask, &mask_places) {
                (Some(mask), Some(places)) => f64::from(mask[places[row * keys + at]]),
                _ => 0.0,
            };
            products.sum::<f64>() / (channels as f64).sqrt() + bias
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        if scores.iter().all(|&score| score == f64::NEG_INFINITY) {
            out.extend(std::iter::repeat_n(0.0, width));
            continue;
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for column in 0..width {
            let weighted = scores
                .iter()
                .enumerate()
                .map(|(at, score)| (score - max).exp() * f64::from(v[(batch * keys + at) * width + column]));
            out.push((weighted.sum::<f64>() / sum) as f32);
        }
    }
    op.float_result(out)
}

/// How a mask lies to its heads.
struct MaskWalk {
    /// Consecutive heads that have the same mask, and where it begins.
    runs: Vec<(Range<usize>, usize)>,
    /// Distances between queries and between keys.
    strides: [usize; 2],
}

impl MaskWalk {
    fn new(mask: &[usize], scores: &[usize]) -> Self {
        let strides = broadcast_strides(mask, scores);
        let rank = scores.len();
        let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
        for (head, start) in offsets(&scores[..rank - 2], &strides[..rank - 2], 0).into_iter().enumerate() {
            match runs.last_mut() {
                Some((heads, last)) if *last == start => heads.end += 1,
                _ => runs.push((head..head + 1, start)),
            }
        }
        MaskWalk { runs, strides: [rank - 2, rank - 1].map(|axis| strides[axis].unsigned_abs()) }
    }
}

/// Attends to some of the heads, which lie one after the other in inputs and output.
fn attend(
    all: &AttentionShape,
    heads: &Range<usize>,
    mask: Option<MatRef>,
    inputs: &[&[f32]],
    precision: Precision,
    out: &mut [f32],
) {
    let shape = AttentionShape { heads: heads.len(), ..*all };
    let part = |tokens: usize, dim: usize| heads.start * tokens * dim..heads.end * tokens * dim;
    let layout = |tokens: usize, dim: usize| HeadLayout::head_major(heads.len(), tokens, dim);
    let AttentionShape { queries, keys, dim, value_dim, .. } = shape;
    let args = Attention {
        shape,
        query: Heads { data: &inputs[0][part(queries, dim)], layout: layout(queries, dim) },
        key: Heads { data: &inputs[1][part(keys, dim)], layout: layout(keys, dim) },
        value: Heads { data: &inputs[2][part(keys, value_dim)], layout: layout(keys, value_dim) },
        scale: 1.0 / (dim as f32).sqrt(),
        mask,
        by_image: false,
    };
    mixbit_kernels::attention(
        &args,
        precision,
        &mut out[part(queries, value_dim)],
        layout(queries, value_dim),
    );
}

pub(super) fn lower(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (query, key, value) = (op.value("query")?, op.value("key")?, op.value("value")?);
    let (q, v) = (plan.shape(query), plan.shape(value));
    let rank = q.len();
    let shape = AttentionShape {
        batch: 1,
        heads: q[..rank - 2].iter().product(),
        queries: q[rank - 2],
        keys: v[rank - 2],
        dim: q[rank - 1],
        value_dim: v[rank - 1],
    };
    let scores = [&q[..rank - 1], &[shape.keys]].concat();
    let mask = op.get("attn_mask");
    let walk = mask.map(|mask| MaskWalk::new(plan.shape(mask), &scores));
    let reads: Vec<_> = [query, key, value].into_iter().chain(mask).collect();
    let precision = plan.precision();
    plan.step(op.label(), &reads, &op.op().outputs, move |io| {
        let Some(MaskWalk { runs, strides }) = &walk else {
            attend(&shape, &(0..shape.heads), None, &io.floats, precision, io.out[0]);
            return Ok(());
        };
        let truth = io.ints.first().map(|seen| additive(seen));
        let mask = truth.as_deref().unwrap_or_else(|| io.floats[3]);
        for (heads, start) in runs {
            let mask = Mat::with_strides(&mask[*start..], shape.queries, shape.keys, strides[0], strides[1]);
            attend(&shape, heads, Some(mask), &io.floats, precision, io.out[0]);
        }
        Ok(())
    })
}
