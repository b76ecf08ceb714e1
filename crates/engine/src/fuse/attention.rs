//! Attention, without its matrix of scores.

use mixbit_mil::{OpView, ValueId};

use super::graph::Graph;
use super::heads::{merged, tokens_behind};
use super::{Attention, Heads, JointProjections, Mask, Node, Verdict};

/// ```text
/// s = matmul(q, k)   or   einsum("bkhc,bchq->bkhq", k, q)
/// s = mul(s, scale)                       where there is one
/// s = add(s, mask)                        where there is one        ->   y = attention(q, k, v)
/// p = softmax(s, over the keys)
/// y = matmul(p, v)   or   matmul(v, p)   or   einsum("bchk,bkhq->bchq", v, p)
/// ```
///
/// Strides express transposed operands, and heads that lie side by side before and after ([`super::heads`]).
/// Casts between floats change nothing in `f32`.
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
    let operands = [parts.query.value, parts.key.value, parts.value.value];
    let projections = JointProjections::find(graph, operands);
    let attention = parts.attention(ops, mask);
    Ok(Some(
        projections.map(Node::JointProjections).into_iter().chain([Node::Attention(attention)]).collect(),
    ))
}

/// The operand of an `add` of a mask, and the mask; the value itself if there is none.
fn masked(graph: &Graph, value: ValueId, ops: &mut Vec<usize>) -> (ValueId, Option<ValueId>) {
    let Some(add) = graph.maker(value, "add") else { return (value, None) };
    let view = graph.view(add);
    let (Some(x), Some(y)) = (view.get("x"), view.get("y")) else { return (value, None) };
    let is_scores = |id| ["matmul", "mul"].iter().any(|kind| graph.maker(id, kind).is_some());
    let pair = if is_scores(x) { (x, Some(y)) } else { (y, Some(x)) };
    ops.push(add);
    pair
}

/// The operand of a product with one number, and the number; the value itself if there is none.
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

/// The sizes of an attention.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    value_dim: usize,
}

/// The operands of an attention.
struct Parts {
    sizes: Sizes,
    query: Heads,
    key: Heads,
    value: Heads,
    out: Heads,
    /// The factor of the scores.
    scale: f32,
    /// The axis of the keys among those of the scores.
    key_axis: usize,
}

/// The tokens, the channels and the strides of an operand whose last two axes are tokens and channels, or the
/// reverse.
fn layout(value: ValueId, heads: usize, matrix: [usize; 2], tokens_first: bool) -> (usize, usize, Heads) {
    match tokens_first {
        true => (matrix[0], matrix[1], Heads::head_major(value, heads, matrix[0], matrix[1])),
        false => (matrix[1], matrix[0], Heads::channel_major(value, heads, matrix[1], matrix[0])),
    }
}

type Found = Result<Option<Parts>, &'static str>;

fn matmuls(graph: &Graph, [scores, product]: [usize; 2], probabilities: ValueId) -> Found {
    let (first, second) = (graph.view(scores), graph.view(product));
    let operands = (first.get("x"), first.get("y"), second.get("x"), second.get("y"));
    let (Some(query), Some(key), Some(left), Some(right)) = operands else { return Ok(None) };
    let is_transposed = |view: &OpView, input: &str| view.bool(input).unwrap_or(false);
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
    let (queries, dim, query) =
        layout(query, heads, matrix(shapes[0]), !is_transposed(&first, "transpose_x"));
    let (keys, _, key) = layout(key, heads, matrix(shapes[1]), is_transposed(&first, "transpose_y"));
    let (_, value_dim, value) = layout(value, heads, matrix(shapes[2]), value_tokens_first);
    let out = graph.output(product);
    let out = match out_tokens_first {
        true => Heads::head_major(out, heads, queries, value_dim),
        false => Heads::channel_major(out, heads, queries, value_dim),
    };
    Ok(Some(Parts {
        sizes: Sizes { batch: 1, heads, queries, keys, dim, value_dim },
        query,
        key,
        value,
        out,
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
        sizes: Sizes { batch, heads: 1, queries, keys, dim, value_dim },
        query: Heads::channel_major(query, 1, queries, dim),
        key: Heads::token_major(key, 1, keys, dim),
        value: Heads::channel_major(value, 1, keys, value_dim),
        out: Heads::channel_major(graph.output(product), 1, queries, value_dim),
        scale: 1.0,
        key_axis: 1,
    }))
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
        let strides = [stride(queries, self.sizes.queries, keys)?, stride(keys, self.sizes.keys, 1)?];
        Ok(Mask { value, strides })
    }

    /// Makes the transposes around the heads of tokens part of the attention: operands and output are then
    /// read and written with an image's heads side by side.
    fn take_tokens(&mut self, graph: &Graph, product: usize, ops: &mut Vec<usize>) {
        let Sizes { heads: all, queries, keys, dim, value_dim, .. } = self.sizes;
        let sizes = [[queries, dim], [keys, dim], [keys, value_dim]];
        let mut operands = [self.query, self.key, self.value];
        let found = [0, 1, 2].map(|index| {
            let ([tokens, width], operand) = (sizes[index], operands[index]);
            let is_head_major = operand == Heads::head_major(operand.value, all, tokens, width);
            is_head_major.then(|| tokens_behind(graph, operand.value, index < 2)).flatten()
        });
        let Some([batch, heads]) = found.iter().flatten().map(|tokens| [tokens.batch, tokens.heads]).next()
        else {
            return;
        };
        (self.sizes.batch, self.sizes.heads) = (batch, heads);
        for ((operand, found), [tokens, width]) in operands.iter_mut().zip(found).zip(sizes) {
            operand.batch = heads * operand.head;
            if let Some(found) = found.filter(|found| [found.batch, found.heads] == [batch, heads]) {
                *operand = Heads::token_major(found.value, heads, tokens, width);
                self.scale *= found.scale;
                ops.extend(found.ops);
            }
        }
        [self.query, self.key, self.value] = operands;
        self.out.batch = heads * self.out.head;
        if self.out == Heads::head_major(self.out.value, heads, queries, value_dim)
            && let Some((value, after)) = merged(graph, product, [batch, heads])
        {
            self.out = Heads::token_major(value, heads, queries, value_dim);
            ops.extend(after);
        }
    }

    fn attention(self, ops: Vec<usize>, mask: Option<Mask>) -> Attention {
        let Parts { sizes, query, key, value, out: output, scale, .. } = self;
        let Sizes { batch, heads, queries, keys, dim, value_dim } = sizes;
        Attention { ops, batch, heads, queries, keys, dim, value_dim, query, key, value, output, scale, mask }
    }
}
