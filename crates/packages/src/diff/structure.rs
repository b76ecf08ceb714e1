//! The differences of two networks besides their weights.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use mixbit_mil::{Arg, Constant, Def, Function, Literal, Op, OpView, ValueId};

use crate::inspect::{InspectedNetwork, StoredTensor};

/// A named property that differs, or that one side lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The property's name.
    pub name: String,
    /// Its value in A and in B.
    pub sides: [Option<String>; 2],
}

/// The differences of two networks' structure.
#[derive(Debug, Default)]
pub struct Structure {
    /// Inputs, with their types.
    pub inputs: Vec<Change>,
    /// Outputs, with their types.
    pub outputs: Vec<Change>,
    /// The opset, and of packages the specification's version.
    pub formats: Vec<Change>,
    /// The number of ops of each type, without those that decode weights.
    pub operations: Vec<Change>,
    /// The first place where the graphs differ, in words.
    pub first_difference: Option<String>,
    /// The metadata, where both sides have some: checkpoints have none.
    pub metadata: Vec<Change>,
}

impl Structure {
    /// Compares two networks. `graphs` are theirs with decoded constants; weight files have none. `tensors`
    /// are the pairs that belong together.
    pub(super) fn compare(
        [a, b]: [&InspectedNetwork; 2],
        graphs: [Option<&Function>; 2],
        tensors: &[[&StoredTensor; 2]],
    ) -> Self {
        let mut structure = Structure::default();
        if let [Some(x), Some(y)] = graphs {
            let features = |network: &InspectedNetwork, ids| {
                let all = network.features(ids).into_iter();
                all.map(|feature| (feature.name.clone(), feature.type_and_kind())).collect()
            };
            structure.inputs = changes(features(a, Function::inputs), features(b, Function::inputs));
            structure.outputs = changes(features(a, Function::outputs), features(b, Function::outputs));
            structure.operations = changes(histogram(x), histogram(y));
            structure.first_difference = first_difference(x, y, tensors);
            let mut formats =
                [x, y].map(|graph| BTreeMap::from([("opset".to_string(), graph.opset.to_string())]));
            if let (Some(x), Some(y)) = (a.specification, b.specification) {
                for (format, version) in formats.iter_mut().zip([x, y]) {
                    format.insert("specification".to_string(), version.to_string());
                }
            }
            for (format, network) in formats.iter_mut().zip([a, b]).filter(|(_, it)| !it.pipeline.is_empty())
            {
                format.insert("pipeline".to_string(), network.pipeline.join(", "));
            }
            let [x, y] = formats;
            structure.formats = changes(x, y);
        }
        if a.specification.is_some() == b.specification.is_some()
            && a.function.is_some() == b.function.is_some()
        {
            structure.metadata = changes(a.metadata.clone(), b.metadata.clone());
        }
        structure
    }

    /// True if nothing differs.
    pub fn is_same(&self) -> bool {
        let lists = [&self.inputs, &self.outputs, &self.formats, &self.operations, &self.metadata];
        lists.iter().all(|list| list.is_empty()) && self.first_difference.is_none()
    }
}

/// The differences of two sets of named texts, by name.
fn changes(a: BTreeMap<String, String>, mut b: BTreeMap<String, String>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, value) in a {
        let other = b.remove(&name);
        if other.as_ref() != Some(&value) {
            changes.push(Change { name, sides: [Some(value), other] });
        }
    }
    changes.extend(b.into_iter().map(|(name, value)| Change { name, sides: [None, Some(value)] }));
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    changes
}

fn histogram(function: &Function) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    function.ops().iter().for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
    counts.into_iter().map(|(name, count)| (name.to_string(), count.to_string())).collect()
}

/// True if two graphs have ops of the same types in the same order.
pub(super) fn has_same_ops(a: &Function, b: &Function) -> bool {
    a.ops().iter().map(|op| op.def.name).eq(b.ops().iter().map(|op| op.def.name))
}

