//! What follows a linear layer or a convolution, done while its result is on the way from registers to memory.

use mixbit_kernels::UnaryOp;
use mixbit_mil::ValueId;

use super::graph::Graph;
use super::{Chain, Verdict, label};
use crate::ops::{Ending, activation, lower_conv, lower_linear};
use crate::plan::PlanBuilder;

/// ```text
/// y = linear(x, w, b)
/// s = add(y, r)                       where r has y's shape     ->   z = linear(x, w, b) ending in "+ r" and "activation"
/// z = activation(s)
/// ```
/// Each of the two is optional.
pub(super) fn find_linear(graph: &Graph, linear: usize) -> Verdict {
    let Some(id) = graph.view(linear).get("weight") else { return Ok(None) };
    if !graph.is_constant(id) {
        return Ok(None);
    }
    let mut tail = Tail::of(linear);
    tail.add_residual(graph);
    tail.activate(graph);
    let lower = move |plan: &mut PlanBuilder, ending: Ending| {
        let function = plan.function();
        lower_linear(&function.view(&function.ops()[linear]), plan, ending)
    };
    Ok(tail.chain(graph, "linear", lower))
}

/// As [`find_linear`], for a convolution; what is added may also be a value for each channel, of every image or of each:
/// ```text
/// s = add(conv(x, w, b), e [N or 1, C, 1, 1])
/// ```
pub(super) fn find_conv(graph: &Graph, conv: usize) -> Verdict {
    let Some(id) = graph.view(conv).get("weight") else { return Ok(None) };
    if !graph.is_constant(id) {
        return Ok(None);
    }
    let mut tail = Tail::of(conv);
    tail.add_shift(graph);
    tail.add_residual(graph);
    tail.activate(graph);
    let lower = move |plan: &mut PlanBuilder, ending: Ending| {
        let function = plan.function();
        lower_conv(&function.view(&function.ops()[conv]), plan, ending)
    };
    Ok(tail.chain(graph, "conv", lower))
}

/// The ops that follow a product, as far as they were found.
struct Tail {
    ops: Vec<usize>,
    residual: Option<ValueId>,
    shift: Option<ValueId>,
    activation: Option<UnaryOp>,
}

impl Tail {
    fn of(product: usize) -> Self {
        Tail { ops: vec![product], residual: None, shift: None, activation: None }
    }

    fn last(&self) -> usize {
        *self.ops.last().unwrap_or(&0)
    }

    /// The next op if it is an `add` of what was found to a value of floats that is computed.
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
                activation(&graph.view(user)).map(|activation| (vec![user], activation))
            }
            [_, _] => quick_gelu(graph, self.last()),
            _ => None,
        };
        if let Some((ops, activation)) = found {
            self.ops.extend(ops);
            self.activation = Some(activation);
        }
    }

    /// The chain; `None` if there is nothing but the product.
    fn chain(
        self,
        graph: &Graph,
        product: &str,
        lower: impl Fn(&mut PlanBuilder, Ending) -> Result<(), mixbit_engine::Error> + 'static,
    ) -> Option<Chain> {
        let last = self.last();
        let Tail { ops, residual, shift, activation } = self;
        if ops.len() == 1 || !graph.is_closed(&ops, last) {
            return None;
        }
        let parts = [
            Some(product),
            shift.map(|_| "shift"),
            residual.map(|_| "residual"),
            activation.map(|_| "activation"),
        ];
        let rule = parts.into_iter().flatten().collect::<Vec<_>>().join("+");
        let output = graph.output(last);
        let lower = move |plan: &mut PlanBuilder| {
            lower(plan, Ending { label: label(plan, &rule, output), output, residual, shift, activation })
        };
        Some(Chain { ops, lower: Box::new(lower) })
    }
}

/// `x * sigmoid(slope * x)` in three ops, as CLIP has it.
fn quick_gelu(graph: &Graph, maker: usize) -> Option<(Vec<usize>, UnaryOp)> {
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
    (scaled == x && is_gate).then(|| (vec![scale, sigmoid, product], UnaryOp::Swish { slope }))
}
