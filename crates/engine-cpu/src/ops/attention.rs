//! Scaled dot-product attention.

use std::ops::Range;

use mixbit_engine::Error;
use mixbit_engine::geometry::{additive_mask, broadcast_strides, offsets};
use mixbit_kernels::{Attention, AttentionShape, HeadLayout, Heads, Mat, MatRef, Partition, Precision};
use mixbit_mil::OpView;

use crate::plan::PlanBuilder;

/// The place of each head's mask.
struct MaskWalk {
    /// Consecutive heads of the same mask, and its first offset.
    runs: Vec<(Range<usize>, usize)>,
    /// The strides between queries and between keys.
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

/// Computes some of the heads, which are contiguous in inputs and output.
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
        partition: Partition::of(&shape),
    };
    mixbit_kernels::attention(
        &args,
        precision,
        &mut out[part(queries, value_dim)],
        layout(queries, value_dim),
    );
}

pub(super) fn lower(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
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
    plan.step(op, &reads, &op.op().outputs, move |io| {
        let Some(MaskWalk { runs, strides }) = &walk else {
            attend(&shape, &(0..shape.heads), None, &io.floats, precision, io.out[0]);
            return Ok(());
        };
        let truth = io.ints.first().map(|seen| additive_mask(seen));
        let mask = truth.as_deref().unwrap_or_else(|| io.floats[3]);
        for (heads, start) in runs {
            let mask = Mat::with_strides(&mask[*start..], shape.queries, shape.keys, strides[0], strides[1]);
            attend(&shape, heads, Some(mask), &io.floats, precision, io.out[0]);
        }
        Ok(())
    })
}
