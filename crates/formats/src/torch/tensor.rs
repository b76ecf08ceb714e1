//! A tensor of a pickle as a reference into its storage.

use std::sync::Arc;

use mixbit_mil::{Bytes, Computed, DType, TensorType, WeightRef};

use crate::float8;

use super::error::TorchError;
use super::globals::{Element, ReadAs};
use super::pickle::{Id, Storage, Tensor, Unpickled, Value};

/// The most axes of a tensor, as in PyTorch.
const RANK_LIMIT: usize = 64;

/// The bytes that an expanded tensor may take besides those of the file.
const EXPANSION_LIMIT: usize = 1 << 20;

/// A tensor that has been checked against its pickle, but not yet against its storage.
pub(super) struct Placed<'p> {
    pub(super) storage: &'p Storage,
    element: &'static Element,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Checks a tensor's parts.
pub(super) fn place<'p>(
    pickle: &'p Unpickled<'_>,
    name: &str,
    tensor: &Tensor,
) -> Result<Placed<'p>, TorchError> {
    let wrong = |what: &str| TorchError::Tensor { tensor: name.to_string(), what: what.to_string() };
    let Value::Storage(storage) = pickle.value(tensor.storage) else {
        return Err(wrong("it has no storage"));
    };
    let element = tensor.element.or(storage.element).ok_or_else(|| wrong("it has no element type"))?;
    let size = |id: Id| match pickle.value(id) {
        Value::Int(value) => usize::try_from(*value).ok(),
        _ => None,
    };
    let sizes = |id: Id| match pickle.value(id) {
        Value::Tuple(sizes) if sizes.len() <= RANK_LIMIT => sizes.iter().map(|id| size(*id)).collect(),
        Value::List(sizes) if sizes.len() <= RANK_LIMIT => sizes.iter().map(|id| size(*id)).collect(),
        _ => None,
    };
    let parts: (Option<usize>, Option<Vec<usize>>, Option<Vec<usize>>) =
        (size(tensor.offset), sizes(tensor.shape), sizes(tensor.strides));
    match parts {
        (Some(offset), Some(shape), Some(strides)) if shape.len() == strides.len() => {
            Ok(Placed { storage, element, offset, shape, strides })
        }
        _ => Err(wrong("its shape, strides or offset are no sizes")),
    }
}

impl Placed<'_> {
    /// The tensor in its storage's bytes, which are a part of a file of `file` bytes.
    pub(super) fn weight(self, name: &str, bytes: &Bytes, file: usize) -> Result<WeightRef, TorchError> {
        let wrong = |what: String| TorchError::Tensor { tensor: name.to_string(), what };
        let element = self.element;
        let dtype = match &element.read_as {
            ReadAs::Plain(dtype) => *dtype,
            ReadAs::Float8(_) => DType::U8,
            ReadAs::Unsupported(kind) => {
                return Err(TorchError::Unsupported { tensor: name.to_string(), kind: kind.to_string() });
            }
        };
        let too_large = || wrong(format!("of shape {:?} it is larger than any memory", self.shape));
        let ty = TensorType::new(dtype, self.shape.as_slice());
        let len = ty.byte_len().ok_or_else(too_large)?;
        let span = self.span().and_then(|span| span.checked_mul(element.size)).ok_or_else(too_large)?;
        let first = self.first().and_then(|first| first.checked_mul(element.size));
        let range = first.and_then(|start| Some(start..start.checked_add(span)?));
        let range = range.filter(|_| self.is_declared(span));
        let data = range.and_then(|range| bytes.slice(range)).ok_or_else(|| {
            let len = bytes.len();
            wrong(format!("it lies outside of its storage, which has {len} bytes: was the file cut off?"))
        })?;
        let of_bytes = |ty, data| WeightRef::new(name, ty, data).map_err(|error| wrong(error.to_string()));
        let weight = match self.permutation() {
            _ if len == 0 => of_bytes(ty, Bytes::new(Vec::new()))?,
            Some(axes) => {
                let shape: Vec<usize> = axes.iter().map(|&axis| self.shape[axis]).collect();
                let stored = of_bytes(TensorType::new(dtype, shape), data)?;
                if axes.is_sorted() {
                    stored
                } else {
                    let mut places = vec![0; axes.len()];
                    axes.iter().enumerate().for_each(|(place, &axis)| places[axis] = place);
                    stored.transpose(&places).map_err(|error| wrong(error.to_string()))?
                }
            }
            None if len > file.saturating_add(EXPANSION_LIMIT) => {
                return Err(wrong(format!("it repeats its elements to {len} bytes, more than the file has")));
            }
            None => {
                // The strides of axes of one element can be anything.
                let strides = self.shape.iter().zip(&self.strides);
                let strides =
                    strides.map(|(&extent, &stride)| if extent == 1 { 0 } else { stride }).collect();
                let gathered = Gathered { data, shape: self.shape, strides, width: element.size };
                WeightRef::computed(name, ty, Arc::new(gathered))
            }
        };
        Ok(match &element.read_as {
            ReadAs::Float8(format) => float8::widened(*format, &weight),
            _ => weight,
        })
    }

    /// True if the storage, or the view of it, has `span` bytes from the tensor's offset on.
    fn is_declared(&self, span: usize) -> bool {
        let count = self.storage.view.map_or(self.storage.count, |(_, count)| count);
        let width = self.storage.element.map_or(1, |element| element.size);
        let end = self.offset.checked_mul(self.element.size).and_then(|start| start.checked_add(span));
        let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
        end.zip(len).is_some_and(|(end, len)| end <= len)
    }

    /// The first element in the storage that has bytes.
    fn first(&self) -> Option<usize> {
        let view = self.storage.view.map_or(0, |(offset, _)| offset);
        self.offset.checked_add(usize::try_from(view).ok()?)
    }

    /// The elements from the first to the last, inclusive.
    fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(1usize, |span, (extent, stride)| span.checked_add((extent - 1).checked_mul(*stride)?))
    }

    /// The axes in the order of memory, if the elements lie there without gap or repetition.
    fn permutation(&self) -> Option<Vec<usize>> {
        let mut axes: Vec<usize> = (0..self.shape.len()).collect();
        // The strides of axes of one element mean nothing.
        let stride = |axis: usize| if self.shape[axis] == 1 { usize::MAX } else { self.strides[axis] };
        let is_contiguous = |axes: &[usize]| {
            let mut expected = 1usize;
            axes.iter().rev().all(|&axis| {
                let fits = self.shape[axis] == 1 || self.strides[axis] == expected;
                expected = expected.saturating_mul(self.shape[axis]);
                fits
            })
        };
        if is_contiguous(&axes) {
            return Some(axes);
        }
        axes.sort_by_key(|&axis| std::cmp::Reverse(stride(axis)));
        is_contiguous(&axes).then_some(axes)
    }
}

/// Elements with gaps or repetitions between them.
#[derive(Debug)]
struct Gathered {
    data: Bytes,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// The bytes of an element.
    width: usize,
}

impl Computed for Gathered {
    fn read(&self) -> Vec<u8> {
        let count: usize = self.shape.iter().product();
        let mut out = Vec::with_capacity(count * self.width);
        let mut index = vec![0usize; self.shape.len()];
        let mut at = 0;
        for _ in 0..count {
            out.extend_from_slice(&self.data[at * self.width..][..self.width]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        out
    }

    fn release(&self) {
        self.data.release();
    }
}
