//! Palette indices of at most six bits to packed words, with the palette in registers and no values in
//! memory.
//!
//! 64 indices of `b` bits are `8 b` bytes. A byte permutation gives each eight indices a 64-bit element of
//! their own, and a multishift gives each index its own byte. Bits above an index are masked.

use std::arch::x86_64::*;

use super::{as_words, has_bf16, has_int8};
use crate::simd::operands::Codes;
use crate::simd::quantize::{LaneScale, scale_of};

/// The most bits of an index.
const MOST_BITS: usize = 6;
/// Indices that are spread to bytes at once.
const GROUP: usize = 64;

/// True if this CPU has the instructions that spread indices to bytes.
fn spreads_codes() -> bool {
    is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bw")
}

/// Positions of 64 indices, by their bits, if the first begins on a byte.
struct CodePlaces {
    /// The stored byte for each byte of the 64-bit elements.
    bytes: [[u8; GROUP]; MOST_BITS + 1],
    /// The bit of its 64-bit element that each index begins with.
    shifts: [[u8; GROUP]; MOST_BITS + 1],
}

static CODE_PLACES: CodePlaces = {
    let empty = [[0; GROUP]; MOST_BITS + 1];
    let mut places = CodePlaces { bytes: empty, shifts: empty };
    let mut bits = 1;
    while bits <= MOST_BITS {
        let mut index = 0;
        while index < GROUP {
            places.bytes[bits][index] = (index / 8 * bits + index % 8) as u8;
            places.shifts[bits][index] = (index % 8 * bits) as u8;
            index += 1;
        }
        bits += 1;
    }
    places
};

/// Spreads indices to bytes.
#[derive(Clone, Copy)]
struct Spread {
    /// The permutation of the stored bytes.
    places: __m512i,
    /// The bit of its 64-bit element that each index begins with.
    shifts: __m512i,
    /// Mask of an index's bits.
    mask: __m512i,
}

impl Spread {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn new(codes: &Codes<'_>) -> Self {
        let bits = codes.bits;
        // SAFETY: arrays of 64 bytes.
        unsafe {
            let shifts = _mm512_loadu_si512(CODE_PLACES.shifts[bits].as_ptr().cast());
            Self {
                places: _mm512_loadu_si512(CODE_PLACES.bytes[bits].as_ptr().cast()),
                shifts: _mm512_add_epi8(shifts, _mm512_set1_epi8((codes.element * bits % 8) as i8)),
                mask: _mm512_set1_epi8(((1 << bits) - 1) as i8),
            }
        }
    }

    /// 64 indices from element `codes.element + at` on, where `at` is a multiple of 64; zeros beyond the
    /// stream.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn bytes(self, codes: &Codes<'_>, at: usize) -> __m512i {
        let start = (codes.element + at) * codes.bits / 8;
        let left = codes.codes.len().saturating_sub(start);
        let place = codes.codes.as_ptr().wrapping_add(start).cast();
        // SAFETY: the mask selects bytes of the stream only.
        let stored = unsafe { _mm512_maskz_loadu_epi8(first_bytes(left), place) };
        let spread = _mm512_permutexvar_epi8(self.places, stored);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(self.shifts, spread), self.mask)
    }
}

/// Mask of the first `count` lanes of 64.
#[inline(always)]
fn first_bytes(count: usize) -> __mmask64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

/// The table, padded with zeros to 64 entries.
#[inline]
#[target_feature(enable = "avx512f")]
fn entries(table: &[f32]) -> [__m512; 4] {
    let mut entries = [_mm512_setzero_ps(); 4];
    for (entries, table) in entries.iter_mut().zip(table.chunks(16)) {
        // SAFETY: the mask selects entries of the table only.
        *entries = unsafe { _mm512_maskz_loadu_ps(super::first_lanes(table.len()), table.as_ptr()) };
    }
    entries
}

/// Decodes `len` indices to a lane of words of two bfloat16. `None`, with nothing written, where the CPU
/// lacks the instructions or the indices have too many bits.
pub(crate) fn look_up_bf16x2(codes: &Codes<'_>, len: usize, words: &mut [u32]) -> Option<LaneScale> {
    /// # Safety
    /// The CPU has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    unsafe fn run(codes: &Codes<'_>, len: usize, words: &mut [u32]) {
        let spread = Spread::new(codes);
        let [a, b, c, d] = entries(codes.table);
        let (first, second) = (as_words(_mm512_cvtne2ps_pbh(b, a)), as_words(_mm512_cvtne2ps_pbh(d, c)));
        for at in (0..len).step_by(GROUP) {
            let bytes = spread.bytes(codes, at);
            let halves = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
            for (half, bytes) in halves.into_iter().enumerate() {
                let start = at + half * 32;
                if start >= len {
                    break;
                }
                let elements = _mm512_permutex2var_epi16(first, _mm512_cvtepu8_epi16(bytes), second);
                let mask = first_bytes(len - start) as __mmask32;
                let elements = _mm512_maskz_mov_epi16(mask, elements);
                let words = &mut words[start / 2..];
                let count = (len - start).div_ceil(2).min(words.len());
                // SAFETY: the mask selects words of the slice only.
                unsafe {
                    _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), super::first_lanes(count), elements);
                }
            }
        }
    }
    if codes.bits > MOST_BITS || !has_bf16() || !spreads_codes() {
        return None;
    }
    assert!(words.len() >= len.div_ceil(2));
    // SAFETY: the CPU has the features.
    unsafe { run(codes, len, words) };
    Some(LaneScale::NONE)
}

