//! The reference backend: every op by itself, naively, in the order of the function.

use std::collections::BTreeSet;

use mixbit_mil::{Arg, Constant, DType, Def, Function, OpView, ValueId};

use crate::ops::{Definition, Operands, definition};
use crate::{Arithmetic, Backend, Cancel, Error, Executable, Model, Options, Tensor};

/// Runs every op naively, with sums in `f64`, and drops each value after its last use.
///
/// It is plainly right and slow: the oracle of every other backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn compile(&self, function: &Function, options: &Options) -> Result<Model, Error> {
        mixbit_mil::verify(function)?;
        let function = mixbit_mil::constexpr::decoded(function)?;
        let definitions = function
            .ops()
            .iter()
            .map(|op| {
                definition(op.def.name).ok_or_else(|| Error::Unsupported {
                    backend: self.name(),
                    op: function.view(op).label(),
                    what: "the op has no definition".to_string(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let run = ReferenceRun { function: function.clone(), definitions, options: options.clone() };
        Ok(Model::new(&function, Box::new(run)))
    }
}

struct ReferenceRun {
    function: Function,
    definitions: Vec<&'static Definition>,
    options: Options,
}

impl Executable for ReferenceRun {
    fn run(
        &mut self,
        inputs: &[&Tensor],
        cancel: &Cancel,
        output: &mut dyn FnMut(usize, Tensor),
    ) -> Result<(), Error> {
        let function = &self.function;
        let mut values: Vec<Option<Tensor>> = vec![None; function.values().len()];
        for (id, tensor) in function.inputs().iter().zip(inputs) {
            values[id.index()] = Some((*tensor).clone());
        }
        for (index, &id) in function.outputs().iter().enumerate() {
            match (&values[id.index()], &function.value(id).def) {
                (Some(input), _) => output(index, input.clone()),
                (None, Def::Const(constant)) => output(index, Tensor::of_constant(constant)?),
                (None, _) => {}
            }
        }
        let last_use = last_uses(function);
        for (index, (op, definition)) in function.ops().iter().zip(&self.definitions).enumerate() {
            cancel.check()?;
            let view = function.view(op);
            let lookup = |id: ValueId| values[id.index()].clone();
            let results = (definition.eval)(&Operands { view, lookup: &lookup })?;
            for (&id, mut result) in op.outputs.iter().zip(results) {
                debug_assert_eq!(result.shape(), function.value(id).ty.shape, "{}", view.label());
                if self.options.arithmetic == Arithmetic::AsDeclared
                    && function.value(id).ty.dtype == DType::F16
                {
                    result.round_to_f16();
                }
                let positions = function.outputs().iter().enumerate().filter(|(_, output)| **output == id);
                positions.for_each(|(position, _)| output(position, result.clone()));
                values[id.index()] = Some(result);
            }
            for &id in op.args.iter().flat_map(Arg::values).chain(&op.outputs) {
                if last_use[id.index()].is_none_or(|last| last == index) {
                    values[id.index()] = None;
                }
            }
        }
        Ok(())
    }

    fn arena_bytes(&self) -> usize {
        0
    }

    fn weight_bytes(&self) -> usize {
        let args = self.function.ops().iter().flat_map(|op| op.args.iter().flat_map(Arg::values));
        let used: BTreeSet<&ValueId> = args.chain(self.function.outputs()).collect();
        let bytes = |id: &ValueId| match &self.function.value(*id).def {
            Def::Const(constant) => stored_bytes(constant),
            _ => 0,
        };
        used.into_iter().map(bytes).sum()
    }

    fn describe(&self) -> String {
        mixbit_mil::Program::new(self.function.clone()).to_string()
    }
}

/// Runs one op by its naive definition, on the tensors that `operand` gives for the values that are not
/// constants.
///
/// # Errors
/// [`Error::Unsupported`] if the op has no definition; if an operand is missing; [`Error::Index`].
pub fn evaluate(op: &OpView, operand: &dyn Fn(ValueId) -> Option<Tensor>) -> Result<Vec<Tensor>, Error> {
    let definition = definition(op.kind()).ok_or_else(|| Error::Unsupported {
        backend: Reference.name(),
        op: op.label(),
        what: "the op has no definition".to_string(),
    })?;
    (definition.eval)(&Operands { view: *op, lookup: operand })
}

/// The bytes of a constant as it is stored.
pub fn stored_bytes(constant: &Constant) -> usize {
    match constant {
        Constant::Weight(weight) => weight.stored_len(),
        Constant::Literal(literal) => literal.bytes().map_or(0, <[u8]>::len),
    }
}

/// The op that uses each value last; `None` for values that no op uses.
fn last_uses(function: &Function) -> Vec<Option<usize>> {
    let mut last = vec![None; function.values().len()];
    for (index, op) in function.ops().iter().enumerate() {
        op.args.iter().flat_map(Arg::values).for_each(|id| last[id.index()] = Some(index));
    }
    last
}
