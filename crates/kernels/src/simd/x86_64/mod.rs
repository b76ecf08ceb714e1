//! AVX-512 with BF16 and VNNI: micro-kernels, packing, transposition, table look-up.

use std::arch::x86_64::*;

use rten_simd::isa::Avx512Isa;

use super::microkernel::{Microkernel, PanelOp, Prefetch, TILE_VECTORS, Tile};
use super::operands::{Lanes, Rows, read_word};
use super::quantize::LARGEST;
use super::weigh::{PerQuery, Weigh, WeighOp};
use crate::isa::is_native_level;

mod codes;
mod tiles;

pub(crate) use codes::{look_up_bf16x2, look_up_filters, look_up_i8x4};
pub(crate) use tiles::{pack_tiles, split_nines, store_tiles};

/// The zero point of the right side's bytes: `vpdpbusd` multiplies unsigned bytes by signed ones.
pub(crate) const INT8_OFFSET: i32 = 128;

/// True if this CPU has an instruction for products of bfloat16.
pub(crate) fn has_bf16() -> bool {
    is_native_level() && Avx512Isa::new().is_some() && is_x86_feature_detected!("avx512bf16")
}

/// True if this CPU has an instruction for products of bytes.
pub(crate) fn has_int8() -> bool {
    is_native_level() && Avx512Isa::new().is_some() && is_x86_feature_detected!("avx512vnni")
}

/// True if that instruction beats `f32`. AMD's CPUs issue it as often for twice the work, Intel's half as
/// often.
pub(crate) fn bf16_pays() -> bool {
    let identity = __cpuid(0);
    [identity.ebx, identity.edx, identity.ecx]
        == [b"Auth", b"enti", b"cAMD"].map(|name| u32::from_le_bytes(*name))
}

/// Runs `op` with the micro-kernel of words of two bfloat16.
///
/// # Panics
/// When [`has_bf16`] is false.
pub(crate) fn dispatch_bf16x2<Op: PanelOp>(op: Op) -> Op::Output {
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c,avx512bf16")]
    unsafe fn run<Op: PanelOp>(isa: Avx512Isa, op: Op) -> Op::Output {
        op.eval::<Avx512Isa, Bf16x2Kernel>(isa)
    }
    assert!(has_bf16(), "this CPU has no products of bfloat16");
    let isa = Avx512Isa::new().expect("checked by has_bf16");
    // SAFETY: the CPU has all of these features.
    unsafe { run(isa, op) }
}

/// Runs `op` with the micro-kernel and the exponentials of words of two bfloat16.
///
/// # Panics
/// When [`has_bf16`] is false.
pub(crate) fn dispatch_weigh_bf16x2<Op: WeighOp>(op: Op) {
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c,avx512bf16")]
    unsafe fn run<Op: WeighOp>(isa: Avx512Isa, op: Op) {
        op.eval::<Avx512Isa, Bf16x2Kernel, Bf16x2Kernel>(isa);
    }
    assert!(has_bf16(), "this CPU has no products of bfloat16");
    let isa = Avx512Isa::new().expect("checked by has_bf16");
    // SAFETY: the CPU has all of these features.
    unsafe { run(isa, op) }
}

/// Runs `op` with the micro-kernel of words of four bytes.
///
/// # Panics
/// When [`has_int8`] is false.
pub(crate) fn dispatch_i8x4<Op: PanelOp>(op: Op) -> Op::Output {
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c,avx512vnni")]
    unsafe fn run<Op: PanelOp>(isa: Avx512Isa, op: Op) -> Op::Output {
        op.eval::<Avx512Isa, I8x4Kernel>(isa)
    }
    assert!(has_int8(), "this CPU has no products of bytes");
    let isa = Avx512Isa::new().expect("checked by has_int8");
    // SAFETY: the CPU has all of these features.
    unsafe { run(isa, op) }
}

