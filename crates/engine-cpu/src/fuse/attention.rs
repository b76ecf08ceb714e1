//! Attention, without its matrix of scores.

use mixbit_kernels::{Attention, AttentionShape, HeadLayout, Heads, Mat, Partition};
use mixbit_mil::ValueId;

use super::graph::Graph;
use super::heads::{merged, tokens_behind};
use super::projections::Projections;
use super::{Chain, Verdict, label};
use crate::plan::PlanBuilder;

/// ```text
/// s = matmul(q, k)   or   einsum("bkhc,bchq->bkhq", k, q)
/// s = mul(s, scale)                       where there is one
/// s = add(s, mask)                        where there is one        ->   y = attention(q, k, v)
/// p = softmax(s, over the keys)
/// y = matmul(p, v)   or   matmul(v, p)   or   einsum("bchk,bkhq->bchq", v, p)
/// ```
///
/// Transposed operands are layouts of the kernel's, and so are heads that lie beside each other before and after ([`super::heads`]);
/// casts between floats on the way are nothing in wide arithmetic.
pub(super) fn find(graph: &Graph, softmax: usize) -> Verdict {
    let mut ops = vec![softmax];
    let Some(input) = graph.view(softmax).get("x") else { return Ok(None) };
    let (value, mask) = masked(graph, input, &mut ops);
    let (value, scale) = scaled(graph, value, &mut ops);
    let Some(scores) = graph.maker(value, "matmul").or_else(|| graph.maker(value, "einsum")) else {
        return Ok(None);
    };
    ops.push(scores);
    let mut probabilities = softmax;
    while let Some(cast) = graph.only_user_of(probabilities, "cast") {
        ops.push(cast);
        probabilities = cast;
    }
    let Some(product) = graph.only_user(probabilities) else { return Ok(None) };
    ops.push(product);
    let kinds = [scores, product].map(|op| graph.view(op).kind());
    let parts = match kinds {
        ["matmul", "matmul"] => matmuls(graph, [scores, product], graph.output(probabilities)),
        ["einsum", "einsum"] => einsums(graph, [scores, product], graph.output(probabilities)),
        _ => return Ok(None),
    };
    let Some(mut parts) = parts? else { return Ok(None) };
    let view = graph.view(softmax);
    let rank = graph.shape(input).len();
    let axis = view.int("axis").ok().and_then(|axis| view.axis(axis, rank).ok());
    if axis != Some(parts.key_axis) {
        return Err("the softmax is not over the keys");
    }
    if !graph.is_closed(&ops, product) {
        return Err("a part of it is used elsewhere");
    }
    let mask = mask.map(|mask| parts.mask(graph, mask)).transpose()?;
    if kinds == ["matmul"; 2] {
        parts.take_tokens(graph, product, &mut ops);
    }
    parts.scale *= scale;
    let values = [parts.query.0, parts.key.0, parts.value.0];
    let projections = Projections::find(graph, values, &mut ops);
    Ok(Some(parts.chain(ops, mask, projections)))
}

/// Looks through an `add` of a mask.
fn masked(graph: &Graph, value: ValueId, ops: &mut Vec<usize>) -> (ValueId, Option<ValueId>) {
    let Some(add) = graph.maker(value, "add") else { return (value, None) };
    let view = graph.view(add);
    let (Some(x), Some(y)) = (view.get("x"), view.get("y")) else { return (value, None) };
    let is_scores = |id| ["matmul", "mul"].iter().any(|kind| graph.maker(id, kind).is_some());
    let pair = if is_scores(x) { (x, Some(y)) } else { (y, Some(x)) };
    ops.push(add);
    pair
}

/// Looks through a product with one number.
fn scaled(graph: &Graph, value: ValueId, ops: &mut Vec<usize>) -> (ValueId, f32) {
    let Some(mul) = graph.maker(value, "mul") else { return (value, 1.0) };
    match graph.scalar_and_value(mul) {
        Some((scale, scores)) => {
            ops.push(mul);
            (scores, scale)
        }
        None => (value, 1.0),
    }
}

/// The operands of an attention and how they lie.
struct Parts {
    shape: AttentionShape,
    query: (ValueId, HeadLayout),
    key: (ValueId, HeadLayout),
    value: (ValueId, HeadLayout),
    out: (ValueId, HeadLayout),
    /// What the scores are multiplied by.
    scale: f32,
    /// The axis of the scores that the keys are along.
    key_axis: usize,
}

