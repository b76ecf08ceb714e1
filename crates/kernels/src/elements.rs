//! Stored elements: `f32`, `f16`, `bf16` or compressed, widened or packed a run at a time.

use std::any::TypeId;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rten_simd::{Isa, SimdOp};

use crate::gemm::format::{Format, PackedSide, encode_lane};
use crate::isa;
use crate::simd;
use crate::simd::operands::Codes;
use crate::simd::quantize::LaneScale;

/// Elements as stored.
///
/// Object-safe: each call handles a run or a block of rows, so that dynamic dispatch costs nothing per
/// element.
pub(crate) trait Elements: Sync {
    /// The number of elements.
    fn count(&self) -> usize;

    /// Writes the values of the elements from `start` on.
    fn widen_run(&self, start: usize, out: &mut [f32]);

    /// Writes `count` values to the beginning of each of `rows`, which are `width` long. The first row's
    /// elements are at `start`, the next ones' `stride` further.
    fn widen_rows(&self, start: usize, stride: usize, count: usize, width: usize, rows: &mut [f32]) {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            self.widen_run(start + index * stride, &mut row[..count]);
        }
    }

    /// Writes the values of every `stride`-th element from `start` on.
    fn widen_strided(&self, start: usize, stride: usize, out: &mut [f32]) {
        for (index, out) in out.iter_mut().enumerate() {
            self.widen_run(start + index * stride, std::slice::from_mut(out));
        }
    }

    /// The memory of `len` elements from `start` on; empty if that is out of range.
    fn stored(&self, start: usize, len: usize) -> &[u8];

    /// Prefetches the first `count` elements of each of `rows` rows, `stride` apart, from `start` on.
    fn prefetch_rows(&self, start: usize, stride: usize, count: usize, rows: usize) {
        (0..rows).for_each(|row| simd::prefetch(self.stored(start + row * stride, count)));
    }

    /// All elements, if they are stored as `f32`.
    fn floats(&self) -> Option<&[f32]> {
        None
    }

    /// The elements in `range` as indices into one table, if they are stored so.
    fn codes_of(&self, _range: Range<usize>) -> Option<Codes<'_>> {
        None
    }

    /// Encodes `len` elements from `start` on as a lane's words, where that is faster than widening them
    /// first. `None`, with nothing written, elsewhere.
    fn encode_run(
        &self,
        _start: usize,
        _len: usize,
        _format: Format,
        _side: PackedSide,
        _words: &mut [u32],
    ) -> Option<LaneScale> {
        None
    }
}

/// An element type of slices.
pub(crate) trait Element: bytemuck::Pod + Send + Sync {
    /// Widens a slice into one of the same length, on this thread.
    fn widen_slice(src: &[Self], dst: &mut [f32]);

    /// [`Elements::encode_run`] of a slice.
    fn encode(run: &[Self], format: Format, side: PackedSide, words: &mut [u32]) -> Option<LaneScale>;
}

impl<T: Element> Elements for &[T] {
    fn count(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn widen_run(&self, start: usize, out: &mut [f32]) {
        T::widen_slice(&self[start..start + out.len()], out);
    }

    fn stored(&self, start: usize, len: usize) -> &[u8] {
        bytemuck::cast_slice(self.get(start..start + len).unwrap_or_default())
    }

    fn floats(&self) -> Option<&[f32]> {
        (TypeId::of::<T>() == TypeId::of::<f32>()).then(|| bytemuck::cast_slice(self))
    }

    fn encode_run(
        &self,
        start: usize,
        len: usize,
        format: Format,
        side: PackedSide,
        words: &mut [u32],
    ) -> Option<LaneScale> {
        T::encode(&self[start..start + len], format, side, words)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen_slice(src: &[f32], dst: &mut [f32]) {
        // A fixed-size copy beats `memcpy` for the 32 floats of a panel row.
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
    fn widen_slice(src: &[f16], dst: &mut [f32]) {
        let done = simd::widen_f16(src, dst);
        src[done..].convert_to_f32_slice(&mut dst[done..]);
    }

    fn encode(run: &[f16], format: Format, _side: PackedSide, words: &mut [u32]) -> Option<LaneScale> {
        (format == Format::Bf16x2 && simd::encode_bf16x2(run, words)).then_some(LaneScale::NONE)
    }
}

impl Element for bf16 {
    fn widen_slice(src: &[bf16], dst: &mut [f32]) {
        struct Widen<'a>(&'a [bf16], &'a mut [f32]);
        impl SimdOp for Widen<'_> {
            type Output = ();
            #[inline(always)]
            fn eval<I: Isa>(self, _isa: I) {
                for (src, dst) in self.0.iter().zip(self.1) {
                    *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
                }
            }
        }
        assert_eq!(src.len(), dst.len());
        isa::dispatch(Widen(src, dst));
    }

    fn encode(run: &[bf16], format: Format, _side: PackedSide, words: &mut [u32]) -> Option<LaneScale> {
        let (pairs, rest) = run.as_chunks::<2>();
        let word = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        if format != Format::Bf16x2 {
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
