//! NumPy's `.npy` arrays and uncompressed `.npz` archives of them, which are also written.
//!
//! Little-endian, C-ordered arrays of bools, integers and floats are read. Fortran order, big endian,
//! objects, strings, complex numbers and compressed archives are refused by name.

mod error;
mod write;
pub(crate) mod zip;

use std::collections::BTreeMap;
use std::path::Path;

use mixbit_mil::{Bytes, DType, TensorType, WeightRef, Weights};

use crate::shown::shown;
use crate::{Error, map_file};

pub use error::NpyError;
pub use write::{NamedArray, write_npz};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The most bytes of a header. NumPy itself refuses more than 10,000 from untrusted files.
const HEADER_LIMIT: usize = 65_536;

/// NumPy's type descriptors. `|` marks a type without byte order.
const DTYPES: [(&str, DType); 12] = [
    ("|b1", DType::Bool),
    ("|i1", DType::I8),
    ("|u1", DType::U8),
    ("<i2", DType::I16),
    ("<u2", DType::U16),
    ("<i4", DType::I32),
    ("<u4", DType::U32),
    ("<i8", DType::I64),
    ("<u8", DType::U64),
    ("<f2", DType::F16),
    ("<f4", DType::F32),
    ("<f8", DType::F64),
];

/// Maps an `.npy` file. The reference's name is the file's, without extension.
///
/// # Errors
/// [`Error::Read`] if it can't be opened, [`Error::Npy`] if it can't be used.
pub fn open_npy(path: &Path) -> Result<WeightRef, Error> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    parse_npy(&name, map_file(path)?).map_err(|problem| Error::Npy { path: path.to_path_buf(), problem })
}

/// Reads an `.npy` file in memory, under the given name.
///
/// # Errors
/// [`NpyError`] if it is malformed or unsupported.
pub fn parse_npy(name: &str, file: Bytes) -> Result<WeightRef, NpyError> {
    let (header, start) = split(&file)?;
    let ty = parse_header(header)?;
    let data = file.slice(start..file.len()).ok_or_else(|| malformed("it ends in its header"))?;
    let found = data.len();
    WeightRef::new(name, ty.clone(), data).map_err(|_| NpyError::Size { ty, found })
}

/// The arrays of an `.npz` file by name, without the `.npy` that NumPy adds.
#[derive(Debug)]
pub struct Npz {
    arrays: BTreeMap<String, WeightRef>,
}

impl Npz {
    /// Maps an `.npz` file that NumPy's `savez` wrote.
    ///
    /// # Errors
    /// [`Error::Read`] if it can't be opened, [`Error::Npy`] if it can't be used.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(map_file(path)?).map_err(|problem| Error::Npy { path: path.to_path_buf(), problem })
    }

    /// Reads an `.npz` file in memory.
    ///
    /// # Errors
    /// [`NpyError`] if it is malformed or unsupported.
    pub fn from_bytes(file: Bytes) -> Result<Self, NpyError> {
        let mut arrays = BTreeMap::new();
        for member in zip::members(&file)? {
            let name = member.name.strip_suffix(".npy").unwrap_or(&member.name);
            let in_member = |problem| NpyError::Member { name: name.to_string(), problem: Box::new(problem) };
            let data = zip::stored(&file, &member).map_err(in_member)?;
            let array = parse_npy(name, data).map_err(in_member)?;
            if arrays.insert(name.to_string(), array).is_some() {
                return Err(in_member(malformed("the name is there twice")));
            }
        }
        Ok(Npz { arrays })
    }
}

impl Weights for Npz {
    fn names(&self) -> Vec<&str> {
        self.arrays.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.arrays.get(name).cloned()
    }
}

/// The header's text and the offset of the data.
fn split(file: &[u8]) -> Result<(&str, usize), NpyError> {
    let rest = file.strip_prefix(MAGIC).ok_or_else(|| malformed("it does not start as an .npy file does"))?;
    let (len, start) = match rest {
        [1, _, low, high, ..] => (u16::from_le_bytes([*low, *high]) as usize, MAGIC.len() + 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, MAGIC.len() + 6),
        [version, _, ..] => {
            return Err(NpyError::Unsupported { what: format!("version {version} of the format") });
        }
        _ => return Err(malformed("it ends in its header")),
    };
    if len > HEADER_LIMIT {
        return Err(malformed("the header is longer than any that NumPy writes"));
    }
    let end = start + len;
    let header = file.get(start..end).ok_or_else(|| malformed("it ends in its header"))?;
    Ok((std::str::from_utf8(header).map_err(|_| malformed("the header is not text"))?, end))
}

/// Reads the header, a Python dict literal with exactly the keys `descr`, `fortran_order` and `shape`.
fn parse_header(header: &str) -> Result<TensorType, NpyError> {
    let bad = || malformed(&format!("the header `{}` can't be read", shown(header.trim_end())));
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    let mut rest = header.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(bad)?;
    while !rest.trim_start().is_empty() {
        let (key, after) = quoted(rest.trim_start()).ok_or_else(bad)?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(bad)?.trim_start();
        rest = match key {
            "descr" => {
                let (value, after) =
                    quoted(after).ok_or(NpyError::Unsupported { what: "an array of records".to_string() })?;
                descr = Some(value);
                after
            }
            "fortran_order" => {
                let is_true = after.starts_with("True");
                fortran = Some(is_true);
                after.strip_prefix(if is_true { "True" } else { "False" }).ok_or_else(bad)?
            }
            "shape" => {
                let (inside, after) =
                    after.strip_prefix('(').and_then(|text| text.split_once(')')).ok_or_else(bad)?;
                let extents = inside.split(',').map(str::trim).filter(|extent| !extent.is_empty());
                let extents: Result<Vec<usize>, _> = extents.map(str::parse).collect();
                shape = Some(extents.map_err(|_| bad())?);
                after
            }
            _ => return Err(bad()),
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else { return Err(bad()) };
    let Some(&(_, dtype)) = DTYPES.iter().find(|(name, _)| *name == descr) else {
        return Err(NpyError::Unsupported { what: format!("the element type `{}`", shown(descr)) });
    };
    if fortran {
        return Err(NpyError::Unsupported { what: "Fortran order".to_string() });
    }
    Ok(TensorType::new(dtype, shape))
}

/// A string in single or double quotes, and the rest after it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn malformed(what: &str) -> NpyError {
    NpyError::Malformed { what: what.to_string() }
}

#[cfg(test)]
mod tests;