/// How the last two axes of an operand lie: tokens before channels, or after.
fn layout(heads: usize, matrix: [usize; 2], tokens_first: bool) -> (usize, usize, HeadLayout) {
    match tokens_first {
        true => (matrix[0], matrix[1], HeadLayout::head_major(heads, matrix[0], matrix[1])),
        false => (matrix[1], matrix[0], HeadLayout::channel_major(heads, matrix[1], matrix[0])),
    }
}

type Found = Result<Option<Parts>, &'static str>;

fn matmuls(graph: &Graph, [scores, product]: [usize; 2], probabilities: ValueId) -> Found {
    let (first, second) = (graph.view(scores), graph.view(product));
    let operands = (first.get("x"), first.get("y"), second.get("x"), second.get("y"));
    let (Some(query), Some(key), Some(left), Some(right)) = operands else { return Ok(None) };
    let is_transposed = |view: &mixbit_mil::OpView, input: &str| view.bool(input).unwrap_or(false);
    // The probabilities are rows of queries on the left, or columns of them on the right.
    let (value, value_tokens_first, out_tokens_first) = match (left == probabilities, right == probabilities)
    {
        (true, false) if !is_transposed(&second, "transpose_x") => {
            (right, !is_transposed(&second, "transpose_y"), true)
        }
        (false, true) if is_transposed(&second, "transpose_y") => {
            (left, is_transposed(&second, "transpose_x"), false)
        }
        _ => return Err("the probabilities are not multiplied along the keys"),
    };
    let shapes = [query, key, value].map(|id| graph.shape(id));
    let rank = shapes[0].len();
    if shapes.iter().any(|shape| shape.len() != rank) || rank < 3 {
        return Err("the operands are not of one rank");
    }
    let outer = &shapes[0][..rank - 2];
    if shapes.iter().any(|shape| &shape[..rank - 2] != outer) {
        return Err("heads are shared");
    }
    let heads: usize = outer.iter().product();
    let matrix = |shape: &[usize]| [shape[rank - 2], shape[rank - 1]];
    let (queries, dim, query_layout) =
        layout(heads, matrix(shapes[0]), !is_transposed(&first, "transpose_x"));
    let (keys, _, key_layout) = layout(heads, matrix(shapes[1]), is_transposed(&first, "transpose_y"));
    let (_, value_dim, value_layout) = layout(heads, matrix(shapes[2]), value_tokens_first);
    let out = match out_tokens_first {
        true => HeadLayout::head_major(heads, queries, value_dim),
        false => HeadLayout::channel_major(heads, queries, value_dim),
    };
    Ok(Some(Parts {
        shape: AttentionShape { batch: 1, heads, queries, keys, dim, value_dim },
        query: (query, query_layout),
        key: (key, key_layout),
        value: (value, value_layout),
        out: (graph.output(product), out),
        scale: 1.0,
        key_axis: rank - 1,
    }))
}

/// One head of Apple's `SPLIT_EINSUM`.
fn einsums(graph: &Graph, [scores, product]: [usize; 2], probabilities: ValueId) -> Found {
    let equation = |op: usize| graph.view(op).str("equation").unwrap_or_default();
    let operands = |op: usize| graph.view(op).arg("values").values().to_vec();
    let (key, query) = match (equation(scores).as_str(), &operands(scores)[..]) {
        ("bkhc,bchq->bkhq", &[key, query]) | ("bchq,bkhc->bkhq", &[query, key]) => (key, query),
        _ => return Err("the scores are of an unknown equation"),
    };
    let value = match (equation(product).as_str(), &operands(product)[..]) {
        ("bchk,bkhq->bchq", &[value, other]) | ("bkhq,bchk->bchq", &[other, value])
            if other == probabilities =>
        {
            value
        }
        _ => return Err("the product is of an unknown equation"),
    };
    let (&[batch, dim, 1, queries], &[_, keys, 1, _], &[_, value_dim, 1, _]) =
        (graph.shape(query), graph.shape(key), graph.shape(value))
    else {
        return Err("the operands are not of one head");
    };
    Ok(Some(Parts {
        shape: AttentionShape { batch, heads: 1, queries, keys, dim, value_dim },
        query: (query, HeadLayout::channel_major(1, queries, dim)),
        key: (key, HeadLayout::token_major(1, keys, dim)),
        value: (value, HeadLayout::channel_major(1, keys, value_dim)),
        out: (graph.output(product), HeadLayout::channel_major(1, queries, value_dim)),
        scale: 1.0,
        key_axis: 1,
    }))
}

