//! Layer norm as Apple's converter writes it, over the channels of [N, C, 1, S].

use mixbit_mil::ValueId;

use super::graph::Graph;
use super::{Affine, LayerNorm, Node, Verdict};
use crate::geometry::around;

/// ```text
/// m = reduce_mean(x, one axis)
/// c = sub(x, m)
/// v = reduce_mean(mul(c, c), the same axis)           or square(c)
/// i = rsqrt(add(v, epsilon), epsilon)                                  ->   y = layer_norm(x, gamma, beta)
/// n = mul(c, i)
/// y = mul(add(n, beta / gamma), gamma)                                      beta is of the axis, as gamma is
/// ```
/// The `add` before `rsqrt` is optional, and so are the last `mul` and both ops of the last line. An `add` of
/// another kind that follows stays an op.
pub(super) fn find(graph: &Graph, rsqrt: usize) -> Verdict {
    let Some(core) = Core::around(graph, rsqrt) else { return Ok(None) };
    let Core { mut ops, input, axis, epsilon, normalized } = core;
    let mut affine: Vec<Affine> = Vec::new();
    let mut last = normalized;
    // At most one sum and two steps.
    while affine.len() < 2 {
        let Some(user) = graph.only_user(last) else { break };
        let Some(step) = affine_step(graph, user, last, axis) else { break };
        if let (Affine::Shift(_), Some(Affine::Shift(_))) = (step, affine.last()) {
            break;
        }
        affine.push(step);
        ops.push(user);
        last = user;
    }
    if !graph.is_closed(&ops, last) {
        return Err("a part of it is used elsewhere");
    }
    let (output, shape) = (graph.output(last), around(graph.shape(input), axis));
    Ok(Some(vec![Node::LayerNorm(LayerNorm { ops, input, output, shape, epsilon, affine })]))
}

/// An op that combines the output of `maker` with a constant for each element of an axis.
fn affine_step(graph: &Graph, op: usize, maker: usize, axis: usize) -> Option<Affine> {
    let own = graph.output(maker);
    let view = graph.view(op);
    let step = match view.kind() {
        "add" => Affine::Shift,
        "mul" => Affine::Scale,
        _ => return None,
    };
    let other = [view.get("x"), view.get("y")].into_iter().flatten().find(|&id| id != own)?;
    let (shape, whole) = (graph.shape(other), graph.shape(own));
    // Seen from the last axis, as broadcasting does.
    let is_of_axis = shape.len() + axis >= whole.len()
        && shape.len() <= whole.len()
        && shape.iter().product::<usize>() == whole[axis]
        && shape[shape.len() + axis - whole.len()] == whole[axis];
    (is_of_axis && graph.constant(other).is_some()).then(|| step(other))
}

/// The part before gamma and beta.
struct Core {
    ops: Vec<usize>,
    input: ValueId,
    axis: usize,
    epsilon: f32,
    /// The op that makes the normalized values.
    normalized: usize,
}

impl Core {
    /// The core around an `rsqrt`; `None` if the op has another purpose.
    fn around(graph: &Graph, rsqrt: usize) -> Option<Self> {
        let mut epsilon = graph.view(rsqrt).float("epsilon").ok()? as f32;
        let mut ops = vec![rsqrt];
        let mut variance = graph.view(rsqrt).get("x")?;
        if let Some(sum) = graph.maker(variance, "add") {
            let (added, value) = graph.scalar_and_value(sum)?;
            epsilon += added;
            variance = value;
            ops.push(sum);
        }
        let variance = graph.maker(variance, "reduce_mean")?;
        let squared = graph.view(variance).get("x")?;
        let square = graph.maker(squared, "square").or_else(|| graph.maker(squared, "mul"))?;
        let centered = graph.view(square).get("x")?;
        let is_square =
            graph.view(square).op().def.name == "square" || graph.view(square).get("y") == Some(centered);
        let center = graph.maker(centered, "sub")?;
        let mean = graph.maker_of(center, "y", "reduce_mean")?;
        let input = graph.view(center).get("x")?;
        let normalized = graph.only_user_of(rsqrt, "mul")?;
        let (view, inverse) = (graph.view(normalized), graph.output(rsqrt));
        let scaled = [view.get("x"), view.get("y")].into_iter().flatten().find(|&id| id != inverse)?;
        let axis = [mean, variance].map(|op| axis(graph, op));
        let fits = is_square
            && scaled == centered
            && graph.view(mean).get("x") == Some(input)
            && axis[0] == axis[1]
            && graph.dtype(input).is_float();
        ops.extend([variance, square, center, mean, normalized]);
        fits.then_some(Core { ops, input, axis: axis[0]?, epsilon, normalized })
    }
}

/// The only axis of a reduction that keeps it.
fn axis(graph: &Graph, reduction: usize) -> Option<usize> {
    let view = graph.view(reduction);
    let rank = graph.shape(view.get("x")?).len();
    match view.ints("axes").ok()?[..] {
        [axis] if view.bool("keep_dims").unwrap_or(false) => view.axis(axis, rank).ok(),
        _ => None,
    }
}
