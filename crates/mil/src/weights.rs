//! References to checkpoint tensors, and cheap views of them.
//!
//! A reference is a name, a slice of a memory map and a list of views. [`WeightRef::read`] reads it.

mod overlay;

use std::borrow::Cow;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use thiserror::Error;

use crate::{Bytes, DType, TensorType};

pub use overlay::Overlay;

/// A source of named tensors, such as the files of one checkpoint component.
pub trait Weights: Send + Sync {
    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<&str>;

    /// The tensor of that name, if there is one.
    fn get(&self, name: &str) -> Option<WeightRef>;

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`WeightError::Missing`] if there is none, [`WeightError::Shape`] if its shape is not `shape`.
    fn require(&self, name: &str, shape: &[usize]) -> Result<WeightRef, WeightError> {
        let weight = self.get(name).ok_or_else(|| WeightError::Missing { name: name.to_string() })?;
        if weight.ty().shape != shape {
            return Err(WeightError::Shape {
                name: name.to_string(),
                expected: shape.to_vec(),
                found: weight.ty().shape.clone(),
            });
        }
        Ok(weight)
    }
}

/// The reason why a weight can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WeightError {
    /// The checkpoint has no such tensor.
    #[error("the checkpoint has no tensor `{name}`")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// The tensor's shape is not the configured one.
    #[error("tensor `{name}` has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The configured shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The type takes more or fewer bytes.
    #[error("tensor `{name}` of type {ty} has {found} bytes")]
    Size {
        /// The tensor's name.
        name: String,
        /// The declared type.
        ty: TensorType,
        /// The number of bytes.
        found: usize,
    },
    /// The view does not fit the tensor.
    #[error("tensor `{name}`: {what}")]
    View {
        /// The tensor's name.
        name: String,
        /// The misfit.
        what: String,
    },
    /// The decoded elements take more memory than there is.
    #[error("tensor `{name}` takes {:.1} GB when it is decoded, more than is free", *bytes as f64 / 1e9)]
    Memory {
        /// The tensor's name.
        name: String,
        /// The bytes of its elements.
        bytes: usize,
    },
}

/// A view of a checkpoint tensor: its name, its bytes and the way to read them.
#[derive(Clone, Debug)]
pub struct WeightRef {
    name: Arc<str>,
    ty: TensorType,
    stored: DType,
    layout: Arc<Layout>,
}

/// The identity of a tensor's elements: [`WeightRef::identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    start: usize,
    /// The bytes, if they are stored; else they are computed.
    len: Option<usize>,
    stored: DType,
}

/// The layout of elements. All have the stored type; [`WeightRef`] adds the cast.
#[derive(Debug)]
enum Layout {
    Stored(Bytes),
    Transpose { of: WeightRef, perm: Vec<usize> },
    Slice { of: WeightRef, axis: usize, start: usize, len: usize },
    Concat { parts: Vec<WeightRef>, axis: usize },
    Encoded(Encoding),
    Computed(Arc<dyn Computed>),
}

/// Elements that are computed whenever they are read, and take no memory in between.
pub trait Computed: std::fmt::Debug + Send + Sync {
    /// The elements, row-major, little-endian, as long as the type. Every call returns the same.
    fn read(&self) -> Vec<u8>;

    /// Releases the memory of what they are computed from, for they are not needed soon.
    fn release(&self);

    /// The element type and the bytes of the file that they are computed from, where that is a tensor of a
    /// type that [`DType`] lacks.
    fn stored(&self) -> Option<(&'static str, usize)> {
        None
    }
}

/// A compressed constant, which `crate::constexpr` decodes. Operands have their stored element types; the op
/// table has checked their shapes.
#[derive(Debug)]
pub enum Encoding {
    /// Indices into a table.
    Lut {
        /// An index of `bits` bits for each element of `shape`, row-major, least significant bit first.
        indices: WeightRef,
        /// Bits of one index.
        bits: usize,
        /// The shape of the indices.
        shape: Vec<usize>,
        /// The blocks of each axis, then the entries, then the values of a vector.
        lut: WeightRef,
        /// The axis along which an entry's values lie.
        vector_axis: usize,
    },
    /// `scale * (data - offset)`.
    ShiftScale {
        /// The quantized elements.
        data: WeightRef,
        /// One element for each block of `data`, of the same rank.
        scale: WeightRef,
        /// Like `scale`. Without it nothing is subtracted.
        offset: Option<WeightRef>,
    },
    /// The nonzero elements and their places.
    Sparse {
        /// The nonzero elements.
        values: WeightRef,
        /// A bit for each element, least significant bit first, set where it is among `values`.
        mask: WeightRef,
        /// The number of elements.
        count: usize,
    },
    /// The nonzero elements of a tensor, whose encoding has blocks of the whole tensor.
    Nonzero {
        /// The elements, encoded: an index or a quantized number for each.
        values: WeightRef,
        /// A bit for each element of the whole, set where it is among `values`; of the whole's shape.
        mask: WeightRef,
        /// The encoding.
        blocks: BlockEncoding,
    },
}

