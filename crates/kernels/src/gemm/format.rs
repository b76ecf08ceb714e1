//! Panel formats: what a panel's words hold, and how elements are encoded.

use std::marker::PhantomData;

use rten_simd::{Isa, SimdOp};

use crate::isa;
use crate::precision::Precision;
use crate::simd;
use crate::simd::microkernel::{F32Kernel, PanelOp, ScaledF32Kernel};
use crate::simd::operands::Rows;
use crate::simd::quantize::{LaneScale, scale_of};

/// Which side of a product a matrix is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedSide {
    /// The left factor.
    Left,
    /// The right factor.
    Right,
}

/// The content of a panel's 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// An `f32`.
    F32,
    /// An `f32` rounded to bfloat16, where the CPU does not multiply bfloat16.
    EmulatedBf16,
    /// Two bfloat16 of one lane, the first depth in the low half.
    Bf16x2,
    /// An `f32` with an integer value, scaled per lane, where the CPU does not multiply bytes. Sums are exact
    /// up to 2^24; a block of depth 1280 exceeds that only if nearly all products are the largest possible.
    EmulatedI8,
    /// Four 8-bit integers of one lane, the first depth in the lowest byte, scaled per lane. The right side's
    /// have a zero point of [`simd::INT8_OFFSET`].
    I8x4,
}

/// Adding and then subtracting this rounds an `f32` of magnitude up to 2^22 to an integer.
const ROUNDER: f32 = 12_582_912.0;

impl Format {
    /// The format for a precision on this CPU.
    pub(crate) fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 if simd::has_bf16() => Self::Bf16x2,
            Precision::Bf16 => Self::EmulatedBf16,
            Precision::Int8 if simd::has_int8() => Self::I8x4,
            Precision::Int8 => Self::EmulatedI8,
        }
    }

    /// Depths in a word.
    pub(crate) fn depths_per_word(self) -> usize {
        match self {
            Self::F32 | Self::EmulatedBf16 | Self::EmulatedI8 => 1,
            Self::Bf16x2 => 2,
            Self::I8x4 => 4,
        }
    }

    /// True if each lane has a scale for each block of depth.
    pub(crate) fn is_scaled(self) -> bool {
        matches!(self, Self::EmulatedI8 | Self::I8x4)
    }

    /// Words of a lane over `depth`, without scales.
    pub(crate) fn words(self, depth: usize) -> usize {
        depth.div_ceil(self.depths_per_word())
    }

    /// Words of a panel of `width` lanes over `depth`. A scaled format has a scale and a
    /// [start](LaneScale::start) for each lane behind the elements.
    pub(crate) fn panel_len(self, depth: usize, width: usize) -> usize {
        (self.words(depth) + if self.is_scaled() { 2 } else { 0 }) * width
    }

    /// The depth of a block of a product over `depth`. Of several blocks of `f32`, a right panel stays in the
    /// L1 cache. Narrower formats stream from the L2 cache in time, and longer blocks touch the output less
    /// often.
    pub(crate) fn block_depth(self, depth: usize) -> usize {
        let (block, single) = match self {
            Format::F32 | Format::EmulatedBf16 => (256, 384),
            Format::Bf16x2 => (1280, 1280),
            // A block shares its scales: shorter ones are more accurate.
            Format::EmulatedI8 | Format::I8x4 => (512, 1280),
        };
        if depth <= single {
            return depth.max(1);
        }
        depth.div_ceil(depth.div_ceil(block)).next_multiple_of(4)
    }

    /// Runs `op` with this format's micro-kernel.
    pub(crate) fn dispatch<Op: PanelOp>(self, op: Op) -> Op::Output {
        struct With<Op, K>(Op, PhantomData<K>);
        impl<Op: PanelOp> SimdOp for With<Op, F32Kernel> {
            type Output = Op::Output;
            #[inline(always)]
            fn eval<I: Isa>(self, isa: I) -> Op::Output {
                self.0.eval::<I, F32Kernel>(isa)
            }
        }
        impl<Op: PanelOp> SimdOp for With<Op, ScaledF32Kernel> {
            type Output = Op::Output;
            #[inline(always)]
            fn eval<I: Isa>(self, isa: I) -> Op::Output {
                self.0.eval::<I, ScaledF32Kernel>(isa)
            }
        }
        match self {
            Format::F32 | Format::EmulatedBf16 => isa::dispatch(With::<Op, F32Kernel>(op, PhantomData)),
            Format::EmulatedI8 => isa::dispatch(With::<Op, ScaledF32Kernel>(op, PhantomData)),
            Format::Bf16x2 => simd::dispatch_bf16x2(op),
            Format::I8x4 => simd::dispatch_i8x4(op),
        }
    }
}