/// The first op of A that B does not have, in words: with the same attributes, on the same values and the
/// same tensors. The order of ops means nothing. `tensors` are pairs that are compared by their elements
/// elsewhere.
fn first_difference(a: &Function, b: &Function, tensors: &[[&StoredTensor; 2]]) -> Option<String> {
    let keys = [Keys::of(a, tensors, 0), Keys::of(b, tensors, 1)];
    let in_b: HashSet<u64> = b.ops().iter().flat_map(|op| &op.outputs).map(|id| keys[1].values[id]).collect();
    let is_other = |(_, op): &(usize, &Op)| op.outputs.iter().any(|id| !in_b.contains(&keys[0].values[id]));
    let Some((index, op)) = a.ops().iter().enumerate().find(is_other) else {
        let is_elsewhere = |&&id: &&ValueId| {
            let same_name = |other: &&ValueId| b.value(**other).name == a.value(id).name;
            let other = b.outputs().iter().find(same_name);
            other.is_some_and(|other| keys[0].values.get(&id) != keys[1].values.get(other))
        };
        let id = a.outputs().iter().find(is_elsewhere)?;
        return Some(format!("output `{}` is another value", a.value(*id).name));
    };
    let label = a.view(op).label();
    let named = |other: &Op| other.outputs.first().map(|&id| &b.value(id).name);
    let name = op.outputs.first().map(|&id| &a.value(id).name);
    let same_name = b.ops().iter().position(|other| other.def.name == op.def.name && named(other) == name);
    let like = same_name.or_else(|| b.ops().get(index).filter(|o| o.def.name == op.def.name).map(|_| index));
    let Some(other) = like else { return Some(format!("{label} is not in B")) };
    let inputs = keys[0].inputs[index].iter().zip(&keys[1].inputs[other]);
    if let Some((_, param)) = inputs.zip(op.def.params).find(|((x, y), _)| x != y) {
        return Some(format!("{label} has another `{}`", param.name));
    }
    let types = [(a, op), (b, &b.ops()[other])].map(|(function, op)| {
        op.outputs.iter().map(|&id| function.value(id).ty.to_string()).collect::<Vec<_>>().join(", ")
    });
    Some(format!("{label} makes {}, {} in B", types[0], types[1]))
}

/// Hashes, equal for equal computations.
struct Keys {
    /// By inputs and results.
    values: HashMap<ValueId, u64>,
    /// The arguments of each op.
    inputs: Vec<Vec<u64>>,
}

impl Keys {
    /// `side` says which of each pair of tensors is the function's.
    fn of(function: &Function, tensors: &[[&StoredTensor; 2]], side: usize) -> Self {
        let pairs = tensors.iter().enumerate();
        let pairs: HashMap<&str, usize> =
            pairs.map(|(index, pair)| (pair[side].constant.as_str(), index)).collect();
        let mut keys = Keys { values: HashMap::new(), inputs: Vec::with_capacity(function.ops().len()) };
        for &id in function.inputs() {
            keys.values.insert(id, hash(("input", &function.value(id).name)));
        }
        for op in function.ops() {
            let params = op.def.params.iter().zip(&op.args);
            let inputs = params.map(|(param, arg)| match (arg, param.default.literal()) {
                // A default that is spelt out is no difference.
                (Arg::Absent, Some(default)) => hash([literal_key(&default, None)]),
                _ => {
                    let axes = axes_of(&function.view(op), param.name);
                    hash(
                        arg.values()
                            .iter()
                            .map(|id| keys.value(function, *id, &pairs, axes))
                            .collect::<Vec<_>>(),
                    )
                }
            });
            let inputs: Vec<u64> = inputs.collect();
            for (index, &id) in op.outputs.iter().enumerate() {
                let ty = &function.value(id).ty;
                keys.values.insert(id, hash((op.def.name, &inputs, index, ty)));
            }
            keys.inputs.push(inputs);
        }
        keys
    }

    fn value(
        &self,
        function: &Function,
        id: ValueId,
        pairs: &HashMap<&str, usize>,
        axes: Option<i64>,
    ) -> u64 {
        let value = function.value(id);
        match &value.def {
            Def::Const(_) if pairs.contains_key(value.name.as_str()) => {
                hash(("tensor", pairs[value.name.as_str()]))
            }
            Def::Const(Constant::Literal(literal)) => literal_key(literal, axes),
            // Without a counterpart, it is the same as nothing else.
            Def::Const(Constant::Weight(weight)) => hash(("weight", weight.name(), weight.ty())),
            _ => self.values.get(&id).copied().unwrap_or_default(),
        }
    }
}

/// The rank of the tensor whose axes an input means: coremltools counts them from either end.
fn axes_of(op: &OpView, input: &str) -> Option<i64> {
    // The axes of these are the result's.
    let is_of_result = matches!(op.kind(), "expand_dims" | "stack");
    if is_of_result || !matches!(input, "axis" | "axes" | "perm") {
        return None;
    }
    let first = op.op().args.first().and_then(|arg| arg.values().first());
    first.map(|&id| op.function().value(id).ty.rank() as i64)
}

