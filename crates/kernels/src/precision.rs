//! What products are computed in.

/// What the two sides of a product are rounded to before they are multiplied. Inputs, outputs and everything that is not a
/// product are `f32` in any precision, and so are weights' scales and biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To bfloat16, eight significant bits; sums are `f32`.
    Bf16,
    /// To integers from -127 to 127 times a scale, which each row (left) or column (right) has for each block of the depth;
    /// sums are integers within a block and `f32` from block to block. Convolutions of 3x3 windows are computed as in
    /// [`Bf16`](Self::Bf16) where that is [fastest](Self::fastest) and they save multiplications: it is faster there, and more exact.
    Int8,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// Whether the CPU multiplies in this precision itself. In one that it does not, results are as precise, and not faster
    /// than in `f32`.
    pub fn is_native(self) -> bool {
        match self {
            Precision::F32 => true,
            Precision::Bf16 => crate::simd::has_bf16(),
            Precision::Int8 => crate::simd::has_int8(),
        }
    }

    /// The fastest precision on this CPU of those that keep the quality of images: bfloat16 where its instructions do more
    /// than those of single precision.
    ///
    /// AMD's CPUs do twice as much. Intel's have the instruction too, but do no more with it than with `f32`'s
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

    /// `tools/qemu/run.sh` emulates a CPU that multiplies in every precision, and says so: its tests would pass without.
    #[test]
    fn what_is_promised_is_native() {
        for precision in Precision::ALL {
            let is_promised =
                precision == Precision::F32 || std::env::var_os("MIXBIT_HAS_ALL_PRECISIONS").is_some();
            assert!(precision.is_native() || !is_promised, "{precision}");
        }
    }
}
