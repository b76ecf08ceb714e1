//! The operands and the results of a definition.

use mixbit_mil::{Def, OpView, TensorType, ValueId};

use crate::{Data, Error, Tensor};

/// An op and the tensors bound to its inputs.
pub(crate) struct Operands<'a> {
    pub(crate) view: OpView<'a>,
    pub(crate) lookup: &'a dyn Fn(ValueId) -> Option<Tensor>,
}

impl Operands<'_> {
    /// The type of a result.
    pub(crate) fn out(&self, index: usize) -> &TensorType {
        &self.view.function().value(self.view.op().outputs[index]).ty
    }

    fn tensor_of(&self, id: ValueId) -> Result<Tensor, Error> {
        match &self.view.function().value(id).def {
            Def::Const(constant) => Tensor::of_constant(constant),
            _ => (self.lookup)(id).ok_or_else(|| self.view.invalid("an input was not made").into()),
        }
    }

    /// The tensor bound to a required input.
    pub(crate) fn tensor(&self, input: &str) -> Result<Tensor, Error> {
        self.tensor_of(self.view.value(input)?)
    }

    /// The tensor bound to an input, if any.
    pub(crate) fn optional(&self, input: &str) -> Result<Option<Tensor>, Error> {
        self.view.get(input).map(|id| self.tensor_of(id)).transpose()
    }

    /// The tensors bound to a variadic input.
    pub(crate) fn list(&self, input: &str) -> Result<Vec<Tensor>, Error> {
        self.view.arg(input).values().iter().map(|&id| self.tensor_of(id)).collect()
    }

    /// The floats bound to a required input.
    pub(crate) fn floats(&self, input: &str) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(input)?;
        tensor.into_f32().ok_or_else(|| self.view.invalid(format!("`{input}` must be floats")).into())
    }

    /// The floats bound to an input, if any.
    pub(crate) fn optional_floats(&self, input: &str) -> Result<Option<Vec<f32>>, Error> {
        Ok(self.optional(input)?.and_then(Tensor::into_f32))
    }

    /// The only result, of floats.
    pub(crate) fn float_result(&self, values: Vec<f32>) -> Result<Vec<Tensor>, Error> {
        Ok(vec![Tensor::from_f32(&self.out(0).shape, values)?])
    }

    /// The only result, each number brought to its declared type: integers drop their fraction.
    pub(crate) fn number_result(&self, values: impl Iterator<Item = f64>) -> Result<Vec<Tensor>, Error> {
        self.result(match self.out(0).dtype.is_float() {
            true => Data::Float(values.map(|value| value as f32).collect()),
            false => Data::Int(values.map(|value| value as i32).collect()),
        })
    }

    /// The only result, with elements of `data`'s kind.
    pub(crate) fn result(&self, data: Data) -> Result<Vec<Tensor>, Error> {
        Ok(vec![Tensor::new(&self.out(0).shape, data)?])
    }
}
