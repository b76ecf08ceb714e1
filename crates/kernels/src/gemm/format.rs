//! What the words of a panel hold, and how elements get there.

use rten_simd::{Isa, SimdOp};

use crate::gemm::pack::PackedSide;
use crate::isa;
use crate::precision::Precision;
use crate::simd;

/// The content of a panel's words of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// An `f32`.
    Single,
    /// An `f32` rounded to bfloat16, where the CPU does not multiply those.
    Rounded,
    /// Two bfloat16 of one lane, the first depth in the low half.
    Pairs,
    /// An `f32` that is a small integer, to be scaled, where the CPU does not multiply bytes. Sums up to 2^24 are exact: those of
    /// a block 1280 deep may be larger only if nearly all that is multiplied is the largest there is.
    Integers,
    /// Four small integers of one lane, a byte each, the first depth in the lowest byte, to be scaled. On the right side,
    /// [`simd::INT8_OFFSET`] is added to each.
    Quads,
}

/// The largest quantized value.
pub(crate) const LARGEST: f32 = 127.0;
/// Adding and subtracting it rounds an `f32` of at most 2^22 to an integer.
const ROUNDER: f32 = 12_582_912.0;

impl Format {
    /// The format for a precision on this CPU.
    pub(crate) fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Single,
            Precision::Bf16 if simd::has_bf16() => Self::Pairs,
            Precision::Bf16 => Self::Rounded,
            Precision::Int8 if simd::has_int8() => Self::Quads,
            Precision::Int8 => Self::Integers,
        }
    }

    /// Depths that share a word.
    pub(crate) fn depths_per_word(self) -> usize {
        match self {
            Self::Single | Self::Rounded | Self::Integers => 1,
            Self::Pairs => 2,
            Self::Quads => 4,
        }
    }

    /// Whether each lane has a scale for each block of the depth.
    pub(crate) fn is_scaled(self) -> bool {
        matches!(self, Self::Integers | Self::Quads)
    }

    /// The words of a lane over `depth`, without scales.
    pub(crate) fn words(self, depth: usize) -> usize {
        depth.div_ceil(self.depths_per_word())
    }

    /// The words of a panel of `width` lanes over `depth`: behind the elements, for a scaled format, one scale for each lane
    /// and then one [`start`](encode_lane) for each lane.
    pub(crate) fn panel_len(self, depth: usize, width: usize) -> usize {
        (self.words(depth) + if self.is_scaled() { 2 } else { 0 }) * width
    }
}

/// The scale and the start of a lane of a scaled format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LaneScale {
    pub(crate) scale: f32,
    /// What a sum of products with this lane, on the left, begins with: it makes good the right side's offset.
    pub(crate) start: i32,
}

impl LaneScale {
    /// What stands for a scale of a format without.
    pub(crate) const NONE: LaneScale = LaneScale { scale: 1.0, start: 0 };
}

