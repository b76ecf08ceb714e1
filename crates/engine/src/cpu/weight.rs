//! Weights as the kernels read them: as stored, where the stored type is exact.

use half::{bf16, f16};
use kernels::{
    ConvShape, ConvWeight, Operand, PackedConvWeight, PackedMatrix, PackedSide, Precision, WeightSlice,
};
use mil::{DType, WeightRef};

use super::encoded::EncodedWeight;
use crate::{Error, Tensor};

/// Compressed constants of fewer elements are held decoded: no palette is worth its trouble for them.
const DECODED_BELOW: usize = 2048;

/// Whether a constant is decoded whenever it is used, because a dense copy of it is too large to hold.
pub(super) fn stays_compressed(weight: &WeightRef) -> bool {
    weight.is_compressed() && weight.ty().dtype.is_float() && weight.ty().count() >= DECODED_BELOW
}

/// A constant that a kernel reads as stored: 16-bit weights stay 16-bit and compressed ones compressed, in their file's
/// memory map.
pub(crate) enum Weight {
    /// In the memory map, aligned for its type.
    Mapped(WeightRef),
    /// A copy: of views that move elements, of casts that round, or where the file is not aligned.
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Decoded by the kernels, a run at a time.
    Encoded(Box<EncodedWeight>),
    /// Compressed in a form that the kernels do not read: decoded whole by each step that uses it, for as long as the
    /// step takes.
    Deferred(WeightRef),
}

impl Weight {
    /// A weight in its declared type, widened from a narrower stored one only when it is used.
    pub(crate) fn new(weight: &WeightRef) -> Result<Self, Error> {
        if stays_compressed(weight) {
            return Ok(match EncodedWeight::new(weight) {
                Some(encoded) => Weight::Encoded(Box::new(encoded)),
                None => Weight::Deferred(weight.clone()),
            });
        }
        Self::dense(weight)
    }

    /// A weight that is not compressed, or decoded now.
    fn dense(weight: &WeightRef) -> Result<Self, Error> {
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

    /// The elements. `room` is where they lie if they have to be decoded first.
    pub(crate) fn slice<'a>(&'a self, room: &'a mut Option<Weight>) -> Result<WeightSlice<'a>, Error> {
        Ok(match self {
            Weight::Deferred(weight) => room.insert(Self::dense(weight)?).held(),
            held => held.held(),
        })
    }

    /// The elements of all but deferred weights.
    fn held(&self) -> WeightSlice<'_> {
        match self {
            // Checked when it was made.
            Weight::Mapped(weight) => slice(weight).unwrap_or(WeightSlice::F32(&[])),
            Weight::F32(values) => WeightSlice::F32(values),
            Weight::F16(values) => WeightSlice::F16(values),
            Weight::Bf16(values) => WeightSlice::Bf16(values),
            Weight::Encoded(encoded) => encoded.slice(),
            Weight::Deferred(_) => WeightSlice::F32(&[]),
        }
    }

    /// Whether the weight is compressed.
    fn is_compressed(&self) -> bool {
        matches!(self, Weight::Encoded(_) | Weight::Deferred(_))
    }

    /// The memory that it takes, mapped or held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Weight::Mapped(weight) | Weight::Deferred(weight) => weight.stored_len(),
            Weight::F32(values) => size_of_val(&**values),
            Weight::F16(values) => size_of_val(&**values),
            Weight::Bf16(values) => size_of_val(&**values),
            Weight::Encoded(encoded) => encoded.bytes(),
        }
    }
}

/// The weight of a convolution: packed beforehand, or whenever it is used.
pub(crate) struct ConvKernel {
    held: Held<PackedConvWeight>,
    precision: Precision,
}

enum Held<P> {
    Stored(Weight),
    Packed(P),
}

impl ConvKernel {
    /// `gated` says that the outputs are values and then as many gates. `packs` asks for packing, which a compressed weight is
    /// never worth: it would be dense, in `f32`.
    pub(super) fn new(
        weight: Weight,
        gated: bool,
        shape: &ConvShape,
        precision: Precision,
        packs: bool,
    ) -> Self {
        let pack = if gated { kernels::pack_gated_conv_weight } else { kernels::pack_conv_weight };
        let held = match packs && !weight.is_compressed() {
            true => Held::Packed(pack(shape, weight.held(), precision)),
            false => Held::Stored(weight),
        };
        ConvKernel { held, precision }
    }

    /// The precision of the products.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The weight; for `room` see [`Weight::slice`].
    pub(crate) fn operand<'a>(&'a self, room: &'a mut Option<Weight>) -> Result<ConvWeight<'a>, Error> {
        Ok(match &self.held {
            Held::Stored(weight) => ConvWeight::Stored(weight.slice(room)?),
            Held::Packed(packed) => ConvWeight::Packed(packed),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.held {
            Held::Stored(weight) => weight.bytes(),
            Held::Packed(packed) => packed.size_in_bytes(),
        }
    }
}

/// The weight [outs, depth] of a linear layer: packed beforehand, or whenever it is used.
pub(crate) struct LinearKernel {
    held: Held<PackedMatrix>,
    size: [usize; 2],
    precision: Precision,
}

impl LinearKernel {
    /// As [`ConvKernel::new`].
    pub(super) fn new(
        weight: Weight,
        gated: bool,
        size: [usize; 2],
        precision: Precision,
        packs: bool,
    ) -> Self {
        let pack = if gated { PackedMatrix::gated } else { PackedMatrix::new };
        let [outs, depth] = size;
        let held = match packs && !weight.is_compressed() {
            true => {
                let matrix = weight.held().transposed_matrix(outs, depth);
                Held::Packed(pack(matrix, PackedSide::Right, precision))
            }
            false => Held::Stored(weight),
        };
        LinearKernel { held, size, precision }
    }

    /// The precision of the products.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The transposed weight, for the right side of a product; for `room` see [`Weight::slice`].
    pub(crate) fn operand<'a>(&'a self, room: &'a mut Option<Weight>) -> Result<Operand<'a>, Error> {
        let [outs, depth] = self.size;
        Ok(match &self.held {
            Held::Stored(weight) => weight.slice(room)?.transposed_matrix(outs, depth),
            Held::Packed(matrix) => Operand::Packed(matrix),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.held {
            Held::Stored(weight) => weight.bytes(),
            Held::Packed(matrix) => matrix.size_in_bytes(),
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
        assert!(matches!(mapped.held(), WeightSlice::F16(found) if found == values));
        let moved = Weight::new(&wide.transpose(&[1, 0]).unwrap()).unwrap();
        assert!(matches!(moved, Weight::F16(_)));

        let single = Bytes::new(vec![0u8; 9]).slice(1..9).unwrap();
        let single = WeightRef::new("s", TensorType::new(DType::F32, [2]), single).unwrap();
        assert!(matches!(Weight::new(&single).unwrap().held(), WeightSlice::F32(&[0.0, 0.0])));
        assert!(matches!(Weight::new(&single.cast(DType::F16)).unwrap(), Weight::F16(_)));
    }
}