/// The tables of [`Encoding::Nonzero`].
#[derive(Debug)]
pub enum BlockEncoding {
    /// The elements are indices into a table, laid out as that of [`Encoding::Lut`].
    Lut(WeightRef),
    /// `scale * (data - offset)`, as [`Encoding::ShiftScale`].
    ShiftScale {
        /// One element for each block.
        scale: WeightRef,
        /// Like `scale`. Without it nothing is subtracted.
        offset: Option<WeightRef>,
    },
}

impl Encoding {
    /// The operand that is as large as the decoded tensor.
    pub(crate) fn elements(&self) -> &WeightRef {
        match self {
            Encoding::Lut { indices, .. } => indices,
            Encoding::ShiftScale { data, .. } => data,
            Encoding::Sparse { values, .. } | Encoding::Nonzero { values, .. } => values,
        }
    }

    /// The operands that it is decoded from.
    pub fn operands(&self) -> impl Iterator<Item = &WeightRef> {
        let operands = match self {
            Encoding::Lut { indices, lut, .. } => [Some(indices), Some(lut), None, None],
            Encoding::ShiftScale { data, scale, offset } => [Some(data), Some(scale), offset.as_ref(), None],
            Encoding::Sparse { values, mask, .. } => {
                // Nonzero elements that are encoded have the mask among their operands.
                let is_encoded = matches!(values.encoding(), Some(Encoding::Nonzero { .. }));
                [Some(values), (!is_encoded).then_some(mask), None, None]
            }
            Encoding::Nonzero { values, mask, blocks: BlockEncoding::Lut(lut) } => {
                [Some(values), Some(mask), Some(lut), None]
            }
            Encoding::Nonzero { values, mask, blocks: BlockEncoding::ShiftScale { scale, offset } } => {
                [Some(values), Some(mask), Some(scale), offset.as_ref()]
            }
        };
        operands.into_iter().flatten()
    }
}

impl WeightRef {
    /// A tensor as stored: row-major, little-endian.
    ///
    /// # Errors
    /// [`WeightError::Size`] if `bytes` is longer or shorter than `ty` takes.
    pub fn new(name: impl Into<Arc<str>>, ty: TensorType, bytes: Bytes) -> Result<Self, WeightError> {
        let name = name.into();
        if ty.byte_len() != Some(bytes.len()) {
            return Err(WeightError::Size { name: name.to_string(), ty, found: bytes.len() });
        }
        Ok(WeightRef { name, stored: ty.dtype, ty, layout: Arc::new(Layout::Stored(bytes)) })
    }

    /// A tensor whose elements are computed when they are read.
    pub fn computed(name: impl Into<Arc<str>>, ty: TensorType, elements: Arc<dyn Computed>) -> Self {
        WeightRef { name: name.into(), stored: ty.dtype, ty, layout: Arc::new(Layout::Computed(elements)) }
    }

    /// The same bytes under another type of the same length.
    pub(crate) fn reinterpreted(&self, ty: TensorType) -> Result<Self, WeightError> {
        let own = TensorType::new(self.stored, self.ty.shape.clone());
        if own.byte_len() != ty.byte_len() {
            return Err(self.view_error(format!("{own} can't be read as {ty}")));
        }
        Ok(WeightRef { stored: ty.dtype, ty, ..self.clone() })
    }

    /// A compressed tensor that decodes to `ty`.
    pub(crate) fn encoded(name: &str, ty: TensorType, encoding: Encoding) -> Self {
        WeightRef { name: name.into(), stored: ty.dtype, ty, layout: Arc::new(Layout::Encoded(encoding)) }
    }

    /// The place of the tensor's stored elements in memory. Tensors of equal identity and type have equal
    /// elements as long as both live; others may have.
    pub fn identity(&self) -> Identity {
        match &*self.layout {
            Layout::Stored(bytes) => {
                Identity { start: bytes.as_ptr() as usize, len: Some(bytes.len()), stored: self.stored }
            }
            _ => Identity { start: Arc::as_ptr(&self.layout) as usize, len: None, stored: self.stored },
        }
    }

