//! Compressed weights: palette indices or quantized integers of a few bits, decoded a run at a time while
//! packing.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::elements::Elements;
use crate::gemm::format::{Format, PackedSide, offset_bits};
use crate::simd;
use crate::simd::operands::{Codes, read_word};
use crate::simd::quantize::LaneScale;

/// A grid of blocks over rows of `columns` elements, such as the blocks that share a scale. Blocks are
/// numbered row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockGrid {
    /// Elements in a row.
    pub columns: usize,
    /// Rows and columns of a block. Its columns divide the row.
    pub block: [usize; 2],
}

impl BlockGrid {
    /// The block of an element, and the first element after it that may be in another block.
    #[inline(always)]
    fn at(&self, element: usize) -> (usize, usize) {
        let [rows, columns] = self.block;
        let span = rows * self.columns;
        if columns == self.columns {
            let block = if element < span { 0 } else { element / span };
            return (block, (block + 1) * span);
        }
        let (row, column) = (element / self.columns, element % self.columns);
        let across = column / columns;
        (row / rows * (self.columns / columns) + across, row * self.columns + (across + 1) * columns)
    }

    /// The number of blocks over `elements` elements.
    fn count(&self, elements: usize) -> usize {
        assert!(
            self.block.iter().all(|&extent| extent > 0) && self.columns.is_multiple_of(self.block[1]),
            "{:?} blocks do not tile rows of {}",
            self.block,
            self.columns
        );
        elements.div_ceil(self.columns).div_ceil(self.block[0]) * (self.columns / self.block[1])
    }
}

/// Dequantization: `scale * (entry - offset)`, each step rounded to `T`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, T> {
    /// The scale of each block.
    pub scale: (&'a [T], BlockGrid),
    /// The zero point of each block; 0 if absent.
    pub offset: Option<(&'a [T], BlockGrid)>,
}

/// Dequantization in the precision of the decoded weight.
#[derive(Clone, Copy, Debug)]
pub enum Scaling<'a> {
    /// None: table entries are the weights.
    None,
    /// In half precision.
    F16(Affine<'a, f16>),
    /// In single precision.
    F32(Affine<'a, f32>),
}

/// A run of compressed weights: each is an index into its block's table, dequantized with its block's scale.
///
/// A palettized weight has one table (its LUT) for each group. A linearly quantized weight has one table of
/// integers, and scales.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    codes: &'a [u8],
    bits: usize,
    /// The first element of this run, and its length.
    first: usize,
    len: usize,
    tables: &'a [f32],
    grid: BlockGrid,
    scaling: Scaling<'a>,
}

impl<'a> Encoded<'a> {
    /// A weight of `len` elements. `codes` is a bit stream of `bits` bits an element, least significant
    /// first, without gaps. `tables` has `1 << bits` entries for each block of `grid`, in a precision that
    /// `scaling` keeps exactly.
    ///
    /// # Panics
    ///
    /// When `bits` is not 1, 2, 3, 4, 6 or 8, or there are too few codes, tables, scales or offsets for `len`
    /// elements.
    pub fn new(
        codes: &'a [u8],
        bits: usize,
        len: usize,
        tables: (&'a [f32], BlockGrid),
        scaling: Scaling<'a>,
    ) -> Self {
        let (tables, grid) = tables;
        assert!(matches!(bits, 1..=4 | 6 | 8), "codes of {bits} bits");
        assert!(
            codes.len() >= (len * bits).div_ceil(8),
            "{len} codes of {bits} bits in {} bytes",
            codes.len()
        );
        assert!(tables.len() >= grid.count(len) << bits, "fewer tables than blocks");
        match scaling {
            Scaling::None => {}
            Scaling::F16(affine) => affine.check(len),
            Scaling::F32(affine) => affine.check(len),
        }
        Self { codes, bits, first: 0, len, tables, grid, scaling }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in `range`.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        Self { first: self.first + range.start, len: range.len(), ..*self }
    }

    /// Looks up consecutive elements of one block.
    #[inline(always)]
    fn look_up(&self, block: usize, element: usize, out: &mut [f32]) {
        let table = &self.tables[block << self.bits..][..1 << self.bits];
        let done = simd::look_up(table, self.bits, self.codes, element, out);
        let (element, out) = (element + done, &mut out[done..]);
        // One instance for each width makes shifts and masks constant.
        macro_rules! widths {
            ($($bits:literal)*) => {
                match self.bits {
                    $($bits => {
                        if let Some(table) = table.first_chunk::<{ 1 << $bits }>() {
                            look_up::<$bits, { 1 << $bits }>(table, self.codes, element, out);
                        }
                    })*
                    _ => {}
                }
            };
        }
        widths!(1 2 3 4 6 8);
    }
}

impl Elements for Encoded<'_> {
    fn count(&self) -> usize {
        self.len
    }

    fn codes_of(&self, range: Range<usize>) -> Option<Codes<'_>> {
        assert!(range.end <= self.len, "elements {range:?} of {}", self.len);
        let element = self.first + range.start;
        let (block, end) = self.grid.at(element);
        let is_one = matches!(self.scaling, Scaling::None) && self.first + range.end <= end;
        let &Self { codes, bits, tables, .. } = self;
        is_one.then(|| Codes { table: &tables[block << bits..][..1 << bits], bits, codes, element })
    }

    fn widen_run(&self, start: usize, out: &mut [f32]) {
        assert!(start + out.len() <= self.len, "a run beyond the weight's end");
        let (mut element, end) = (self.first + start, self.first + start + out.len());
        let mut rest = &mut *out;
        while element < end {
            let (block, block_end) = self.grid.at(element);
            let (run, others) = rest.split_at_mut(block_end.min(end) - element);
            self.look_up(block, element, run);
            element += run.len();
            rest = others;
        }
        match &self.scaling {
            Scaling::None => {}
            Scaling::F16(affine) => scale_run(affine, self.first + start, out),
            Scaling::F32(affine) => scale_run(affine, self.first + start, out),
        }
    }

    fn encode_run(
        &self,
        start: usize,
        len: usize,
        format: Format,
        side: PackedSide,
        words: &mut [u32],
    ) -> Option<LaneScale> {
        let codes = self.codes_of(start..start + len)?;
        match format {
            Format::Bf16x2 => simd::look_up_bf16x2(&codes, len, words),
            Format::I8x4 => simd::look_up_i8x4(&codes, len, offset_bits(side), words),
            Format::F32 | Format::EmulatedBf16 | Format::EmulatedI8 => None,
        }
    }

    fn stored(&self, start: usize, len: usize) -> &[u8] {
        let [start, end] = [start, start + len].map(|element| (self.first + element) * self.bits / 8);
        self.codes.get(start..end).unwrap_or_default()
    }
}

