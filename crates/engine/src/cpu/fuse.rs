//! From ops to nodes: single ops, and chains that one kernel computes.

use mil::{Function, Op};

use super::Lowering;
use crate::Error;
use crate::ops::binding;

/// What is lowered as one.
pub(super) enum Node<'f> {
    /// An op by itself.
    Op(&'f Op),
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
pub(super) fn nodes(function: &Function) -> Fused<'_> {
    single_ops(function)
}

impl Node<'_> {
    /// Adds the node's steps.
    pub(super) fn lower(&self, plan: &mut Lowering) -> Result<(), Error> {
        match self {
            Node::Op(op) => {
                let view = plan.function().view(op);
                let bound = binding(op.def.name).ok_or_else(|| Error::Unsupported {
                    backend: "cpu",
                    op: view.label(),
                    what: "the op has no definition".to_string(),
                })?;
                (bound.lower)(&view, plan)
            }
        }
    }
}