/// Prefetches a row of a right panel ahead of its use: the panel streams from the L2 cache.
#[inline(always)]
fn prefetch_rows(right: *const u32) {
    const ROWS: usize = 12;
    const WIDTH: usize = TILE_VECTORS * 16;
    for vector in 0..TILE_VECTORS {
        prefetch_line(right.wrapping_add(WIDTH * ROWS + 16 * vector).cast());
    }
}

/// The micro-kernel of words of two bfloat16. Used only through [`dispatch_bf16x2`].
struct Bf16x2Kernel;

impl Microkernel<Avx512Isa> for Bf16x2Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        _isa: Avx512Isa,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<Avx512Isa, MR> {
        const WIDTH: usize = TILE_VECTORS * 16;
        assert!(left.len() >= words * MR && right.len() >= words * WIDTH);
        let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
        // SAFETY: reads are within the lengths checked above, and `dispatch_bf16x2` has checked the
        // instructions.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); TILE_VECTORS]; MR];
            for portion in 0..P::PORTIONS {
                prefetch.issue(portion);
                for _ in P::words(portion, words) {
                    prefetch_rows(right);
                    let mut columns = [_mm512_setzero_si512(); TILE_VECTORS];
                    for (vector, column) in columns.iter_mut().enumerate() {
                        *column = _mm512_loadu_si512(right.add(16 * vector).cast());
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_epi32(*left.add(row) as i32);
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbf16_ps(*sum, as_bf16(value), as_bf16(column));
                        }
                    }
                    (left, right) = (left.add(MR), right.add(WIDTH));
                }
            }
            let mut tile = [[_mm512_setzero_ps().into(); TILE_VECTORS]; MR];
            for (tile, sums) in tile.iter_mut().zip(sums) {
                for (place, sum) in tile.iter_mut().zip(sums) {
                    *place = sum.into();
                }
            }
            tile
        }
    }
}

/// Powers of two in bfloat16, two to a word, composed from their bits. Scores are binary logarithms.
///
/// With `n` the whole part of an exponent and `r` the rest, the bits of `2^(n + r)` in bfloat16 are
/// `128 * (127 + n + m)` for a mantissa of `m = 2^r - 1`. A polynomial for `m`, added to a number whose last
/// place is worth 1/128, therefore leaves them in the low half of the sum's bits, rounded to bfloat16.
impl Weigh<Avx512Isa> for Bf16x2Kernel {
    const WRITES_WORDS: bool = true;

    #[inline(always)]
    fn weigh<const MR: usize>(
        _isa: Avx512Isa,
        scores: &Tile<Avx512Isa, MR>,
        reference: &PerQuery<Avx512Isa>,
        seen: &mut PerQuery<Avx512Isa>,
        words: &mut [u32],
        _weights: &mut [f32],
    ) {
        const WIDTH: usize = TILE_VECTORS * 16;
        assert!(MR.is_multiple_of(2) && words.len() >= MR / 2 * WIDTH);
        let mut words = words.as_mut_ptr();
        for pair in 0..MR / 2 {
            for vector in 0..TILE_VECTORS {
                // SAFETY: writes are within the length checked above, and `dispatch_weigh_bf16x2` has checked
                // the instructions.
                unsafe {
                    let low = power_bits(scores[2 * pair][vector].0, reference[vector].0);
                    let high = power_bits(scores[2 * pair + 1][vector].0, reference[vector].0);
                    // Finite results differ in the low half only. ORed with a NaN, any bits are NaN.
                    let all = _mm512_or_si512(low, high);
                    let all = _mm512_or_si512(_mm512_castps_si512(seen[vector].0), all);
                    seen[vector] = _mm512_castsi512_ps(all).into();
                    let word = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high));
                    _mm512_storeu_si512(words.cast(), word);
                    words = words.add(16);
                }
            }
        }
    }
}

