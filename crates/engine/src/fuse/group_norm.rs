//! Group norm, which MIL lacks, as coremltools writes it.

use mixbit_mil::ValueId;

use super::graph::Graph;
use super::{Activation, GroupNorm, Node, Verdict};

/// ```text
/// g = reshape(x, [N, G, C/G, ...])
/// m = reduce_mean(g, all axes but the first two)
/// c = sub(g, m)
/// v = reduce_mean(square(c), the same axes)
/// d = sqrt(add(v, epsilon))                                     ->   z = group_norm(x, gamma, beta)
/// n = reshape(real_div(c, d), [N, C, ...])
/// y = batch_norm(n, mean 0, variance 1, gamma, beta)
/// z = silu(y)                           where that is all that uses y
/// ```
pub(super) fn find(graph: &Graph, batch_norm: usize) -> Verdict {
    let Some(core) = Core::before(graph, batch_norm) else { return Ok(None) };
    let core = core?;
    let view = graph.view(batch_norm);
    let constant =
        |input: &str| view.get(input).map(|id| graph.constant(id).ok_or("a parameter is computed"));
    let is = |input: &str, value: f32| -> Result<bool, &'static str> {
        Ok(constant(input).transpose()?.is_some_and(|values| values.iter().all(|&v| v == value)))
    };
    if !is("mean", 0.0)? || !is("variance", 1.0)? {
        return Err("the batch norm after it has statistics of its own");
    }
    let epsilon = view.float("epsilon").map_err(|_| "the batch norm's epsilon is not known")?;
    // Checked to be constants.
    constant("gamma").transpose()?;
    constant("beta").transpose()?;
    let gain = (1.0 / (1.0 + epsilon).sqrt()) as f32;
    let scaling = Scaling { ops: vec![batch_norm], gamma: view.get("gamma"), gain, beta: view.get("beta") };
    Ok(Some(vec![Node::GroupNorm(core.norm(graph, scaling)?)]))
}

/// ```text
/// n = ... as above
/// s = mul(n, gamma [1, C, 1...])              ->   z = group_norm(x, gamma, beta)
/// z = add(s, beta [1, C, 1...])
/// ```
pub(super) fn find_flat(graph: &Graph, add: usize) -> Verdict {
    let Some((mul, beta)) = column_and_maker(graph, add, "mul") else { return Ok(None) };
    let Some((_, gamma)) = column_and_maker(graph, mul, "reshape") else { return Ok(None) };
    let Some(core) = Core::before(graph, mul) else { return Ok(None) };
    let core = core?;
    let check = |id: ValueId| {
        let shape = graph.shape(id);
        let is_column = shape.len() == core.merged && shape.iter().product::<usize>() == shape[1];
        let values = if is_column { graph.constant(id) } else { None };
        let fits = values.is_some_and(|values| values.len() == core.channels);
        if fits { Ok(()) } else { Err("a parameter is not one for each channel") }
    };
    check(gamma)?;
    check(beta)?;
    let scaling = Scaling { ops: vec![mul, add], gamma: Some(gamma), gain: 1.0, beta: Some(beta) };
    Ok(Some(vec![Node::FlatGroupNorm(core.norm(graph, scaling)?)]))
}

/// The ops that scale a normalized value, and their constants.
struct Scaling {
    ops: Vec<usize>,
    gamma: Option<ValueId>,
    gain: f32,
    beta: Option<ValueId>,
}

/// The op of type `kind` that makes one of two inputs, and the constant that is the other.
fn column_and_maker(graph: &Graph, op: usize, kind: &str) -> Option<(usize, ValueId)> {
    let view = graph.view(op);
    let (x, y) = (view.get("x")?, view.get("y")?);
    let pick = |value, constant| {
        let maker = graph.maker(value, kind)?;
        (graph.is_constant(constant) && graph.shape(constant).len() > 1).then_some((maker, constant))
    };
    pick(x, y).or_else(|| pick(y, x))
}

