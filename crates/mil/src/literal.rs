//! Small constant values that live in the program itself.

use half::f16;

use crate::{DType, TensorType};

/// A typed constant value: packed little-endian bytes, or strings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Literal {
    ty: TensorType,
    data: LiteralData,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum LiteralData {
    Bytes(Vec<u8>),
    Strings(Vec<String>),
}

impl Literal {
    /// A value of packed little-endian bytes; `None` if `ty` takes more or fewer.
    pub fn from_bytes(ty: TensorType, bytes: Vec<u8>) -> Option<Self> {
        (ty.byte_len() == Some(bytes.len())).then_some(Literal { ty, data: LiteralData::Bytes(bytes) })
    }

    /// A list of strings, or one string if `shape` is empty; `None` if their number is not the shape's.
    pub fn from_strings(shape: &[usize], strings: Vec<String>) -> Option<Self> {
        let ty = TensorType::new(DType::Str, shape);
        (ty.checked_count() == Some(strings.len()))
            .then_some(Literal { ty, data: LiteralData::Strings(strings) })
    }

    /// One string.
    pub fn string(value: &str) -> Self {
        Literal { ty: TensorType::scalar(DType::Str), data: LiteralData::Strings(vec![value.to_string()]) }
    }

    /// One truth value.
    pub fn bool(value: bool) -> Self {
        Literal { ty: TensorType::scalar(DType::Bool), data: LiteralData::Bytes(vec![value.into()]) }
    }

    /// A vector of truth values.
    pub fn bools(values: &[bool]) -> Self {
        let bytes = values.iter().map(|&value| value.into()).collect();
        Literal { ty: TensorType::new(DType::Bool, [values.len()]), data: LiteralData::Bytes(bytes) }
    }

    /// One `int32`.
    pub fn int(value: i32) -> Self {
        Literal { ty: TensorType::scalar(DType::I32), data: LiteralData::Bytes(value.to_le_bytes().to_vec()) }
    }

    /// A vector of `int32`.
    pub fn ints(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Literal { ty: TensorType::new(DType::I32, [values.len()]), data: LiteralData::Bytes(bytes) }
    }

    /// One float of `dtype`, rounded to it. `None` if `dtype` is neither `fp16` nor `fp32`.
    pub fn float(dtype: DType, value: f64) -> Option<Self> {
        Self::floats(dtype, &[], &[value])
    }

    /// A float tensor of `dtype`, rounded to it. `None` if `dtype` is neither `fp16` nor `fp32`, or the
    /// number of values is not the shape's.
    pub fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Option<Self> {
        let bytes = match dtype {
            DType::F16 => values.iter().flat_map(|&value| f16::from_f64(value).to_le_bytes()).collect(),
            DType::F32 => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
            _ => return None,
        };
        Self::from_bytes(TensorType::new(dtype, shape), bytes)
    }

    /// The value's type.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// The packed little-endian bytes; `None` for strings.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            LiteralData::Bytes(bytes) => Some(bytes),
            LiteralData::Strings(_) => None,
        }
    }

    /// The strings; `None` for other types.
    pub fn strings(&self) -> Option<&[String]> {
        match &self.data {
            LiteralData::Strings(strings) => Some(strings),
            LiteralData::Bytes(_) => None,
        }
    }

    /// Integers of any whole-byte width, or truth values as 0 and 1, widened; `None` for other types.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        let bytes = self.bytes()?;
        macro_rules! read {
            ($ty:ty) => {
                bytes
                    .chunks_exact(size_of::<$ty>())
                    .map(|chunk| <$ty>::from_le_bytes(chunk.try_into().expect("chunks are exact")))
                    .map(|value| i64::try_from(value).ok())
                    .collect()
            };
        }
        match self.ty.dtype {
            DType::I8 => read!(i8),
            DType::I16 => read!(i16),
            DType::I32 => read!(i32),
            DType::I64 => read!(i64),
            DType::U8 | DType::Bool => read!(u8),
            DType::U16 => read!(u16),
            DType::U32 => read!(u32),
            DType::U64 => read!(u64),
            _ => None,
        }
    }

    /// `fp16` and `fp32` values, widened; `None` for other types.
    pub fn to_floats(&self) -> Option<Vec<f64>> {
        let bytes = self.bytes()?;
        match self.ty.dtype {
            DType::F16 => {
                Some(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect())
            }
            DType::F32 => Some(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip() {
        assert_eq!(Literal::ints(&[1, -2]).to_ints(), Some(vec![1, -2]));
        assert_eq!(Literal::bools(&[true, false]).to_ints(), Some(vec![1, 0]));
        assert_eq!(Literal::float(DType::F16, 0.1).unwrap().to_floats(), Some(vec![0.0999755859375]));
        assert_eq!(Literal::float(DType::F32, 0.5).unwrap().to_floats(), Some(vec![0.5]));
        assert_eq!(Literal::string("same").strings(), Some(&["same".to_string()][..]));
        assert_eq!(Literal::float(DType::I32, 0.5), None);
        assert_eq!(Literal::from_bytes(TensorType::new(DType::U4, [3]), vec![0, 0]).unwrap().ty().count(), 3);
        assert_eq!(Literal::from_bytes(TensorType::new(DType::F32, [3]), vec![0; 11]), None);
    }

    #[test]
    fn integers_that_do_not_fit_are_refused() {
        let bytes = u64::MAX.to_le_bytes().to_vec();
        let literal = Literal::from_bytes(TensorType::scalar(DType::U64), bytes).unwrap();
        assert_eq!(literal.to_ints(), None);
    }
}
