//! Dense run-time tensors.

use half::f16;
use mixbit_mil::{Constant, DType, Literal, TensorType, WeightRef};

use crate::Error;

/// A dense, row-major tensor. Floats of any type are `f32`, integers of any width `i32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// The elements of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// `fp16`, `bf16` and `fp32`.
    Float(Vec<f32>),
    /// Integers and truth values (0 or 1).
    Int(Vec<i32>),
}

impl Tensor {
    /// A float tensor.
    ///
    /// # Errors
    /// [`Error::Elements`] if the number of values is not the shape's.
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Result<Self, Error> {
        Self::new(shape, Data::Float(values))
    }

    /// An integer tensor.
    ///
    /// # Errors
    /// [`Error::Elements`] if the number of values is not the shape's.
    pub fn from_i32(shape: &[usize], values: Vec<i32>) -> Result<Self, Error> {
        Self::new(shape, Data::Int(values))
    }

    /// A tensor of a shape.
    ///
    /// # Errors
    /// [`Error::Elements`] if the number of elements is not the shape's.
    pub fn new(shape: &[usize], data: Data) -> Result<Self, Error> {
        let found = match &data {
            Data::Float(values) => values.len(),
            Data::Int(values) => values.len(),
        };
        let expected = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        if expected != Some(found) {
            return Err(Error::Elements { shape: shape.to_vec(), found });
        }
        Ok(Tensor { shape: shape.to_vec(), data })
    }

    /// The extent of every axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements of a float tensor.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(values) => Some(values),
            Data::Int(_) => None,
        }
    }

    /// The elements of an integer tensor.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            Data::Int(values) => Some(values),
            Data::Float(_) => None,
        }
    }

    /// The elements of a float tensor, taken out of it.
    pub fn into_f32(self) -> Option<Vec<f32>> {
        match self.data {
            Data::Float(values) => Some(values),
            Data::Int(_) => None,
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Elements`] if the number of elements differs.
    pub fn reshaped(self, shape: &[usize]) -> Result<Self, Error> {
        Self::new(shape, self.data)
    }

    /// Rounds every float to half precision.
    pub(crate) fn round_to_f16(&mut self) {
        if let Data::Float(values) = &mut self.data {
            values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }

    /// The value of a constant, read from its file if it is a weight.
    ///
    /// # Errors
    /// If it can't be read, or is of a type that the engine does not hold.
    pub fn of_constant(constant: &Constant) -> Result<Self, Error> {
        match constant {
            Constant::Literal(literal) => Self::of_literal(literal),
            Constant::Weight(weight) => Self::of_weight(weight),
        }
    }

    fn of_literal(literal: &Literal) -> Result<Self, Error> {
        let shape = &literal.ty().shape;
        if let Some(values) = literal.to_floats() {
            return Self::from_f32(shape, values.into_iter().map(|value| value as f32).collect());
        }
        // A mask of sparse weights.
        if let (DType::U1, Some(bytes)) = (literal.ty().dtype, literal.bytes()) {
            let bit = |at: usize| i32::from(bytes[at / 8] >> (at % 8) & 1);
            return Self::from_i32(shape, (0..literal.ty().count()).map(bit).collect());
        }
        let ints = literal.to_ints().ok_or_else(|| Error::ElementType { ty: literal.ty().clone() })?;
        let narrow: Option<Vec<i32>> = ints.into_iter().map(|value| i32::try_from(value).ok()).collect();
        Self::from_i32(shape, narrow.ok_or_else(|| Error::ElementType { ty: literal.ty().clone() })?)
    }

    fn of_weight(weight: &WeightRef) -> Result<Self, Error> {
        let bytes = weight.read().map_err(mixbit_mil::Error::from)?;
        if !weight.ty().dtype.is_float() {
            let literal = Literal::from_bytes(weight.ty().clone(), bytes.into_owned());
            return Self::of_literal(&literal.ok_or_else(|| Error::ElementType { ty: weight.ty().clone() })?);
        }
        Self::from_f32(&weight.ty().shape, widen(weight.ty(), &bytes)?)
    }
}

/// The elements of a tensor of any type, exact in `f64`.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Data::Float(values) => values.iter().map(|&x| x.into()).collect(),
        Data::Int(values) => values.iter().map(|&x| x.into()).collect(),
    }
}

/// Little-endian floats of any width as `f32`.
fn widen(ty: &TensorType, bytes: &[u8]) -> Result<Vec<f32>, Error> {
    match ty.dtype {
        DType::F16 => Ok(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        DType::BF16 => {
            Ok(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
        }
        DType::F32 => {
            Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        _ => Err(Error::ElementType { ty: ty.clone() }),
    }
}
