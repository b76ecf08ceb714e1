//! Programs, functions, ops and values.

mod declaration;

use std::collections::HashMap;
use std::convert::Infallible;

use crate::{Error, Literal, Opset, TensorType, WeightRef};

pub use declaration::{Default, OpDef, Param, Work, multiply_adds};

/// An ML Program: named functions. Stable Diffusion models have one, `main`.
#[derive(Clone, Debug)]
pub struct Program {
    /// The functions, in file order.
    pub functions: Vec<Function>,
    /// The name of the function that runs unless another is asked for, where the file says it.
    pub default_function: Option<String>,
}

impl Program {
    /// A program of one function.
    pub fn new(main: Function) -> Self {
        Program { functions: vec![main], default_function: None }
    }

    /// The function that a model runs: the default one, else the one named `main`, else the only one.
    pub fn main(&self) -> Option<&Function> {
        let main = self.function(self.default_function.as_deref().unwrap_or("main"));
        main.or(match &self.functions[..] {
            [only] => Some(only),
            _ => None,
        })
    }

    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }
}

/// An index into a function's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

impl ValueId {
    /// The position among [`Function::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A straight-line graph in static single assignment form.
///
/// Constants are values, not ops: MIL's `const` op exists only in its text and files.
#[derive(Clone, Debug)]
pub struct Function {
    /// The function's name, usually `main`.
    pub name: String,
    /// The set of ops that the function may use.
    pub opset: Opset,
    pub(crate) values: Vec<Value>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) ops: Vec<Op>,
    pub(crate) outputs: Vec<ValueId>,
}

impl Function {
    /// An empty function.
    pub fn new(name: &str, opset: Opset) -> Self {
        Function {
            name: name.to_string(),
            opset,
            values: Vec::new(),
            inputs: Vec::new(),
            ops: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// Every value, by [`ValueId::index`]. After a pass, some may be unused.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// The function's inputs, in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The ops, in an order in which every value is defined before it is used.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The function's outputs, in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// An op together with its function, to read its inputs by name.
    pub fn view<'a>(&'a self, op: &'a Op) -> OpView<'a> {
        OpView { function: self, op }
    }

    /// The same function with other outputs, for instance with values that were intermediate.
    pub fn with_outputs(&self, outputs: &[ValueId]) -> Function {
        Function { outputs: outputs.to_vec(), ..self.clone() }
    }

    /// Replaces constants: `replace` gives a new one of the same type, or `None` to keep the old.
    ///
    /// # Errors
    /// The error of `replace`.
    ///
    /// # Panics
    /// If a new constant has another type.
    pub fn map_constants<E>(
        &mut self,
        mut replace: impl FnMut(ValueId, &Constant) -> Result<Option<Constant>, E>,
    ) -> Result<(), E> {
        for (index, value) in self.values.iter_mut().enumerate() {
            let Def::Const(constant) = &value.def else { continue };
            if let Some(new) = replace(ValueId(index as u32), constant)? {
                assert_eq!(new.ty(), &value.ty, "constant `{}` changes its type", value.name);
                value.def = Def::Const(new);
            }
        }
        Ok(())
    }

    /// The same function with other weights in the place of some constants, of the same types.
    ///
    /// # Panics
    /// If a new weight has another type.
    pub fn with_weights(&self, new: &HashMap<ValueId, WeightRef>) -> Function {
        let mut out = self.clone();
        let replace = |id, _: &Constant| Ok(new.get(&id).map(|weight| Constant::Weight(weight.clone())));
        let Ok(()) = out.map_constants::<Infallible>(replace);
        out
    }

    /// Adds a value. The builder and the readers are the only callers; names must be unique.
    pub(crate) fn add_value(&mut self, name: String, ty: TensorType, def: Def) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("a function has fewer than 2^32 values"));
        self.values.push(Value { name, ty, def });
        id
    }
}

/// A named, typed value.
#[derive(Clone, Debug)]
pub struct Value {
    /// The name, unique in the function: `[A-Za-z_][A-Za-z0-9_@]*`.
    pub name: String,
    /// The type.
    pub ty: TensorType,
    /// The origin of the value.
    pub def: Def,
}

