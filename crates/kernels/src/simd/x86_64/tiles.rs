//! Tiles of Winograd's convolution: from input pixels to panels, and from products to output pixels.

use std::arch::x86_64::*;

use rten_simd::isa::Avx512Isa;

use super::{has_bf16, to_bf16x2};
use crate::isa::is_native_level;
use crate::simd::microkernel::TILE_VECTORS;
use crate::simd::operands::{InputPiece, OutputPiece, PackTiles};

/// Transforms and packs a panel of tiles, two channels to a word. Returns false, with nothing written, where
/// the CPU lacks bfloat16.
pub(crate) fn pack_tiles(job: PackTiles<'_>) -> bool {
    /// The tiles of sixteen lanes in the channel whose first pixel is at `plane`.
    ///
    /// # Safety
    /// The pixels in the masks of the pieces are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn transform(plane: *const f32, pieces: &[InputPiece]) -> [__m512; 16] {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        let mut columns = [[_mm512_setzero_ps(); 4]; 4];
        for piece in pieces {
            for (columns, (offset, inside)) in columns.iter_mut().zip(piece.rows) {
                if inside == 0 {
                    continue;
                }
                let pixels = |at: usize| {
                    let mask = (inside >> at) as __mmask16;
                    // SAFETY: the caller's promise.
                    unsafe { _mm512_maskz_loadu_ps(mask, plane.wrapping_offset(offset).wrapping_add(at)) }
                };
                let (first, second, third, fourth) = (pixels(0), pixels(16), pixels(2), pixels(18));
                let a = _mm512_permutex2var_ps(first, even, second);
                let b = _mm512_permutex2var_ps(first, odd, second);
                let c = _mm512_permutex2var_ps(third, even, fourth);
                let d = _mm512_permutex2var_ps(third, odd, fourth);
                let lanes = piece.lanes;
                columns[0] = _mm512_mask_sub_ps(columns[0], lanes, a, c);
                columns[1] = _mm512_mask_add_ps(columns[1], lanes, b, c);
                columns[2] = _mm512_mask_sub_ps(columns[2], lanes, c, b);
                columns[3] = _mm512_mask_sub_ps(columns[3], lanes, b, d);
            }
        }
        let mut tiles = [_mm512_setzero_ps(); 16];
        for col in 0..4 {
            let (a, b, c, d) = (columns[0][col], columns[1][col], columns[2][col], columns[3][col]);
            tiles[col] = _mm512_sub_ps(a, c);
            tiles[4 + col] = _mm512_add_ps(b, c);
            tiles[8 + col] = _mm512_sub_ps(c, b);
            tiles[12 + col] = _mm512_sub_ps(b, d);
        }
        tiles
    }
    /// # Safety
    /// The CPU has the features, the pixels in the masks are readable in every channel, and `words` holds the
    /// panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(job: PackTiles<'_>) {
        let PackTiles { input, plane, channels, pieces, words, position_len } = job;
        let halves = pieces.partition_point(|piece| piece.vector == 0);
        for pair in 0..channels.div_ceil(2) {
            for (vector, pieces) in [&pieces[..halves], &pieces[halves..]].into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe {
                    let start = input.as_ptr().add(2 * pair * plane);
                    let low = transform(start, pieces);
                    let high = match 2 * pair + 1 < channels {
                        true => transform(start.add(plane), pieces),
                        false => [_mm512_setzero_ps(); 16],
                    };
                    let out = words.as_mut_ptr().add(pair * 2 * 16 + vector * 16);
                    for position in 0..16 {
                        let both = to_bf16x2(low[position], high[position]);
                        _mm512_storeu_si512(out.add(position * position_len).cast(), both);
                    }
                }
            }
        }
    }
    if !has_bf16() {
        return false;
    }
    let last = job.channels.saturating_sub(1) * job.plane;
    for piece in job.pieces {
        assert!(piece.vector < TILE_VECTORS);
        for (offset, inside) in piece.rows.into_iter().filter(|(_, inside)| *inside != 0) {
            let first = offset + inside.trailing_zeros() as isize;
            let end = offset + (64 - inside.leading_zeros()) as isize;
            assert!(first >= 0 && last + end as usize <= job.input.len(), "a tile lies outside the image");
        }
    }
    assert!(job.pieces.is_sorted_by_key(|piece| piece.vector));
    let pair_words = job.channels.div_ceil(2) * TILE_VECTORS * 16;
    assert!(job.position_len >= pair_words && job.words.len() >= 15 * job.position_len + pair_words);
    // SAFETY: the CPU has the features, and the lengths were checked.
    unsafe { run(job) }
    true
}

