//! The nodes that a function is fused into: what a backend may run as one step.

use mixbit_mil::{Function, Op, OpView, ValueId};

/// A part of a function that a backend may run as one step: a single op, or a chain of ops.
///
/// A node holds values and sizes only. It knows the ops that it stands for, so a backend that has no better
/// way for a chain runs these: see [`Node::single_ops`].
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// The op at a position of the function.
    Op(usize),
    /// A group norm that a batch norm scales, as coremltools writes it.
    GroupNorm(GroupNorm),
    /// A group norm that a product and a sum scale.
    FlatGroupNorm(GroupNorm),
    /// A layer norm, op by op, as Apple's converter writes it.
    LayerNorm(LayerNorm),
    /// An attention, without its matrix of scores.
    Attention(Attention),
    /// Queries, keys and values of the same tokens, which the [`Attention`] that follows takes: one product.
    JointProjections(JointProjections),
    /// A gated unit, with the layer before it or without.
    Gated(Gated),
    /// A linear layer with an epilogue.
    Linear(Epilogue),
    /// A convolution with an epilogue.
    Conv(Epilogue),
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * sigmoid(slope * x)`.
    Swish {
        /// The slope.
        slope: f32,
    },
    /// The Gaussian error linear unit.
    Gelu,
    /// Its approximation by `tanh`.
    GeluTanh,
}

impl Activation {
    /// The function of an op that is an activation; `None` for other ops.
    pub fn of(op: &OpView) -> Option<Self> {
        Some(match op.kind() {
            "relu" => Activation::Relu,
            "sigmoid" => Activation::Sigmoid,
            "silu" => Activation::Silu,
            "gelu" => match op.str("mode").ok()?.as_str() {
                "TANH_APPROXIMATION" => Activation::GeluTanh,
                "SIGMOID_APPROXIMATION" => Activation::Swish { slope: 1.702 },
                _ => Activation::Gelu,
            },
            _ => return None,
        })
    }
}

/// The group norm of `[batch, channels, spatial..]`, and an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// The positions of the ops.
    pub ops: Vec<usize>,
    /// The value that is normalized.
    pub input: ValueId,
    /// The result.
    pub output: ValueId,
    /// Images.
    pub batch: usize,
    /// Channels of all groups.
    pub channels: usize,
    /// Pixels.
    pub spatial: usize,
    /// Groups of consecutive channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// The constant factor of each channel, if any.
    pub gamma: Option<ValueId>,
    /// A factor of all channels.
    pub gain: f32,
    /// The constant addend of each channel, if any.
    pub beta: Option<ValueId>,
    /// Applied last.
    pub activation: Option<Activation>,
}

/// The layer norm along one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// The positions of the ops.
    pub ops: Vec<usize>,
    /// The value that is normalized.
    pub input: ValueId,
    /// The result.
    pub output: ValueId,
    /// The product of the extents before the axis, the axis's own, and the product of those after it.
    pub shape: [usize; 3],
    /// Added to the variance.
    pub epsilon: f32,
    /// Applied to the normalized values, in order.
    pub affine: Vec<Affine>,
}

/// An element-wise step with a constant for each element of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affine {
    /// A product.
    Scale(ValueId),
    /// A sum.
    Shift(ValueId),
}

/// `softmax(scale * query key^T + mask) value` of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The positions of the ops.
    pub ops: Vec<usize>,
    /// Images.
    pub batch: usize,
    /// Heads of an image.
    pub heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key and value tokens.
    pub keys: usize,
    /// Channels of a head's queries and keys.
    pub dim: usize,
    /// Channels of a head's values and output.
    pub value_dim: usize,
    /// `queries` tokens of `dim` channels.
    pub query: Heads,
    /// `keys` tokens of `dim` channels.
    pub key: Heads,
    /// `keys` tokens of `value_dim` channels.
    pub value: Heads,
    /// `queries` tokens of `value_dim` channels.
    pub output: Heads,
    /// The factor of the scores.
    pub scale: f32,
    /// The addend of the scores, if any.
    pub mask: Option<Mask>,
}

/// The heads of all images within a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The value.
    pub value: ValueId,
    /// The stride between images.
    pub batch: usize,
    /// The stride between heads.
    pub head: usize,
    /// The stride between tokens.
    pub token: usize,
    /// The stride between channels.
    pub channel: usize,
}

impl Heads {
    /// Heads of `[batch, tokens, heads, dim]`: the output of a linear layer.
    pub(super) fn token_major(value: ValueId, heads: usize, tokens: usize, dim: usize) -> Self {
        Heads { value, batch: tokens * heads * dim, head: dim, token: heads * dim, channel: 1 }
    }

    /// Heads of `[batch, heads, tokens, dim]`.
    pub(super) fn head_major(value: ValueId, heads: usize, tokens: usize, dim: usize) -> Self {
        Heads { value, batch: heads * tokens * dim, head: tokens * dim, token: dim, channel: 1 }
    }

    /// Heads of `[batch, heads, dim, tokens]`: the output of a 1x1 convolution.
    pub(super) fn channel_major(value: ValueId, heads: usize, tokens: usize, dim: usize) -> Self {
        Heads { value, batch: heads * tokens * dim, head: tokens * dim, token: 1, channel: tokens }
    }
}

/// A mask that is the same for every head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The value.
    pub value: ValueId,
    /// The strides between queries and between keys.
    pub strides: [usize; 2],
}

/// The linear layers that make an attention's operands of one value, with weights of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointProjections {
    /// The positions of the ops.
    pub ops: Vec<usize>,
    /// The positions of the layers of queries, keys and values.
    pub layers: [usize; 3],
    /// The rows that all multiply.
    pub input: ValueId,
    /// The operands of the attention. Nothing else uses them.
    pub outputs: [ValueId; 3],
}

/// `values * activation(gates)`, where the halves of a value along an axis are the values and the gates.
#[derive(Clone, Debug, PartialEq)]
pub struct Gated {
    /// The positions of the ops.
    pub ops: Vec<usize>,
    /// The position of the linear layer or convolution whose outputs are the halves, if it is part of the
    /// node.
    pub layer: Option<usize>,
    /// The value that is split.
    pub input: ValueId,
    /// The result.
    pub output: ValueId,
    /// Consecutive elements of each half.
    pub width: usize,
    /// Applied to the gates.
    pub activation: Activation,
}

/// A linear layer or a convolution, and the ops after it that a kernel applies before it stores the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Epilogue {
    /// The positions of the ops, that of the layer first.
    pub ops: Vec<usize>,
    /// The result.
    pub output: ValueId,
    /// An addend for each channel, of every image or of each. Convolutions only.
    pub shift: Option<ValueId>,
    /// An addend of the result's shape.
    pub residual: Option<ValueId>,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

impl Epilogue {
    /// The epilogue of a layer that no other op is fused with, for a backend that lowers it by the same code.
    pub fn none(layer: &OpView) -> Self {
        Epilogue {
            ops: Vec::new(),
            output: layer.op().outputs[0],
            shift: None,
            residual: None,
            activation: None,
        }
    }
}

impl Node {
    /// The positions of the ops that the node stands for.
    pub fn ops(&self) -> &[usize] {
        match self {
            Node::Op(op) => std::slice::from_ref(op),
            Node::GroupNorm(node) | Node::FlatGroupNorm(node) => &node.ops,
            Node::LayerNorm(node) => &node.ops,
            Node::Attention(node) => &node.ops,
            Node::JointProjections(node) => &node.ops,
            Node::Gated(node) => &node.ops,
            Node::Linear(node) | Node::Conv(node) => &node.ops,
        }
    }

    /// The ops that the node stands for, each a node of its own, in the order of the function. They may stand
    /// where the node does.
    pub fn single_ops(&self) -> Vec<Node> {
        let mut ops = self.ops().to_vec();
        ops.sort_unstable();
        ops.into_iter().map(Node::Op).collect()
    }

    /// The multiply-adds of the node's ops.
    pub fn multiply_adds(&self, function: &Function) -> u64 {
        let one = |op: &Op| mixbit_mil::multiply_adds(&function.view(op));
        self.ops().iter().map(|&op| one(&function.ops()[op])).sum()
    }

    /// The kind of the node, such as `conv+residual+activation`.
    pub fn kind(&self, function: &Function) -> String {
        let op = |position: usize| function.ops()[position].def.name;
        match self {
            Node::Op(position) => op(*position).to_string(),
            Node::GroupNorm(_) | Node::FlatGroupNorm(_) => "group_norm".to_string(),
            Node::LayerNorm(_) => "layer_norm".to_string(),
            Node::Attention(_) => "attention".to_string(),
            Node::JointProjections(node) => node.layers.map(op).join("+"),
            Node::Gated(Gated { layer, .. }) => {
                layer.map(op).into_iter().chain(["geglu"]).collect::<Vec<_>>().join("+")
            }
            Node::Linear(node) | Node::Conv(node) => {
                let parts = [
                    Some(op(node.ops[0])),
                    node.shift.map(|_| "shift"),
                    node.residual.map(|_| "residual"),
                    node.activation.map(|_| "activation"),
                ];
                parts.into_iter().flatten().collect::<Vec<_>>().join("+")
            }
        }
    }
}