    /// The number of encodings that must be decoded in turn to read the tensor.
    pub(crate) fn encoding_depth(&self) -> usize {
        let Layout::Encoded(encoding) = &*self.layout else { return 0 };
        1 + encoding.operands().map(WeightRef::encoding_depth).max().unwrap_or(0)
    }

    /// The tensor's encoding, if it is compressed and no view moves its elements.
    pub fn encoding(&self) -> Option<&Encoding> {
        match &*self.layout {
            Layout::Encoded(encoding) => Some(encoding),
            _ => None,
        }
    }

    /// True if reading the tensor decodes anything.
    pub fn is_compressed(&self) -> bool {
        match &*self.layout {
            Layout::Encoded(_) => true,
            Layout::Transpose { of, .. } | Layout::Slice { of, .. } => of.is_compressed(),
            Layout::Concat { parts, .. } => parts.iter().any(WeightRef::is_compressed),
            Layout::Stored(_) | Layout::Computed(_) => false,
        }
    }

    /// The stored bytes of the tensor. For a compressed one, the sum over its operands.
    pub fn stored_len(&self) -> usize {
        match &*self.layout {
            Layout::Encoded(encoding) => encoding.operands().map(WeightRef::stored_len).sum(),
            Layout::Transpose { of, .. } | Layout::Slice { of, .. } if of.is_compressed() => of.stored_len(),
            Layout::Concat { parts, .. } => parts.iter().map(WeightRef::stored_len).sum(),
            Layout::Computed(elements) if elements.stored().is_some() => {
                elements.stored().map_or(0, |(_, len)| len)
            }
            _ => TensorType::new(self.stored, self.ty.shape.clone()).byte_len().unwrap_or(0),
        }
    }

    /// The tensor's name in its checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type that [`read`](Self::read) gives.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// The element type in the file.
    pub fn stored_dtype(&self) -> DType {
        self.stored
    }