/// The bits of `2^(score - reference)` in bfloat16, in the low half; NaN stays NaN in the whole word.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn power_bits(score: __m512, reference: __m512) -> __m512i {
    /// The bits of 2^-127 are those of zero.
    const LOWEST: f32 = -127.0;
    /// Its last place is worth 1/128, and its low half is zero.
    const BASE: f32 = 98_304.0;
    // SAFETY: the caller has checked the CPU.
    unsafe {
        // In this order, NaN stays NaN.
        let power = _mm512_max_ps(_mm512_set1_ps(LOWEST), _mm512_sub_ps(score, reference));
        let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(power);
        let rest = _mm512_sub_ps(power, whole);
        let whole = _mm512_add_ps(whole, _mm512_set1_ps(BASE - LOWEST));
        // Relative error of the power below 9e-5.
        let poly = _mm512_fmadd_ps(_mm512_set1_ps(0.077_067_04), rest, _mm512_set1_ps(0.227_645));
        let poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(0.695_116_8));
        _mm512_castps_si512(_mm512_fmadd_ps(poly, rest, whole))
    }
}

#[inline(always)]
fn as_bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(words) }
}

#[inline(always)]
fn as_words(pairs: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(pairs) }
}

/// The micro-kernel of words of four bytes. Used only through [`dispatch_i8x4`].
struct I8x4Kernel;

impl Microkernel<Avx512Isa> for I8x4Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        _isa: Avx512Isa,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<Avx512Isa, MR> {
        const WIDTH: usize = TILE_VECTORS * 16;
        // Behind the words are a scale and a start for each lane.
        assert!(left.len() >= (words + 2) * MR && right.len() >= (words + 1) * WIDTH);
        let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
        // SAFETY: reads are within the lengths checked above, and `dispatch_i8x4` has checked the
        // instructions.
        unsafe {
            let starts = left.add((words + 1) * MR);
            let mut sums = [[_mm512_setzero_si512(); TILE_VECTORS]; MR];
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_set1_epi32(*starts.add(row) as i32); TILE_VECTORS];
            }
            for portion in 0..P::PORTIONS {
                prefetch.issue(portion);
                for _ in P::words(portion, words) {
                    prefetch_rows(right);
                    let mut columns = [_mm512_setzero_si512(); TILE_VECTORS];
                    for (vector, column) in columns.iter_mut().enumerate() {
                        *column = _mm512_loadu_si512(right.add(16 * vector).cast());
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_epi32(*left.add(row) as i32);
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbusd_epi32(*sum, column, value);
                        }
                    }
                    (left, right) = (left.add(MR), right.add(WIDTH));
                }
            }
            let mut scaled = [[_mm512_setzero_ps().into(); TILE_VECTORS]; MR];
            for (row, (scaled, sums)) in scaled.iter_mut().zip(sums).enumerate() {
                let scale = _mm512_set1_ps(f32::from_bits(*left.add(row)));
                for (vector, (scaled, sum)) in scaled.iter_mut().zip(sums).enumerate() {
                    let column = _mm512_loadu_ps(right.add(16 * vector).cast());
                    *scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, column)).into();
                }
            }
            scaled
        }
    }
}

/// Sixteen words: `low` rounded to bfloat16 in their low halves, `high` in their high halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn to_bf16x2(low: __m512, high: __m512) -> __m512i {
    const PLACES: [u16; 32] = {
        let mut places = [0; 32];
        let mut place = 0;
        while place < 32 {
            places[place] = (place / 2 + place % 2 * 16) as u16;
            place += 1;
        }
        places
    };
    // SAFETY: an array of 64 bytes.
    let places = unsafe { _mm512_loadu_si512(PLACES.as_ptr().cast()) };
    _mm512_permutexvar_epi16(places, as_words(_mm512_cvtne2ps_pbh(high, low)))
}

/// An element type of which sixteen are loaded as `f32`.
pub(crate) trait Loaded: Sized {
    /// The elements of the lanes in `mask`, zeros elsewhere.
    ///
    /// # Safety
    /// The CPU has the features, and the elements in `mask` are readable.
    unsafe fn load(mask: __mmask16, place: *const Self) -> __m512;
}

impl Loaded for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(mask: __mmask16, place: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, place) }
    }
}

impl Loaded for half::f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(mask: __mmask16, place: *const half::f16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, place.cast())) }
    }
}

