//! Functions built op by op. Every op is checked and typed when it is added.

use std::collections::HashMap;

use crate::ops::lookup;
use crate::{Arg, Constant, DType, Def, Error, Function, Literal, Op, Opset, TensorType, ValueId, WeightRef};

/// Builds a [`Function`].
///
/// ```
/// use mixbit_mil::{Builder, DType, Opset, TensorType};
///
/// let mut b = Builder::new("main", Opset::Ios16);
/// let x = b.input("x", TensorType::new(DType::F32, [1, 4]))?;
/// let doubled = b.op("mul").arg("x", x).arg("y", 2.0).add()?;
/// let y = b.op("reshape").arg("x", doubled).arg("shape", [2, 2]).named("y").add()?;
/// let function = b.finish(&[y])?;
/// assert_eq!(function.value(y).ty.shape, [2, 2]);
/// # Ok::<(), mixbit_mil::Error>(())
/// ```
pub struct Builder {
    function: Function,
    names: HashMap<String, u32>,
    literals: HashMap<Literal, ValueId>,
    weights: HashMap<(String, TensorType), ValueId>,
}

impl Builder {
    /// A builder of an empty function.
    pub fn new(name: &str, opset: Opset) -> Self {
        Builder {
            function: Function::new(name, opset),
            names: HashMap::new(),
            literals: HashMap::new(),
            weights: HashMap::new(),
        }
    }

    /// The function so far.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.function.value(id).ty
    }

    /// The shape of a value.
    pub fn shape(&self, id: ValueId) -> &[usize] {
        &self.ty(id).shape
    }

    /// Adds an input of the function.
    ///
    /// # Errors
    /// [`Error::Graph`] if the name is taken or not an identifier.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId, Error> {
        if self.names.contains_key(name) || !is_identifier(name) {
            return Err(Error::Graph(format!("`{name}` can't name an input")));
        }
        self.names.insert(name.to_string(), 0);
        let id = self.function.add_value(name.to_string(), ty, Def::Input);
        self.function.inputs.push(id);
        Ok(id)
    }

    /// Adds a literal; equal ones are shared.
    pub fn literal(&mut self, literal: Literal) -> ValueId {
        if let Some(&id) = self.literals.get(&literal) {
            return id;
        }
        let name = self.unique("const");
        let ty = literal.ty().clone();
        let id = self.function.add_value(name, ty, Def::Const(Constant::Literal(literal.clone())));
        self.literals.insert(literal, id);
        id
    }

    /// Adds a weight; one of the same name and type is shared.
    ///
    /// A name stands for one view of a tensor. Two different views must have different names or types.
    pub fn weight(&mut self, weight: WeightRef) -> ValueId {
        let key = (weight.name().to_string(), weight.ty().clone());
        if let Some(&id) = self.weights.get(&key) {
            return id;
        }
        let name = self.unique(&identifier(weight.name()));
        let id = self.function.add_value(name, weight.ty().clone(), Def::Const(Constant::Weight(weight)));
        self.weights.insert(key, id);
        id
    }

    /// Begins an op of the given type.
    pub fn op(&mut self, kind: &str) -> OpBuilder<'_> {
        OpBuilder { builder: self, kind: kind.to_string(), args: Vec::new(), name: None }
    }

    /// Finishes the function with its outputs.
    ///
    /// # Errors
    /// [`Error::Graph`] if an output is named twice.
    pub fn finish(mut self, outputs: &[ValueId]) -> Result<Function, Error> {
        for (index, id) in outputs.iter().enumerate() {
            if outputs[..index].contains(id) {
                return Err(Error::Graph(format!(
                    "output `{}` is named twice",
                    self.function.value(*id).name
                )));
            }
        }
        self.function.outputs = outputs.to_vec();
        Ok(self.function)
    }

    /// The first of `base`, `base_1`, `base_2` and so on that is not taken.
    fn unique(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        while self.names.contains_key(&name) {
            let count = self.names.entry(base.to_string()).or_insert(0);
            *count += 1;
            name = format!("{base}_{count}");
        }
        self.names.insert(name.clone(), 0);
        name
    }
}

/// True if MIL allows a name: `[A-Za-z_][A-Za-z0-9_@]*`.
pub fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '@')
}

/// A checkpoint name as a MIL identifier: every character that MIL does not allow becomes `_`.
pub fn identifier(name: &str) -> String {
    let mut text: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !is_identifier(&text) {
        text.insert(0, '_');
    }
    text
}

/// A source of an op's input while building.
#[derive(Clone, Debug)]
pub enum Source {
    /// A value of the function.
    Value(ValueId),
    /// A list of values.
    Values(Vec<ValueId>),
    /// A constant of its own type.
    Literal(Literal),
    /// A number of the op's element type, such as `epsilon` of a norm.
    Number(f64),
}

