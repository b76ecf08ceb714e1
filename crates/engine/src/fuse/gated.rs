//! Gated GELU.

use super::graph::Graph;
use super::{Activation, Gated, Node, Verdict};

/// ```text
/// a, g = split(x, axis, two equal parts)
/// u = gelu(g, "EXACT")                        ->   y = geglu(x)
/// y = mul(a, u)
/// ```
/// A linear layer or a convolution that makes `x` for the split alone is part of the node, if its output
/// channels are split. Neither `a` nor `g` is then in memory.
pub(super) fn find(graph: &Graph, gelu: usize) -> Verdict {
    let Some(split) = graph.maker_of(gelu, "x", "split") else { return Ok(None) };
    let Some(mul) = graph.only_user_of(gelu, "mul") else { return Ok(None) };
    let halves = &graph.view(split).op().outputs;
    let (view, gate) = (graph.view(mul), graph.view(gelu).get("x"));
    let others = [view.get("x"), view.get("y")];
    let other = others.into_iter().flatten().find(|&id| id != graph.output(gelu));
    if halves.len() != 2 || gate != Some(halves[1]) || other != Some(halves[0]) {
        return Ok(None);
    }
    if graph.shape(halves[0]) != graph.shape(halves[1]) {
        return Err("the halves are not of the same size");
    }
    if graph.view(gelu).str("mode").ok().as_deref() != Some("EXACT") {
        return Err("the GELU is an approximation");
    }
    let ops = vec![split, gelu, mul];
    if !graph.is_closed(&ops, mul) {
        return Err("a part of it is used elsewhere");
    }
    let view = graph.view(split);
    let (Ok(x), Ok(axis)) = (view.value("x"), view.int("axis")) else { return Ok(None) };
    let shape = graph.shape(x);
    let Ok(axis) = view.axis(axis, shape.len()) else { return Ok(None) };
    let layer = layer(graph, split, axis);
    Ok(Some(vec![Node::Gated(Gated {
        ops: layer.into_iter().chain(ops).collect(),
        layer,
        input: x,
        output: graph.output(mul),
        width: shape[axis..].iter().product::<usize>() / 2,
        activation: Activation::Gelu,
    })]))
}

/// The layer whose result a split alone uses, if its output channels are split.
fn layer(graph: &Graph, split: usize, axis: usize) -> Option<usize> {
    let linear = graph.maker_of(split, "x", "linear");
    let layer = linear.or_else(|| graph.maker_of(split, "x", "conv"))?;
    let view = graph.view(layer);
    let outputs_axis = match linear {
        Some(_) => graph.shape(graph.output(layer)).len() - 1,
        None if view.int("groups").ok()? == 1 && graph.shape(graph.output(layer)).len() == 4 => 1,
        None => return None,
    };
    let has_constants =
        ["weight", "bias"].into_iter().all(|input| view.get(input).is_none_or(|id| graph.is_constant(id)));
    (axis == outputs_axis && has_constants && graph.only_user(layer) == Some(split)).then_some(layer)
}
