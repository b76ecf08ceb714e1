//! The declarations of op types.

use super::{Arg, Def};
use crate::{DType, Error, Literal, OpView, Opset, TensorType};

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
    pub(crate) const fn new(
        name: &'static str,
        params: &'static [Param],
        infer: fn(&OpView) -> Result<Vec<TensorType>, Error>,
        work: Work,
    ) -> Self {
        OpDef { name, since: Opset::Ios15, params, work, weight: None, infer }
    }

    pub(crate) const fn weight(mut self, input: &'static str) -> Self {
        self.weight = Some(input);
        self
    }

    pub(crate) const fn since(mut self, opset: Opset) -> Self {
        self.since = opset;
        self
    }

    /// True if the result is a constant that is stored compressed.
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
    /// True if the input shares its element type with the op's others that are marked so.
    pub(crate) same_type: bool,
    constant: bool,
    /// True if a list of values may be bound.
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

/// The most values of a constant parameter such as axes. No op needs nearly that many, and inference loops
/// over them.
const LIST_LIMIT: usize = 4096;

impl Param {
    pub(crate) const fn new(name: &'static str, accepts: &'static [DType]) -> Self {
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

    pub(crate) const fn default(mut self, default: Default) -> Self {
        self.default = default;
        self
    }

    pub(crate) const fn optional(self) -> Self {
        self.default(Default::Absent)
    }

    pub(crate) const fn same_type(mut self) -> Self {
        self.same_type = true;
        self
    }

    pub(crate) const fn constant(mut self) -> Self {
        self.constant = true;
        self
    }

    pub(crate) const fn variadic(mut self) -> Self {
        self.variadic = true;
        self
    }

    pub(crate) const fn since(mut self, opset: Opset) -> Self {
        self.since = opset;
        self
    }
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
        if matches!(arg, Arg::Many(_)) && !param.variadic {
            return Err(op.invalid(format!("input `{}` takes one value, not a list", param.name)));
        }
        for &id in arg.values() {
            let value = function.value(id);
            let dtype = value.ty.dtype;
            if !param.accepts.contains(&dtype) {
                return Err(op.invalid(format!("input `{}` can't be {}", param.name, value.ty)));
            }
            if param.constant && !matches!(value.def, Def::Const(_)) {
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