macro_rules! source_from {
    ($($ty:ty, $value:ident => $source:expr;)*) => {
        $(impl From<$ty> for Source {
            fn from($value: $ty) -> Self {
                $source
            }
        })*
    };
}

source_from! {
    ValueId, value => Source::Value(value);
    Vec<ValueId>, values => Source::Values(values);
    &[ValueId], values => Source::Values(values.to_vec());
    Literal, literal => Source::Literal(literal);
    f64, number => Source::Number(number);
    i32, value => Source::Literal(Literal::int(value));
    &[i32], values => Source::Literal(Literal::ints(values));
    Vec<i32>, values => Source::Literal(Literal::ints(&values));
    bool, value => Source::Literal(Literal::bool(value));
    &str, value => Source::Literal(Literal::string(value));
}

impl<const N: usize> From<[i32; N]> for Source {
    fn from(values: [i32; N]) -> Self {
        Source::Literal(Literal::ints(&values))
    }
}

impl<const N: usize> From<[bool; N]> for Source {
    fn from(values: [bool; N]) -> Self {
        Source::Literal(Literal::bools(&values))
    }
}

impl<const N: usize> From<[ValueId; N]> for Source {
    fn from(values: [ValueId; N]) -> Self {
        Source::Values(values.to_vec())
    }
}

/// An op under construction. [`add`](Self::add) adds it to the function.
#[must_use]
pub struct OpBuilder<'b> {
    builder: &'b mut Builder,
    kind: String,
    args: Vec<(&'static str, Source)>,
    name: Option<String>,
}