    /// The name of the element type in the file, which may be one that [`DType`] lacks.
    pub fn stored_type_name(&self) -> &'static str {
        match &*self.layout {
            Layout::Computed(elements) => elements.stored().map_or(self.stored.name(), |(name, _)| name),
            _ => self.stored.name(),
        }
    }

    /// The same tensor under another name.
    pub fn renamed(&self, name: &str) -> Self {
        WeightRef { name: name.into(), ..self.clone() }
    }

    /// The same tensor as another float type. Casts don't add up: reading rounds once, from the stored value.
    pub fn cast(&self, dtype: DType) -> Self {
        WeightRef { ty: self.ty.with_dtype(dtype), ..self.clone() }
    }

    /// The same tensor with its element type as stored.
    pub fn uncast(&self) -> Self {
        self.cast(self.stored)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`WeightError::View`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Self, WeightError> {
        let ty = TensorType::new(self.ty.dtype, shape);
        if ty.checked_count() != self.ty.checked_count() {
            return Err(self.view_error(format!("can't reshape {:?} to {:?}", self.ty.shape, ty.shape)));
        }
        Ok(WeightRef { ty, ..self.clone() })
    }

    /// Axes reordered: axis `i` of the result is axis `perm[i]` of this tensor.
    ///
    /// # Errors
    /// [`WeightError::View`] if `perm` is not a permutation of the axes.
    pub fn transpose(&self, perm: &[usize]) -> Result<Self, WeightError> {
        let mut seen = vec![false; self.ty.rank()];
        let is_permutation = perm.len() == seen.len()
            && perm.iter().all(|&axis| axis < seen.len() && !std::mem::replace(&mut seen[axis], true));
        if !is_permutation {
            return Err(self.view_error(format!("{perm:?} does not permute {} axes", seen.len())));
        }
        self.require_whole_bytes()?;
        let shape: Vec<usize> = perm.iter().map(|&axis| self.ty.shape[axis]).collect();
        let layout = Layout::Transpose { of: self.uncast(), perm: perm.to_vec() };
        Ok(self.with_layout(shape, layout))
    }

    /// `len` indices of `axis`, from `start`.
    ///
    /// # Errors
    /// [`WeightError::View`] if that is not inside the tensor.
    pub fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self, WeightError> {
        let fits =
            axis < self.ty.rank() && start.checked_add(len).is_some_and(|end| end <= self.ty.shape[axis]);
        if !fits {
            let what = format!("no slice {start}..+{len} on axis {axis} of {:?}", self.ty.shape);
            return Err(self.view_error(what));
        }
        self.require_whole_bytes()?;
        let mut shape = self.ty.shape.clone();
        shape[axis] = len;
        Ok(self.with_layout(shape, Layout::Slice { of: self.uncast(), axis, start, len }))
    }

    /// Tensors joined along `axis`, under the given name.
    ///
    /// # Errors
    /// [`WeightError::View`] if there are none or their other axes or element types differ.
    pub fn concat(name: impl Into<Arc<str>>, parts: &[WeightRef], axis: usize) -> Result<Self, WeightError> {
        let name = name.into();
        let error = |what: &str| WeightError::View { name: name.to_string(), what: what.to_string() };
        let first = parts.first().ok_or_else(|| error("nothing to join"))?;
        let mut shape = first.ty.shape.clone();
        if axis >= shape.len() {
            return Err(error("no such axis to join along"));
        }
        first.require_whole_bytes()?;
        shape[axis] = 0;
        for part in parts {
            let others_equal = part.ty.rank() == shape.len()
                && (0..shape.len()).all(|at| at == axis || part.ty.shape[at] == shape[at]);
            if !others_equal || part.stored != first.stored || part.ty.dtype != first.ty.dtype {
                return Err(error("the parts to join differ in shape or element type"));
            }
            shape[axis] += part.ty.shape[axis];
        }
        let layout = Layout::Concat { parts: parts.iter().map(WeightRef::uncast).collect(), axis };
        Ok(WeightRef {
            name,
            ty: TensorType::new(first.ty.dtype, shape),
            stored: first.stored,
            layout: Arc::new(layout),
        })
    }

    /// The elements, row-major, little-endian, as stored. Borrows from the file where no view moves elements.
    ///
    /// Only types of whole bytes can be transposed, sliced or joined; the views refuse others.
    pub fn read_stored(&self) -> Cow<'_, [u8]> {
        match &*self.layout {
            Layout::Stored(bytes) => Cow::Borrowed(bytes),
            Layout::Transpose { of, perm } => Cow::Owned(transpose(of, perm)),
            Layout::Slice { of, axis, start, len } => Cow::Owned(slice(of, *axis, *start, *len)),
            Layout::Concat { parts, axis } => Cow::Owned(concat(parts, *axis)),
            Layout::Encoded(encoding) => Cow::Owned(encoding.decode()),
            Layout::Computed(elements) => Cow::Owned(elements.read()),
        }
    }

    /// Releases the tensor's memory, for it is not read again soon. A memory map can give back its pages.
    pub fn release(&self) {
        match &*self.layout {
            Layout::Stored(bytes) => bytes.release(),
            Layout::Transpose { of, .. } | Layout::Slice { of, .. } => of.release(),
            Layout::Concat { parts, .. } => parts.iter().for_each(WeightRef::release),
            Layout::Encoded(encoding) => encoding.operands().for_each(WeightRef::release),
            Layout::Computed(elements) => elements.release(),
        }
    }

    /// The elements, row-major, little-endian, in the type that [`ty`](Self::ty) says.
    ///
    /// # Errors
    /// [`WeightError::View`] for a cast that is not between float types, [`WeightError::Memory`] if the
    /// system refuses the memory for elements that are not stored one by one: a few bytes can encode any
    /// number.
    pub fn read(&self) -> Result<Cow<'_, [u8]>, WeightError> {
        self.check_memory()?;
        let stored = self.read_stored();
        if self.stored == self.ty.dtype {
            return Ok(stored);
        }
        cast(&stored, self.stored, self.ty.dtype)
            .map(Cow::Owned)
            .ok_or_else(|| self.view_error(format!("can't read {} as {}", self.stored, self.ty.dtype)))
    }

    fn with_layout(&self, shape: Vec<usize>, layout: Layout) -> Self {
        WeightRef {
            name: self.name.clone(),
            ty: TensorType::new(self.ty.dtype, shape),
            stored: self.stored,
            layout: Arc::new(layout),
        }
    }

    fn require_whole_bytes(&self) -> Result<(), WeightError> {
        if self.stored.bits() == 0 || !self.stored.bits().is_multiple_of(8) {
            return Err(
                self.view_error(format!("elements of type {} can't be moved one by one", self.stored))
            );
        }
        Ok(())
    }

    /// Asks the system for the memory of elements that are computed, so that refusal is an error.
    fn check_memory(&self) -> Result<(), WeightError> {
        if let Layout::Stored(_) = &*self.layout {
            return Ok(());
        }
        let bytes = self.ty.with_dtype(self.stored).byte_len().unwrap_or(usize::MAX);
        Vec::<u8>::new()
            .try_reserve_exact(bytes)
            .map_err(|_| WeightError::Memory { name: self.name.to_string(), bytes })
    }

    fn view_error(&self, what: String) -> WeightError {
        WeightError::View { name: self.name.to_string(), what }
    }
}

