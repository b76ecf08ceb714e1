use super::*;
use crate::matrix::Mat;
use crate::testing::{Tolerance, check, check_cases, random};

#[derive(Clone, Copy, Debug)]
enum Order {
    Tokens,
    Heads,
    Channels,
}

impl Order {
    fn layout(self, heads: usize, tokens: usize, dim: usize) -> HeadLayout {
        match self {
            Self::Tokens => HeadLayout::token_major(heads, tokens, dim),
            Self::Heads => HeadLayout::head_major(heads, tokens, dim),
            Self::Channels => HeadLayout::channel_major(heads, tokens, dim),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    None,
    Causal,
    /// The lowest finite number, as in the transformers library.
    CausalFinite,
    AllHidden,
}

#[derive(Debug)]
struct Case {
    shape: AttentionShape,
    order: Order,
    out_order: Order,
    mask: Mask,
    /// The scale of the inputs: large scores raise the reference.
    gain: f32,
}

fn shape(
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    value_dim: usize,
) -> AttentionShape {
    AttentionShape { batch, heads, queries, keys, dim, value_dim }
}

fn mask_of(mask: Mask, queries: usize, keys: usize) -> Option<Vec<f32>> {
    let hidden = match mask {
        Mask::None => return None,
        Mask::CausalFinite => f32::MIN,
        Mask::Causal | Mask::AllHidden => f32::NEG_INFINITY,
    };
    let cell = |query: usize, key: usize| {
        if mask == Mask::AllHidden || key > query { hidden } else { 0.0 }
    };
    Some((0..queries * keys).map(|index| cell(index / keys, index % keys)).collect())
}

fn oracle(args: &Attention<'_>, out_layout: HeadLayout) -> Vec<f64> {
    let s = args.shape;
    let at = |heads: &Heads<'_>, b: usize, h: usize, t: usize, c: usize| {
        let l = heads.layout;
        f64::from(heads.data[b * l.batch + h * l.head + t * l.token + c * l.channel])
    };
    let mut out = vec![0.0; s.batch * s.heads * s.queries * s.value_dim];
    for b in 0..s.batch {
        for h in 0..s.heads {
            for q in 0..s.queries {
                let scores: Vec<f64> = (0..s.keys)
                    .map(|k| {
                        let dot: f64 =
                            (0..s.dim).map(|c| at(&args.query, b, h, q, c) * at(&args.key, b, h, k, c)).sum();
                        let mask = args.mask.map_or(0.0, |mask| mask.data[q * mask.row_stride + k]);
                        dot * f64::from(args.scale) + f64::from(mask)
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                if max == f64::NEG_INFINITY {
                    continue;
                }
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..s.value_dim {
                    let sum: f64 = (0..s.keys).map(|k| weights[k] * at(&args.value, b, h, k, c)).sum();
                    let l = out_layout;
                    out[b * l.batch + h * l.head + q * l.token + c * l.channel] = sum / total;
                }
            }
        }
    }
    out
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [
        shape(1, 1, 1, 1, 8, 8),
        shape(1, 2, 3, 5, 8, 12),
        shape(2, 3, 33, 31, 40, 40),
        shape(1, 1, 31, 251, 13, 7),
        shape(1, 2, 32, 252, 16, 16),
        shape(2, 1, 65, 253, 24, 25),
        shape(1, 2, 7, 505, 160, 160),
        shape(1, 2, 34, 77, 160, 3),
        shape(1, 2, 34, 77, 3, 80),
        shape(1, 1, 200, 600, 64, 64),
    ];
    for size in sizes {
        for (order, out_order) in [
            (Order::Tokens, Order::Tokens),
            (Order::Heads, Order::Channels),
            (Order::Channels, Order::Channels),
            (Order::Channels, Order::Heads),
        ] {
            for gain in [1.0, 6.0] {
                cases.push(Case { shape: size, order, out_order, mask: Mask::None, gain });
            }
        }
    }
    for mask in [Mask::Causal, Mask::CausalFinite, Mask::AllHidden] {
        for tokens in [1, 5, 77, 300] {
            let shape = shape(1, 2, tokens, tokens, 16, 16);
            cases.push(Case { shape, order: Order::Tokens, out_order: Order::Tokens, mask, gain: 2.0 });
        }
    }
    cases
}

#[test]
fn every_shape_layout_and_mask() {
    check_cases(&cases(), |case| {
        let s = case.shape;
        let grow = |data: Vec<f32>| data.into_iter().map(|x| x * case.gain).collect::<Vec<_>>();
        let query = grow(random(1, s.batch * s.heads * s.queries * s.dim));
        let key = grow(random(2, s.batch * s.heads * s.keys * s.dim));
        let value = random(3, s.batch * s.heads * s.keys * s.value_dim);
        let mask = mask_of(case.mask, s.queries, s.keys);
        let args = Attention {
            shape: s,
            query: Heads { data: &query, layout: case.order.layout(s.heads, s.queries, s.dim) },
            key: Heads { data: &key, layout: case.order.layout(s.heads, s.keys, s.dim) },
            value: Heads { data: &value, layout: case.order.layout(s.heads, s.keys, s.value_dim) },
            scale: 1.0 / (s.dim as f32).sqrt(),
            mask: mask.as_ref().map(|mask| Mat::new(&mask[..], s.queries, s.keys)),
            partition: Partition::of(&s),
        };
        let out_layout = case.out_order.layout(s.heads, s.queries, s.value_dim);
        // A weight's relative error is its score's absolute error, which grows with the score.
        let tolerance = Tolerance::OfLargest(2e-6 * f64::from(case.gain * case.gain / 6.0).max(1.0));
        check(&oracle(&args, out_layout), tolerance, |out| attention(&args, Precision::F32, out, out_layout))
    });
}

/// In bfloat16, queries, keys, values and weights have eight bits each: four roundings of at most 2^-9. Those
/// of the scores grow with the scores.
#[test]
fn narrow_precisions() {
    // Without gain: large scores have large errors.
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.gain < 6.0).collect();
    for precision in [Precision::Bf16, Precision::Int8] {
        check_cases(&cases, |case| {
            let s = case.shape;
            let query = random(1, s.batch * s.heads * s.queries * s.dim);
            let key = random(2, s.batch * s.heads * s.keys * s.dim);
            let value = random(3, s.batch * s.heads * s.keys * s.value_dim);
            let mask = mask_of(case.mask, s.queries, s.keys);
            let args = Attention {
                shape: s,
                query: Heads { data: &query, layout: case.order.layout(s.heads, s.queries, s.dim) },
                key: Heads { data: &key, layout: case.order.layout(s.heads, s.keys, s.dim) },
                value: Heads { data: &value, layout: case.order.layout(s.heads, s.keys, s.value_dim) },
                scale: 1.0 / (s.dim as f32).sqrt(),
                mask: mask.as_ref().map(|mask| Mat::new(&mask[..], s.queries, s.keys)),
                partition: Partition::of(&s),
            };
            let out_layout = case.out_order.layout(s.heads, s.queries, s.value_dim);
            check(&oracle(&args, out_layout), Tolerance::OfLargest(8e-3), |out| {
                attention(&args, precision, out, out_layout);
            })
        });
    }
}

#[test]
fn nan_reaches_the_output() {
    let (queries, keys, dim) = (40, 300, 8);
    let layout = HeadLayout::token_major(1, keys, dim);
    let infinite_query = |data: &mut [Vec<f32>; 4]| data[0][3 * dim] = f32::INFINITY;
    let all: fn(usize) -> bool = |_| true;
    let third: fn(usize) -> bool = |query| query == 3;
    for precision in [Precision::F32, Precision::Bf16] {
        let spoil = |change: &dyn Fn(&mut [Vec<f32>; 4]), is_nan: fn(usize) -> bool, name: &str| {
            let mut data = [queries * dim, keys * dim, keys * dim, queries * keys].map(|len| random(1, len));
            change(&mut data);
            let [query, key, value, mask] = &data;
            let [query, key, value] = [query, key, value].map(|data| Heads { data, layout });
            let mask = Some(Mat::new(&mask[..], queries, keys));
            let shape = shape(1, 1, queries, keys, dim, dim);
            let args =
                Attention { shape, query, key, value, scale: 1.0, mask, partition: Partition::of(&shape) };
            let mut out = vec![0.0; queries * dim];
            attention(&args, precision, &mut out, layout);
            for (query, row) in out.chunks_exact(dim).enumerate() {
                assert!(
                    row.iter().all(|x| x.is_nan() == is_nan(query)),
                    "{precision}, {name}, query {query}"
                );
            }
        };
        spoil(&|_| (), |_| false, "nothing");
        spoil(&|data| data[0][3 * dim] = f32::NAN, third, "query");
        spoil(&|data| data[3][3 * keys + 299] = f32::NAN, third, "mask");
        spoil(&infinite_query, third, "infinity");
        for token in [0, 17, 299] {
            spoil(&|data| data[1][token * dim] = f32::NAN, all, "key");
            spoil(&|data| data[2][token * dim..][..dim].fill(f32::NAN), all, "value");
        }
    }
}

/// Scores that climb, fall or leap raise the reference, at the start and in the middle of a block.
#[test]
fn climbing_scores_raise_the_reference() {
    // Integers of eight bits: in bfloat16 the scaled queries are exact, as the keys are.
    let scale = std::f32::consts::LN_2;
    let climbs: [fn(usize) -> f32; 4] = [
        |key| (key / 2) as f32,
        |key| -((key / 2) as f32),
        |key| if key == 299 { 250.0 } else { 0.0 },
        |key| (key / 50) as f32 * 24.0 - 200.0,
    ];
    // A score of 128 and more has a rounding error of 2^-17.
    for (queries, precision, limit) in
        [(1, Precision::F32, 2e-5), (70, Precision::F32, 2e-5), (70, Precision::Bf16, 8e-3)]
    {
        for climb in climbs {
            // Every second query climbs less.
            let query: Vec<f32> = (0..queries).map(|query| if query % 2 == 0 { 1.0 } else { 0.25 }).collect();
            let key: Vec<f32> = (0..300).map(climb).collect();
            let value = random(3, 300 * 5);
            let args = Attention {
                shape: shape(1, 1, queries, 300, 1, 5),
                query: Heads { data: &query, layout: HeadLayout::token_major(1, queries, 1) },
                key: Heads { data: &key, layout: HeadLayout::token_major(1, 300, 1) },
                value: Heads { data: &value, layout: HeadLayout::token_major(1, 300, 5) },
                scale,
                mask: None,
                partition: Partition::Images,
            };
            let layout = HeadLayout::token_major(1, queries, 5);
            check(&oracle(&args, layout), Tolerance::OfLargest(limit), |out| {
                attention(&args, precision, out, layout);
            })
            .unwrap_or_else(|message| panic!("{queries} queries, {precision}: {message}"));
        }
    }
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_output_is_refused() {
    let data = random(1, 64);
    let layout = HeadLayout::token_major(1, 8, 8);
    let heads = Heads { data: &data, layout };
    let args = Attention {
        shape: shape(1, 1, 8, 8, 8, 8),
        query: heads,
        key: heads,
        value: heads,
        scale: 1.0,
        mask: None,
        partition: Partition::Images,
    };
    attention(&args, Precision::F32, &mut [0.0; 64], HeadLayout { token: 4, ..layout });
}

#[test]
#[should_panic(expected = "exceeds its 64 elements")]
fn an_output_whose_extent_overflows_is_refused() {
    let layout = HeadLayout::token_major(1, 8, 8);
    let overflowing = HeadLayout { token: usize::MAX / 4, ..layout };
    overflowing.check_output(&shape(1, 1, 8, 8, 8, 8), 64);
}

#[test]
fn partitions_give_the_same_bytes() {
    let s = shape(3, 4, 40, 30, 16, 16);
    let data = random(1, s.batch * s.heads * s.queries * s.dim);
    let layout = HeadLayout::token_major(s.heads, s.queries, s.dim);
    let key_layout = HeadLayout::token_major(s.heads, s.keys, s.dim);
    let [images, heads] = [Partition::Images, Partition::Heads].map(|partition| {
        let heads = |layout| Heads { data: &data, layout };
        let (query, key) = (heads(layout), heads(key_layout));
        let args = Attention { shape: s, query, key, value: key, scale: 0.25, mask: None, partition };
        let mut out = vec![f32::NAN; data.len()];
        attention(&args, Precision::F32, &mut out, layout);
        out
    });
    assert!(images.iter().all(|x| x.is_finite()) && images == heads);
    // 120 tokens of all images are more than 64 channels.
    assert_eq!(Partition::of(&s), Partition::Images);
    assert_eq!(Partition::of(&AttentionShape { queries: 20, ..s }), Partition::Heads);
}