/// The part that both forms share.
struct Core {
    ops: Vec<usize>,
    input: ValueId,
    batch: usize,
    channels: usize,
    spatial: usize,
    groups: usize,
    epsilon: f32,
    /// The rank of the normalized value.
    merged: usize,
}

impl Core {
    /// The core whose result is the `x` or the `y` of an op, if it is one.
    fn before(graph: &Graph, user: usize) -> Option<Result<Self, &'static str>> {
        let merge = graph.maker_of(user, "x", "reshape").or_else(|| graph.maker_of(user, "y", "reshape"))?;
        let divide = graph.maker_of(merge, "x", "real_div")?;
        let deviation = graph.maker_of(divide, "y", "sqrt")?;
        let center = graph.maker_of(divide, "x", "sub")?;
        let sum = graph.maker_of(deviation, "x", "add")?;
        let (epsilon, variance) = graph.scalar_and_value(sum)?;
        let variance = graph.maker(variance, "reduce_mean")?;
        let square = graph.maker_of(variance, "x", "square")?;
        let mean = graph.maker_of(center, "y", "reduce_mean")?;
        let group = graph.maker_of(center, "x", "reshape")?;
        let is_own = graph.view(square).get("x") == Some(graph.output(center))
            && graph.view(mean).get("x") == Some(graph.output(group));
        if !is_own {
            return None;
        }
        let input = graph.view(group).get("x")?;
        let ops = vec![group, mean, center, square, variance, sum, deviation, divide, merge];
        let (whole, grouped, merged) =
            (graph.shape(input), graph.shape(graph.output(group)), graph.shape(graph.output(merge)));
        Some(Self::sizes(graph, [mean, variance], [whole, grouped, merged]).map(
            |[batch, channels, spatial, groups]| Core {
                ops,
                input,
                batch,
                channels,
                spatial,
                groups,
                epsilon,
                merged: merged.len(),
            },
        ))
    }

    /// Images, channels, pixels and groups.
    fn sizes(
        graph: &Graph,
        reductions: [usize; 2],
        [whole, grouped, merged]: [&[usize]; 3],
    ) -> Result<[usize; 4], &'static str> {
        let rank = grouped.len();
        if rank < 4 || whole.len() < 3 || merged.len() < 3 {
            return Err("there is no axis of groups before that of channels");
        }
        for reduction in reductions {
            let view = graph.view(reduction);
            let axes = view.ints("axes").unwrap_or_default();
            let mut axes: Vec<usize> = axes.iter().filter_map(|&axis| view.axis(axis, rank).ok()).collect();
            axes.sort_unstable();
            if !axes.into_iter().eq(2..rank) || !view.bool("keep_dims").unwrap_or(false) {
                return Err("the statistics are not of whole groups");
            }
        }
        let channels = grouped[1] * grouped[2];
        let [batch, spatial] = [grouped[0], grouped[3..].iter().product()];
        let fits = |shape: &[usize]| {
            shape[0] == batch && shape[1] == channels && shape[2..].iter().product::<usize>() == spatial
        };
        if !fits(whole) || !fits(merged) || channels == 0 {
            return Err("the groups are not of whole channels");
        }
        Ok([batch, channels, spatial, grouped[1]])
    }

    /// The core with the ops that scale its result, and the activation after these.
    fn norm(self, graph: &Graph, scaling: Scaling) -> Result<GroupNorm, &'static str> {
        let Core { mut ops, input, batch, channels, spatial, groups, epsilon, .. } = self;
        let Scaling { ops: scaling, gamma, gain, beta } = scaling;
        let mut last = *scaling.last().unwrap_or(&0);
        ops.extend(scaling);
        let silu = graph.only_user_of(last, "silu");
        if let Some(silu) = silu {
            ops.push(silu);
            last = silu;
        }
        if !graph.is_closed(&ops, last) {
            return Err("a part of it is used elsewhere");
        }
        let (output, activation) = (graph.output(last), silu.map(|_| Activation::Silu));
        Ok(GroupNorm {
            ops,
            input,
            output,
            batch,
            channels,
            spatial,
            groups,
            epsilon,
            gamma,
            gain,
            beta,
            activation,
        })
    }
}
