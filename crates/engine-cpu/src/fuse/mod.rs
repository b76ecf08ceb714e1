//! From ops to nodes: single ops, and chains that one kernel computes.

mod attention;
mod epilogue;
mod geglu;
mod graph;
mod group_norm;
mod heads;
mod layer_norm;
mod projections;

use mixbit_engine::Error;
use mixbit_mil::{Function, Op, ValueId};

use crate::ops::lowering;
use crate::plan::PlanBuilder;
use graph::Graph;

/// Adds a step to a plan.
type Lower = Box<dyn Fn(&mut PlanBuilder) -> Result<(), Error>>;

/// A chain of ops that one kernel computes.
struct Chain {
    /// The positions of the ops; the chain takes the place of the last.
    ops: Vec<usize>,
    lower: Lower,
}

/// What a rule makes of an op: a chain; or nothing, because it is not what the rule is about; or the reason why it is,
/// but is not fused.
type Verdict = Result<Option<Chain>, &'static str>;

/// A rewrite of a chain of ops into one step.
struct Rule {
    /// The name, for people.
    name: &'static str,
    /// The type of op that chains are found by.
    anchor: &'static str,
    find: fn(&Graph, usize) -> Verdict,
}

/// Every rule.
static RULES: &[Rule] = &[
    Rule { name: "group norm", anchor: "batch_norm", find: group_norm::find },
    Rule { name: "flat group norm", anchor: "add", find: group_norm::find_flat },
    Rule { name: "layer norm", anchor: "rsqrt", find: layer_norm::find },
    Rule { name: "attention", anchor: "softmax", find: attention::find },
    Rule { name: "gated GELU", anchor: "gelu", find: geglu::find },
    Rule { name: "epilogue of a linear layer", anchor: "linear", find: epilogue::find_linear },
    Rule { name: "epilogue of a convolution", anchor: "conv", find: epilogue::find_conv },
];

/// What is lowered as one.
pub(super) enum Node<'f> {
    /// An op by itself.
    Op(&'f Op),
    /// Several ops, by position.
    Chain(Vec<usize>, Lower),
}

/// A rule that looked at an op and let it be.
pub(super) struct Declined {
    pub(super) op: String,
    pub(super) rule: &'static str,
    pub(super) reason: &'static str,
}

/// A function as nodes, in order.
pub(super) struct Fused<'f> {
    pub(super) nodes: Vec<Node<'f>>,
    pub(super) declined: Vec<Declined>,
}

/// Every op by itself.
pub(super) fn single_ops(function: &Function) -> Fused<'_> {
    Fused { nodes: function.ops().iter().map(Node::Op).collect(), declined: Vec::new() }
}

/// The function's chains, fused where a kernel computes them.
///
/// A chain is fused only if nothing outside uses what it makes on its way. It takes the place of its last op, so what it
/// reads is there.
pub(super) fn nodes(function: &Function) -> Fused<'_> {
    let graph = Graph::new(function);
    let mut chains: Vec<Option<Chain>> = function.ops().iter().map(|_| None).collect();
    let mut covered = vec![false; function.ops().len()];
    let mut declined = Vec::new();
    for (index, op) in function.ops().iter().enumerate() {
        for rule in RULES.iter().filter(|rule| rule.anchor == op.def.name) {
            match (rule.find)(&graph, index) {
                Ok(None) => {}
                Err(reason) => {
                    declined.push(Declined { op: function.view(op).label(), rule: rule.name, reason });
                }
                Ok(Some(chain)) => {
                    let last = chain.ops.iter().copied().max().unwrap_or(index);
                    if chain.ops.iter().any(|&op| covered[op]) {
                        continue;
                    }
                    chain.ops.iter().for_each(|&op| covered[op] = true);
                    chains[last] = Some(chain);
                }
            }
        }
    }
    let mut nodes = Vec::with_capacity(function.ops().len());
    for (index, (op, chain)) in function.ops().iter().zip(chains).enumerate() {
        match chain {
            Some(chain) => nodes.push(Node::Chain(chain.ops, chain.lower)),
            None if covered[index] => {}
            None => nodes.push(Node::Op(op)),
        }
    }
    Fused { nodes, declined }
}

impl Node<'_> {
    /// The multiply-adds of the node's ops.
    pub(super) fn multiply_adds(&self, function: &Function) -> u64 {
        let one = |op: &Op| mixbit_mil::multiply_adds(&function.view(op));
        match self {
            Node::Chain(ops, _) => ops.iter().map(|&op| one(&function.ops()[op])).sum(),
            Node::Op(op) => one(op),
        }
    }

    /// Adds the node's steps.
    pub(super) fn lower(&self, plan: &mut PlanBuilder) -> Result<(), Error> {
        match self {
            Node::Chain(_, lower) => lower(plan),
            Node::Op(op) => {
                let view = plan.function().view(op);
                let lowering = lowering(op.def.name).ok_or_else(|| Error::Unsupported {
                    backend: "cpu",
                    op: view.label(),
                    what: "the op has no lowering".to_string(),
                })?;
                (lowering.lower)(&view, plan)
            }
        }
    }
}

/// The label of a fused step that makes `output`.
fn label(plan: &PlanBuilder, rule: &str, output: ValueId) -> String {
    format!("{rule} {}", plan.function().value(output).name)
}

#[cfg(test)]
mod tests;
