//! Weights as the kernels read them: as stored, where the stored type is exact.

use half::{bf16, f16};
use kernels::{ConvShape, ConvWeight, Operand, PackedMatrix, PackedSide, WeightSlice};
use mil::{DType, WeightRef};

use crate::{Error, Tensor};

/// A constant that a kernel reads as stored: 16-bit weights stay 16-bit, in their file's memory map.
pub(crate) enum Weight {
    /// In the memory map, aligned for its type.
    Mapped(WeightRef),
    /// A copy: of views that move elements, of casts that round, or where the file is not aligned.
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Weight {
    /// A weight in its declared type, widened from a narrower stored one only when it is used.
    pub(crate) fn new(weight: &WeightRef) -> Result<Self, Error> {
        let exact = weight.stored_dtype() == weight.ty().dtype
            || (weight.ty().dtype == DType::F32 && matches!(weight.stored_dtype(), DType::F16 | DType::BF16));
        let read = if exact { weight.uncast() } else { weight.clone() };
        if exact && matches!(read.read_stored(), std::borrow::Cow::Borrowed(_)) && slice(&read).is_some() {
            return Ok(Weight::Mapped(read));
        }
        let bytes = read.read().map_err(mil::Error::from)?;
        match read.ty().dtype {
            DType::F32 => Ok(Weight::F32(bytemuck::allocation::pod_collect_to_vec(&bytes))),
            DType::F16 => Ok(Weight::F16(bytemuck::allocation::pod_collect_to_vec(&bytes))),
            DType::BF16 => Ok(Weight::Bf16(bytemuck::allocation::pod_collect_to_vec(&bytes))),
            _ => Err(Error::ElementType { ty: weight.ty().clone() }),
        }
    }

    /// A literal weight.
    pub(crate) fn of_tensor(tensor: Tensor) -> Option<Self> {
        tensor.into_f32().map(Weight::F32)
    }

    /// The elements.
    pub(crate) fn slice(&self) -> WeightSlice<'_> {
        match self {
            // Checked when it was made.
            Weight::Mapped(weight) => slice(weight).unwrap_or(WeightSlice::F32(&[])),
            Weight::F32(values) => WeightSlice::F32(values),
            Weight::F16(values) => WeightSlice::F16(values),
            Weight::Bf16(values) => WeightSlice::Bf16(values),
        }
    }
}

/// The weight of a convolution: packed beforehand, or whenever it is used.
pub(crate) enum ConvKernel {
    Stored(Weight),
    Packed(Vec<PackedMatrix>),
}

impl ConvKernel {
    pub(crate) fn new(weight: Weight, shape: &ConvShape, is_packed: bool) -> Self {
        match is_packed {
            true => ConvKernel::Packed(kernels::pack_conv_weight(shape, weight.slice())),
            false => ConvKernel::Stored(weight),
        }
    }

    pub(crate) fn operand(&self) -> ConvWeight<'_> {
        match self {
            ConvKernel::Stored(weight) => ConvWeight::Stored(weight.slice()),
            ConvKernel::Packed(groups) => ConvWeight::Packed(groups),
        }
    }
}

/// The weight [outs, depth] of a linear layer: packed beforehand, or whenever it is used.
pub(crate) enum LinearKernel {
    Stored(Weight, [usize; 2]),
    Packed(PackedMatrix),
}

impl LinearKernel {
    pub(crate) fn new(weight: Weight, [outs, depth]: [usize; 2], is_packed: bool) -> Self {
        match is_packed {
            true => {
                let matrix = weight.slice().transposed_matrix(outs, depth);
                LinearKernel::Packed(PackedMatrix::new(matrix, PackedSide::Right))
            }
            false => LinearKernel::Stored(weight, [outs, depth]),
        }
    }

    /// The transposed weight, for the right side of a product.
    pub(crate) fn operand(&self) -> Operand<'_> {
        match self {
            LinearKernel::Stored(weight, [outs, depth]) => weight.slice().transposed_matrix(*outs, *depth),
            LinearKernel::Packed(matrix) => Operand::Packed(matrix),
        }
    }
}

/// The stored elements in place, if no view moves them and they are aligned.
fn slice(weight: &WeightRef) -> Option<WeightSlice<'_>> {
    let std::borrow::Cow::Borrowed(bytes) = weight.read_stored() else { return None };
    match weight.stored_dtype() {
        DType::F32 => bytemuck::try_cast_slice(bytes).ok().map(WeightSlice::F32),
        DType::F16 => bytemuck::try_cast_slice(bytes).ok().map(WeightSlice::F16),
        DType::BF16 => bytemuck::try_cast_slice(bytes).ok().map(WeightSlice::Bf16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mil::{Bytes, TensorType};

    use super::*;

    #[test]
    fn aligned_weights_stay_mapped_and_others_are_copied() {
        let values: Vec<f16> = (0..8).map(|i| f16::from_f32(i as f32)).collect();
        let bytes = Bytes::new(bytemuck::allocation::pod_collect_to_vec::<f16, u8>(&values));
        let weight = WeightRef::new("w", TensorType::new(DType::F16, [2, 4]), bytes).unwrap();
        let wide = weight.cast(DType::F32);
        let mapped = Weight::new(&wide).unwrap();
        assert!(matches!(mapped.slice(), WeightSlice::F16(found) if found == values));
        let moved = Weight::new(&wide.transpose(&[1, 0]).unwrap()).unwrap();
        assert!(matches!(moved, Weight::F16(_)));

        let single = Bytes::new(vec![0u8; 9]).slice(1..9).unwrap();
        let single = WeightRef::new("s", TensorType::new(DType::F32, [2]), single).unwrap();
        assert!(matches!(Weight::new(&single).unwrap().slice(), WeightSlice::F32(&[0.0, 0.0])));
        assert!(matches!(Weight::new(&single.cast(DType::F16)).unwrap(), Weight::F16(_)));
    }
}
