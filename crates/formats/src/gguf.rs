//! GGUF files, versions 2 and 3: a header of values and tensors by name, then the tensors' bytes.
//!
//! Quantized tensors are decoded to `f32` whenever they are read, block by block into the result: a block's
//! scale times its numbers needs more range and more bits than `f16` has.

mod blocks;
mod error;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mixbit_mil::{Bytes, Computed, DType, TensorType, WeightRef, Weights};

use blocks::{LARGEST, OTHERS, QUANTIZATIONS, Quantization};

pub use error::{GgufError, HEADER_LIMIT};

const MAGIC: &[u8] = b"GGUF";

/// The most axes of a tensor; ggml has four.
const RANK_LIMIT: usize = 8;

/// The most values, and the most tensors, of a header.
const COUNT_LIMIT: u64 = 1 << 20;

/// The key of the file's alignment, and its default.
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;

/// The start of the keys of the shapes that tensors had in PyTorch, where the file has them in another.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// The types that are read as they are.
const PLAIN: [(u32, DType); 8] = [
    (0, DType::F32),
    (1, DType::F16),
    (30, DType::BF16),
    (28, DType::F64),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
];

/// An open GGUF file. Only its header has been read; tensors are references into it.
pub struct Gguf {
    tensors: BTreeMap<Arc<str>, WeightRef>,
    metadata: BTreeMap<String, String>,
}

impl Gguf {
    /// True if a file begins as those of GGUF do.
    pub(crate) fn is_gguf(file: &[u8]) -> bool {
        file.starts_with(MAGIC)
    }

    /// Reads a file in memory or in a map.
    ///
    /// # Errors
    /// [`GgufError`] if it is malformed or has element types that are not supported.
    pub fn from_bytes(file: &Bytes) -> Result<Self, GgufError> {
        if !Self::is_gguf(file) {
            return Err(malformed("it does not start with `GGUF`".to_string()));
        }
        let mut reader = Reader { bytes: &file[..file.len().min(HEADER_LIMIT)], at: MAGIC.len() };
        match reader.u32("the version")? {
            2 | 3 => {}
            // A small number in the other byte order.
            version if version & 0xffff == 0 => return Err(GgufError::ByteOrder),
            version => return Err(GgufError::Version { version }),
        }
        let (tensors, values) = (reader.u64("the counts")?, reader.u64("the counts")?);
        if tensors > COUNT_LIMIT || values > COUNT_LIMIT {
            return Err(malformed(format!("it counts {tensors} tensors and {values} values")));
        }
        let mut header = Header::default();
        for _ in 0..values {
            header.read_value(&mut reader)?;
        }
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(Entry::read(&mut reader)?);
        }
        let start = reader.at.next_multiple_of(header.alignment);
        let data = file.slice(start.min(file.len())..file.len()).unwrap_or_else(|| file.clone());
        let mut tensors = BTreeMap::new();
        for entry in entries {
            let shape = header.shapes.get(&entry.name);
            let weight = entry.weight(shape, header.alignment, &data)?;
            if tensors.insert(Arc::from(&*entry.name), weight).is_some() {
                return Err(entry.wrong("it is in the header twice"));
            }
        }
        Ok(Gguf { tensors, metadata: header.metadata })
    }

    /// The numbers and texts of the header, such as `general.architecture`. Arrays are left out.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Weights for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(|name| &**name).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.tensors.get(name).cloned()
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({} tensors)", self.tensors.len())
    }
}

