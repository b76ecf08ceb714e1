//! Functions rebuilt from files: named values in file order, every op checked and typed as it is read.

use std::collections::{HashMap, HashSet};

use crate::builder::is_identifier;
use crate::constexpr;
use crate::ops::lookup;
use crate::{Arg, Constant, DType, Def, Error, Function, Op, Opset, TensorType, ValueId};

/// A builder for the [`Function`] that a file describes. The package reader and the text parser use it.
///
/// Unlike [`Builder`](crate::Builder), it keeps names unchanged, and checks the declared type of each result
/// against the one that the op table infers.
#[derive(Debug)]
pub struct Assembler {
    function: Function,
    names: HashMap<String, ValueId>,
    /// The highest number that was appended to each base name.
    numbered: HashMap<String, u64>,
}

/// A declared type, whose extents may be open (`?`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The element type.
    pub dtype: DType,
    /// The extents. `None` is an open one, which any extent fits.
    pub shape: Vec<Option<usize>>,
}

impl Declared {
    /// The type, or `None` if an extent is open.
    pub fn fixed(&self) -> Option<TensorType> {
        let shape: Option<Vec<usize>> = self.shape.iter().copied().collect();
        Some(TensorType::new(self.dtype, shape?))
    }

    /// True if a value of type `ty` fits the declaration.
    pub fn admits(&self, ty: &TensorType) -> bool {
        self.dtype == ty.dtype
            && self.shape.len() == ty.rank()
            && self
                .shape
                .iter()
                .zip(&ty.shape)
                .all(|(open, extent)| open.is_none_or(|known| known == *extent))
    }
}

impl From<TensorType> for Declared {
    fn from(ty: TensorType) -> Self {
        Declared { dtype: ty.dtype, shape: ty.shape.into_iter().map(Some).collect() }
    }
}

impl Assembler {
    /// An empty function.
    pub fn new(name: &str, opset: Opset) -> Self {
        Assembler { function: Function::new(name, opset), names: HashMap::new(), numbered: HashMap::new() }
    }

