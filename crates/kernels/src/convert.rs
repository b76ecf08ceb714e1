//! Conversion between `f32` and the types that weights are stored in.
//!
//! Narrowing rounds to nearest, ties to even; values beyond the range become infinite; NaN stays NaN.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rten_simd::{Isa, SimdOp};

use crate::elements::Element;
use crate::isa;
use crate::pool::{GRAIN, for_each_chunk_mut};

fn widen<T: Element>(src: &[T], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "source and destination lengths differ");
    for_each_chunk_mut(dst, GRAIN, |index, chunk| {
        let start = index * GRAIN;
        T::widen_slice(&src[start..start + chunk.len()], chunk);
    });
}

/// Widens half precision, exactly.
///
/// # Panics
///
/// When the lengths differ.
pub fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    widen(src, dst);
}

/// Widens bfloat16, exactly.
///
/// # Panics
///
/// When the lengths differ.
pub fn bf16_to_f32(src: &[bf16], dst: &mut [f32]) {
    widen(src, dst);
}

/// Narrows to half precision.
///
/// # Panics
///
/// When the lengths differ.
pub fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    assert_eq!(src.len(), dst.len(), "source and destination lengths differ");
    for_each_chunk_mut(dst, GRAIN, |index, chunk| {
        let start = index * GRAIN;
        chunk.convert_from_f32_slice(&src[start..start + chunk.len()]);
    });
}

/// Narrows to bfloat16.
///
/// # Panics
///
/// When the lengths differ.
pub fn f32_to_bf16(src: &[f32], dst: &mut [bf16]) {
    struct Narrow<'a>(&'a [f32], &'a mut [bf16]);
    impl SimdOp for Narrow<'_> {
        type Output = ();
        #[inline(always)]
        fn eval<I: Isa>(self, _isa: I) {
            for (src, dst) in self.0.iter().zip(self.1) {
                let bits = src.to_bits();
                let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                let quiet_nan = (bits >> 16) as u16 | 0x0040;
                *dst = bf16::from_bits(if src.is_nan() { quiet_nan } else { rounded });
            }
        }
    }
    assert_eq!(src.len(), dst.len(), "source and destination lengths differ");
    for_each_chunk_mut(dst, GRAIN, |index, chunk| {
        let start = index * GRAIN;
        isa::dispatch(Narrow(&src[start..start + chunk.len()], chunk));
    });
}

#[cfg(test)]
mod tests;
