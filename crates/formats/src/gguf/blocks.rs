//! The quantized element types of GGUF, and their values.
//!
//! A tensor's rows are divided into blocks of 32 or 256 elements. A block has its scales and the quantized
//! numbers, laid out as ggml has them. Sums and products are those of ggml in `f32`, in the same order.

use half::f16;

/// A quantized element type.
#[derive(Debug)]
pub(super) struct Quantization {
    /// The number in the file.
    pub(super) code: u32,
    pub(super) name: &'static str,
    /// The elements of a block.
    pub(super) elements: usize,
    /// The bytes of a block.
    pub(super) bytes: usize,
    /// Writes the elements of a block.
    pub(super) decode: fn(&[u8], &mut [f32]),
}

/// The most elements of a block.
pub(super) const LARGEST: usize = 256;

const fn row(
    code: u32,
    name: &'static str,
    elements: usize,
    bytes: usize,
    decode: fn(&[u8], &mut [f32]),
) -> Quantization {
    Quantization { code, name, elements, bytes, decode }
}

/// The types that can be read.
pub(super) static QUANTIZATIONS: [Quantization; 11] = [
    row(2, "Q4_0", 32, 18, q4_0),
    row(3, "Q4_1", 32, 20, q4_1),
    row(6, "Q5_0", 32, 22, q5_0),
    row(7, "Q5_1", 32, 24, q5_1),
    row(8, "Q8_0", 32, 34, q8_0),
    row(10, "Q2_K", 256, 84, q2_k),
    row(11, "Q3_K", 256, 110, q3_k),
    row(12, "Q4_K", 256, 144, q4_k),
    row(13, "Q5_K", 256, 176, q5_k),
    row(14, "Q6_K", 256, 210, q6_k),
    row(15, "Q8_K", 256, 292, q8_k),
];

/// Types that can't be read, for messages.
pub(super) const OTHERS: [(u32, &str); 15] = [
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The 4-bit numbers of 16 bytes: those of the low halves, then those of the high halves.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let half = bytes.len();
    for (at, &byte) in bytes.iter().enumerate() {
        out[at] = value(at, byte & 15);
        out[at + half] = value(at + half, byte >> 4);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, q| scale * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, q| scale * f32::from(q) + least);
}

/// The fifth bits of 32 numbers, as the value 16 or 0 of each.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |at| ((bits >> at & 1) as u8) << 4
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, high) = (half(block, 0), fifth_bits(block, 2));
    nibbles(&block[6..], out, |at, q| scale * (f32::from(q | high(at)) - 16.0));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least, high) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    nibbles(&block[8..], out, |at, q| scale * f32::from(q | high(at)) + least);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(q as i8);
    }
}

/// 16 scales of 4 bits with as many minima, then 2-bit numbers: of each 32 bytes, four runs of 32 numbers.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, numbers) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    for (at, value) in out.iter_mut().enumerate() {
        let group = scales[at / 16];
        let q = two_bits(numbers, at);
        *value = scale * f32::from(group & 15) * f32::from(q) - least * f32::from(group >> 4);
    }
}

/// The 2-bit number of an element. A run of 32 numbers has the same bits of 32 bytes.
fn two_bits(numbers: &[u8], at: usize) -> u8 {
    numbers[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

/// Third bits, 2-bit numbers as in [`q2_k`], 16 scales of 6 bits.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, numbers, scales, scale) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    let mut groups = [0f32; 16];
    for (group, value) in groups.iter_mut().enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        *value = scale * (f32::from(low | top << 4) - 32.0);
    }
    for (at, value) in out.iter_mut().enumerate() {
        // The number is four less where its third bit is not set.
        let third = high[at % 32] >> (at / 32) & 1;
        let q = f32::from(two_bits(numbers, at)) - if third == 0 { 4.0 } else { 0.0 };
        *value = groups[at / 16] * q;
    }
}

/// Eight scales and minima of 6 bits in 12 bytes.
fn scales_and_minima(packed: &[u8]) -> [(f32, f32); 8] {
    let mut pairs = [(0.0, 0.0); 8];
    for (at, pair) in pairs.iter_mut().enumerate() {
        let (scale, least) = match at {
            0..4 => (packed[at] & 63, packed[at + 4] & 63),
            _ => {
                let both = packed[at + 4];
                (both & 15 | packed[at - 4] >> 6 << 4, both >> 4 | packed[at] >> 6 << 4)
            }
        };
        *pair = (f32::from(scale), f32::from(least));
    }
    pairs
}

/// Runs of 32 numbers, of which two share 32 bytes.
fn q4_k(block: &[u8], out: &mut [f32]) {
    of_runs(block, &block[16..144], out, |_, q| q);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let high = &block[16..48];
    of_runs(block, &block[48..176], out, |at, q| q | (high[at % 32] >> (at / 32) & 1) << 4);
}

fn of_runs(block: &[u8], numbers: &[u8], out: &mut [f32], whole: impl Fn(usize, u8) -> u8) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let pairs = scales_and_minima(&block[4..16]);
    for (run, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, least) = (scale * pairs[run].0, least * pairs[run].1);
        for (at, value) in values.iter_mut().enumerate() {
            let q = numbers[run / 2 * 32 + at] >> (run % 2 * 4) & 15;
            *value = scale * f32::from(whole(run * 32 + at, q)) - least;
        }
    }
}

/// 4-bit numbers (64 bytes for each 128 elements), their upper two bits, 16 scales of 8 bits.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, scale) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (at, value) in out.iter_mut().enumerate() {
        let (part, inside) = (at / 128, at % 128);
        let q = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15;
        let q = q | two_bits(high, at) << 4;
        *value = scale * f32::from(scales[at / 16] as i8) * (f32::from(q) - 32.0);
    }
}

fn q8_k(block: &[u8], out: &mut [f32]) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (value, &q) in out.iter_mut().zip(&block[4..260]) {
        *value = scale * f32::from(q as i8);
    }
}
