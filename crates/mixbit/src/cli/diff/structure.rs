//! What two networks are besides their weights.

use std::collections::{BTreeMap, HashMap};

use mil::{Arg, Constant, Def, Function, Literal, Op, OpView, ValueId};

use crate::cli::parts::{LEAST_TABLE, Part};

/// Something with a name that is different in B, or that one side lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: String,
    pub(super) sides: [Option<String>; 2],
}

/// How the structure of a network differs in B.
#[derive(Debug, Default)]
pub(super) struct Structure {
    pub(super) inputs: Vec<Change>,
    pub(super) outputs: Vec<Change>,
    /// The opset, and of packages the specification's version.
    pub(super) formats: Vec<Change>,
    /// How often each op occurs. Those that decode weights are left out.
    pub(super) operations: Vec<Change>,
    /// Where the graphs first are not the same, in words.
    pub(super) first_difference: Option<String>,
    /// Compared where both sides have metadata: checkpoints have none.
    pub(super) metadata: Vec<Change>,
}

impl Structure {
    /// Compares two networks. `graphs` are theirs with decoded constants; weight files have none.
    pub(super) fn compare([a, b]: [&Part; 2], graphs: [Option<&Function>; 2]) -> Self {
        let mut structure = Structure::default();
        if let [Some(x), Some(y)] = graphs {
            structure.inputs = changes(signature(x, x.inputs()), signature(y, y.inputs()));
            structure.outputs = changes(signature(x, x.outputs()), signature(y, y.outputs()));
            structure.operations = changes(histogram(x), histogram(y));
            structure.first_difference = first_difference(x, y);
            let mut formats =
                [x, y].map(|graph| BTreeMap::from([("opset".to_string(), graph.opset.to_string())]));
            if let (Some(x), Some(y)) = (a.specification, b.specification) {
                for (format, version) in formats.iter_mut().zip([x, y]) {
                    format.insert("specification".to_string(), version.to_string());
                }
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

    pub(super) fn is_same(&self) -> bool {
        let lists = [&self.inputs, &self.outputs, &self.formats, &self.operations, &self.metadata];
        lists.iter().all(|list| list.is_empty()) && self.first_difference.is_none()
    }
}

/// What is not the same in two sets of named texts, by name.
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

fn signature(function: &Function, ids: &[ValueId]) -> BTreeMap<String, String> {
    let values = ids.iter().map(|&id| function.value(id));
    values.map(|value| (value.name.clone(), value.ty.to_string())).collect()
}

fn histogram(function: &Function) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    function.ops().iter().for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
    counts.into_iter().map(|(name, count)| (name.to_string(), count.to_string())).collect()
}

/// Whether two graphs have ops of the same types in the same order.
pub(super) fn has_same_ops(a: &Function, b: &Function) -> bool {
    a.ops().iter().map(|op| op.def.name).eq(b.ops().iter().map(|op| op.def.name))
}

/// The first op that is another one in B, takes something else or makes something else. The elements of weights are
/// not looked at.
fn first_difference(a: &Function, b: &Function) -> Option<String> {
    // The value of B that a value of A corresponds to.
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    for &id in a.inputs() {
        let name = &a.value(id).name;
        let other = b.inputs().iter().find(|&&other| b.value(other).name == *name);
        other.map(|&other| same.insert(id, other));
    }
    for (x, y) in a.ops().iter().zip(b.ops()) {
        let label = a.view(x).label();
        if x.def.name != y.def.name {
            return Some(format!("{label} is {} in B", b.view(y).label()));
        }
        if let Some(input) = other_input([a, b], [x, y], &same) {
            return Some(format!("{label} has another `{input}`"));
        }
        for (&x, &y) in x.outputs.iter().zip(&y.outputs) {
            let (found, other) = (&a.value(x).ty, &b.value(y).ty);
            if found != other {
                return Some(format!("{label} makes {found}, {other} in B"));
            }
            same.insert(x, y);
        }
    }
    let (has, other) = (a.ops().len(), b.ops().len());
    if has != other {
        return Some(format!("A has {has} operations, B has {other}"));
    }
    let ends_differ = |&&id: &&ValueId| {
        let name = &a.value(id).name;
        let other = b.outputs().iter().find(|&&other| b.value(other).name == *name);
        other.is_some_and(|other| same.get(&id).is_some_and(|same| same != other))
    };
    let id = a.outputs().iter().find(ends_differ)?;
    Some(format!("output `{}` is made elsewhere", a.value(*id).name))
}

/// The first input of an op that is bound to something else in B.
fn other_input(
    [a, b]: [&Function; 2],
    [x, y]: [&Op; 2],
    same: &HashMap<ValueId, ValueId>,
) -> Option<&'static str> {
    let constant = |function: &Function, id: &ValueId| match &function.value(*id).def {
        Def::Const(constant) => Some(constant.clone()),
        _ => None,
    };
    let is_same_value = |x: &ValueId, y: &ValueId| match (constant(a, x), constant(b, y)) {
        (Some(x), Some(y)) => is_same_constant(&x, &y),
        (None, None) => same.get(x) == Some(y),
        _ => false,
    };
    let op = x;
    for (param, (x, y)) in x.def.params.iter().zip(x.args.iter().zip(&y.args)) {
        // A default that is spelt out is no difference.
        let is_default = |function, arg: &Arg| match (arg.values(), param.default.literal()) {
            ([id], Some(default)) => match constant(function, id) {
                Some(Constant::Literal(literal)) => is_same_literal(&literal, &default),
                _ => false,
            },
            (values, _) => values.is_empty(),
        };
        let is_same = match (x, y) {
            (Arg::Absent, _) => is_default(b, y),
            (_, Arg::Absent) => is_default(a, x),
            _ => {
                let (p, q) = (x.values(), y.values());
                p.len() == q.len() && p.iter().zip(q).all(|(x, y)| is_same_value(x, y))
            }
        } || match (x.values(), y.values()) {
            ([p], [q]) => is_same_axes(&a.view(op), param.name, constant(a, p), constant(b, q)),
            _ => false,
        };
        if !is_same {
            return Some(param.name);
        }
    }
    None
}

/// Constants that are compared as tensors count as the same here.
fn is_same_constant(a: &Constant, b: &Constant) -> bool {
    let is_tensor = |constant: &Constant| match constant {
        Constant::Weight(_) => true,
        Constant::Literal(literal) => literal.bytes().is_some() && literal.ty().count() >= LEAST_TABLE,
    };
    match (a, b) {
        _ if is_tensor(a) && is_tensor(b) => true,
        (Constant::Literal(a), Constant::Literal(b)) => is_same_literal(a, b),
        (Constant::Weight(weight), Constant::Literal(literal))
        | (Constant::Literal(literal), Constant::Weight(weight)) => {
            let bytes = weight.read();
            bytes.is_ok_and(|bytes| Some(&*bytes) == literal.bytes() && weight.ty() == literal.ty())
        }
        _ => false,
    }
}

/// Whether both are axes of the op's first input, and the same ones: coremltools counts from either end.
fn is_same_axes(op: &OpView, input: &str, a: Option<Constant>, b: Option<Constant>) -> bool {
    let (Some(Constant::Literal(a)), Some(Constant::Literal(b))) = (a, b) else { return false };
    let first = op.op().args.first().and_then(|arg| arg.values().first());
    let Some(rank) = first.map(|&id| op.function().value(id).ty.rank() as i64) else { return false };
    // The axes of these are of the result.
    let is_of_result = matches!(op.kind(), "expand_dims" | "stack");
    if !matches!(input, "axis" | "axes" | "perm") || is_of_result || a.ty() != b.ty() {
        return false;
    }
    let resolved = |literal: &Literal| -> Option<Vec<i64>> {
        Some(literal.to_ints()?.into_iter().map(|axis| if axis < 0 { axis + rank } else { axis }).collect())
    };
    resolved(&a).is_some_and(|axes| Some(axes) == resolved(&b))
}

/// The same numbers, of whichever float type: a default has one of its own.
fn is_same_literal(a: &Literal, b: &Literal) -> bool {
    a == b
        || (a.ty().dtype != b.ty().dtype
            && a.ty().shape == b.ty().shape
            && a.to_floats().is_some()
            && a.to_floats() == b.to_floats())
}

#[cfg(test)]
mod tests {
    use mil::{Builder, DType, Opset, TensorType};