    /// The function so far.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The value of that name, if it is defined already.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// Adds an input.
    ///
    /// # Errors
    /// [`Error::Graph`] if the name is taken or not an identifier.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId, Error> {
        let id = self.add(name, ty, Def::Input)?;
        self.function.inputs.push(id);
        Ok(id)
    }

    /// Adds a named constant.
    ///
    /// # Errors
    /// [`Error::Graph`] if the name is taken or not an identifier.
    pub fn constant(&mut self, name: &str, constant: Constant) -> Result<ValueId, Error> {
        self.add(name, constant.ty().clone(), Def::Const(constant))
    }

    /// Adds a constant without a name in the file. It is called `base`, or `base_1`, `base_2` and so on if
    /// that is taken.
    ///
    /// # Errors
    /// [`Error::Graph`] if `base` is not an identifier.
    pub fn unnamed(&mut self, base: &str, constant: Constant) -> Result<ValueId, Error> {
        let mut name = base.to_string();
        while self.names.contains_key(&name) {
            let count = self.numbered.entry(base.to_string()).or_insert(0);
            *count += 1;
            name = format!("{base}_{count}");
        }
        self.constant(&name, constant)
    }

    /// Adds an op with its arguments by name and its declared results.
    ///
    /// # Errors
    /// An unknown op or input, a missing input, or types that don't fit; [`Error::Graph`] for a name that is
    /// taken or not an identifier.
    pub fn op(
        &mut self,
        kind: &str,
        args: &[(&str, Arg)],
        outputs: &[(&str, Declared)],
    ) -> Result<(), Error> {
        let def = lookup(kind).ok_or_else(|| Error::UnknownOp(kind.to_string()))?;
        let mut op = Op { def, args: vec![Arg::Absent; def.params.len()], outputs: Vec::new() };
        for (input, arg) in args {
            let unknown = || Error::UnknownInput { op: kind.to_string(), input: (*input).to_string() };
            let index = def.param_index(input).ok_or_else(unknown)?;
            op.args[index] = match arg {
                Arg::One(id) if def.params[index].variadic => Arg::Many(vec![*id]),
                arg => arg.clone(),
            };
        }
        // The results come first, so that messages can name the op by them.
        for (name, declared) in outputs {
            let shape: Vec<usize> = declared.shape.iter().map(|extent| extent.unwrap_or(0)).collect();
            op.outputs.push(self.add(name, TensorType::new(declared.dtype, shape), Def::Result)?);
        }
        let view = self.function.view(&op);
        let types = def.infer(&view)?;
        if types.len() != outputs.len() {
            return Err(view.invalid(format!("declares {} results, it has {}", outputs.len(), types.len())));
        }
        for (ty, (name, declared)) in types.iter().zip(outputs) {
            if !declared.admits(ty) {
                let found = &self.function.value(self.names[*name]).ty;
                return Err(view.invalid(format!("`{name}` is declared as {found}, but it is {ty}")));
            }
        }
        for (id, ty) in op.outputs.iter().zip(types) {
            self.function.values[id.index()].ty = ty;
        }
        self.function.ops.push(op);
        Ok(())
    }

    /// Finishes the function with its outputs, by name.
    ///
    /// # Errors
    /// [`Error::Graph`] if an output is undefined or named twice.
    pub fn finish(mut self, outputs: &[&str]) -> Result<Function, Error> {
        let mut seen = HashSet::new();
        for name in outputs {
            let id = self.value(name).ok_or_else(|| Error::Graph(format!("output `{name}` is not made")))?;
            if !seen.insert(id) {
                return Err(Error::Graph(format!("output `{name}` is named twice")));
            }
            self.function.outputs.push(id);
        }
        constexpr::check_operands(&self.function)?;
        Ok(self.function)
    }

    fn add(&mut self, name: &str, ty: TensorType, def: Def) -> Result<ValueId, Error> {
        if !is_identifier(name) {
            return Err(Error::Graph(format!("`{}` is not an identifier", name.escape_debug())));
        }
        if self.names.contains_key(name) {
            return Err(Error::Graph(format!("two values are named `{name}`")));
        }
        if ty.dtype != DType::Str && ty.byte_len().is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::Graph(format!("`{name}` of type {ty} is too large")));
        }
        let id = self.function.add_value(name.to_string(), ty, def);
        self.names.insert(name.to_string(), id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Literal, verify};

    fn f32s(shape: &[usize]) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    fn with_input() -> (Assembler, Arg) {
        let mut assembler = Assembler::new("main", Opset::Ios16);
        let x = assembler.input("x", f32s(&[2, 3])).unwrap();
        (assembler, Arg::One(x))
    }

    #[test]
    fn open_extents_are_inferred() {
        let (mut assembler, x) = with_input();
        let y = Declared { dtype: DType::F32, shape: vec![None, Some(3)] };
        assembler.op("relu", &[("x", x)], &[("y", y)]).unwrap();
        let function = assembler.finish(&["y"]).unwrap();
        verify(&function).unwrap();
        assert_eq!(function.value(function.outputs()[0]).ty, f32s(&[2, 3]));
    }

    #[test]
    fn unnamed_constants_find_a_name() {
        let (mut assembler, _) = with_input();
        for expected in ["x_1", "x_2"] {
            let id = assembler.unnamed("x", Constant::Literal(Literal::int(1))).unwrap();
            assert_eq!(assembler.function().value(id).name, expected);
        }
    }

    #[test]
    fn what_a_file_gets_wrong_is_named() {
        let cases: [(&str, &str, &str, TensorType, &str); 5] = [
            ("frobnicate", "x", "y", f32s(&[2, 3]), "unknown op `frobnicate`"),
            ("relu", "z", "y", f32s(&[2, 3]), "op `relu` has no input `z`"),
            ("relu", "x", "x", f32s(&[2, 3]), "two values are named `x`"),
            ("relu", "x", "a.b", f32s(&[2, 3]), "`a.b` is not an identifier"),
            (
                "relu",
                "x",
                "y",
                f32s(&[3]),
                "relu `y`: `y` is declared as tensor<fp32, [3]>, but it is tensor<fp32, [2, 3]>",
            ),
        ];
        for (kind, input, name, ty, message) in cases {
            let (mut assembler, x) = with_input();
            let error = assembler.op(kind, &[(input, x)], &[(name, ty.into())]).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let (mut assembler, _) = with_input();
        assert!(assembler.input("huge", f32s(&[1 << 40, 1 << 40])).is_err());
        assert!(assembler.finish(&["y"]).is_err());
        let (assembler, _) = with_input();
        assert!(assembler.finish(&["x", "x"]).is_err());
    }
}
