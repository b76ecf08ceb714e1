//! The ops after a linear layer or a convolution that a kernel applies before it stores the result.

use mixbit_mil::ValueId;

use super::graph::Graph;
use super::{Activation, Epilogue, Node, Verdict};

/// ```text
/// y = linear(x, w, b)
/// s = add(y, r)              where r has y's shape  ->  z = linear(x, w, b) with the epilogue r, activation
/// z = activation(s)
/// ```
/// Each of the two is optional.
pub(super) fn find_linear(graph: &Graph, linear: usize) -> Verdict {
    if !has_constant_weight(graph, linear) {
        return Ok(None);
    }
    let mut epilogue = Epilogue::of(graph, linear);
    epilogue.add_residual(graph);
    epilogue.activate(graph);
    Ok(epilogue.finish(graph).map(|epilogue| vec![Node::Linear(epilogue)]))
}

/// As [`find_linear`], for a convolution; a value for each channel, of every image or of each, may be added
/// first:
/// ```text
/// s = add(conv(x, w, b), e [N or 1, C, 1, 1])
/// ```
pub(super) fn find_conv(graph: &Graph, conv: usize) -> Verdict {
    if !has_constant_weight(graph, conv) {
        return Ok(None);
    }
    let mut epilogue = Epilogue::of(graph, conv);
    epilogue.add_shift(graph);
    epilogue.add_residual(graph);
    epilogue.activate(graph);
    Ok(epilogue.finish(graph).map(|epilogue| vec![Node::Conv(epilogue)]))
}

fn has_constant_weight(graph: &Graph, layer: usize) -> bool {
    graph.view(layer).get("weight").is_some_and(|id| graph.is_constant(id))
}

impl Epilogue {
    /// A layer by itself.
    fn of(graph: &Graph, layer: usize) -> Self {
        Epilogue { ops: vec![layer], ..Epilogue::none(&graph.view(layer)) }
    }

    fn last(&self) -> usize {
        *self.ops.last().unwrap_or(&0)
    }

    /// The next op if it is an `add` of a computed value of floats, and that value.
    fn addend(&self, graph: &Graph) -> Option<(usize, ValueId)> {
        let add = graph.only_user_of(self.last(), "add")?;
        let (view, own) = (graph.view(add), graph.output(self.last()));
        let other = [view.get("x"), view.get("y")].into_iter().flatten().find(|&id| id != own)?;
        let is_same_type = graph.dtype(other) == graph.dtype(own);
        (is_same_type && !graph.is_constant(other)).then_some((add, other))
    }

    fn add_residual(&mut self, graph: &Graph) {
        if let Some((add, other)) = self.addend(graph)
            && graph.shape(other) == graph.shape(graph.output(self.last()))
        {
            self.residual = Some(other);
            self.ops.push(add);
        }
    }

    fn add_shift(&mut self, graph: &Graph) {
        let Some((add, other)) = self.addend(graph) else { return };
        let (&[images, channels, height, width], &[n, c, 1, 1]) =
            (graph.shape(graph.output(self.last())), graph.shape(other))
        else {
            return;
        };
        if c == channels && (n == images || n == 1) && height * width > 1 {
            self.shift = Some(other);
            self.ops.push(add);
        }
    }

    fn activate(&mut self, graph: &Graph) {
        let found = match *graph.users(self.last()) {
            [user] if graph.is_op(user) => {
                Activation::of(&graph.view(user)).map(|activation| (vec![user], activation))
            }
            [_, _] => quick_gelu(graph, self.last()),
            _ => None,
        };
        if let Some((ops, activation)) = found {
            self.ops.extend(ops);
            self.activation = Some(activation);
        }
    }

    /// The epilogue; `None` if there is nothing but the layer, or something else uses an intermediate value.
    fn finish(mut self, graph: &Graph) -> Option<Self> {
        let last = self.last();
        self.output = graph.output(last);
        (self.ops.len() > 1 && graph.is_closed(&self.ops, last)).then_some(self)
    }
}

/// `x * sigmoid(slope * x)` in three ops, as CLIP has it.
fn quick_gelu(graph: &Graph, maker: usize) -> Option<(Vec<usize>, Activation)> {
    let x = graph.output(maker);
    let is = |op: &usize, kind: &str| graph.is_op(*op) && graph.view(*op).op().def.name == kind;
    let &[first, second] = graph.users(maker) else { return None };
    let (scale, product) = (first.min(second), first.max(second));
    if !is(&scale, "mul") || !is(&product, "mul") {
        return None;
    }
    let (slope, scaled) = graph.scalar_and_value(scale)?;
    let sigmoid = graph.only_user_of(scale, "sigmoid")?;
    let is_gate = graph.only_user(sigmoid) == Some(product);
    (scaled == x && is_gate).then(|| (vec![scale, sigmoid, product], Activation::Swish { slope }))
}