fn transpose(of: &WeightRef, perm: &[usize]) -> Vec<u8> {
    let bytes = of.read_stored();
    let width = of.stored.bits() / 8;
    let shape = &of.ty.shape;
    let mut strides = vec![width; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let extents: Vec<usize> = perm.iter().map(|&axis| shape[axis]).collect();
    let strides: Vec<usize> = perm.iter().map(|&axis| strides[axis]).collect();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0usize; extents.len()];
    let mut offset = 0;
    while out.len() < bytes.len() {
        out.extend_from_slice(&bytes[offset..offset + width]);
        for axis in (0..extents.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < extents[axis] {
                break;
            }
            offset -= strides[axis] * extents[axis];
            index[axis] = 0;
        }
    }
    out
}

fn slice(of: &WeightRef, axis: usize, start: usize, len: usize) -> Vec<u8> {
    let bytes = of.read_stored();
    let inner = of.ty.shape[axis + 1..].iter().product::<usize>() * of.stored.bits() / 8;
    let stride = of.ty.shape[axis] * inner;
    let mut out = Vec::new();
    if stride > 0 {
        for row in bytes.chunks_exact(stride) {
            out.extend_from_slice(&row[start * inner..(start + len) * inner]);
        }
    }
    out
}

fn concat(parts: &[WeightRef], axis: usize) -> Vec<u8> {
    let outer: usize = parts[0].ty.shape[..axis].iter().product();
    let read: Vec<Cow<'_, [u8]>> = parts.iter().map(WeightRef::read_stored).collect();
    let mut out = Vec::with_capacity(read.iter().map(|bytes| bytes.len()).sum());
    for row in 0..outer {
        for bytes in &read {
            let stride = bytes.len() / outer;
            out.extend_from_slice(&bytes[row * stride..(row + 1) * stride]);
        }
    }
    out
}