/// Encodes a lane's `run` as words. Formats without scales return [`LaneScale::NONE`].
pub(crate) fn encode_lane(format: Format, side: PackedSide, run: &[f32], words: &mut [u32]) -> LaneScale {
    struct Encode<'a>(Format, PackedSide, &'a [f32], &'a mut [u32]);
    impl SimdOp for Encode<'_> {
        type Output = LaneScale;

        #[inline(always)]
        fn eval<I: Isa>(self, _isa: I) -> LaneScale {
            let Encode(format, side, run, words) = self;
            let mut lane = LaneScale::NONE;
            match format {
                Format::F32 => run.iter().zip(words).for_each(|(x, word)| *word = x.to_bits()),
                Format::EmulatedBf16 => {
                    run.iter().zip(words).for_each(|(x, word)| *word = bf16_bits(*x) & 0xffff_0000)
                }
                Format::Bf16x2 if simd::encode_bf16x2(run, words) => {}
                Format::Bf16x2 => {
                    let (pairs, rest) = run.as_chunks::<2>();
                    for ([low, high], word) in pairs.iter().zip(words.iter_mut()) {
                        *word = bf16_bits(*low) >> 16 | bf16_bits(*high) & 0xffff_0000;
                    }
                    if let ([last], Some(word)) = (rest, words.last_mut()) {
                        *word = bf16_bits(*last) >> 16;
                    }
                }
                Format::EmulatedI8 => {
                    let inverse;
                    (lane.scale, inverse) = scale_of(largest(run));
                    for (x, word) in run.iter().zip(words) {
                        *word = ((x * inverse + ROUNDER) - ROUNDER).to_bits();
                    }
                }
                Format::I8x4 => {
                    let inverse;
                    (lane.scale, inverse) = scale_of(largest(run));
                    let (done, mut sum) = simd::encode_i8x4(run, inverse, offset_bits(side), words);
                    let (run, words) = (&run[4 * done..], &mut words[done..]);
                    let (quads, rest) = run.as_chunks::<4>();
                    for (quad, word) in quads.iter().zip(words.iter_mut()) {
                        *word = i8x4_word(*quad, inverse, side, &mut sum);
                    }
                    if let (false, Some(word)) = (rest.is_empty(), words.last_mut()) {
                        let mut quad = [0.0; 4];
                        quad[..rest.len()].copy_from_slice(rest);
                        *word = i8x4_word(quad, inverse, side, &mut sum);
                    }
                    lane.start = sum.wrapping_mul(-simd::INT8_OFFSET);
                }
            }
            lane
        }
    }
    isa::dispatch(Encode(format, side, run, words))
}

/// Encodes strided rows of at most `width` lanes as a panel, where the CPU has instructions for that. Returns
/// false, with nothing written, elsewhere.
pub(crate) fn encode_in_place(
    format: Format,
    side: PackedSide,
    rows: &Rows<'_>,
    width: usize,
    panel: &mut [u32],
) -> bool {
    match format {
        Format::Bf16x2 => simd::encode_rows_bf16x2(rows, width, panel),
        Format::I8x4 => simd::encode_rows_i8x4(rows, width, offset_bits(side), panel),
        Format::F32 | Format::EmulatedBf16 | Format::EmulatedI8 => false,
    }
}

/// Encodes `rows`, one of `width` lanes for each depth, as a panel.
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
                Format::F32 => rows.iter().zip(words).for_each(|(x, word)| *word = x.to_bits()),
                Format::EmulatedBf16 => {
                    rows.iter().zip(words).for_each(|(x, word)| *word = bf16_bits(*x) & 0xffff_0000)
                }
                Format::Bf16x2 => {
                    for (pair, words) in rows.chunks(2 * width).zip(words.chunks_exact_mut(width)) {
                        let (low, high) = pair.split_at(width);
                        for ((word, low), index) in words.iter_mut().zip(low).zip(0..) {
                            let high = high.get(index).map_or(0, |high| bf16_bits(*high) & 0xffff_0000);
                            *word = bf16_bits(*low) >> 16 | high;
                        }
                    }
                }
                Format::EmulatedI8 | Format::I8x4 => {
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
    // Sixteen lanes at a time, then the rest: every panel width is a multiple of two.
    while first < width {
        let (scales, starts) = (&mut scales[first..], &mut starts[first..]);
        first += match width - first {
            16.. => scaled_lanes::<16>(format, side, rows, words, [first, width], scales, starts),
            8.. => scaled_lanes::<8>(format, side, rows, words, [first, width], scales, starts),
            _ => scaled_lanes::<2>(format, side, rows, words, [first, width], scales, starts),
        };
    }
}

/// `N` lanes of [`scaled_rows`] from `first` on, and their scales and starts. Returns `N`.
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
    if format == Format::EmulatedI8 {
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
                *word = i8x4_word(values, inverses[lane], side, &mut sums[lane]);
            }
        }
    }
    starts[..N].copy_from_slice(&sums.map(|sum| sum.wrapping_mul(-simd::INT8_OFFSET) as u32));
    N
}

/// The largest magnitude; NaN if any element is.
#[inline(always)]
fn largest(run: &[f32]) -> f32 {
    // Magnitudes order as their bits, NaN above infinity.
    f32::from_bits(run.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

/// Four values quantized to one word. Adds the integers to `sum`.
#[inline(always)]
fn i8x4_word(quad: [f32; 4], inverse: f32, side: PackedSide, sum: &mut i32) -> u32 {
    let [a, b, c, d] = quad.map(|x| (x * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32);
    *sum = sum.wrapping_add(a).wrapping_add(b).wrapping_add(c).wrapping_add(d);
    let word = (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
    word as u32 ^ offset_bits(side)
}

/// XOR mask that adds a side's zero point to each byte of a word: adding 128 flips the highest bit.
#[inline(always)]
pub(crate) fn offset_bits(side: PackedSide) -> u32 {
    if side == PackedSide::Right { simd::INT8_OFFSET as u32 * 0x0101_0101 } else { 0 }
}

/// The bits of `x` rounded to bfloat16, in the high half; the low half is unspecified. NaN stays NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

#[cfg(test)]
mod tests;