/// Decodes `len` indices to a lane of words of four bytes, each XORed with `flip`. `None`, with nothing
/// written, where the CPU lacks the instructions, the indices have too many bits, or the table is not sorted
/// and finite.
pub(crate) fn look_up_i8x4(codes: &Codes<'_>, len: usize, flip: u32, words: &mut [u32]) -> Option<LaneScale> {
    /// # Safety
    /// The CPU has the features, and `words` holds all indices.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    unsafe fn run(codes: &Codes<'_>, len: usize, flip: u32, words: &mut [u32]) -> LaneScale {
        let spread = Spread::new(codes);
        // In a sorted table, the largest magnitude of a set of entries is that of its first or last one.
        let (mut least, mut most) = (_mm512_set1_epi8(-1), _mm512_setzero_si512());
        for at in (0..len).step_by(GROUP) {
            let (bytes, mask) = (spread.bytes(codes, at), first_bytes(len - at));
            least = _mm512_mask_min_epu8(least, mask, least, bytes);
            most = _mm512_mask_max_epu8(most, mask, most, bytes);
        }
        let (mut leasts, mut mosts) = ([0_u8; GROUP], [0_u8; GROUP]);
        // SAFETY: arrays of 64 bytes.
        unsafe {
            _mm512_storeu_si512(leasts.as_mut_ptr().cast(), least);
            _mm512_storeu_si512(mosts.as_mut_ptr().cast(), most);
        }
        let entry =
            |code: Option<u8>| codes.table.get(usize::from(code.unwrap_or(0))).map_or(0.0, |x| x.abs());
        let largest = entry(leasts.into_iter().min()).max(entry(mosts.into_iter().max()));
        let (scale, inverse) = scale_of(largest);
        let mut bytes = [_mm_setzero_si128(); 4];
        for (bytes, entries) in bytes.iter_mut().zip(entries(codes.table)) {
            let integers = _mm512_cvtps_epi32(_mm512_mul_ps(entries, _mm512_set1_ps(inverse)));
            // Entries that the lane does not use may exceed a byte.
            *bytes = _mm512_cvtsepi32_epi8(integers);
        }
        let [a, b, c, d] = bytes;
        let low = _mm256_set_m128i(b, a);
        let table = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), _mm256_set_m128i(d, c));
        let (flip, ones) = (_mm512_set1_epi32(flip as i32), _mm512_set1_epi8(1));
        let mut sums = _mm512_setzero_si512();
        for at in (0..len).step_by(GROUP) {
            let bytes = spread.bytes(codes, at);
            let integers = _mm512_maskz_permutexvar_epi8(first_bytes(len - at), bytes, table);
            sums = _mm512_dpbusd_epi32(sums, ones, integers);
            let words = &mut words[at / 4..];
            let count = (len - at).div_ceil(4).min(words.len());
            let flipped = _mm512_xor_si512(integers, flip);
            // SAFETY: the mask selects words of the slice only.
            unsafe {
                _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), super::first_lanes(count), flipped);
            }
        }
        let start = _mm512_reduce_add_epi32(sums).wrapping_mul(-super::INT8_OFFSET);
        LaneScale { scale, start }
    }
    let ascends = codes.table.is_sorted() && codes.table.iter().all(|entry| entry.is_finite());
    if codes.bits > MOST_BITS || !ascends || len == 0 || !has_int8() || !spreads_codes() {
        return None;
    }
    assert!(words.len() >= len.div_ceil(4));
    // SAFETY: the CPU has the features, and the length of `words` was checked.
    Some(unsafe { run(codes, len, flip, words) })
}

/// Channels whose filters are decoded at once.
const CHANNELS: usize = 64;
/// Weights of a filter.
const TAPS: usize = 9;

/// Positions of a tap of each channel: tap `t` of channel `c` is byte `9 c + t` of nine vectors.
struct TapPlaces {
    /// The byte within its vector.
    bytes: [[u8; CHANNELS]; TAPS],
    /// For each tap and vector, the channels whose tap lies in that vector.
    masks: [[u64; TAPS]; TAPS],
}