/// Rounds `run` to bfloat16, two elements to a word; a last one is paired with zero. Returns false, with
/// nothing written, where the CPU lacks the instruction.
pub(crate) fn encode_bf16x2<T: Loaded>(run: &[T], words: &mut [u32]) -> bool {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn groups<T: Loaded>(run: &[T], words: &mut [u32]) {
        for (pairs, words) in run.chunks(32).zip(words.chunks_mut(16)) {
            let (low, high) = pairs.split_at(pairs.len().min(16));
            // SAFETY: the masks select elements and words of these slices only.
            unsafe {
                let low = T::load(first_lanes(low.len()), low.as_ptr());
                let high = T::load(first_lanes(high.len()), high.as_ptr());
                let both = as_words(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), first_lanes(words.len()), both);
            }
        }
    }
    if !has_bf16() {
        return false;
    }
    // SAFETY: the CPU has the features. Those with bfloat16 have all vector lengths.
    unsafe { groups(run, words) };
    true
}

/// Mask of the first `count` lanes of sixteen.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    ((1_u32 << count.min(16)) - 1) as __mmask16
}

/// Panics unless `rows` lie within their slice and fit a panel of `width` lanes and `words` words.
fn check_rows(rows: &Rows<'_>, width: usize, words: usize, depths_per_word: usize) {
    let &Rows { data, stride, depth, lanes } = rows;
    assert!(lanes <= width && words >= depth.div_ceil(depths_per_word) * width);
    assert!(depth == 0 || (depth - 1) * stride + lanes <= data.len());
}

/// Rounds rows to bfloat16 and packs every two of them into a row of words; a last one is paired with zeros.
/// Returns false, with nothing written, where the CPU lacks the instruction.
pub(crate) fn encode_rows_bf16x2(rows: &Rows<'_>, width: usize, words: &mut [u32]) -> bool {
    /// # Safety
    /// The CPU has the features, and [`check_rows`] has passed.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(rows: &Rows<'_>, width: usize, words: &mut [u32]) {
        let &Rows { data, stride, depth, lanes } = rows;
        for pair in 0..depth.div_ceil(2) {
            for first in (0..width).step_by(16) {
                let mask = first_lanes(lanes.saturating_sub(first));
                let high_mask = if 2 * pair + 1 < depth { mask } else { 0 };
                let low = data.as_ptr().wrapping_add(2 * pair * stride + first);
                let high = low.wrapping_add(stride);
                // SAFETY: `check_rows` has passed. An empty mask reads nothing.
                unsafe {
                    let (low, high) =
                        (_mm512_maskz_loadu_ps(mask, low), _mm512_maskz_loadu_ps(high_mask, high));
                    let out = words.as_mut_ptr().add(pair * width + first);
                    _mm512_mask_storeu_epi32(out.cast(), first_lanes(width - first), to_bf16x2(low, high));
                }
            }
        }
    }
    if !has_bf16() {
        return false;
    }
    check_rows(rows, width, words.len(), 2);
    // SAFETY: the CPU has the features, and the rows were checked.
    unsafe { run(rows, width, words) };
    true
}

