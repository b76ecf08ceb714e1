//! Conversion between storage and arithmetic precisions.
//!
//! Narrowing rounds to nearest, ties to even; values beyond the range become infinite; NaN stays NaN.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rten_simd::{Isa, SimdOp};

use crate::gemm::format::{Format, LaneScale, encode_lane};
use crate::gemm::pack::PackedSide;
use crate::isa;
use crate::pool::{GRAIN, for_each_chunk_mut};
use crate::simd;

/// A storage type of matrix elements.
pub(crate) trait Element: bytemuck::Pod + Send + Sync {
    /// The value.
    fn widen(self) -> f32;

    /// The values of a slice into an equally long one, on this thread.
    fn widen_slice(src: &[Self], dst: &mut [f32]);

    /// Writes a lane's run as words of a format, if that is faster without its values in between.
    fn encode(run: &[Self], format: Format, side: PackedSide, words: &mut [u32]) -> Option<LaneScale>;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen_slice(src: &[f32], dst: &mut [f32]) {
        // Of so few, copies of a known length are faster than a call: those of a panel's row.
        match (src.as_array::<32>(), dst.as_mut_array::<32>()) {
            (Some(src), Some(dst)) => *dst = *src,
            _ => dst.copy_from_slice(src),
        }
    }

    fn encode(run: &[f32], format: Format, side: PackedSide, words: &mut [u32]) -> Option<LaneScale> {
        Some(encode_lane(format, side, run, words))
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn widen_slice(src: &[f16], dst: &mut [f32]) {
        let done = simd::widen_f16(src, dst);
        src[done..].convert_to_f32_slice(&mut dst[done..]);
    }

    fn encode(run: &[f16], format: Format, _side: PackedSide, words: &mut [u32]) -> Option<LaneScale> {
        (format == Format::Pairs && simd::pair_up(run, words)).then_some(LaneScale::NONE)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn widen_slice(src: &[bf16], dst: &mut [f32]) {
        struct Widen<'a>(&'a [bf16], &'a mut [f32]);
        impl SimdOp for Widen<'_> {
            type Output = ();
            #[inline(always)]
            fn eval<I: Isa>(self, _isa: I) {
                for (src, dst) in self.0.iter().zip(self.1) {
                    *dst = src.widen();
                }
            }
        }
        assert_eq!(src.len(), dst.len());
        isa::dispatch(Widen(src, dst));
    }

    fn encode(run: &[bf16], format: Format, _side: PackedSide, words: &mut [u32]) -> Option<LaneScale> {
        let (pairs, rest) = run.as_chunks::<2>();
        let word = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        if format != Format::Pairs {
            return None;
        }
        for ([low, high], out) in pairs.iter().zip(words.iter_mut()) {
            *out = word(*low, *high);
        }
        if let ([last], Some(out)) = (rest, words.last_mut()) {
            *out = word(*last, bf16::ZERO);
        }
        Some(LaneScale::NONE)
    }
}

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