    use super::*;

    fn graph(axis: i32, epsilon: Option<f64>, last: &str) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [3, 4])).unwrap();
        let axes = Literal::ints(&[axis]);
        let norm = b.op("layer_norm").arg("x", x).arg("axes", axes);
        let norm = match epsilon {
            Some(epsilon) => norm.arg("epsilon", epsilon),
            None => norm,
        };
        let y = norm.named("norm").add().unwrap();
        let z = b.op(last).arg("x", y).named("z").add().unwrap();
        b.finish(&[z]).unwrap()
    }

    #[test]
    fn graphs_differ_where_an_op_or_an_input_does() {
        let plain = graph(-1, None, "exp");
        assert_eq!(first_difference(&plain, &plain), None);
        assert_eq!(first_difference(&plain, &graph(-1, Some(1e-5), "exp")), None, "a default spelt out");
        assert_eq!(
            first_difference(&plain, &graph(1, None, "exp")),
            None,
            "the same axis from the other end"
        );
        for (other, expected) in [
            (graph(-1, Some(1e-3), "exp"), "layer_norm `norm` has another `epsilon`"),
            (graph(0, None, "exp"), "layer_norm `norm` has another `axes`"),
            (graph(-1, None, "abs"), "exp `z` is abs `z` in B"),
        ] {
            assert_eq!(first_difference(&plain, &other).as_deref(), Some(expected));
        }
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
