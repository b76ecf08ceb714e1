//! Transposes between the channels of linear layers and the heads of an attention.

use mixbit_mil::ValueId;

use super::graph::Graph;

/// Tokens with their heads side by side, `[batch, tokens, heads, width]`, and the ops between them and an
/// attention.
pub(super) struct Tokens {
    pub(super) value: ValueId,
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// The product of the factors between them and the attention.
    pub(super) scale: f32,
    pub(super) ops: Vec<usize>,
}

/// The tokens behind an operand of an attention; `None` if something else uses an intermediate value.
/// `may_scale` allows a factor between them and the attention:
/// ```text
/// x = mul(x, scale)                                   where there is one
/// x = reshape(x, [batch, tokens, heads, width])       as far as something is to be found behind it
/// x = mul(x, scale)                                   where there is one
/// x = transpose(x, [0, 2, 1, 3])
/// x = reshape(x, [batch * heads, tokens, width])      where there is one
/// ```
pub(super) fn tokens_behind(graph: &Graph, operand: ValueId, may_scale: bool) -> Option<Tokens> {
    let mut ops = Vec::new();
    let mut value = operand;
    if let Some(flat) = graph.own_maker(value, "reshape").filter(|&op| keeps_tokens(graph, op)) {
        ops.push(flat);
        value = graph.view(flat).get("x")?;
    }
    let transpose = graph.own_maker(value, "transpose").filter(|&op| swaps(graph, op))?;
    ops.push(transpose);
    value = graph.view(transpose).get("x")?;
    let &[batch, _, heads, _] = graph.shape(value) else { return None };
    let scaled = |value: ValueId| {
        let mul = graph.own_maker(value, "mul").filter(|_| may_scale)?;
        let (scale, value) = graph.scalar_and_value(mul)?;
        Some((mul, scale, value))
    };
    let mut scale = 1.0;
    if let Some((mul, by, of)) = scaled(value) {
        ops.push(mul);
        (scale, value) = (by, of);
    } else if let Some(split) = graph.own_maker(value, "reshape")
        && let Some((mul, by, of)) = scaled(graph.view(split).get("x")?)
    {
        ops.extend([split, mul]);
        (scale, value) = (by, of);
    }
    Some(Tokens { value, batch, heads, scale, ops })
}

/// The output of an attention with its heads side by side, and the ops that make it of the output that lies
/// head by head. `None` if something else uses an intermediate value.
pub(super) fn merged(
    graph: &Graph,
    product: usize,
    [batch, heads]: [usize; 2],
) -> Option<(ValueId, Vec<usize>)> {
    let split = graph.only_user_of(product, "reshape").filter(|&op| keeps_tokens(graph, op));
    let transpose =
        graph.only_user_of(split.unwrap_or(product), "transpose").filter(|&op| swaps(graph, op))?;
    let merged = graph.output(transpose);
    let is_whole = matches!(*graph.shape(merged), [images, _, count, _] if [images, count] == [batch, heads]);
    is_whole.then(|| (merged, split.into_iter().chain([transpose]).collect()))
}

/// True if a transpose exchanges heads and tokens.
fn swaps(graph: &Graph, op: usize) -> bool {
    graph.view(op).ints("perm").is_ok_and(|perm| perm.iter().map(|axis| axis.rem_euclid(4)).eq([0, 2, 1, 3]))
}

/// True if a reshape keeps the last two axes.
fn keeps_tokens(graph: &Graph, op: usize) -> bool {
    let of = graph.view(op).get("x").and_then(|x| graph.shape(x).last_chunk::<2>());
    of.is_some() && of == graph.shape(graph.output(op)).last_chunk::<2>()
}
