//! The precision of products.

/// The type that both sides of a product are rounded to before they are multiplied.
///
/// Inputs, outputs, scales, biases and everything that is not a product are `f32` in any precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision: nothing is rounded.
    #[default]
    F32,
    /// bfloat16, eight significant bits; sums are `f32`.
    Bf16,
    /// Integers from -127 to 127 times a scale. Each row (left) or column (right) has a scale for each block
    /// of the depth. Sums are integers within a block and `f32` between blocks.
    ///
    /// 3x3 convolutions that save multiplications by Winograd's filtering are computed in
    /// [`Bf16`](Self::Bf16) where that is the [fastest](Self::fastest): it is faster there, and more
    /// accurate.
    Int8,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// True if this CPU has instructions for this precision. It is emulated elsewhere: as accurate, and no
    /// faster than `f32`.
    pub fn is_native(self) -> bool {
        match self {
            Precision::F32 => true,
            Precision::Bf16 => crate::simd::has_bf16(),
            Precision::Int8 => crate::simd::has_int8(),
        }
    }

    /// The fastest precision on this CPU that keeps the quality of images: bfloat16 where its instructions
    /// beat those of `f32`.
    ///
    /// On AMD's CPUs they do twice the work. Intel's CPUs with AVX-512 do no more with them than with `f32`
    /// (docs/performance.md has the figures).
    pub fn fastest() -> Self {
        if Precision::Bf16.is_native() && crate::simd::bf16_pays() { Precision::Bf16 } else { Precision::F32 }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tools/qemu/run.sh` emulates a CPU with instructions for every precision, and sets the variable.
    /// Without this test, a CPU without them would pass unnoticed.
    #[test]
    fn promised_precisions_are_native() {
        for precision in Precision::ALL {
            let is_promised =
                precision == Precision::F32 || std::env::var_os("MIXBIT_HAS_ALL_PRECISIONS").is_some();
            assert!(precision.is_native() || !is_promised, "{precision}");
        }
    }
}