/// A mask that is the same for every head, and the distances between its queries and between its keys.
struct Mask {
    value: ValueId,
    strides: [usize; 2],
}

impl Parts {
    fn mask(&self, graph: &Graph, value: ValueId) -> Result<Mask, &'static str> {
        let shape = graph.shape(value);
        let rank = shape.len();
        if self.key_axis == 1 || rank < 2 || shape[..rank - 2].iter().any(|&extent| extent != 1) {
            return Err("the mask is not the same for every head");
        }
        let (queries, keys) = (shape[rank - 2], shape[rank - 1]);
        let stride = |extent: usize, needed: usize, stride: usize| match extent {
            extent if extent == needed => Ok(stride),
            1 => Ok(0),
            _ => Err("the mask is not of queries and keys"),
        };
        let strides = [stride(queries, self.shape.queries, keys)?, stride(keys, self.shape.keys, 1)?];
        Ok(Mask { value, strides })
    }

    /// Reads operands, and writes the output, where heads lie beside each other, with the transposes in between as part of the
    /// attention.
    fn take_tokens(&mut self, graph: &Graph, product: usize, ops: &mut Vec<usize>) {
        let AttentionShape { heads: all, queries, keys, dim, value_dim, .. } = self.shape;
        let sizes = [[queries, dim], [keys, dim], [keys, value_dim]];
        let mut operands = [self.query, self.key, self.value];
        let found = [0, 1, 2].map(|index| {
            let [tokens, width] = sizes[index];
            let is_head_major = operands[index].1 == HeadLayout::head_major(all, tokens, width);
            is_head_major.then(|| tokens_behind(graph, operands[index].0, index < 2)).flatten()
        });
        let Some([batch, heads]) = found.iter().flatten().map(|tokens| [tokens.batch, tokens.heads]).next()
        else {
            return;
        };
        (self.shape.batch, self.shape.heads) = (batch, heads);
        for ((operand, found), [tokens, width]) in operands.iter_mut().zip(found).zip(sizes) {
            operand.1.batch = heads * operand.1.head;
            if let Some(found) = found.filter(|found| [found.batch, found.heads] == [batch, heads]) {
                *operand = (found.value, HeadLayout::token_major(heads, tokens, width));
                self.scale *= found.scale;
                ops.extend(found.ops);
            }
        }
        [self.query, self.key, self.value] = operands;
        self.out.1.batch = heads * self.out.1.head;
        if self.out.1 == HeadLayout::head_major(heads, queries, value_dim)
            && let Some((value, after)) = merged(graph, product, [batch, heads])
        {
            self.out = (value, HeadLayout::token_major(heads, queries, value_dim));
            ops.extend(after);
        }
    }

    fn chain(self, ops: Vec<usize>, mask: Option<Mask>, projections: Option<Projections>) -> Chain {
        let Parts { shape, query, key, value, out: (output, out), scale, .. } = self;
        let lower = move |plan: &mut PlanBuilder| {
            let together = match &projections {
                Some(projections) => projections.lower(plan)?,
                None => false,
            };
            let operands = if together { vec![query.0] } else { vec![query.0, key.0, value.0] };
            let reads: Vec<ValueId> =
                operands.into_iter().chain(mask.as_ref().map(|mask| mask.value)).collect();
            let strides = mask.as_ref().map(|mask| mask.strides);
            let label = label(plan, "attention", output);
            let (precision, packing) = (plan.precision(), plan.packing());
            plan.step(label, &reads, &[output], move |io| {
                let (operands, mask) = io.floats.split_at(io.floats.len() - usize::from(strides.is_some()));
                let [queries, keys, values] = match *operands {
                    [queries, keys, values] => [queries, keys, values],
                    // One after the other, equally long.
                    _ => [0, 1, 2].map(|index| {
                        let len = operands[0].len() / 3;
                        &operands[0][index * len..][..len]
                    }),
                };
                let mask = strides
                    .map(|[row, column]| Mat::with_strides(mask[0], shape.queries, shape.keys, row, column));
                let args = Attention {
                    shape,
                    query: Heads { data: queries, layout: query.1 },
                    key: Heads { data: keys, layout: key.1 },
                    value: Heads { data: values, layout: value.1 },
                    scale,
                    mask,
                    partition: if packing.is_due() { Partition::Images } else { Partition::of(&shape) },
                };
                mixbit_kernels::attention(&args, precision, io.out[0], out);
                Ok(())
            })
        };
        Chain { ops, lower: Box::new(lower) }
    }
}