/// Writes a lane's `run` as words. For a format without scales, the result has no meaning.
pub(crate) fn encode_lane(format: Format, side: PackedSide, run: &[f32], words: &mut [u32]) -> LaneScale {
    struct Encode<'a>(Format, PackedSide, &'a [f32], &'a mut [u32]);
    impl SimdOp for Encode<'_> {
        type Output = LaneScale;

        #[inline(always)]
        fn eval<I: Isa>(self, _isa: I) -> LaneScale {
            let Encode(format, side, run, words) = self;
            let mut lane = LaneScale::NONE;
            match format {
                Format::Single => run.iter().zip(words).for_each(|(x, word)| *word = x.to_bits()),
                Format::Rounded => {
                    run.iter().zip(words).for_each(|(x, word)| *word = bf16_bits(*x) & 0xffff_0000)
                }
                Format::Pairs if simd::pair_up(run, words) => {}
                Format::Pairs => {
                    let (pairs, rest) = run.as_chunks::<2>();
                    for ([low, high], word) in pairs.iter().zip(words.iter_mut()) {
                        *word = bf16_bits(*low) >> 16 | bf16_bits(*high) & 0xffff_0000;
                    }
                    if let ([last], Some(word)) = (rest, words.last_mut()) {
                        *word = bf16_bits(*last) >> 16;
                    }
                }
                Format::Integers => {
                    let inverse;
                    (lane.scale, inverse) = scale_of(largest(run));
                    for (x, word) in run.iter().zip(words) {
                        *word = ((x * inverse + ROUNDER) - ROUNDER).to_bits();
                    }
                }
                Format::Quads => {
                    let inverse;
                    (lane.scale, inverse) = scale_of(largest(run));
                    let (done, mut sum) = simd::encode_quads(run, inverse, offset_bits(side), words);
                    let (run, words) = (&run[4 * done..], &mut words[done..]);
                    let (quads, rest) = run.as_chunks::<4>();
                    for (quad, word) in quads.iter().zip(words.iter_mut()) {
                        *word = quad_word(*quad, inverse, side, &mut sum);
                    }
                    if let (false, Some(word)) = (rest.is_empty(), words.last_mut()) {
                        let mut quad = [0.0; 4];
                        quad[..rest.len()].copy_from_slice(rest);
                        *word = quad_word(quad, inverse, side, &mut sum);
                    }
                    lane.start = sum.wrapping_mul(-simd::INT8_OFFSET);
                }
            }
            lane
        }
    }
    isa::dispatch(Encode(format, side, run, words))
}

/// Elements, a row for each depth.
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
    pub(crate) depth: usize,
    /// The elements that are meant of a row.
    pub(crate) lanes: usize,
}

/// Writes rows of at most `width` lanes as a panel from where they lie, and says whether it did: where the CPU does that faster
/// than the compiler's loops.
pub(crate) fn encode_in_place(
    format: Format,
    side: PackedSide,
    rows: &Rows<'_>,
    width: usize,
    panel: &mut [u32],
) -> bool {
    match format {
        Format::Pairs => simd::pair_rows(rows, width, panel),
        Format::Quads => simd::quad_rows(rows, width, offset_bits(side), panel),
        Format::Single | Format::Rounded | Format::Integers => false,
    }
}

/// Writes `rows`, one of `width` lanes for each depth, as a panel.
pub(crate) fn encode_rows(format: Format, side: PackedSide, rows: &[f32], width: usize, panel: &mut [u32]) {
    struct Encode<'a>(Format, PackedSide, &'a [f32], usize, &'a mut [u32]);
    impl SimdOp for Encode<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, _isa: I) {
            let Encode(format, side, rows, width, panel) = self;
            let depth = rows.len() / width;
            let (words, lanes) = panel.split_at_mut(format.words(depth) * width);
            match format {
                Format::Single => rows.iter().zip(words).for_each(|(x, word)| *word = x.to_bits()),
                Format::Rounded => {
                    rows.iter().zip(words).for_each(|(x, word)| *word = bf16_bits(*x) & 0xffff_0000)
                }
                Format::Pairs => {
                    for (pair, words) in rows.chunks(2 * width).zip(words.chunks_exact_mut(width)) {
                        let (low, high) = pair.split_at(width);
                        for ((word, low), index) in words.iter_mut().zip(low).zip(0..) {
                            let high = high.get(index).map_or(0, |high| bf16_bits(*high) & 0xffff_0000);
                            *word = bf16_bits(*low) >> 16 | high;
                        }
                    }
                }
                Format::Integers | Format::Quads => {
                    let (scales, starts) = lanes.split_at_mut(width);
                    scaled_rows(format, side, rows, words, scales, starts);
                }
            }
        }
    }
    let (stride, depth, lanes) = (width, rows.len() / width, width);
    if !encode_in_place(format, side, &Rows { data: rows, stride, depth, lanes }, width, panel) {
        isa::dispatch(Encode(format, side, rows, width, panel));
    }
}

