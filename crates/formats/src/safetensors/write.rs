//! The writer of safetensors files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use mixbit_mil::TensorType;
use serde_json::{Map, Value, json};

use super::{DTYPES, HEADER_LIMIT, METADATA};
use crate::{Error, write_atomically};

/// The name and type of a tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// Element type and shape.
    pub ty: TensorType,
}

/// Writes a file atomically, one tensor after the other.
///
/// `produce(index, writer)` is called once per tensor, and writes the bytes of `tensors[index]`, row-major
/// and little-endian. Tensors of wider element types come first in the file, so that every tensor is aligned
/// to its elements; otherwise the given order stays.
///
/// # Errors
/// [`Error::Write`] with the reason: the system's, an error of `produce`, a duplicate name, an element type
/// that the format lacks, or a tensor with more or fewer bytes than its type takes. `path` is then unchanged.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec],
    produce: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    write_atomically(path, |file| write_to(file, metadata, tensors, produce))
}

/// Like [`write()`], to any writer.
///
/// # Errors
/// Those of [`write()`], as the reason alone.
pub fn write_to(
    mut writer: impl Write,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec],
    mut produce: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(tensors[index].ty.dtype.bits()));
    let header = header(metadata, order.iter().map(|&index| &tensors[index]))?;
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for index in order {
        let spec = &tensors[index];
        let len = spec.ty.byte_len().unwrap_or(usize::MAX);
        let mut counting = Counting { writer: &mut writer, spec, left: len };
        produce(index, &mut counting)?;
        let left = counting.left;
        if left != 0 {
            return Err(invalid(spec, &format!("got {} of its {len} bytes", len - left)));
        }
    }
    writer.flush()
}

/// The JSON header, padded with spaces so that the data starts at a multiple of eight.
fn header<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = &'a TensorSpec>,
) -> io::Result<Vec<u8>> {
    let mut object = Map::new();
    if !metadata.is_empty() {
        object.insert(METADATA.to_string(), json!(metadata));
    }
    let mut begin = 0usize;
    for spec in tensors {
        let Some((dtype, _)) = DTYPES.iter().find(|(_, dtype)| *dtype == spec.ty.dtype) else {
            return Err(invalid(spec, "safetensors has no such element type"));
        };
        let end = spec.ty.byte_len().and_then(|len| begin.checked_add(len));
        let end = end.ok_or_else(|| invalid(spec, "it is larger than any file"))?;
        let entry = json!({ "dtype": dtype, "shape": spec.ty.shape, "data_offsets": [begin, end] });
        if spec.name == METADATA || object.insert(spec.name.clone(), entry).is_some() {
            return Err(invalid(spec, "the name is taken"));
        }
        begin = end;
    }
    let mut header = Value::Object(object).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > HEADER_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the header would be too long"));
    }
    Ok(header)
}

fn invalid(spec: &TensorSpec, what: &str) -> io::Error {
    let message = format!("tensor `{}` of type {}: {what}", spec.name, spec.ty);
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// A writer that passes on at most `left` bytes of a tensor.
struct Counting<'a, W> {
    writer: W,
    spec: &'a TensorSpec,
    left: usize,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            return Err(invalid(self.spec, "got more bytes than it has"));
        }
        let written = self.writer.write(bytes)?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