impl OpBuilder<'_> {
    /// Binds an input.
    pub fn arg(mut self, input: &'static str, source: impl Into<Source>) -> Self {
        self.args.push((input, source.into()));
        self
    }

    /// Binds an input, unless `source` is `None`.
    pub fn maybe(self, input: &'static str, source: Option<impl Into<Source>>) -> Self {
        match source {
            Some(source) => self.arg(input, source),
            None => self,
        }
    }

    /// Names the result; otherwise it is named after the op's type. A taken name gets a number.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_string());
        self
    }

    /// Adds an op with one result.
    ///
    /// # Errors
    /// Those of [`add_all`](Self::add_all), and [`Error::Invalid`] if it has several.
    pub fn add(self) -> Result<ValueId, Error> {
        let kind = self.kind.clone();
        match self.add_all()?[..] {
            [only] => Ok(only),
            ref all => Err(Error::Invalid { op: kind, what: format!("has {} results, not one", all.len()) }),
        }
    }

    /// Adds an op with any number of results.
    ///
    /// # Errors
    /// An unknown op or input, a missing input, or types that don't fit.
    pub fn add_all(self) -> Result<Vec<ValueId>, Error> {
        let def = lookup(&self.kind).ok_or_else(|| Error::UnknownOp(self.kind.clone()))?;
        let element = self.element_type(def);
        let builder = self.builder;
        let mut args = vec![Arg::Absent; def.params.len()];
        for (input, source) in self.args {
            let unknown = || Error::UnknownInput { op: def.name.to_string(), input: input.to_string() };
            let index = def.param_index(input).ok_or_else(unknown)?;
            args[index] = match source {
                Source::Value(id) if def.params[index].variadic => Arg::Many(vec![id]),
                Source::Value(id) => Arg::One(id),
                Source::Values(ids) => Arg::Many(ids),
                Source::Literal(literal) => Arg::One(builder.literal(literal)),
                Source::Number(number) => {
                    let dtype = if def.params[index].same_type { element } else { DType::F32 };
                    let what = format!("`{input}` can't be the number {number} in an op on {dtype}");
                    let literal = Literal::float(dtype, number)
                        .ok_or_else(|| Error::Invalid { op: def.name.to_string(), what })?;
                    Arg::One(builder.literal(literal))
                }
            };
        }
        let op = Op { def, args, outputs: Vec::new() };
        let types = def.infer(&builder.function.view(&op))?;
        let base = self.name.unwrap_or_else(|| def.name.to_string());
        let outputs: Vec<ValueId> = types
            .into_iter()
            .map(|ty| {
                let name = builder.unique(&base);
                builder.function.add_value(name, ty, Def::Result)
            })
            .collect();
        builder.function.ops.push(Op { outputs: outputs.clone(), ..op });
        Ok(outputs)
    }

    /// The element type that the bound tensors of the op share; `fp32` if none is bound.
    fn element_type(&self, def: &crate::OpDef) -> DType {
        let shares = |input: &str| def.params.iter().any(|param| param.name == input && param.same_type);
        let bound =
            self.args.iter().filter(|(input, _)| shares(input)).find_map(|(_, source)| match source {
                Source::Value(id) => Some(*id),
                Source::Values(ids) => ids.first().copied(),
                _ => None,
            });
        bound.map_or(DType::F32, |id| self.builder.ty(id).dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify;

    fn f32s(shape: &[usize]) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    #[test]
    fn numbers_take_the_element_type() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [1, 2, 3])).unwrap();
        let y = b.op("layer_norm").arg("x", x).arg("axes", [-1]).arg("epsilon", 1e-5).add().unwrap();
        let function = b.finish(&[y]).unwrap();
        verify(&function).unwrap();
        let op = &function.ops()[0];
        assert_eq!(function.view(op).ty("epsilon").unwrap().dtype, DType::F16);
    }

    #[test]
    fn names_stay_unique() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("relu_1", f32s(&[1])).unwrap();
        let mut y = x;
        for _ in 0..4 {
            y = b.op("relu").arg("x", y).add().unwrap();
        }
        let again = b.op("relu").arg("x", y).named("relu_1").add().unwrap();
        verify(&b.finish(&[again]).unwrap()).unwrap();
    }

    #[test]
    fn misuse_is_refused() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", f32s(&[2, 3])).unwrap();
        let h = b.input("h", TensorType::new(DType::F16, [2, 3])).unwrap();
        assert!(b.input("x", f32s(&[1])).is_err());
        assert!(b.input("a.b", f32s(&[1])).is_err());
        assert_eq!(b.op("frobnicate").add(), Err(Error::UnknownOp("frobnicate".into())));
        assert!(matches!(b.op("relu").add(), Err(Error::MissingInput { .. })));
        assert!(matches!(b.op("relu").arg("x", x).arg("z", 1).add(), Err(Error::UnknownInput { .. })));
        assert!(matches!(b.op("add").arg("x", x).arg("y", h).add(), Err(Error::Invalid { .. })));
        assert!(matches!(b.op("reshape").arg("x", x).arg("shape", [4, 2]).add(), Err(Error::Invalid { .. })));
        assert!(matches!(
            b.op("clip").arg("x", x).arg("alpha", x).arg("beta", 1.0).add(),
            Err(Error::NotConst { .. })
        ));
        let sdpa = b.op("scaled_dot_product_attention").arg("query", x).arg("key", x).arg("value", x).add();
        assert!(matches!(sdpa, Err(Error::Opset { .. })));
        assert!(b.finish(&[x, x]).is_err());
    }

    #[test]
    fn shapes_follow() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", f32s(&[2, 3, 9, 13])).unwrap();
        let shape_of = |b: &mut Builder, id: Result<ValueId, Error>| b.shape(id.unwrap()).to_vec();
        let w = b.literal(Literal::floats(DType::F32, &[5, 3, 3, 3], &[0.5; 135]).unwrap());
        let y = b.op("conv").arg("x", x).arg("weight", w).arg("strides", [2, 2]).arg("pad_type", "custom");
        let y = y.arg("pad", [1, 1, 1, 1]).add();
        assert_eq!(shape_of(&mut b, y), [2, 5, 5, 7]);
        let y =
            b.op("conv").arg("x", x).arg("weight", w).arg("strides", [2, 2]).arg("pad_type", "same").add();
        assert_eq!(shape_of(&mut b, y), [2, 5, 5, 7]);
        let y = b.op("reshape").arg("x", x).arg("shape", [0, -1, 1, 13]).add();
        assert_eq!(shape_of(&mut b, y), [2, 27, 1, 13]);
        let y = b.op("slice_by_index").arg("x", x).arg("begin", [0, -1, 8, 0]).arg("end", [1, 9, -10, 1]);
        let y = y.arg("stride", [1, 1, -3, 4]).arg("end_mask", [false, false, true, true]);
        let y = y.arg("squeeze_mask", [true, false, false, false]).add();
        assert_eq!(shape_of(&mut b, y), [1, 3, 4]);
        let y = b.op("split").arg("x", x).arg("split_sizes", [4, 9]).arg("axis", -1).add_all().unwrap();
        assert_eq!((b.shape(y[0]), b.shape(y[1])), (&[2, 3, 9, 4][..], &[2, 3, 9, 9][..]));
        let y = b.op("reduce_mean").arg("x", x).arg("axes", [2, -1]).arg("keep_dims", true).add();
        assert_eq!(shape_of(&mut b, y), [2, 3, 1, 1]);
        let y = b.op("transpose").arg("x", x).arg("perm", [0, 2, -3, -1]).add();
        assert!(y.is_ok());
        let y = b.op("expand_dims").arg("x", x).arg("axes", [-1, 0]).add();
        assert_eq!(shape_of(&mut b, y), [1, 2, 3, 9, 13, 1]);
    }
}