/// The origin of a value.
#[derive(Clone, Debug)]
pub enum Def {
    /// An input: the function's caller gives it.
    Input,
    /// A constant of the program.
    Const(Constant),
    /// The result of an op.
    Result,
}

/// A constant value.
#[derive(Clone, Debug)]
pub enum Constant {
    /// A small value that lives in the program.
    Literal(Literal),
    /// A checkpoint tensor, read when it is used.
    Weight(WeightRef),
}

impl Constant {
    /// The value's type.
    pub fn ty(&self) -> &TensorType {
        match self {
            Constant::Literal(literal) => literal.ty(),
            Constant::Weight(weight) => weight.ty(),
        }
    }
}

/// The binding of an op's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Nothing: the input's default holds.
    Absent,
    /// One value.
    One(ValueId),
    /// A list of values, for inputs such as `concat`'s `values`.
    Many(Vec<ValueId>),
}

impl Arg {
    /// The values that are bound.
    pub fn values(&self) -> &[ValueId] {
        match self {
            Arg::Absent => &[],
            Arg::One(value) => std::slice::from_ref(value),
            Arg::Many(values) => values,
        }
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// The declaration of its type.
    pub def: &'static OpDef,
    /// One argument for each of the declaration's parameters.
    pub args: Vec<Arg>,
    /// The results.
    pub outputs: Vec<ValueId>,
}

/// An op within its function: typed access to inputs, defaults applied.
#[derive(Clone, Copy)]
pub struct OpView<'a> {
    function: &'a Function,
    op: &'a Op,
}