/// Transforms the products of sixteen positions, `position_len` apart, to pixels of one output channel, and
/// adds each image's `bias` and the `residual`. Returns false, with nothing written, where the CPU lacks
/// AVX-512.
///
/// # Safety
/// The pixels in the masks of the pieces are writable from `out` on and readable from `residual` on, and no
/// other reference to those of `out` is alive.
pub(crate) unsafe fn store_tiles(
    products: &[f32],
    position_len: usize,
    pieces: &[OutputPiece],
    bias: impl Fn(usize) -> f32,
    out: *mut f32,
    residual: Option<*const f32>,
) -> bool {
    /// # Safety
    /// As for the whole; besides, the CPU has the feature, and the products are readable.
    #[target_feature(enable = "avx512f")]
    unsafe fn run(
        products: *const f32,
        position_len: usize,
        pieces: &[OutputPiece],
        bias: impl Fn(usize) -> f32,
        out: *mut f32,
        residual: Option<*const f32>,
    ) {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        for vector in 0..TILE_VECTORS {
            let mut pieces = pieces.iter().filter(|piece| piece.vector == vector).peekable();
            if pieces.peek().is_none() {
                continue;
            }
            // SAFETY: the caller's promise.
            let product =
                |position| unsafe { _mm512_loadu_ps(products.add(position * position_len + 16 * vector)) };
            let [mut first, mut second] = [[_mm512_setzero_ps(); 4]; 2];
            for (col, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
                let (a, b, c, d) = (product(col), product(4 + col), product(8 + col), product(12 + col));
                *first = _mm512_add_ps(_mm512_add_ps(a, b), c);
                *second = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
            }
            let mut pixels = [[_mm512_setzero_ps(); 2]; 2];
            for (pixels, [a, b, c, d]) in pixels.iter_mut().zip([first, second]) {
                let left = _mm512_add_ps(_mm512_add_ps(a, b), c);
                let right = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
                pixels[0] = _mm512_permutex2var_ps(left, low, right);
                pixels[1] = _mm512_permutex2var_ps(left, high, right);
            }
            for piece in pieces {
                let bias = _mm512_set1_ps(bias(piece.image));
                for (pixels, (offset, inside)) in pixels.iter().zip(piece.rows) {
                    for (half, pixels) in pixels.iter().enumerate() {
                        let mask = (inside >> (16 * half)) as __mmask16;
                        let offset = offset + 16 * half as isize;
                        let mut value = _mm512_add_ps(*pixels, bias);
                        // SAFETY: the caller's promise.
                        unsafe {
                            if let Some(residual) = residual {
                                let other = _mm512_maskz_loadu_ps(mask, residual.wrapping_offset(offset));
                                value = _mm512_add_ps(value, other);
                            }
                            _mm512_mask_storeu_ps(out.wrapping_offset(offset), mask, value);
                        }
                    }
                }
            }
        }
    }
    if !is_native_level() || Avx512Isa::new().is_none() {
        return false;
    }
    assert!(products.len() >= 15 * position_len + TILE_VECTORS * 16);
    // SAFETY: the CPU has the feature, and the products' length was checked; the rest is the caller's
    // promise.
    unsafe { run(products.as_ptr(), position_len, pieces, bias, out, residual) }
    true
}

/// Splits windows of nine elements into nine runs, `stride` apart. Returns the number of windows split.
pub(crate) fn split_nines(windows: &[f32], out: &mut [f32], stride: usize) -> usize {
    /// # Safety
    /// The CPU has AVX-512, and every run holds `groups` times sixteen elements.
    #[target_feature(enable = "avx512f")]
    unsafe fn split(windows: *const f32, groups: usize, out: *mut f32, stride: usize) {
        // Sixteen windows are nine vectors. In each lane, exactly one of the nine elements belongs to a given
        // run: lane `l` of vector `j` is element `16 j + l`, which belongs to run `(16 j + l) % 9`.
        const LANES: [__mmask16; 9] =
            [0x0201, 0x0402, 0x0804, 0x1008, 0x2010, 0x4020, 0x8040, 0x0080, 0x0100];
        let lanes = _mm512_setr_epi32(0, 9, 2, 11, 4, 13, 6, 15, 8, 1, 10, 3, 12, 5, 14, 7);
        for run in 0..9 {
            let order = _mm512_add_epi32(lanes, _mm512_set1_epi32(run as i32));
            for group in 0..groups {
                // SAFETY: the caller's promise. All of sixteen windows are read, and sixteen elements of the
                // run written.
                unsafe {
                    let vectors = windows.add(144 * group);
                    let mut elements = _mm512_loadu_ps(vectors);
                    for vector in 1..9 {
                        let mask = LANES[(run + 2 * vector) % 9];
                        elements = _mm512_mask_loadu_ps(elements, mask, vectors.add(16 * vector));
                    }
                    let elements = _mm512_permutexvar_ps(order, elements);
                    _mm512_storeu_ps(out.add(run * stride + 16 * group), elements);
                }
            }
        }
    }
    if !is_native_level() || Avx512Isa::new().is_none() {
        return 0;
    }
    let groups = windows.len() / 144;
    assert!(stride >= 16 * groups && out.len() >= 8 * stride + 16 * groups);
    // SAFETY: the CPU has the feature, and the lengths were checked.
    unsafe { split(windows.as_ptr(), groups, out.as_mut_ptr(), stride) }
    16 * groups
}