/// Quantizes rows and packs every four of them into a row of words, each XORed with `flip`. Behind them come
/// each lane's scale and start. Returns false, with nothing written, where the CPU lacks the instructions.
pub(crate) fn encode_rows_i8x4(rows: &Rows<'_>, width: usize, flip: u32, words: &mut [u32]) -> bool {
    /// # Safety
    /// The CPU has the feature, and [`check_rows`] has passed with two more rows of words.
    #[target_feature(enable = "avx512f")]
    unsafe fn run(rows: &Rows<'_>, width: usize, flip: u32, words: &mut [u32]) {
        let &Rows { data, stride, depth, lanes } = rows;
        let quads = depth.div_ceil(4);
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let byte = _mm512_set1_epi32(0xff);
        for first in (0..width).step_by(16) {
            let mask = first_lanes(lanes.saturating_sub(first));
            let start = data.as_ptr().wrapping_add(first);
            let mut largest = _mm512_setzero_si512();
            for row in 0..depth {
                let place = start.wrapping_add(row * stride);
                // SAFETY: `check_rows` has passed, here and below.
                let bits = unsafe { _mm512_maskz_loadu_epi32(mask, place.cast()) };
                // Magnitudes order as their bits do, NaN behind infinity.
                largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
            }
            let largest = _mm512_castsi512_ps(largest);
            let steps = _mm512_set1_ps(LARGEST);
            let (scale, inverse) = (_mm512_div_ps(largest, steps), _mm512_div_ps(steps, largest));
            let is_finite = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(inverse, _mm512_set1_ps(f32::INFINITY));
            let (scale, inverse) =
                (_mm512_maskz_mov_ps(is_finite, scale), _mm512_maskz_mov_ps(is_finite, inverse));
            let mut sums = _mm512_setzero_si512();
            let out = words.as_mut_ptr().wrapping_add(first);
            let width_mask = first_lanes(width - first);
            for quad in 0..quads {
                let mut integers = [_mm512_setzero_si512(); 4];
                for (index, integers) in integers.iter_mut().enumerate() {
                    let row = 4 * quad + index;
                    let mask = if row < depth { mask } else { 0 };
                    // SAFETY: an empty mask reads nothing.
                    let values = unsafe { _mm512_maskz_loadu_ps(mask, start.wrapping_add(row * stride)) };
                    *integers = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
                    sums = _mm512_add_epi32(sums, *integers);
                }
                let [a, b, c, d] = integers;
                let low = _mm512_or_si512(
                    _mm512_and_si512(a, byte),
                    _mm512_slli_epi32::<8>(_mm512_and_si512(b, byte)),
                );
                let high = _mm512_or_si512(
                    _mm512_slli_epi32::<16>(_mm512_and_si512(c, byte)),
                    _mm512_slli_epi32::<24>(d),
                );
                let word = _mm512_xor_si512(_mm512_or_si512(low, high), _mm512_set1_epi32(flip as i32));
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_epi32(out.add(quad * width).cast(), width_mask, word) };
            }
            let starts = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-INT8_OFFSET));
            // SAFETY: as above.
            unsafe {
                let scale = _mm512_castps_si512(scale);
                _mm512_mask_storeu_epi32(out.add(quads * width).cast(), width_mask, scale);
                _mm512_mask_storeu_epi32(out.add((quads + 1) * width).cast(), width_mask, starts);
            }
        }
    }
    if !is_native_level() || Avx512Isa::new().is_none() {
        return false;
    }
    check_rows(rows, width, words.len().saturating_sub(2 * width), 4);
    // SAFETY: the CPU has the feature, and the rows were checked.
    unsafe { run(rows, width, flip, words) };
    true
}

