use std::collections::HashSet;

use mixbit_mil::{Constant, Def, Function, TensorType, ValueId, WeightRef};

/// A weight that can be compressed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The module's name in the checkpoint: the weight's without `.weight`.
    pub name: String,
    /// The weight's value in the function.
    pub value: ValueId,
    /// The weight.
    pub weight: WeightRef,
}

impl Layer {
    /// The weight's type.
    pub fn ty(&self) -> &TensorType {
        self.weight.ty()
    }

    /// The number of weights.
    pub fn count(&self) -> usize {
        self.ty().count()
    }
}

/// The layers of a function in the order of their first use: the constant weights of ops that have one
/// ([`mixbit_mil::OpDef::weight`]), compressed or not. Constexpr ops must be decoded
/// ([`mixbit_mil::constexpr::decoded`]).
pub fn layers(function: &Function) -> Vec<Layer> {
    let mut seen = HashSet::new();
    let weights = function.ops().iter().filter_map(|op| function.view(op).weight());
    let weights = weights.filter(|id| seen.insert(*id));
    let layer = |value: ValueId| {
        let Def::Const(Constant::Weight(weight)) = &function.value(value).def else { return None };
        let name = weight.name().strip_suffix(".weight").unwrap_or(weight.name()).to_string();
        Some(Layer { name, value, weight: weight.clone() })
    };
    weights.filter_map(layer).collect()
}