static TAP_PLACES: TapPlaces = {
    let mut places = TapPlaces { bytes: [[0; CHANNELS]; TAPS], masks: [[0; TAPS]; TAPS] };
    let mut tap = 0;
    while tap < TAPS {
        let mut channel = 0;
        while channel < CHANNELS {
            let byte = TAPS * channel + tap;
            places.bytes[tap][channel] = (byte % GROUP) as u8;
            places.masks[tap][byte / GROUP] |= 1 << channel;
            channel += 1;
        }
        tap += 1;
    }
    places
};

/// `G` times three values of each lane, in the same order of operations as the portable transformation.
#[inline]
#[target_feature(enable = "avx512f")]
fn filter(a: __m512, b: __m512, c: __m512) -> [__m512; 4] {
    let half = _mm512_set1_ps(0.5);
    let (outer, inner) = (_mm512_mul_ps(half, _mm512_add_ps(a, c)), _mm512_mul_ps(half, b));
    [a, _mm512_add_ps(outer, inner), _mm512_sub_ps(outer, inner), c]
}

/// Decodes the 3x3 filters of at most 64 input channels, applies Winograd's transformation, and writes each
/// of the sixteen positions as 32 words of two bfloat16. Returns false, with nothing written, where the CPU
/// lacks the instructions or the indices have too many bits.
pub(crate) fn look_up_filters(codes: &Codes<'_>, channels: usize, words: &mut [u32]) -> bool {
    /// # Safety
    /// The CPU has the features, and `words` has 512 elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    unsafe fn run(codes: &Codes<'_>, channels: usize, words: &mut [u32]) {
        let spread = Spread::new(codes);
        let mut bytes = [_mm512_setzero_si512(); TAPS];
        for (group, bytes) in bytes.iter_mut().enumerate().take((TAPS * channels).div_ceil(GROUP)) {
            *bytes = spread.bytes(codes, group * GROUP);
        }
        let mut taps = [[0_u8; CHANNELS]; TAPS];
        for ((taps, places), masks) in taps.iter_mut().zip(&TAP_PLACES.bytes).zip(&TAP_PLACES.masks) {
            // SAFETY: arrays of 64 bytes.
            unsafe {
                let places = _mm512_loadu_si512(places.as_ptr().cast());
                let mut tap = _mm512_setzero_si512();
                for (mask, bytes) in masks.iter().zip(&bytes) {
                    tap = _mm512_mask_permutexvar_epi8(tap, *mask, places, *bytes);
                }
                _mm512_storeu_si512(taps.as_mut_ptr().cast(), tap);
            }
        }
        let [a, b, c, d] = entries(codes.table);
        for group in 0..channels.div_ceil(16) {
            let present = super::first_lanes(channels - 16 * group);
            let mut weights = [_mm512_setzero_ps(); TAPS];
            for (weights, taps) in weights.iter_mut().zip(&taps) {
                // SAFETY: sixteen of 64 bytes.
                let bytes = unsafe { _mm_loadu_si128(taps.as_ptr().add(16 * group).cast()) };
                let indices = _mm512_cvtepu8_epi32(bytes);
                let is_second = _mm512_test_epi32_mask(indices, _mm512_set1_epi32(32));
                let first = _mm512_permutex2var_ps(a, indices, b);
                let second = _mm512_permutex2var_ps(c, indices, d);
                *weights = _mm512_maskz_mov_ps(present, _mm512_mask_blend_ps(is_second, first, second));
            }
            let mut columns = [[_mm512_setzero_ps(); 4]; 3];
            for (col, column) in columns.iter_mut().enumerate() {
                *column = filter(weights[col], weights[3 + col], weights[6 + col]);
            }
            let [first, second, third] = columns;
            for (row, ((a, b), c)) in first.into_iter().zip(second).zip(third).enumerate() {
                let positions = filter(a, b, c);
                for (col, position) in positions.into_iter().enumerate() {
                    let start = (4 * row + col) * CHANNELS / 2 + 8 * group;
                    // SAFETY: sixteen bfloat16 are eight of the 512 words.
                    unsafe {
                        let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(position));
                        _mm256_storeu_si256(words.as_mut_ptr().add(start).cast(), rounded);
                    }
                }
            }
        }
    }
    if codes.bits > MOST_BITS || !has_bf16() || !spreads_codes() {
        return false;
    }
    assert!(channels <= CHANNELS && words.len() >= 16 * CHANNELS / 2);
    // SAFETY: the CPU has the features, and the length of `words` was checked.
    unsafe { run(codes, channels, words) };
    true
}
