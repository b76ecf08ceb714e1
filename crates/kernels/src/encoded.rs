//! Compressed weights: a code of a few bits for each element, decoded a run at a time while it is packed.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::gemm::format::{Format, LaneScale, offset_bits};
use crate::gemm::pack::PackedSide;
use crate::gemm::source::Runs;
use crate::simd;

/// Blocks of elements that have something in common: rectangles of rows of `columns` elements, numbered row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockGrid {
    /// Elements in a row.
    pub columns: usize,
    /// Rows and columns of a block. Columns are a divisor of the row.
    pub block: [usize; 2],
}

impl BlockGrid {
    /// The block of an element, and the first element after it that may be in another one.
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

    /// The blocks that `elements` elements take.
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

/// What is done with a table's entry: `scale * (entry - offset)`, each step rounded to `T`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, T> {
    /// A factor for each block.
    pub scale: (&'a [T], BlockGrid),
    /// What is subtracted first, for each block.
    pub offset: Option<(&'a [T], BlockGrid)>,
}

/// An [`Affine`] in the precision that the weight has when it is decoded.
#[derive(Clone, Copy, Debug)]
pub enum Scaling<'a> {
    /// The table's entries are the weights.
    None,
    /// In half precision.
    F16(Affine<'a, f16>),
    /// In single precision.
    F32(Affine<'a, f32>),
}

/// Codes of one table, from number `element` on.
pub(crate) struct Codes<'a> {
    pub(crate) table: &'a [f32],
    pub(crate) bits: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) element: usize,
}

/// A run of weights as codes: each is the entry of its block's table, scaled by its block's factor.
///
/// A palettized weight has one table for each group; a linearly quantized one has a table of the integers that its
/// codes stand for, and scales.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    codes: &'a [u8],
    bits: usize,
    /// The range of elements that this is.
    first: usize,
    len: usize,
    tables: &'a [f32],
    grid: BlockGrid,
    scaling: Scaling<'a>,
}

impl<'a> Encoded<'a> {
    /// `len` weights. `codes` is a stream of `bits` bits an element, the least significant first, without gaps;
    /// `tables` has `1 << bits` entries for each block of `grid`, of a precision that `scaling` keeps exactly.
    ///
    /// # Panics
    ///
    /// When codes are not of 1, 2, 3, 4, 6 or 8 bits, or there are fewer codes, tables, scales or offsets than
    /// elements ask for.
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

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in `range`.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        Self { first: self.first + range.start, len: range.len(), ..*self }
    }

    /// Elements as codes of one table, if they are that.
    pub(crate) fn codes_of(&self, range: Range<usize>) -> Option<Codes<'a>> {
        assert!(range.end <= self.len, "elements {range:?} of {}", self.len);
        let element = self.first + range.start;
        let (block, end) = self.grid.at(element);
        let is_one = matches!(self.scaling, Scaling::None) && self.first + range.end <= end;
        let &Self { codes, bits, tables, .. } = self;
        is_one.then(|| Codes { table: &tables[block << bits..][..1 << bits], bits, codes, element })
    }

    /// Looks up a stretch of one block.
    #[inline(always)]
    fn look_up(&self, block: usize, element: usize, out: &mut [f32]) {
        let table = &self.tables[block << self.bits..][..1 << self.bits];
        let done = simd::look_up(table, self.bits, self.codes, element, out);
        let (element, out) = (element + done, &mut out[done..]);
        // Each width by itself, so that its shifts and masks are constants.
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

impl Runs for Encoded<'_> {
    fn widen_run(&self, start: usize, out: &mut [f32]) {
        assert!(start + out.len() <= self.len, "a run beyond the weight's end");
        let (mut element, end) = (self.first + start, self.first + start + out.len());
        let mut rest = &mut *out;
        while element < end {
            let (block, block_end) = self.grid.at(element);
            let (stretch, others) = rest.split_at_mut(block_end.min(end) - element);
            self.look_up(block, element, stretch);
            element += stretch.len();
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
            Format::Pairs => simd::look_up_pairs(&codes, len, words),
            Format::Quads => simd::look_up_quads(&codes, len, offset_bits(side), words),
            Format::Single | Format::Rounded | Format::Integers => None,
        }
    }

    fn stored(&self, start: usize, len: usize) -> &[u8] {
        let [start, end] = [start, start + len].map(|element| (self.first + element) * self.bits / 8);
        self.codes.get(start..end).unwrap_or_default()
    }
}

/// Elements that share one read of the stream: as many as `BITS` bytes hold.
const READ: usize = 8;

/// Entries of `table` by the codes from number `element` on.
#[inline(always)]
fn look_up<const BITS: usize, const ENTRIES: usize>(
    table: &[f32; ENTRIES],
    codes: &[u8],
    element: usize,
    out: &mut [f32],
) {
    let entry = |word: u64, at: usize| table[(word >> (at * BITS)) as usize & (ENTRIES - 1)];
    // Reads start one after the other at the same bit of a byte.
    let (mut byte, shift) = (element * BITS / 8, element * BITS % 8);
    let (groups, rest) = out.as_chunks_mut::<READ>();
    for group in groups {
        let word = read(codes, byte) >> shift;
        for (at, value) in group.iter_mut().enumerate() {
            *value = entry(word, at);
        }
        byte += BITS;
    }
    if !rest.is_empty() {
        let word = read(codes, byte) >> shift;
        for (at, value) in rest.iter_mut().enumerate() {
            *value = entry(word, at);
        }
    }
}

/// The eight bytes from `start` on, with zeros after the end.
#[inline(always)]
pub(crate) fn read(bytes: &[u8], start: usize) -> u64 {
    let bytes = bytes.get(start..).unwrap_or_default();
    match bytes.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        }
    }
}

/// Elements that are rounded at once.
const ROUND: usize = 64;

/// A precision in which weights are scaled.
trait Precision: Copy {
    /// The value.
    fn value(self) -> f32;

    /// Rounds at most [`ROUND`] values.
    fn round(values: &mut [f32]);
}

impl Precision for f32 {
    fn value(self) -> f32 {
        self
    }

    fn round(_: &mut [f32]) {}
}

impl Precision for f16 {
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

/// Scales a run that starts at `element`.
fn scale_run<T: Precision>(affine: &Affine<'_, T>, element: usize, values: &mut [f32]) {
    if let Some(offset) = affine.offset {
        for_each_block(offset, element, values, |value, offset| *value -= offset);
        values.chunks_mut(ROUND).for_each(T::round);
    }
    for_each_block(affine.scale, element, values, |value, scale| *value *= scale);
    values.chunks_mut(ROUND).for_each(T::round);
}

/// Calls `body` on each value of a run that starts at `element`, with its block's operand.
#[inline(always)]
fn for_each_block<T: Precision>(
    (operands, grid): (&[T], BlockGrid),
    mut element: usize,
    mut values: &mut [f32],
    body: impl Fn(&mut f32, f32),
) {
    while !values.is_empty() {
        let (block, end) = grid.at(element);
        let operand = operands[block].value();
        let (stretch, rest) = values.split_at_mut(values.len().min(end - element));
        element += stretch.len();
        stretch.iter_mut().for_each(|value| body(value, operand));
        values = rest;
    }
}

#[cfg(test)]
mod tests;