/// The same for the same values, of whichever type: what a type changes shows in the op's result.
fn literal_key(literal: &Literal, axes: Option<i64>) -> u64 {
    let shape = &literal.ty().shape;
    if let Some(values) = literal.to_ints() {
        let resolved = |value: i64| if value < 0 { value + axes.unwrap_or(0) } else { value };
        return hash((shape, values.into_iter().map(resolved).collect::<Vec<_>>()));
    }
    match literal.to_floats() {
        Some(values) => hash((shape, values.into_iter().map(f64::to_bits).collect::<Vec<_>>())),
        None => hash(literal),
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Builder, Bytes, DType, Opset, Program, TensorType, WeightRef};

    use super::*;

    /// Two norms of one input, in either order.
    fn graph(axis: i32, epsilon: Option<f64>, last: &str, swapped: bool) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [3, 4])).unwrap();
        let mut made = Vec::new();
        for name in if swapped { ["second", "first"] } else { ["first", "second"] } {
            let axes = Literal::ints(&[if name == "first" { axis } else { 0 }]);
            let norm = b.op("layer_norm").arg("x", x).arg("axes", axes);
            let norm = match epsilon {
                Some(epsilon) => norm.arg("epsilon", epsilon),
                None => norm,
            };
            made.push((name, norm.named(name).add().unwrap()));
        }
        made.sort();
        let y = b.op("sub").arg("x", made[0].1).arg("y", made[1].1).named("y").add().unwrap();
        let z = b.op(last).arg("x", y).named("z").add().unwrap();
        b.finish(&[z]).unwrap()
    }

    #[test]
    fn graphs_differ_where_an_op_or_an_input_does() {
        let plain = graph(1, None, "exp", false);
        for (other, expected) in [
            (plain.clone(), None),
            (graph(1, Some(1e-5), "exp", false), None),
            (graph(-1, None, "exp", false), None),
            (graph(1, None, "exp", true), None),
            (graph(1, Some(1e-3), "exp", false), Some("layer_norm `first` has another `epsilon`")),
            (graph(0, None, "exp", false), Some("layer_norm `first` has another `axes`")),
            (graph(1, None, "abs", false), Some("exp `z` is not in B")),
        ] {
            assert_eq!(first_difference(&plain, &other, &[]).as_deref(), expected, "{}", Program::new(other));
        }
    }

    /// Tensors are the same only where the same ones meet.
    #[test]
    fn tensors_that_change_places_are_a_difference() {
        let graph = |names: [&str; 2]| {
            let mut b = Builder::new("main", Opset::Ios16);
            let ty = TensorType::new(DType::F32, [16]);
            let mut x = b.input("x", ty.clone()).unwrap();
            for name in names {
                let weight = WeightRef::new(name, ty.clone(), Bytes::new(vec![0; 64])).unwrap();
                let weight = b.weight(weight);
                x = b.op("mul").arg("x", x).arg("y", weight).add().unwrap();
            }
            b.finish(&[x]).unwrap()
        };
        let tensors = ["v", "w"].map(|name| {
            let weight = WeightRef::new(name, TensorType::new(DType::F32, [16]), Bytes::new(vec![0; 64]));
            StoredTensor { weight: weight.unwrap(), constant: name.to_string(), is_table: false }
        });
        let pairs = [[&tensors[0]; 2], [&tensors[1]; 2]];
        assert_eq!(first_difference(&graph(["v", "w"]), &graph(["v", "w"]), &pairs), None);
        let found = first_difference(&graph(["v", "w"]), &graph(["w", "v"]), &pairs);
        assert_eq!(found.as_deref(), Some("mul `mul` has another `y`"));
    }

    #[test]
    fn changes_are_by_name() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let found =
            changes(map(&[("a", "1"), ("b", "2"), ("c", "3")]), map(&[("a", "1"), ("b", "4"), ("d", "5")]));
        let expected = [("b", Some("2"), Some("4")), ("c", Some("3"), None), ("d", None, Some("5"))];
        let expected = expected.map(|(name, a, b)| Change {
            name: name.to_string(),
            sides: [a, b].map(|side| side.map(str::to_string)),
        });
        assert_eq!(found, expected);
    }
}