/// Elements decoded from one word of the stream: `BITS` bytes hold eight.
const READ: usize = 8;

/// Looks up the table entries of the elements from `element` on.
#[inline(always)]
fn look_up<const BITS: usize, const ENTRIES: usize>(
    table: &[f32; ENTRIES],
    codes: &[u8],
    element: usize,
    out: &mut [f32],
) {
    let entry = |word: u64, at: usize| table[(word >> (at * BITS)) as usize & (ENTRIES - 1)];
    // Every read starts at the same bit of a byte.
    let (mut byte, shift) = (element * BITS / 8, element * BITS % 8);
    let (groups, rest) = out.as_chunks_mut::<READ>();
    for group in groups {
        let word = read_word(codes, byte) >> shift;
        for (at, value) in group.iter_mut().enumerate() {
            *value = entry(word, at);
        }
        byte += BITS;
    }
    if !rest.is_empty() {
        let word = read_word(codes, byte) >> shift;
        for (at, value) in rest.iter_mut().enumerate() {
            *value = entry(word, at);
        }
    }
}

/// The most values rounded at once.
const ROUND: usize = 64;

/// A type that weights are dequantized in.
trait Scale: Copy {
    /// The value.
    fn value(self) -> f32;

    /// Rounds at most [`ROUND`] values to this type.
    fn round(values: &mut [f32]);
}

impl Scale for f32 {
    fn value(self) -> f32 {
        self
    }

    fn round(_: &mut [f32]) {}
}

impl Scale for f16 {
    fn value(self) -> f32 {
        self.to_f32()
    }

    fn round(values: &mut [f32]) {
        let mut halves = [f16::ZERO; ROUND];
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        halves.convert_to_f32_slice(values);
    }
}

impl<T> Affine<'_, T> {
    fn check(&self, len: usize) {
        for (values, grid) in [Some(self.scale), self.offset].into_iter().flatten() {
            assert!(values.len() >= grid.count(len), "fewer scales or offsets than blocks");
        }
    }
}

/// Dequantizes a run that starts at `element`.
fn scale_run<T: Scale>(affine: &Affine<'_, T>, element: usize, values: &mut [f32]) {
    if let Some(offset) = affine.offset {
        for_each_block(offset, element, values, |value, offset| *value -= offset);
        values.chunks_mut(ROUND).for_each(T::round);
    }
    for_each_block(affine.scale, element, values, |value, scale| *value *= scale);
    values.chunks_mut(ROUND).for_each(T::round);
}

/// Calls `body` for each value of a run that starts at `element`, with its block's operand.
#[inline(always)]
fn for_each_block<T: Scale>(
    (operands, grid): (&[T], BlockGrid),
    mut element: usize,
    mut values: &mut [f32],
    body: impl Fn(&mut f32, f32),
) {
    while !values.is_empty() {
        let (block, end) = grid.at(element);
        let operand = operands[block].value();
        let (run, rest) = values.split_at_mut(values.len().min(end - element));
        element += run.len();
        run.iter_mut().for_each(|value| body(value, operand));
        values = rest;
    }
}

#[cfg(test)]
mod tests;
