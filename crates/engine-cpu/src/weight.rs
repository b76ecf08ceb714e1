//! Weights in the form that the kernels read: as stored, where the stored type is exact.

use std::sync::OnceLock;

use half::{bf16, f16};
use mixbit_engine::{Error, Reservation, Tensor};
use mixbit_kernels::{
    ConvShape, ConvWeight, Operand, PackedConvWeight, PackedMatrix, PackedSide, Precision, WeightSlice,
};
use mixbit_mil::{DType, WeightRef};

use crate::encoded::EncodedWeight;
use crate::packing::{PACK_UP_TO_ROWS, Packing};

/// Compressed constants of fewer elements are held decoded.
const DECODED_BELOW: usize = 2048;

/// True if a constant is decoded whenever it is used, because a dense copy of it is too large to hold.
pub(super) fn stays_compressed(weight: &WeightRef) -> bool {
    weight.is_compressed() && weight.ty().dtype.is_float() && weight.ty().count() >= DECODED_BELOW
}

/// A constant that a kernel reads as stored: 16-bit weights stay 16-bit and compressed ones compressed, in
/// their file's memory map.
pub(crate) enum Weight {
    /// In the memory map, aligned for its type.
    Mapped(WeightRef),
    /// A copy: of views that move elements, of casts that round, or where the file is not aligned.
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Decoded by the kernels, a run at a time.
    Encoded(Box<EncodedWeight>),
    /// Compressed in a form that the kernels do not read. Each step that uses it decodes it for its own
    /// duration.
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
        let bytes = read.read().map_err(mixbit_mil::Error::from)?;
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