/// [`encode_rows`] of a scaled format.
#[inline(always)]
fn scaled_rows(
    format: Format,
    side: PackedSide,
    rows: &[f32],
    words: &mut [u32],
    scales: &mut [u32],
    starts: &mut [u32],
) {
    let width = scales.len();
    let mut first = 0;
    // Lanes by sixteens, and what is left of them: every panel is a multiple of two wide.
    while first < width {
        let (scales, starts) = (&mut scales[first..], &mut starts[first..]);
        first += match width - first {
            16.. => scaled_lanes::<16>(format, side, rows, words, [first, width], scales, starts),
            8.. => scaled_lanes::<8>(format, side, rows, words, [first, width], scales, starts),
            _ => scaled_lanes::<2>(format, side, rows, words, [first, width], scales, starts),
        };
    }
}

/// `N` lanes of [`scaled_rows`] from the first on; the scales and starts are theirs. Returns `N`.
#[inline(always)]
fn scaled_lanes<const N: usize>(
    format: Format,
    side: PackedSide,
    rows: &[f32],
    words: &mut [u32],
    [first, width]: [usize; 2],
    scales: &mut [u32],
    starts: &mut [u32],
) -> usize {
    let lanes_of = |row: &[f32]| row.get(first..).and_then(|lanes| lanes.first_chunk::<N>().copied());
    let mut largest = [0_u32; N];
    for row in rows.chunks_exact(width).filter_map(lanes_of) {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = (*largest).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    let both = largest.map(|largest| scale_of(f32::from_bits(largest)));
    let inverses = both.map(|(_, inverse)| inverse);
    scales[..N].copy_from_slice(&both.map(|(scale, _)| scale.to_bits()));
    let mut sums = [0_i32; N];
    let words = words.chunks_exact_mut(width).map(|row| &mut row[first..first + N]);
    if format == Format::Integers {
        for (row, words) in rows.chunks_exact(width).filter_map(lanes_of).zip(words) {
            for ((x, inverse), word) in row.iter().zip(&inverses).zip(words) {
                *word = ((x * inverse + ROUNDER) - ROUNDER).to_bits();
            }
        }
    } else {
        for (quad, words) in rows.chunks(4 * width).zip(words) {
            let row = |index: usize| quad.get(index * width..).and_then(lanes_of).unwrap_or([0.0; N]);
            let quad = [row(0), row(1), row(2), row(3)];
            for (lane, word) in words.iter_mut().enumerate() {
                let values = [quad[0][lane], quad[1][lane], quad[2][lane], quad[3][lane]];
                *word = quad_word(values, inverses[lane], side, &mut sums[lane]);
            }
        }
    }
    starts[..N].copy_from_slice(&sums.map(|sum| sum.wrapping_mul(-simd::INT8_OFFSET) as u32));
    N
}

/// The largest magnitude; NaN if there is one.
#[inline(always)]
fn largest(run: &[f32]) -> f32 {
    // Magnitudes order as their bits do, NaN behind infinity.
    f32::from_bits(run.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

/// The scale of values up to `largest`, and its inverse. What is not finite makes the scale so, and with it every result.
#[inline(always)]
pub(crate) fn scale_of(largest: f32) -> (f32, f32) {
    let scale = largest / LARGEST;
    let inverse = LARGEST / largest;
    // Of zeros, or numbers so small that the inverse is infinite.
    if inverse.is_infinite() { (0.0, 0.0) } else { (scale, inverse) }
}

/// Four values as one word, with its values added to `sum`.
#[inline(always)]
fn quad_word(quad: [f32; 4], inverse: f32, side: PackedSide, sum: &mut i32) -> u32 {
    let [a, b, c, d] = quad.map(|x| (x * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32);
    *sum = sum.wrapping_add(a).wrapping_add(b).wrapping_add(c).wrapping_add(d);
    let word = (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
    word as u32 ^ offset_bits(side)
}

/// What adds the offset of a side to the bytes of a word if it is turned over: adding 128 to a byte turns its highest bit over.
#[inline(always)]
pub(crate) fn offset_bits(side: PackedSide) -> u32 {
    if side == PackedSide::Right { simd::INT8_OFFSET as u32 * 0x0101_0101 } else { 0 }
}

/// The bits of `x` rounded to bfloat16, in the high half; the low half holds no meaning. NaN stays NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

#[cfg(test)]
mod tests;