/// Transposes lanes to rows of a panel, sixteen words of each lane at a time. Returns the number of words of
/// each lane that were transposed.
pub(crate) fn transpose_blocks(lanes: Lanes<'_>, panel: &mut [u32], width: usize, offset: usize) -> usize {
    #[target_feature(enable = "avx512f")]
    unsafe fn block(words: *const u32, stride: usize, mask: __mmask16, out: *mut u32, width: usize) {
        // SAFETY: the caller has checked the lengths.
        let rows: [__m512i; 16] =
            std::array::from_fn(|lane| unsafe { _mm512_loadu_si512(words.add(lane * stride).cast()) });
        // Interleave words of neighbouring lanes, then pairs of words, then move quarters into place.
        let pairs: [__m512i; 16] = std::array::from_fn(|index| {
            let (low, high) = (rows[index / 2 * 2], rows[index / 2 * 2 + 1]);
            if index % 2 == 0 { _mm512_unpacklo_epi32(low, high) } else { _mm512_unpackhi_epi32(low, high) }
        });
        let quads: [__m512i; 16] = std::array::from_fn(|index| {
            let (low, high) =
                (pairs[index / 4 * 4 + index % 4 / 2], pairs[index / 4 * 4 + index % 4 / 2 + 2]);
            if index % 2 == 0 { _mm512_unpacklo_epi64(low, high) } else { _mm512_unpackhi_epi64(low, high) }
        });
        for word in 0..4 {
            let [a, b, c, d] = [quads[word], quads[word + 4], quads[word + 8], quads[word + 12]];
            let (ab_even, ab_odd) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
            let (cd_even, cd_odd) = (_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
            let columns = [
                _mm512_shuffle_i32x4(ab_even, cd_even, 0x88),
                _mm512_shuffle_i32x4(ab_odd, cd_odd, 0x88),
                _mm512_shuffle_i32x4(ab_even, cd_even, 0xdd),
                _mm512_shuffle_i32x4(ab_odd, cd_odd, 0xdd),
            ];
            for (quarter, column) in columns.into_iter().enumerate() {
                // SAFETY: the caller has checked the lengths.
                unsafe {
                    _mm512_mask_storeu_epi32(out.add((4 * quarter + word) * width).cast(), mask, column)
                };
            }
        }
    }
    let Lanes { words, stride, len, count } = lanes;
    if !is_native_level() || Avx512Isa::new().is_none() || count == 0 {
        return 0;
    }
    let blocks = len / 16;
    assert!(
        count <= 16
            && offset + count <= width
            && len <= stride
            && words.len() >= 15 * stride + len
            && panel.len() >= blocks * 16 * width
    );
    let mask = first_lanes(count);
    for index in 0..blocks {
        // SAFETY: sixteen words from each of sixteen lanes, and `count` words in each of sixteen rows, are
        // within the lengths checked above. The CPU has AVX-512.
        unsafe {
            block(
                words.as_ptr().add(index * 16),
                stride,
                mask,
                panel.as_mut_ptr().add(index * 16 * width + offset),
                width,
            );
        }
    }
    blocks * 16
}

/// Prefetches the cache line of any address.
#[inline(always)]
pub(crate) fn prefetch_line(place: *const f32) {
    // SAFETY: every x86-64 CPU has SSE, and a prefetch affects timing only.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
}

/// Prefetches the cache line of any address into the L2 cache.
#[inline(always)]
pub(crate) fn prefetch_to_l2(place: *const u8) {
    // SAFETY: as for `prefetch_line`.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) }
}

/// Prefetches the cache line of any address for writing.
#[inline(always)]
pub(crate) fn prefetch_to_write(place: *const f32) {
    // SAFETY: a prefetch affects timing only. CPUs without this one treat it as a no-op.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly)) }
}

/// Widens half precision, sixteen elements at a time. Returns the number of elements widened.
pub(crate) fn widen_f16(src: &[half::f16], dst: &mut [f32]) -> usize {
    #[target_feature(enable = "avx512f")]
    fn groups(src: &[[half::f16; 16]], dst: &mut [[f32; 16]]) {
        for (src, dst) in src.iter().zip(dst) {
            // SAFETY: sixteen elements each.
            unsafe {
                let halves = _mm256_loadu_si256(src.as_ptr().cast());
                _mm512_storeu_ps(dst.as_mut_ptr(), _mm512_cvtph_ps(halves));
            }
        }
    }
    if !is_native_level() || Avx512Isa::new().is_none() {
        return 0;
    }
    let ((src, _), (dst, _)) = (src.as_chunks(), dst.as_chunks_mut());
    // SAFETY: the CPU has AVX-512.
    unsafe { groups(src, dst) }
    16 * src.len().min(dst.len())
}

/// Quantizes a lane's `run`, each value times `inverse` rounded to a byte, four to a word XORed with `flip`.
/// Works on sixteen words at a time; returns the number of words written and the sum of their integers.
pub(crate) fn encode_i8x4(run: &[f32], inverse: f32, flip: u32, words: &mut [u32]) -> (usize, i32) {
    #[target_feature(enable = "avx512f")]
    fn groups(run: &[[f32; 64]], inverse: f32, flip: u32, words: &mut [[u32; 16]]) -> i32 {
        let inverse = _mm512_set1_ps(inverse);
        let flip = _mm_set1_epi32(flip as i32);
        let mut sums = _mm512_setzero_si512();
        for (run, words) in run.iter().zip(words) {
            for part in 0..4 {
                // SAFETY: sixteen of 64 elements, and four of sixteen words.
                unsafe {
                    let values = _mm512_loadu_ps(run.as_ptr().add(16 * part));
                    let integers = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
                    sums = _mm512_add_epi32(sums, integers);
                    let bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(integers), flip);
                    _mm_storeu_si128(words.as_mut_ptr().add(4 * part).cast(), bytes);
                }
            }
        }
        _mm512_reduce_add_epi32(sums)
    }
    if !is_native_level() || Avx512Isa::new().is_none() {
        return (0, 0);
    }
    let ((run, _), (words, _)) = (run.as_chunks(), words.as_chunks_mut());
    // SAFETY: the CPU has AVX-512.
    let sum = unsafe { groups(run, inverse, flip, words) };
    (16 * run.len().min(words.len()), sum)
}