/// A position in the header.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let taken = usize::try_from(len).ok().and_then(|len| self.bytes[self.at..].get(..len));
        let taken = taken.ok_or(GgufError::CutOff { at: self.at, what })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    /// A number or a truth value of a type of the format.
    fn scalar(&mut self, kind: u32) -> Result<Scalar, GgufError> {
        const WHAT: &str = "a value";
        Ok(match kind {
            0 => Scalar::Int(self.array(WHAT).map(u8::from_le_bytes)?.into()),
            1 => Scalar::Int(self.array(WHAT).map(i8::from_le_bytes)?.into()),
            2 => Scalar::Int(self.array(WHAT).map(u16::from_le_bytes)?.into()),
            3 => Scalar::Int(self.array(WHAT).map(i16::from_le_bytes)?.into()),
            4 => Scalar::Int(self.u32(WHAT)?.into()),
            5 => Scalar::Int(self.array(WHAT).map(i32::from_le_bytes)?.into()),
            6 => Scalar::Float(self.array(WHAT).map(f32::from_le_bytes)?.to_string()),
            7 => Scalar::Bool(self.array::<1>(WHAT)? != [0]),
            10 => Scalar::Int(self.u64(WHAT)?.into()),
            11 => Scalar::Int(self.array(WHAT).map(i64::from_le_bytes)?.into()),
            12 => Scalar::Float(self.array(WHAT).map(f64::from_le_bytes)?.to_string()),
            other => return Err(malformed(format!("a value has the unknown type {other}"))),
        })
    }
}

enum Scalar {
    Int(i128),
    Float(String),
    Bool(bool),
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// The values of a header.
struct Header {
    metadata: BTreeMap<String, String>,
    /// The shapes that tensors had in PyTorch.
    shapes: BTreeMap<String, Vec<usize>>,
    alignment: usize,
}

impl Default for Header {
    fn default() -> Self {
        Header { metadata: BTreeMap::new(), shapes: BTreeMap::new(), alignment: DEFAULT_ALIGNMENT }
    }
}

impl Header {
    fn read_value(&mut self, reader: &mut Reader<'_>) -> Result<(), GgufError> {
        let key = reader.text("a key")?;
        let kind = reader.u32("a value")?;
        let text = match kind {
            TEXT => reader.text("a value")?,
            ARRAY => return self.read_array(key, reader),
            _ => match reader.scalar(kind)? {
                Scalar::Int(value) if key == ALIGNMENT => {
                    let alignment = usize::try_from(value).ok().filter(|value| value.is_power_of_two());
                    let alignment = alignment.filter(|value| *value <= 1 << 20);
                    self.alignment =
                        alignment.ok_or_else(|| malformed(format!("the alignment is {value}")))?;
                    return Ok(());
                }
                Scalar::Int(value) => value.to_string(),
                Scalar::Float(value) => value,
                Scalar::Bool(value) => value.to_string(),
            },
        };
        self.metadata.insert(key, text);
        Ok(())
    }