impl<'a> OpView<'a> {
    /// The function that the op is in.
    pub fn function(&self) -> &'a Function {
        self.function
    }

    /// The op.
    pub fn op(&self) -> &'a Op {
        self.op
    }

    /// The op's type, such as `conv`.
    pub fn kind(&self) -> &'static str {
        self.op.def.name
    }

    /// The argument bound to `input`.
    ///
    /// # Panics
    /// If the op's declaration has no such input, which is a defect of the caller and not of the program.
    pub fn arg(&self, input: &str) -> &'a Arg {
        let index = self.op.def.param_index(input);
        &self.op.args[index.unwrap_or_else(|| panic!("`{}` has no input `{input}`", self.op.def.name))]
    }

    /// The value bound to `input`, if any.
    pub fn get(&self, input: &str) -> Option<ValueId> {
        self.arg(input).values().first().copied()
    }

    /// The value bound to the input that is a layer's weight (`OpDef::weight`), if the op has one.
    pub fn weight(&self) -> Option<ValueId> {
        self.get(self.op.def.weight?)
    }

    /// The value bound to a required input.
    ///
    /// # Errors
    /// [`Error::MissingInput`].
    pub fn value(&self, input: &str) -> Result<ValueId, Error> {
        self.get(input).ok_or_else(|| Error::MissingInput { op: self.label(), input: input.to_string() })
    }

    /// The type of the value bound to a required input.
    ///
    /// # Errors
    /// [`Error::MissingInput`].
    pub fn ty(&self, input: &str) -> Result<&'a TensorType, Error> {
        Ok(&self.function.value(self.value(input)?).ty)
    }

    /// The constant bound to `input`, if it is bound.
    ///
    /// # Errors
    /// [`Error::NotConst`] if it is bound to something else.
    pub fn constant(&self, input: &str) -> Result<Option<&'a Constant>, Error> {
        let Some(id) = self.get(input) else { return Ok(None) };
        match &self.function.value(id).def {
            Def::Const(constant) => Ok(Some(constant)),
            _ => Err(Error::NotConst { op: self.label(), input: input.to_string() }),
        }
    }

    /// The literal bound to `input`, or its default; `None` if it is absent and has none.
    fn literal(&self, input: &str) -> Result<Option<Literal>, Error> {
        match self.constant(input)? {
            Some(Constant::Literal(literal)) => Ok(Some(literal.clone())),
            Some(Constant::Weight(weight)) => {
                let bytes = weight.read()?.into_owned();
                Ok(Literal::from_bytes(weight.ty().clone(), bytes))
            }
            None => Ok(self.op.def.default_of(input).literal()),
        }
    }

    fn typed<T>(
        &self,
        input: &str,
        what: &str,
        read: impl Fn(&Literal) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(literal) = self.literal(input)? else { return Ok(None) };
        match read(&literal) {
            Some(value) => Ok(Some(value)),
            None => Err(self.invalid(format!("input `{input}` is {}, not {what}", literal.ty()))),
        }
    }

    /// Integers bound to `input`, or its default, if either is there.
    ///
    /// # Errors
    /// [`Error::NotConst`], or [`Error::Invalid`] if they are not integers.
    pub fn opt_ints(&self, input: &str) -> Result<Option<Vec<i64>>, Error> {
        self.typed(input, "integers", Literal::to_ints)
    }

    /// Integers bound to a required input, or its default.
    ///
    /// # Errors
    /// Those of [`opt_ints`](Self::opt_ints), and [`Error::MissingInput`].
    pub fn ints(&self, input: &str) -> Result<Vec<i64>, Error> {
        self.opt_ints(input)?.ok_or_else(|| self.missing(input))
    }

    /// One integer bound to an input, or its default.
    ///
    /// # Errors
    /// Those of [`ints`](Self::ints).
    pub fn int(&self, input: &str) -> Result<i64, Error> {
        match self.ints(input)?[..] {
            [value] => Ok(value),
            ref values => Err(self.invalid(format!("input `{input}` has {} values, not one", values.len()))),
        }
    }

    /// Truth values bound to `input`, or its default, if either is there.
    ///
    /// # Errors
    /// Those of [`opt_ints`](Self::opt_ints).
    pub fn opt_bools(&self, input: &str) -> Result<Option<Vec<bool>>, Error> {
        Ok(self.opt_ints(input)?.map(|values| values.into_iter().map(|value| value != 0).collect()))
    }

    /// One truth value bound to an input, or its default.
    ///
    /// # Errors
    /// Those of [`int`](Self::int).
    pub fn bool(&self, input: &str) -> Result<bool, Error> {
        Ok(self.int(input)? != 0)
    }

    /// One float bound to an input, or its default.
    ///
    /// # Errors
    /// [`Error::NotConst`], [`Error::MissingInput`], or [`Error::Invalid`] if it is not one float.
    pub fn float(&self, input: &str) -> Result<f64, Error> {
        let values = self.typed(input, "a float", |literal| {
            literal
                .to_floats()
                .or_else(|| Some(literal.to_ints()?.iter().map(|&value| value as f64).collect()))
        })?;
        match values.ok_or_else(|| self.missing(input))?[..] {
            [value] => Ok(value),
            ref values => Err(self.invalid(format!("input `{input}` has {} values, not one", values.len()))),
        }
    }

    /// The string bound to an input, or its default.
    ///
    /// # Errors
    /// [`Error::NotConst`], [`Error::MissingInput`], or [`Error::Invalid`] if it is not one string.
    pub fn str(&self, input: &str) -> Result<String, Error> {
        let value = self.typed(input, "a string", |literal| match literal.strings()? {
            [value] => Some(value.clone()),
            _ => None,
        })?;
        value.ok_or_else(|| self.missing(input))
    }

    /// Resolves an axis that may count from the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a tensor of that rank has no such axis.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, Error> {
        let resolved = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(resolved)
            .ok()
            .filter(|&resolved| resolved < rank)
            .ok_or_else(|| self.invalid(format!("no axis {axis} in a tensor of rank {rank}")))
    }

    /// An [`Error::Invalid`] about this op.
    pub fn invalid(&self, what: impl Into<String>) -> Error {
        Error::Invalid { op: self.label(), what: what.into() }
    }

    fn missing(&self, input: &str) -> Error {
        Error::MissingInput { op: self.label(), input: input.to_string() }
    }

    /// True if files store the arguments as attributes, as for constexpr ops in the iOS 16 form.
    pub fn has_attributes(&self) -> bool {
        match self.op.def.name {
            "constexpr_affine_dequantize" | "constexpr_cast" => true,
            "constexpr_lut_to_dense" | "constexpr_sparse_to_dense" => self.get("shape").is_some(),
            _ => false,
        }
    }

    /// The op's type and the name of its first output, for messages.
    pub fn label(&self) -> String {
        match self.op.outputs.first() {
            Some(&id) => format!("{} `{}`", self.op.def.name, self.function.value(id).name),
            None => self.op.def.name.to_string(),
        }
    }
}
