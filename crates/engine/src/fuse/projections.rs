//! Queries, keys and values of the same tokens: one product.

use mixbit_mil::ValueId;

use super::JointProjections;
use super::graph::Graph;

impl JointProjections {
    /// ```text
    /// v = linear(x, w, b)                of three values, with weights of one shape
    /// v = reshape(v)                     where there is one
    /// ```
    /// `None` if something else uses an intermediate value.
    pub(super) fn find(graph: &Graph, outputs: [ValueId; 3]) -> Option<Self> {
        let mut ops = Vec::new();
        let mut layers = Vec::new();
        for value in outputs {
            let reshape = graph.own_maker(value, "reshape");
            let made = reshape.map_or(Some(value), |op| graph.view(op).get("x"))?;
            let linear = graph.own_maker(made, "linear")?;
            let view = graph.view(linear);
            let weight = view.get("weight").filter(|&id| graph.is_constant(id))?;
            layers.push((linear, view.get("x")?, graph.shape(weight), view.get("bias").is_some()));
            ops.extend(reshape.into_iter().chain([linear]));
        }
        let &(_, x, weight, has_bias) = layers.first()?;
        let is_like_it =
            |layer: &(usize, ValueId, &[usize], bool)| (layer.1, layer.2, layer.3) == (x, weight, has_bias);
        if weight.len() != 2 || !layers.iter().all(is_like_it) {
            return None;
        }
        let layers = [0, 1, 2].map(|index| layers[index].0);
        Some(JointProjections { ops, layers, input: x, outputs })
    }
}