/// Converts little-endian floats; `None` where either type is not a float of at most 32 bits (or f64 as a
/// source).
fn cast(bytes: &[u8], from: DType, to: DType) -> Option<Vec<u8>> {
    // In blocks, so that conversions are vectorised.
    const BLOCK: usize = 4096;
    let width = |dtype: DType| dtype.bits() / 8;
    let casts = matches!(from, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
        && matches!(to, DType::F16 | DType::BF16 | DType::F32);
    if !casts {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / width(from) * width(to));
    let mut wide = [0f32; BLOCK];
    let mut halves = [f16::ZERO; BLOCK];
    let mut brains = [bf16::ZERO; BLOCK];
    for block in bytes.chunks(BLOCK * width(from)) {
        let wide = &mut wide[..block.len() / width(from)];
        let (halves, brains) = (&mut halves[..wide.len()], &mut brains[..wide.len()]);
        match from {
            DType::F16 => {
                halves.iter_mut().zip(block.as_chunks().0).for_each(|(h, &b)| *h = f16::from_le_bytes(b));
                halves.convert_to_f32_slice(wide);
            }
            DType::BF16 => {
                brains.iter_mut().zip(block.as_chunks().0).for_each(|(h, &b)| *h = bf16::from_le_bytes(b));
                brains.convert_to_f32_slice(wide);
            }
            DType::F32 => {
                wide.iter_mut().zip(block.as_chunks().0).for_each(|(v, &b)| *v = f32::from_le_bytes(b));
            }
            _ => {
                wide.iter_mut()
                    .zip(block.as_chunks().0)
                    .for_each(|(v, &b)| *v = f64::from_le_bytes(b) as f32);
            }
        }
        match to {
            DType::F16 => {
                halves.convert_from_f32_slice(wide);
                out.extend(halves.iter().flat_map(|value| value.to_le_bytes()));
            }
            DType::BF16 => {
                brains.convert_from_f32_slice(wide);
                out.extend(brains.iter().flat_map(|value| value.to_le_bytes()));
            }
            _ => out.extend(wide.iter().flat_map(|value| value.to_le_bytes())),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(shape: &[usize]) -> WeightRef {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|i| f16::from_f32(i as f32).to_le_bytes()).collect();
        WeightRef::new("w", TensorType::new(DType::F16, shape), Bytes::new(bytes)).unwrap()
    }

    fn values(weight: &WeightRef) -> Vec<f32> {
        let weight = weight.cast(DType::F32);
        let bytes = weight.read().unwrap().into_owned();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn untouched_weights_are_borrowed() {
        let weight = weight(&[2, 3]);
        assert!(matches!(weight.read().unwrap(), Cow::Borrowed(_)));
        assert!(matches!(weight.reshape([6]).unwrap().read().unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn views_compose() {
        let weight = weight(&[2, 3]);
        let transposed = weight.transpose(&[1, 0]).unwrap();
        assert_eq!(transposed.ty().shape, [3, 2]);
        assert_eq!(values(&transposed), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(values(&transposed.slice(0, 1, 2).unwrap()), [1., 4., 2., 5.]);
        assert_eq!(values(&weight.slice(1, 0, 1).unwrap()), [0., 3.]);
        let row = weight.slice(0, 1, 1).unwrap();
        assert_eq!(values(&row.reshape([3, 1]).unwrap()), [3., 4., 5.]);
        assert_eq!(values(&transposed.slice(0, 0, 2).unwrap().reshape([1, 4]).unwrap()), [0., 3., 1., 4.]);
        let joined = WeightRef::concat("j", &[weight.clone(), weight.slice(1, 2, 1).unwrap()], 1).unwrap();
        assert_eq!(joined.ty().shape, [2, 4]);
        assert_eq!(values(&joined), [0., 1., 2., 2., 3., 4., 5., 5.]);
        let wide = weight.reshape([3, 1, 2]).unwrap().transpose(&[2, 1, 0]).unwrap();
        assert_eq!(values(&wide), [0., 2., 4., 1., 3., 5.]);
    }

    #[test]
    fn views_that_do_not_fit_are_refused() {
        let weight = weight(&[2, 3]);
        assert!(weight.reshape([7]).is_err());
        assert!(weight.transpose(&[0, 0]).is_err());
        assert!(weight.transpose(&[0]).is_err());
        assert!(weight.slice(1, 2, 2).is_err());
        assert!(weight.slice(0, usize::MAX, 2).is_err());
        assert!(WeightRef::concat("j", &[], 0).is_err());
        assert!(WeightRef::new("w", TensorType::new(DType::F16, [3]), Bytes::new(vec![0u8; 5])).is_err());
    }

    #[test]
    fn casts_round_once() {
        let bytes: Vec<u8> = [1.0f32, 65519.0, 1e-8].iter().flat_map(|v| v.to_le_bytes()).collect();
        let weight = WeightRef::new("w", TensorType::new(DType::F32, [3]), Bytes::new(bytes)).unwrap();
        let half = weight.cast(DType::F16);
        assert_eq!(half.read().unwrap().len(), 6);
        assert_eq!(half.cast(DType::F32).read().unwrap(), weight.read().unwrap());
        assert!(weight.cast(DType::I32).read().is_err());
        let empty = WeightRef::new("w", TensorType::new(DType::F32, [0]), Bytes::new(vec![])).unwrap();
        assert!(empty.cast(DType::I32).read().is_err());
    }

    #[test]
    fn every_half_and_every_place_in_a_block_is_cast() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (narrow, wide) in [
            (DType::F16, (|bits| f16::from_bits(bits).to_f32()) as fn(u16) -> f32),
            (DType::BF16, |bits| bf16::from_bits(bits).to_f32()),
        ] {
            for count in [0, 1, 4095, 4096, 4097, 65536] {
                let bytes = Bytes::new(all[..2 * count].to_vec());
                let weight = WeightRef::new("w", TensorType::new(narrow, [count]), bytes).unwrap();
                let found = weight.cast(DType::F32).read().unwrap().into_owned();
                let expected: Vec<f32> = (0..count).map(|bits| wide(bits as u16)).collect();
                for (found, expected) in found.as_chunks().0.iter().zip(&expected) {
                    let found = f32::from_le_bytes(*found);
                    assert!(found == *expected || (found.is_nan() && expected.is_nan()));
                }
                let weight =
                    WeightRef::new("w", TensorType::new(DType::F32, [count]), Bytes::new(found)).unwrap();
                let back = weight.cast(narrow).read().unwrap().into_owned();
                for (at, found) in back.as_chunks().0.iter().enumerate() {
                    assert!(*found == (at as u16).to_le_bytes() || expected[at].is_nan());
                }
            }
        }
    }
}
