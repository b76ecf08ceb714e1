//! Gated GELU.

use super::graph::Graph;
use super::{Chain, Verdict, label};

/// ```text
/// a, g = split(x, axis, two equal parts)
/// u = gelu(g, "EXACT")                        ->   y = geglu(x)
/// y = mul(a, u)
/// ```
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
    let width: usize = shape[axis..].iter().product::<usize>() / 2;
    let output = graph.output(mul);
    let lower = move |plan: &mut super::Lowering| {
        let label = label(plan, "geglu", output);
        plan.step(label, &[x], &[output], move |io| {
            kernels::geglu(io.floats[0], width, io.out[0]);
            Ok(())
        })
    };
    Ok(Some(Chain { ops, lower: Box::new(lower) }))
}