    /// Reads or skips an array: only the shapes of tensors are kept.
    fn read_array(&mut self, key: String, reader: &mut Reader<'_>) -> Result<(), GgufError> {
        let (kind, count) = (reader.u32("an array")?, reader.u64("an array")?);
        let Some(tensor) = key.strip_prefix(ORIGINAL_SHAPE) else {
            let width = match kind {
                0 | 1 | 7 => 1,
                2 | 3 => 2,
                4..=6 => 4,
                10..=12 => 8,
                TEXT => {
                    // Each takes at least the eight bytes of its length.
                    for _ in 0..count {
                        let len = reader.u64("an array")?;
                        reader.take(len, "an array")?;
                    }
                    return Ok(());
                }
                ARRAY => return Err(malformed(format!("`{key}` is an array of arrays"))),
                other => return Err(malformed(format!("an array has the unknown type {other}"))),
            };
            let len =
                count.checked_mul(width).ok_or(GgufError::CutOff { at: reader.at, what: "an array" })?;
            return reader.take(len, "an array").map(drop);
        };
        let wrong = || malformed(format!("`{key}` is no shape"));
        if count > RANK_LIMIT as u64 {
            return Err(wrong());
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            match reader.scalar(kind)? {
                Scalar::Int(extent) => shape.push(usize::try_from(extent).map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        self.shapes.insert(tensor.to_string(), shape);
        Ok(())
    }
}

/// A tensor of the header.
struct Entry {
    name: String,
    /// The extents, the innermost last.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Entry {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        const WHAT: &str = "the list of tensors";
        let name = reader.text(WHAT)?;
        let rank = reader.u32(WHAT)?;
        if rank as usize > RANK_LIMIT {
            let what = format!("it has {rank} axes, more than {RANK_LIMIT}");
            return Err(GgufError::Tensor { tensor: name, what });
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let extent = reader.u64(WHAT)?;
            let too_large =
                || GgufError::Tensor { tensor: name.clone(), what: format!("it has an extent of {extent}") };
            shape.push(usize::try_from(extent).map_err(|_| too_large())?);
        }
        shape.reverse();
        let (kind, offset) = (reader.u32(WHAT)?, reader.u64(WHAT)?);
        Ok(Entry { name, shape, kind, offset })
    }

    fn wrong(&self, what: impl Into<String>) -> GgufError {
        GgufError::Tensor { tensor: self.name.clone(), what: what.into() }
    }

    /// The tensor in the file's data, under its shape in PyTorch if that is known.
    fn weight(
        &self,
        original: Option<&Vec<usize>>,
        alignment: usize,
        data: &Bytes,
    ) -> Result<WeightRef, GgufError> {
        let too_large = || self.wrong(format!("of shape {:?} it is larger than any memory", self.shape));
        let plain = PLAIN.iter().find(|(code, _)| *code == self.kind).map(|(_, dtype)| *dtype);
        let quantization = QUANTIZATIONS.iter().find(|quantization| quantization.code == self.kind);
        let dtype = plain.unwrap_or(DType::F32);
        let ty = TensorType::new(dtype, self.shape.as_slice());
        let mut len = ty.byte_len().ok_or_else(too_large)?;
        if let Some(quantization) = quantization {
            let row = self.shape.last().copied().unwrap_or(1);
            if !row.is_multiple_of(quantization.elements) {
                let (name, elements) = (quantization.name, quantization.elements);
                return Err(
                    self.wrong(format!("its rows of {row} are no whole blocks of {elements} ({name})"))
                );
            }
            len = ty.count() / quantization.elements * quantization.bytes;
        } else if plain.is_none() {
            let known = OTHERS.iter().find(|(code, _)| *code == self.kind);
            let kind = known.map_or_else(|| format!("type {}", self.kind), |(_, name)| name.to_string());
            return Err(GgufError::Type { tensor: self.name.clone(), kind });
        }
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(self.wrong(format!("its offset {} is not aligned to {alignment}", self.offset)));
        }
        let start = usize::try_from(self.offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let bytes = range.and_then(|range| data.slice(range)).ok_or_else(|| {
            let (offset, available) = (self.offset, data.len());
            self.wrong(format!(
                "its {len} bytes at {offset} lie outside of the file's {available}: was the file cut off?"
            ))
        })?;
        let weight = match quantization {
            Some(quantization) => {
                WeightRef::computed(&*self.name, ty, Arc::new(Quantized { quantization, bytes }))
            }
            None => WeightRef::new(&*self.name, ty, bytes).map_err(|error| self.wrong(error.to_string()))?,
        };
        match original {
            Some(shape) => weight.reshape(shape.as_slice()).map_err(|_| {
                self.wrong(format!("its shape {:?} is not that of {shape:?}, its original one", self.shape))
            }),
            None => Ok(weight),
        }
    }
}

/// Quantized elements, decoded whenever they are read.
#[derive(Debug)]
struct Quantized {
    quantization: &'static Quantization,
    bytes: Bytes,
}

impl Computed for Quantized {
    fn read(&self) -> Vec<u8> {
        let Quantization { elements, bytes, decode, .. } = *self.quantization;
        let mut out = vec![0; self.bytes.len() / bytes * elements * 4];
        let mut values = [0f32; LARGEST];
        for (block, out) in self.bytes.chunks_exact(bytes).zip(out.chunks_exact_mut(elements * 4)) {
            decode(block, &mut values[..elements]);
            values.iter().zip(out.as_chunks_mut().0).for_each(|(value, out)| *out = value.to_le_bytes());
        }
        out
    }

    fn release(&self) {
        self.bytes.release();
    }

    fn stored(&self) -> Option<(&'static str, usize)> {
        Some((self.quantization.name, self.bytes.len()))
    }
}

fn malformed(what: String) -> GgufError {
    GgufError::Header { what }
}

#[cfg(test)]
mod tests;
