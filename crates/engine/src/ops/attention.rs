//! Scaled dot-product attention.

use super::Operands;
use crate::geometry::{additive_mask, broadcast_strides, offsets};
use crate::{Data, Error, Tensor};

/// softmax(query key^T / sqrt(channels) + mask) value; zeros where every key is hidden.
pub(super) fn attention(op: &Operands) -> Result<Vec<Tensor>, Error> {
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
        Data::Int(seen) => additive_mask(seen),
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
