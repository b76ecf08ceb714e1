//! The op table: one declaration per op.
//!
//! A declaration has everything that the rest of the code needs to know about an op's form: its inputs in
//! order, their defaults and element types, its opset, its work, and the inference of its results' types. The
//! builder, the verifier, MIL text and the package reader and writer are generic over it. Semantics are those
//! of the MIL reference (coremltools, `converters/mil/mil/ops/defs`). The engine's reference executor is
//! their executable form.

mod activation;
mod binary;
mod constexpr;
mod convolution;
mod linear;
mod normalization;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

pub use convolution::ConvGeometry;
pub use linear::Equation;
pub use shape::{AxisSlice, permutation};

use crate::{DType, Error, Literal, OpView, Opset, TensorType};

/// Every op that mixbit knows, by family.
pub static OPS: &[&[OpDef]] = &[
    activation::OPS,
    binary::OPS,
    constexpr::OPS,
    convolution::OPS,
    linear::OPS,
    normalization::OPS,
    reduction::OPS,
    scatter_gather::OPS,
    shape::OPS,
    unary::OPS,
];

/// The declaration of the op type called `name`.
pub fn lookup(name: &str) -> Option<&'static OpDef> {
    OPS.iter().flat_map(|family| family.iter()).find(|def| def.name == name)
}

/// The declaration of an op.
#[derive(Debug)]
pub struct OpDef {
    /// MIL's name, such as `conv`.
    pub name: &'static str,
    /// The opset that introduced the op.
    pub since: Opset,
    /// The inputs, in MIL's order.
    pub params: &'static [Param],
    /// The arithmetic that the op costs.
    pub work: Work,
    /// The input that is a layer's weight, of shape [out, in, ..]: `nn.Linear`'s or `nn.Conv2d`'s.
    pub weight: Option<&'static str>,
    infer: fn(&OpView) -> Result<Vec<TensorType>, Error>,
}

impl OpDef {
    const fn new(
        name: &'static str,
        params: &'static [Param],
        infer: fn(&OpView) -> Result<Vec<TensorType>, Error>,
        work: Work,
    ) -> Self {
        OpDef { name, since: Opset::Ios15, params, work, weight: None, infer }
    }

    const fn weight(mut self, input: &'static str) -> Self {
        self.weight = Some(input);
        self
    }

    const fn since(mut self, opset: Opset) -> Self {
        self.since = opset;
        self
    }

    /// Whether the result is a constant that is stored compressed.
    pub fn is_constexpr(&self) -> bool {
        self.name.starts_with("constexpr_")
    }

    /// The position of an input.
    pub fn param_index(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|param| param.name == name)
    }

    pub(crate) fn default_of(&self, name: &str) -> Default {
        self.params.iter().find(|param| param.name == name).map_or(Default::Required, |param| param.default)
    }

    /// The types of the results, after a check of the inputs.
    ///
    /// # Errors
    /// An input that is missing, of the wrong type or newer than the opset; shapes that don't fit.
    pub fn infer(&self, op: &OpView) -> Result<Vec<TensorType>, Error> {
        check_params(op)?;
        let types = (self.infer)(op)?;
        match types.iter().find(|ty| ty.byte_len().is_none_or(|bytes| bytes > isize::MAX as usize)) {
            Some(ty) => Err(op.invalid(format!("a result of type {ty} is too large"))),
            None => Ok(types),
        }
    }
}

/// The arithmetic that an op costs.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// None: elements are moved, repeated or converted.
    Moves,
    /// A few operations for each element. Small beside products, and counted as zero multiply-adds.
    Elements,
    /// Products whose multiply-adds are counted by this function of the op's shapes.
    Products(fn(&OpView) -> u64),
}

/// The multiply-adds of an op: those of convolutions and products, else 0.
pub fn multiply_adds(op: &OpView) -> u64 {
    match op.op().def.work {
        Work::Moves | Work::Elements => 0,
        Work::Products(count) => count(op),
    }
}

/// The declaration of an op's input.
#[derive(Debug)]
pub struct Param {
    /// MIL's name, such as `pad_type`.
    pub name: &'static str,
    /// The value if nothing is bound.
    pub default: Default,
    /// The opset that introduced the input; no later than the op's own for most.
    pub since: Opset,
    accepts: &'static [DType],
    /// Whether the input shares its element type with the op's others that are marked so.
    pub(crate) same_type: bool,
    constant: bool,
    /// Whether a list of values may be bound.
    pub variadic: bool,
}

/// The value of an input to which nothing is bound.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// None: something must be bound.
    Required,
    /// None: absence has a meaning of its own, given in the op's doc.
    Absent,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i32),
    /// A float.
    Float(f32),
    /// A string.
    Str(&'static str),
}

impl Default {
    /// The value, if there is one.
    pub fn literal(self) -> Option<Literal> {
        match self {
            Default::Required | Default::Absent => None,
            Default::Bool(value) => Some(Literal::bool(value)),
            Default::Int(value) => Some(Literal::int(value)),
            Default::Float(value) => Literal::float(DType::F32, value.into()),
            Default::Str(value) => Some(Literal::string(value)),
        }
    }
}

const FLOATS: &[DType] = &[DType::F16, DType::F32];
const NUMBERS: &[DType] = &[DType::F16, DType::F32, DType::I32];
const ANY: &[DType] = &[
    DType::F16,
    DType::F32,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::Bool,
];
/// The most values of a constant parameter such as axes. No op needs nearly that many, and inference loops
/// over them.
const LIST_LIMIT: usize = 4096;
const INDICES: &[DType] = &[DType::I32, DType::I16, DType::U16, DType::I8, DType::U8];

