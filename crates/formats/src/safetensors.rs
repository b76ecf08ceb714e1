//! The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes.
//!
//! A file is validated against the whole format when it is opened, so that later code can trust every offset.
//! The header has at most [`HEADER_LIMIT`] bytes and lies inside the file. Names are unique. Every tensor has
//! exactly the bytes of its type and shape, and the tensors cover the data without overlap or gap. 8-bit
//! floats (`F8_E4M3`, `F8_E5M2`) are read as half-precision ones, which hold them exactly. Other element
//! types that [`DType`] lacks (smaller floats, complex numbers) are refused, with the tensor's name.

mod error;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use mixbit_mil::{Bytes, DType, TensorType, WeightRef, Weights};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use crate::float8::{self, Float8};
use crate::shown::shown;
use crate::{Error, lfs, map_file};

pub use error::{HEADER_LIMIT, SafeTensorsError};

pub use write::{TensorSpec, write, write_to};

/// The most axes of a tensor, as in NumPy and PyTorch.
const RANK_LIMIT: usize = 64;

const METADATA: &str = "__metadata__";

/// The format's names of the element types that can be read and written.
const DTYPES: [(&str, DType); 13] = [
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F32", DType::F32),
    ("F64", DType::F64),
    ("I8", DType::I8),
    ("I16", DType::I16),
    ("I32", DType::I32),
    ("I64", DType::I64),
    ("U8", DType::U8),
    ("U16", DType::U16),
    ("U32", DType::U32),
    ("U64", DType::U64),
    ("BOOL", DType::Bool),
];

/// The type and the bytes (in the data, after the header) of every tensor.
type Tensors = BTreeMap<Arc<str>, (Stored, Range<usize>)>;

/// The stored type of a tensor.
#[derive(Clone, Debug)]
enum Stored {
    /// As it is read.
    Plain(TensorType),
    /// In 8-bit floats, which are read as half-precision ones of this shape.
    Float8(Float8, Vec<usize>),
}

/// An open safetensors file. Only its header has been read; tensors are references into it.
pub struct SafeTensors {
    data: Bytes,
    tensors: Tensors,
    metadata: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Maps the file and checks its header. The conditions of [`map_file`] hold.
    ///
    /// # Errors
    /// [`Error::Read`] if it can't be opened, [`Error::SafeTensors`] if it breaks the format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(map_file(path)?)
            .map_err(|problem| Error::SafeTensors { path: path.to_path_buf(), problem })
    }

    /// A file in memory.
    ///
    /// # Errors
    /// [`SafeTensorsError`] if it breaks the format.
    pub fn from_bytes(file: Bytes) -> Result<Self, SafeTensorsError> {
        let (header, start) = split(&file)?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| SafeTensorsError::Header { what: shown(&error.to_string()) })?;
        // `split` found the header inside the file.
        let data = file.slice(start..file.len()).unwrap_or(file);
        let tensors = check(header.tensors, data.len())?;
        Ok(SafeTensors { data, tensors, metadata: header.metadata })
    }

    /// The header's `__metadata__`; empty if it has none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Weights for SafeTensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(|name| &**name).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        let (name, (stored, range)) = self.tensors.get_key_value(name)?;
        let bytes = self.data.slice(range.clone())?;
        match stored {
            Stored::Plain(ty) => WeightRef::new(name.clone(), ty.clone(), bytes).ok(),
            Stored::Float8(format, shape) => {
                let ty = TensorType::new(DType::U8, shape.as_slice());
                Some(float8::widened(*format, &WeightRef::new(name.clone(), ty, bytes).ok()?))
            }
        }
    }
}

impl fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeTensors({} tensors, {} bytes)", self.tensors.len(), self.data.len())
    }
}

