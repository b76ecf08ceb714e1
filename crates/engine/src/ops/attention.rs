//! Scaled dot-product attention.

use kernels::{Attention, AttentionShape, HeadLayout, Heads, Mat};
use mil::OpView;

use super::{broadcast_strides, offsets};
use crate::backend::holds_floats;
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

/// Where the mask of each head begins, and its distances between queries and between keys.
struct MaskWalk {
    starts: Vec<usize>,
    query: usize,
    key: usize,
}

impl MaskWalk {
    fn new(mask: &[usize], scores: &[usize]) -> Self {
        let strides = broadcast_strides(mask, scores);
        let rank = scores.len();
        MaskWalk {
            starts: offsets(&scores[..rank - 2], &strides[..rank - 2], 0),
            query: strides[rank - 2].unsigned_abs(),
            key: strides[rank - 1].unsigned_abs(),
        }
    }

    /// Whether all heads have the same mask.
    fn is_shared(&self) -> bool {
        self.starts.windows(2).all(|pair| pair[0] == pair[1])
    }
}

pub(super) fn lower(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (query, key, value) = (op.value("query")?, op.value("key")?, op.value("value")?);
    let (q, v) = (plan.shape(query), plan.shape(value));
    let rank = q.len();
    let (queries, dim) = (q[rank - 2], q[rank - 1]);
    let (keys, value_dim) = (v[rank - 2], v[rank - 1]);
    let heads: usize = q[..rank - 2].iter().product();
    let scores = [&q[..rank - 1], &[keys]].concat();
    let mask = op.get("attn_mask");
    let walk = mask.map(|mask| MaskWalk::new(plan.shape(mask), &scores));
    let mask_is_float = mask.is_some_and(|mask| holds_floats(plan.function().value(mask).ty.dtype));
    let reads: Vec<_> = [query, key, value].into_iter().chain(mask).collect();
    plan.step(op.label(), &reads, &op.op().outputs, move |io| {
        let truth: Vec<f32>;
        let mask: &[f32] = match (&walk, mask_is_float) {
            (None, _) => &[],
            (Some(_), true) => io.floats[3],
            (Some(_), false) => {
                truth = additive(io.ints[0]);
                &truth
            }
        };
        // Heads that share a mask are attended to at once.
        let together = if walk.as_ref().is_none_or(MaskWalk::is_shared) { heads } else { 1 };
        let mut run = |first: usize, mask_start: usize| {
            let shape = AttentionShape { batch: 1, heads: together, queries, keys, dim, value_dim };
            let part = |data: &'_ [f32], tokens: usize, dim: usize| {
                let start = first * tokens * dim;
                start..(start + together * tokens * dim).min(data.len())
            };
            let input = |index: usize, tokens: usize, dim: usize| Heads {
                data: &io.floats[index][part(io.floats[index], tokens, dim)],
                layout: HeadLayout::head_major(together, tokens, dim),
            };
            let args = Attention {
                shape,
                query: input(0, queries, dim),
                key: input(1, keys, dim),
                value: input(2, keys, value_dim),
                scale: 1.0 / (dim as f32).sqrt(),
                mask: walk
                    .as_ref()
                    .map(|walk| Mat::with_strides(&mask[mask_start..], queries, keys, walk.query, walk.key)),
            };
            let range = part(io.out[0], queries, value_dim);
            let layout = HeadLayout::head_major(together, queries, value_dim);
            kernels::attention(&args, &mut io.out[0][range], layout);
        };
        for first in (0..heads).step_by(together.max(1)) {
            run(first, walk.as_ref().map_or(0, |walk| walk.starts[first]));
        }
        Ok(())
    })
}