impl Param {
    const fn new(name: &'static str, accepts: &'static [DType]) -> Self {
        Param {
            name,
            default: Default::Required,
            since: Opset::Ios15,
            accepts,
            same_type: false,
            constant: false,
            variadic: false,
        }
    }

    const fn default(mut self, default: Default) -> Self {
        self.default = default;
        self
    }

    const fn optional(self) -> Self {
        self.default(Default::Absent)
    }

    const fn same_type(mut self) -> Self {
        self.same_type = true;
        self
    }

    const fn constant(mut self) -> Self {
        self.constant = true;
        self
    }

    const fn variadic(mut self) -> Self {
        self.variadic = true;
        self
    }

    const fn since(mut self, opset: Opset) -> Self {
        self.since = opset;
        self
    }
}

/// A float tensor of the op's element type.
const fn float(name: &'static str) -> Param {
    Param::new(name, FLOATS).same_type()
}

/// A number tensor of the op's element type.
const fn number(name: &'static str) -> Param {
    Param::new(name, NUMBERS).same_type()
}

/// A tensor of any element type, shared with the op's others.
const fn any(name: &'static str) -> Param {
    Param::new(name, ANY).same_type()
}

/// Constant integers.
const fn ints(name: &'static str) -> Param {
    Param::new(name, &[DType::I32]).constant()
}

/// Constant truth values.
const fn bools(name: &'static str) -> Param {
    Param::new(name, &[DType::Bool]).constant()
}

/// A constant string.
const fn string(name: &'static str) -> Param {
    Param::new(name, &[DType::Str]).constant()
}

/// Checks presence, element types, constness and opsets of an op's arguments against its declaration.
fn check_params(op: &OpView) -> Result<(), Error> {
    let function = op.function();
    let opset_error = |what: &str, needs: Opset| Error::Opset {
        op: op.label(),
        what: what.to_string(),
        needs,
        has: function.opset,
    };
    let def = op.op().def;
    if def.since > function.opset {
        return Err(opset_error(def.name, def.since));
    }
    let mut shared: Option<(&str, DType)> = None;
    for param in def.params {
        let arg = op.arg(param.name);
        if arg.values().is_empty() {
            if matches!(param.default, Default::Required) {
                return Err(Error::MissingInput { op: op.label(), input: param.name.to_string() });
            }
            continue;
        }
        if param.since > function.opset {
            return Err(opset_error(param.name, param.since));
        }
        if matches!(arg, crate::Arg::Many(_)) && !param.variadic {
            return Err(op.invalid(format!("input `{}` takes one value, not a list", param.name)));
        }
        for &id in arg.values() {
            let value = function.value(id);
            let dtype = value.ty.dtype;
            if !param.accepts.contains(&dtype) {
                return Err(op.invalid(format!("input `{}` can't be {}", param.name, value.ty)));
            }
            if param.constant && !matches!(value.def, crate::Def::Const(_)) {
                return Err(Error::NotConst { op: op.label(), input: param.name.to_string() });
            }
            if param.constant && !dtype.is_float() && value.ty.count() > LIST_LIMIT {
                return Err(op.invalid(format!("input `{}` has {} values", param.name, value.ty.count())));
            }
            if param.same_type {
                let (first, expected) = *shared.get_or_insert((param.name, dtype));
                if expected != dtype {
                    let what = format!("input `{}` is {dtype}, but `{first}` is {expected}", param.name);
                    return Err(op.invalid(what));
                }
            }
        }
    }
    Ok(())
}

/// One result of the same type as `x`.
fn same_as_x(op: &OpView) -> Result<Vec<TensorType>, Error> {
    Ok(vec![op.ty("x")?.clone()])
}

/// The shape of an element-wise combination, by NumPy's broadcasting rules.
pub(crate) fn broadcast(op: &OpView, a: &[usize], b: &[usize]) -> Result<Vec<usize>, Error> {
    let rank = a.len().max(b.len());
    let extent =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|axis| match (extent(a, axis), extent(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(op.invalid(format!("shapes {a:?} and {b:?} don't broadcast"))),
        })
        .collect()
}

/// Constant axes, resolved, checked to be distinct, and sorted.
fn resolve_axes(op: &OpView, axes: &[i64], rank: usize) -> Result<Vec<usize>, Error> {
    let mut resolved = axes.iter().map(|&axis| op.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    resolved.sort_unstable();
    if resolved.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(op.invalid(format!("axes {axes:?} name an axis twice")));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = OPS.iter().flat_map(|family| family.iter()).map(|def| def.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for def in OPS.iter().flat_map(|family| family.iter()) {
            for param in def.params {
                assert_eq!(
                    def.params.iter().filter(|other| other.name == param.name).count(),
                    1,
                    "{}",
                    def.name
                );
            }
        }
    }

    /// Every declaration has its work. The products are listed here; those of a weight are layers.
    #[test]
    fn every_op_says_its_work() {
        let all = || OPS.iter().flat_map(|family| family.iter());
        let products = all().filter(|def| matches!(def.work, Work::Products(_))).map(|def| def.name);
        assert_eq!(
            products.collect::<Vec<_>>(),
            ["conv", "einsum", "linear", "matmul", "scaled_dot_product_attention"]
        );
        let weights = all().filter_map(|def| Some((def, def.weight?)));
        for (def, weight) in weights.clone() {
            assert!(matches!(def.work, Work::Products(_)), "{}", def.name);
            assert!(def.param_index(weight).is_some(), "{} has no input `{weight}`", def.name);
        }
        assert_eq!(weights.map(|(def, _)| def.name).collect::<Vec<_>>(), ["conv", "linear"]);
    }
}