/// The header's bytes and the offset of the data.
fn split(file: &[u8]) -> Result<(&[u8], usize), SafeTensorsError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(SafeTensorsError::TooShort { len: file.len() });
    };
    if lfs::is_pointer(file) {
        return Err(SafeTensorsError::LfsPointer);
    }
    let len = u64::from_le_bytes(*length);
    if len > HEADER_LIMIT {
        return Err(SafeTensorsError::HeaderTooLong { len });
    }
    let beyond = SafeTensorsError::HeaderBeyondFile { len, available: rest.len() };
    let length = len as usize;
    let header = rest.get(..length).ok_or(beyond)?;
    if header.first() != Some(&b'{') {
        return Err(SafeTensorsError::Header { what: "it does not start with `{`".to_string() });
    }
    Ok((header, 8 + length))
}

/// Checks every entry against the format, and returns the tensors by name.
fn check(entries: Vec<(String, Entry)>, available: usize) -> Result<Tensors, SafeTensorsError> {
    let mut tensors = BTreeMap::new();
    for (tensor, entry) in entries {
        let (stored, range) = check_entry(&tensor, entry, available)?;
        let name: Arc<str> = tensor.into();
        if tensors.insert(name.clone(), (stored, range)).is_some() {
            return Err(SafeTensorsError::Duplicate { tensor: name.to_string() });
        }
    }
    let mut in_order: Vec<(&Arc<str>, &Range<usize>)> =
        tensors.iter().map(|(name, (_, range))| (name, range)).collect();
    in_order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut end = 0;
    for (name, range) in in_order {
        if range.start != end {
            let tensor = name.to_string();
            return Err(SafeTensorsError::Gap { tensor, begin: range.start, expected: end });
        }
        end = range.end;
    }
    if end != available {
        return Err(SafeTensorsError::Trailing { end, available });
    }
    Ok(tensors)
}

fn check_entry(
    tensor: &str,
    entry: Entry,
    available: usize,
) -> Result<(Stored, Range<usize>), SafeTensorsError> {
    let float8 = Float8::of_safetensors(&entry.dtype);
    let known = DTYPES.iter().find(|(name, _)| *name == entry.dtype).map(|(_, dtype)| *dtype);
    // An 8-bit float takes a byte.
    let Some(dtype) = known.or(float8.map(|_| DType::U8)) else {
        return Err(SafeTensorsError::DType { tensor: tensor.to_string(), dtype: entry.dtype });
    };
    let shape: Option<Vec<usize>> = entry.shape.0.iter().map(|&extent| extent.try_into().ok()).collect();
    let ty = shape.map(|shape| TensorType::new(dtype, shape));
    let Some((ty, bytes)) = ty.and_then(|ty| ty.byte_len().map(|bytes| (ty, bytes))) else {
        return Err(SafeTensorsError::Overflow { tensor: tensor.to_string(), shape: entry.shape.0 });
    };
    let [begin, end] = entry.data_offsets;
    if begin > end || end > available as u64 {
        return Err(SafeTensorsError::Range { tensor: tensor.to_string(), begin, end, available });
    }
    if end - begin != bytes as u64 {
        return Err(SafeTensorsError::Size { tensor: tensor.to_string(), ty, found: end - begin });
    }
    let stored = match float8 {
        Some(format) => Stored::Float8(format, ty.shape),
        None => Stored::Plain(ty),
    };
    Ok((stored, begin as usize..end as usize))
}

/// The header as written, in file order, duplicates included.
struct Header {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A shape of at most [`RANK_LIMIT`] axes. Without the limit a header full of ones would fill the memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                // As in the reference reader, metadata may be null.
                let (mut tensors, mut metadata) = (Vec::new(), None::<Option<_>>);
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(serde::de::Error::duplicate_field(METADATA));
                    }
                }
                Ok(Header { tensors, metadata: metadata.flatten().unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {RANK_LIMIT} axes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = seq.next_element()? {
                    if shape.len() == RANK_LIMIT {
                        return Err(serde::de::Error::invalid_length(RANK_LIMIT + 1, &self));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(ShapeVisitor)
    }
}

#[cfg(test)]
pub(crate) mod tests;
