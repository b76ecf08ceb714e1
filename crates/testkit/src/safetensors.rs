//! A small safetensors reader for trusted fixture files.
//!
//! It is deliberately not `formats`' reader: fixtures that test that crate must not be read by it.

use std::collections::BTreeMap;

use serde_json::Value;

/// An array of a fixture: its shape, outermost dimension first, and its values, widened to f64.
///
/// Every supported element type (F64, F32, F16, BF16, signed and unsigned integers, BOOL) is exact in f64,
/// but for 64-bit integers beyond 2^53, which are refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f64>,
}

impl Array {
    /// The elements as f32; exact for F32 and narrower types.
    pub fn f32s(&self) -> Vec<f32> {
        self.values.iter().map(|&value| value as f32).collect()
    }

    /// The elements as integers.
    ///
    /// # Panics
    ///
    /// If an element is not an integer.
    #[track_caller]
    pub fn i64s(&self) -> Vec<i64> {
        let integer = |&value: &f64| {
            assert!(value.fract() == 0.0, "{value} is not an integer");
            value as i64
        };
        self.values.iter().map(integer).collect()
    }
}

/// Reads the arrays of a safetensors file by name.
///
/// # Errors
///
/// A message that names the tensor, for a malformed header, a range outside the file, or an unknown element
/// type.
pub fn read_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Array>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than its header length")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| "header length overflows")?;
    let (header, data) = rest.split_at_checked(length).ok_or("header ends after the file")?;
    let header: Value = serde_json::from_slice(header).map_err(|error| format!("header: {error}"))?;
    let entries = header.as_object().ok_or("header is not an object")?;
    let mut arrays = BTreeMap::new();
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let array = read_array(entry, data).map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        arrays.insert(name.clone(), array);
    }
    Ok(arrays)
}

fn read_array(entry: &Value, data: &[u8]) -> Result<Array, String> {
    let sizes = |key: &str| -> Result<Vec<usize>, String> {
        let list = entry[key].as_array().ok_or_else(|| format!("no `{key}`"))?;
        list.iter().map(|v| v.as_u64().map(|v| v as usize).ok_or_else(|| format!("bad `{key}`"))).collect()
    };
    let shape = sizes("shape")?;
    let offsets = sizes("data_offsets")?;
    let [begin, end] = offsets[..] else { return Err("`data_offsets` is not a pair".into()) };
    let bytes = data.get(begin..end).ok_or("data outside the file")?;
    let dtype = entry["dtype"].as_str().ok_or("no `dtype`")?;
    let values: Vec<f64> = match dtype {
        "F64" => elements(bytes, f64::from_le_bytes),
        "F32" => elements(bytes, |b| f32::from_le_bytes(b).into()),
        "F16" => elements(bytes, |b| half_to_f64(u16::from_le_bytes(b))),
        "BF16" => elements(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16).into()),
        "I64" => integers(elements(bytes, i64::from_le_bytes))?,
        "U64" => integers(elements(bytes, u64::from_le_bytes))?,
        "I32" => elements(bytes, |b| i32::from_le_bytes(b).into()),
        "U32" => elements(bytes, |b| u32::from_le_bytes(b).into()),
        "I16" => elements(bytes, |b| i16::from_le_bytes(b).into()),
        "U16" => elements(bytes, |b| u16::from_le_bytes(b).into()),
        "I8" => elements(bytes, |b| i8::from_le_bytes(b).into()),
        "U8" | "BOOL" => elements(bytes, |b: [u8; 1]| b[0].into()),
        other => return Err(format!("element type {other} is not supported in fixtures")),
    };
    let count: usize = shape.iter().product();
    if values.len() != count {
        return Err(format!("{} elements for shape {shape:?}", values.len()));
    }
    Ok(Array { shape, values })
}

fn elements<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| decode(chunk)).collect()
}

fn integers<T: Copy + TryInto<i64>>(values: Vec<T>) -> Result<Vec<f64>, String> {
    let exact = |value: T| {
        let value: i64 = value.try_into().map_err(|_| "an integer beyond 2^53")?;
        if value.unsigned_abs() <= 1 << 53 { Ok(value as f64) } else { Err("an integer beyond 2^53".into()) }
    };
    values.into_iter().map(exact).collect()
}

/// The value of an IEEE 754 binary16.
fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    sign * match exponent {
        0 => fraction * 2.0_f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2.0_f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_are_read_by_name_and_type() {
        let header = r#"{"__metadata__":{"seed":"1"},
            "a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
            "h":{"dtype":"F16","shape":[3],"data_offsets":[8,14]},
            "i":{"dtype":"I64","shape":[],"data_offsets":[14,22]}}"#;
        let data = [
            &1.5_f32.to_le_bytes()[..],
            &(-2.0_f32).to_le_bytes(),
            &[0x00, 0x3e, 0x01, 0x00, 0xff, 0xfb],
            &(-7_i64).to_le_bytes(),
        ]
        .concat();
        let arrays = read_safetensors(&file(header, &data)).expect("well-formed");
        assert_eq!(arrays["a"], Array { shape: vec![2, 1], values: vec![1.5, -2.0] });
        assert_eq!(arrays["h"].values, [1.5, 2.0_f64.powi(-24), -65504.0]);
        assert_eq!((arrays["i"].shape.len(), arrays["i"].i64s()), (0, vec![-7]));
        assert_eq!(arrays.len(), 3);
    }

    #[test]
    fn malformed_files_are_named() {
        let outside = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#;
        assert_eq!(
            read_safetensors(&file(outside, &[0; 4])).unwrap_err(),
            "tensor `a`: data outside the file"
        );
        let count = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
        assert_eq!(
            read_safetensors(&file(count, &[0; 8])).unwrap_err(),
            "tensor `a`: 2 elements for shape [3]"
        );
        assert!(read_safetensors(&[1, 2]).is_err());
        assert!(
            read_safetensors(&file(r#"{"a":{"dtype":"F8","shape":[],"data_offsets":[0,0]}}"#, &[])).is_err()
        );
    }
}
