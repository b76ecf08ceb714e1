//! 8-bit floats, which half-precision floats hold exactly.
//!
//! The formats are those of Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433), as
//! PyTorch and safetensors have them: E4M3 without infinities, and E5M2, which is the upper byte of a
//! half-precision float.

use std::sync::Arc;

use half::f16;
use mixbit_mil::{Computed, DType, WeightRef};

/// A format of 8-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float8 {
    /// 4 bits of exponent, 3 of mantissa. No infinities; NaN is all ones.
    E4M3,
    /// 5 bits of exponent, 2 of mantissa.
    E5M2,
}

impl Float8 {
    /// The format of that name in safetensors.
    pub(crate) fn of_safetensors(name: &str) -> Option<Self> {
        match name {
            "F8_E4M3" => Some(Float8::E4M3),
            "F8_E5M2" => Some(Float8::E5M2),
            _ => None,
        }
    }

    /// The name in messages, that of PyTorch.
    fn name(self) -> &'static str {
        match self {
            Float8::E4M3 => "fp8 (e4m3)",
            Float8::E5M2 => "fp8 (e5m2)",
        }
    }

    /// The value of every byte.
    fn table(self) -> [f16; 256] {
        let mut table = [f16::ZERO; 256];
        for (byte, value) in (0u8..=255).zip(&mut table) {
            *value = self.value(byte);
        }
        table
    }

    fn value(self, byte: u8) -> f16 {
        if self == Float8::E5M2 {
            return f16::from_bits(u16::from(byte) << 8);
        }
        let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7) / 8.0);
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            // Subnormal numbers.
            (0, _) => mantissa * 2f32.powi(-6),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
        };
        f16::from_f32(if byte & 0x80 == 0 { magnitude } else { -magnitude })
    }
}

/// The tensor whose 8-bit floats are `bytes`, of type `u8`. They are widened whenever it is read.
pub(crate) fn widened(format: Float8, bytes: &WeightRef) -> WeightRef {
    let ty = bytes.ty().with_dtype(DType::F16);
    WeightRef::computed(bytes.name(), ty, Arc::new(Widened { format, bytes: bytes.clone() }))
}

/// Half-precision floats of 8-bit ones.
#[derive(Debug)]
struct Widened {
    format: Float8,
    bytes: WeightRef,
}

impl Computed for Widened {
    fn read(&self) -> Vec<u8> {
        let table = self.format.table().map(f16::to_le_bytes);
        let bytes = self.bytes.read_stored();
        let mut halves = vec![0; 2 * bytes.len()];
        let pairs = halves.as_chunks_mut().0.iter_mut().zip(&*bytes);
        pairs.for_each(|(half, &byte)| *half = table[usize::from(byte)]);
        halves
    }

    fn release(&self) {
        self.bytes.release();
    }

    fn stored(&self) -> Option<(&'static str, usize)> {
        Some((self.format.name(), self.bytes.stored_len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extremes_are_those_of_the_paper() {
        // Table 1: largest, smallest normal and smallest subnormal number.
        for (format, bytes, values) in [
            (Float8::E4M3, [0x7e, 0x08, 0x01], [448.0, 2f32.powi(-6), 2f32.powi(-9)]),
            (Float8::E5M2, [0x7b, 0x04, 0x01], [57344.0, 2f32.powi(-14), 2f32.powi(-16)]),
        ] {
            assert_eq!(bytes.map(|byte| format.value(byte).to_f32()), values);
            assert_eq!(bytes.map(|byte| format.value(byte | 0x80).to_f32()), values.map(|value: f32| -value));
            assert!(format.value(0x7f).is_nan() && format.value(0xff).is_nan());
            assert!(format.value(0x80).is_sign_negative());
        }
        assert_eq!(Float8::E5M2.value(0xfc), f16::NEG_INFINITY);
    }
}