/// Looks up palette indices of `bits` bits, from element `element` of a stream on, sixteen at a time. `table`
/// has `1 << bits` entries. Returns the number of elements written.
pub(crate) fn look_up(table: &[f32], bits: usize, codes: &[u8], element: usize, out: &mut [f32]) -> usize {
    /// # Safety
    /// The CPU has the features, `table` has `1 << bits` entries, and the stream has an index for each
    /// element of `out`.
    #[target_feature(enable = "avx512f,bmi2")]
    unsafe fn groups<const BITS: usize>(table: &[f32], codes: &[u8], element: usize, out: &mut [[f32; 16]]) {
        let spread = 0x0101_0101_0101_0101 * ((1 << BITS) - 1) as u64;
        let part = |index: usize| {
            let count = (1_usize << BITS).saturating_sub(16 * index).min(16);
            let mask = ((1_u32 << count) - 1) as u16;
            // SAFETY: only entries of the table are read.
            unsafe { _mm512_maskz_loadu_ps(mask, table.as_ptr().wrapping_add(16 * index)) }
        };
        let parts = [part(0), part(1), part(2), part(3)];
        let (mut byte, shift) = (element * BITS / 8, element * BITS % 8);
        for group in out {
            // Eight indices of `BITS` bits are `BITS` bytes.
            let low = _pdep_u64(read_word(codes, byte) >> shift, spread);
            let high = _pdep_u64(read_word(codes, byte + BITS) >> shift, spread);
            let indices = _mm512_cvtepu8_epi32(_mm_set_epi64x(high as i64, low as i64));
            let values = match BITS {
                ..=4 => _mm512_permutexvar_ps(indices, parts[0]),
                6 => {
                    let first = _mm512_permutex2var_ps(parts[0], indices, parts[1]);
                    let second = _mm512_permutex2var_ps(parts[2], indices, parts[3]);
                    let is_second = _mm512_test_epi32_mask(indices, _mm512_set1_epi32(32));
                    _mm512_mask_blend_ps(is_second, first, second)
                }
                // SAFETY: indices are below the table's length.
                _ => unsafe { _mm512_i32gather_ps::<4>(indices, table.as_ptr()) },
            };
            // SAFETY: sixteen elements.
            unsafe { _mm512_storeu_ps(group.as_mut_ptr(), values) };
            byte += 2 * BITS;
        }
    }
    if !is_native_level() || Avx512Isa::new().is_none() || !is_x86_feature_detected!("bmi2") {
        return 0;
    }
    let (groups_of, _) = out.as_chunks_mut::<16>();
    let done = 16 * groups_of.len();
    assert!(table.len() >= 1 << bits);
    // SAFETY: the CPU has the features, and the table is long enough; codes beyond their end are read as
    // zeros.
    unsafe {
        match bits {
            1 => groups::<1>(table, codes, element, groups_of),
            2 => groups::<2>(table, codes, element, groups_of),
            3 => groups::<3>(table, codes, element, groups_of),
            4 => groups::<4>(table, codes, element, groups_of),
            6 => groups::<6>(table, codes, element, groups_of),
            8 => groups::<8>(table, codes, element, groups_of),
            _ => return 0,
        }
    }
    done
}
