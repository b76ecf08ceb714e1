//! Element types, as MIL names them.

use std::fmt;

/// The element type of a tensor.
///
/// Sub-byte types are stored packed, element `i` in bits `[i*n, (i+1)*n)` of a least-significant-bit-first
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    Str,
    F16,
    BF16,
    F32,
    F64,
    I4,
    I8,
    I16,
    I32,
    I64,
    U1,
    U2,
    U3,
    U4,
    U6,
    U8,
    U16,
    U32,
    U64,
}

/// Every element type with its MIL name and width in bits (0: no fixed width).
const TABLE: [(DType, &str, usize); 20] = [
    (DType::Bool, "bool", 8),
    (DType::Str, "string", 0),
    (DType::F16, "fp16", 16),
    (DType::BF16, "bf16", 16),
    (DType::F32, "fp32", 32),
    (DType::F64, "fp64", 64),
    (DType::I4, "int4", 4),
    (DType::I8, "int8", 8),
    (DType::I16, "int16", 16),
    (DType::I32, "int32", 32),
    (DType::I64, "int64", 64),
    (DType::U1, "uint1", 1),
    (DType::U2, "uint2", 2),
    (DType::U3, "uint3", 3),
    (DType::U4, "uint4", 4),
    (DType::U6, "uint6", 6),
    (DType::U8, "uint8", 8),
    (DType::U16, "uint16", 16),
    (DType::U32, "uint32", 32),
    (DType::U64, "uint64", 64),
];

impl DType {
    /// The name in MIL text, such as `fp16`.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The type of a MIL name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Bits per element; 0 for strings. A bool takes a byte.
    pub fn bits(self) -> usize {
        TABLE[self as usize].2
    }

    /// Bytes that `count` packed elements take, or `None` if that overflows.
    pub fn bytes_for(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// True if this is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// True if this is a signed or unsigned integer type.
    pub fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool | DType::Str)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_names_round_trip() {
        for (index, (dtype, name, _)) in TABLE.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            assert_eq!(DType::from_name(name), Some(*dtype));
        }
    }

    #[test]
    fn packed_sizes_round_up() {
        assert_eq!(DType::U3.bytes_for(3), Some(2));
        assert_eq!(DType::F16.bytes_for(5), Some(10));
        assert_eq!(DType::F32.bytes_for(usize::MAX), None);
    }
}
