//! Fusion: chains of ops that a backend may run as one step, as data.
//!
//! [`fuse`] finds the chains by a table of rules. A chain is fused only if nothing outside uses its
//! intermediate values. It takes the place of its last op, so its inputs are made before it. Backends lower
//! the [`Node`]s, and may [decline](Fused::without) any of them.

mod attention;
mod epilogue;
mod gated;
mod graph;
mod group_norm;
mod heads;
mod layer_norm;
mod node;
mod projections;

use mixbit_mil::Function;

use graph::Graph;
pub use node::{
    Activation, Affine, Attention, Epilogue, Gated, GroupNorm, Heads, JointProjections, LayerNorm, Mask, Node,
};

/// The verdict of a rule on an op: the nodes of a chain; nothing, because the rule is about other ops; or the
/// reason why a chain that resembles the rule's is not fused. Several nodes follow one another.
type Verdict = Result<Option<Vec<Node>>, &'static str>;

/// A rewrite of a chain of ops.
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
    Rule { name: "gated GELU", anchor: "gelu", find: gated::find },
    Rule { name: "epilogue of a linear layer", anchor: "linear", find: epilogue::find_linear },
    Rule { name: "epilogue of a convolution", anchor: "conv", find: epilogue::find_conv },
];

/// A chain that resembles a rule's and is not fused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// The op that the chain was found by, as messages call it.
    pub op: String,
    /// The name of the rule.
    pub rule: &'static str,
    /// The reason.
    pub reason: &'static str,
}

/// A function as nodes, in an order in which they can run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fused {
    /// The nodes. Each op of the function is in one of them.
    pub nodes: Vec<Node>,
    /// The chains that are not fused, with reasons.
    pub declined: Vec<Declined>,
}

impl Fused {
    /// Every op of a function by itself.
    pub fn single_ops(function: &Function) -> Self {
        Fused { nodes: (0..function.ops().len()).map(Node::Op).collect(), declined: Vec::new() }
    }

    /// The same without the nodes that a backend declines: their ops take their place.
    pub fn without(self, declines: impl Fn(&Node) -> bool) -> Self {
        let keep = |node: Node| if declines(&node) { node.single_ops() } else { vec![node] };
        Fused { nodes: self.nodes.into_iter().flat_map(keep).collect(), declined: self.declined }
    }
}

/// Finds the chains of a function.
///
/// A fused node rounds only its last result: a backend that rounds every result to its declared type takes
/// [`Fused::single_ops`].
pub fn fuse(function: &Function) -> Fused {
    let graph = Graph::new(function);
    let mut chains: Vec<Option<Vec<Node>>> = function.ops().iter().map(|_| None).collect();
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
                    let ops: Vec<usize> = chain.iter().flat_map(Node::ops).copied().collect();
                    let last = ops.iter().copied().max().unwrap_or(index);
                    if ops.iter().any(|&op| covered[op]) {
                        continue;
                    }
                    ops.iter().for_each(|&op| covered[op] = true);
                    chains[last] = Some(chain);
                }
            }
        }
    }
    let mut nodes = Vec::with_capacity(function.ops().len());
    for (index, chain) in chains.into_iter().enumerate() {
        match chain {
            Some(chain) => nodes.extend(chain),
            None if covered[index] => {}
            None => nodes.push(Node::Op(index)),
        }
    }
    Fused { nodes, declined }
}