    /// The elements. `scratch` holds them if they are decoded first.
    pub(crate) fn slice<'a>(&'a self, scratch: &'a mut Option<Weight>) -> Result<WeightSlice<'a>, Error> {
        Ok(match self {
            Weight::Deferred(weight) => scratch.insert(Self::dense(weight)?).held(),
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

    /// True if the weight is compressed.
    fn is_compressed(&self) -> bool {
        matches!(self, Weight::Encoded(_) | Weight::Deferred(_))
    }

    /// The bytes of a copy; 0 for a weight in the memory map, and for a compressed one.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Weight::F32(_) | Weight::F16(_) | Weight::Bf16(_) => self.bytes(),
            Weight::Mapped(_) | Weight::Encoded(_) | Weight::Deferred(_) => 0,
        }
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

/// A layer's weights, mostly one: as stored, and packed where they stay so.
struct Layer<P> {
    weights: Vec<Weight>,
    /// From the first run on, if the weights stay packed.
    packed: OnceLock<P>,
    /// Memory for the packed weights; `None` if they are packed in every run.
    reserved: Option<Reservation>,
}

impl<P> Layer<P> {
    /// `bytes` is the size of the packed weights. Compressed weights are packed in every run: they would be
    /// dense otherwise.
    fn new(weights: Vec<Weight>, is_worth_it: bool, packing: &Packing, bytes: usize) -> Self {
        let may_stay = is_worth_it && !weights.iter().any(Weight::is_compressed);
        let reserved = if may_stay { packing.reserve(bytes) } else { None };
        Layer { weights, packed: OnceLock::new(), reserved }
    }

    /// Packs the weights, if they are to stay packed and are not yet.
    fn prepare(&self, pack: impl FnOnce(&[Weight]) -> P, size: impl Fn(&P) -> usize) {
        if let Some(reserved) = &self.reserved {
            let packed = self.packed.get_or_init(|| pack(&self.weights));
            debug_assert_eq!(size(packed) as u64, reserved.bytes());
        }
    }

    /// The packed weights, if they stay so.
    fn packed(&self) -> Option<&P> {
        self.packed.get()
    }

    /// The memory of the weights: stored, and packed if they stay so.
    fn bytes(&self) -> usize {
        let packed = self.reserved.as_ref().map_or(0, |reserved| reserved.bytes() as usize);
        self.weights.iter().map(Weight::bytes).sum::<usize>() + packed
    }

    /// The bytes of the weights that are held as copies.
    fn held_bytes(&self) -> usize {
        self.weights.iter().map(Weight::held_bytes).sum()
    }
}

/// The weight of a convolution.
pub(crate) struct ConvKernel {
    layer: Layer<PackedConvWeight>,
    shape: ConvShape,
    gated: bool,
    precision: Precision,
}

impl ConvKernel {
    /// The outputs of a `gated` convolution are values, then gates.
    pub(super) fn new(
        weight: Weight,
        gated: bool,
        shape: &ConvShape,
        precision: Precision,
        packing: &Packing,
    ) -> Self {
        let pixels = shape.batch * shape.out_size().iter().product::<usize>();
        let bytes = PackedConvWeight::bytes(shape, gated, precision);
        let layer = Layer::new(vec![weight], pixels <= PACK_UP_TO_ROWS, packing, bytes);
        ConvKernel { layer, shape: *shape, gated, precision }
    }

    /// The precision of the products.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Packs the weight, if it is to stay packed and is not yet.
    pub(crate) fn prepare(&self) {
        let pack = if self.gated {
            mixbit_kernels::pack_gated_conv_weight
        } else {
            mixbit_kernels::pack_conv_weight
        };
        let pack = |weights: &[Weight]| pack(&self.shape, weights[0].held(), self.precision);
        self.layer.prepare(pack, PackedConvWeight::size_in_bytes);
    }

    /// The weight; for `scratch` see [`Weight::slice`].
    pub(crate) fn operand<'a>(&'a self, scratch: &'a mut Option<Weight>) -> Result<ConvWeight<'a>, Error> {
        Ok(match self.layer.packed() {
            Some(packed) => ConvWeight::Packed(packed),
            None => ConvWeight::Stored(self.layer.weights[0].slice(scratch)?),
        })
    }

    /// The memory of the weight: stored, and packed if it stays so.
    pub(super) fn bytes(&self) -> usize {
        self.layer.bytes()
    }

    /// The bytes of the weight if it is held as a copy.
    pub(super) fn held_bytes(&self) -> usize {
        self.layer.held_bytes()
    }
}

/// The weight [outs, depth] of a linear layer, or those of several that multiply the same rows.
pub(crate) struct LinearKernel {
    layer: Layer<PackedMatrix>,
    size: [usize; 2],
    gated: bool,
    precision: Precision,
}

impl LinearKernel {
    /// As [`ConvKernel::new`], for a product of some rows. Only a single weight may be gated.
    pub(super) fn new(
        weights: Vec<Weight>,
        gated: bool,
        size: [usize; 2],
        rows: usize,
        precision: Precision,
        packing: &Packing,
    ) -> Self {
        // For very few rows, one weight by itself is not packed at all.
        let is_worth_it = mixbit_kernels::packs_columns(rows) && rows <= PACK_UP_TO_ROWS;
        let [outs, depth] = size;
        let one = PackedMatrix::bytes([outs, depth], gated, PackedSide::Right, precision);
        let bytes = weights.len() * one;
        LinearKernel { layer: Layer::new(weights, is_worth_it, packing, bytes), size, gated, precision }
    }

    /// The precision of the products.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Packs the weights as one, if they are to stay packed and are not yet.
    pub(crate) fn prepare(&self) {
        let [outs, depth] = self.size;
        let pack = |weights: &[Weight]| {
            let matrices: Vec<_> =
                weights.iter().map(|weight| weight.held().transposed_matrix(outs, depth)).collect();
            match matrices[..] {
                [matrix] if self.gated => PackedMatrix::gated(matrix, PackedSide::Right, self.precision),
                _ => PackedMatrix::batch(&matrices, PackedSide::Right, self.precision),
            }
        };
        self.layer.prepare(pack, PackedMatrix::size_in_bytes);
    }

    /// The transposed weights, for the right side of a product: each by itself, or all packed as one. For
    /// `scratch`, one for each, see [`Weight::slice`].
    pub(crate) fn operands<'a>(
        &'a self,
        scratch: &'a mut Vec<Option<Weight>>,
    ) -> Result<Vec<Operand<'a>>, Error> {
        let [outs, depth] = self.size;
        if let Some(packed) = self.layer.packed() {
            return Ok(vec![Operand::Packed(packed)]);
        }
        scratch.resize_with(self.layer.weights.len(), || None);
        let stored = self.layer.weights.iter().zip(scratch);
        stored
            .map(|(weight, scratch)| Ok(weight.slice(scratch)?.transposed_matrix(outs, depth).into()))
            .collect()
    }

    /// The memory of the weights: stored, and packed if they stay so.
    pub(super) fn bytes(&self) -> usize {
        self.layer.bytes()
    }

    /// The bytes of the weights that are held as copies.
    pub(super) fn held_bytes(&self) -> usize {
        self.layer.held_bytes()
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
    use mixbit_mil::{Bytes, TensorType};

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
