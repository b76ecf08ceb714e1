//! Packing: the layout that the micro-kernel reads.
//!
//! The left side of a product is cut into panels of `mr` rows, the right side into panels of `nr` columns.
//! Rows and columns are both called *lanes* here. A panel consists of words ([`Format`]), stored depth first:
//! word `k` of `lane` of a panel `width` lanes wide is at `k * width + lane`. Missing lanes of the last panel
//! are zero.

use std::cell::RefCell;
use std::ops::Range;

use super::format::{Format, PackedSide, encode_in_place, encode_lane, encode_rows};
use super::source::{ByDepth, ByLane, Source, Strided};
use crate::blocks::blocks;
use crate::matrix::{Mat, WeightSlice};
use crate::memory::{Memory, with_scratch, zeros_or_unwind};
use crate::pool::for_each_chunk_mut;
use crate::precision::Precision;
use crate::simd;
use crate::simd::microkernel::{LOWER_MR, WIDE_MR, best_height, tile_shape};
use crate::simd::operands::{GROUP, Lanes, Rows};

/// A matrix, or a batch of equally large ones, in the layout of this CPU's micro-kernel.
///
/// Takes memory and saves packing the same weights in every product.
#[derive(Debug)]
pub struct PackedMatrix {
    /// For each block of the depth, one panel after the other.
    words: Memory<u32>,
    pub(crate) shape: PackedShape,
    /// The number of matrices. Their panels are numbered one matrix after the other.
    pub(crate) batch: usize,
}

/// The shape of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedShape {
    pub(crate) lanes: usize,
    pub(crate) depth: usize,
    pub(crate) width: usize,
    pub(crate) side: PackedSide,
    pub(crate) format: Format,
    /// True if the lanes are values and then as many gates. Their panels alternate, which puts those that are
    /// used together side by side.
    pub(crate) is_gated: bool,
}

impl PackedShape {
    pub(crate) fn new(lanes: usize, depth: usize, side: PackedSide, format: Format) -> Self {
        // A lane without elements has no scale.
        let format = if depth == 0 { Format::F32 } else { format };
        Self { lanes, depth, width: panel_width(side, lanes), side, format, is_gated: false }
    }

    /// The same shape with lanes that are values and gates.
    ///
    /// # Panics
    /// When the number of lanes is odd.
    pub(crate) fn gated(self) -> Self {
        assert!(self.lanes.is_multiple_of(2), "the number of lanes of values and gates is odd");
        Self { is_gated: true, ..self }
    }

    /// Panels that make one tile of the output: two with gates.
    pub(crate) fn panels_per_tile(&self) -> usize {
        1 + usize::from(self.is_gated)
    }

    /// Panels of one matrix.
    pub(crate) fn panels(&self) -> usize {
        self.panels_per_tile() * (self.lanes / self.panels_per_tile()).div_ceil(self.width)
    }

    /// The lanes of a panel of one matrix.
    pub(crate) fn lanes_of(&self, panel: usize) -> Range<usize> {
        let (half, panel) = (
            self.lanes / self.panels_per_tile(),
            [panel / self.panels_per_tile(), panel % self.panels_per_tile()],
        );
        let start = panel[1] * half;
        start + panel[0] * self.width..start + ((panel[0] + 1) * self.width).min(half)
    }

    /// Words of `panels` panels over a range of the depth that consists of whole blocks.
    pub(crate) fn len_of(&self, panels: usize, depths: &Range<usize>) -> usize {
        let block = self.format.block_depth(self.depth);
        let (whole, rest) = (depths.len() / block, depths.len() % block);
        let panel_len = |depth| if depth > 0 { self.format.panel_len(depth, self.width) } else { 0 };
        panels * (whole * panel_len(block) + panel_len(rest))
    }

    /// Packs panels of a batch over a range of the depth that consists of whole blocks: for each block, one
    /// panel after the other. There is one source for each matrix, and panels are numbered one matrix after
    /// the other.
    pub(crate) fn pack(
        &self,
        sources: &[Source<'_>],
        panels: Range<usize>,
        depths: Range<usize>,
        work: Work,
        out: &mut [u32],
    ) {
        self.pack_by(self.format.block_depth(self.depth), sources, panels, depths, work, out);
    }

    /// [`pack`](Self::pack) with blocks of depth `step`.
    pub(crate) fn pack_by(
        &self,
        step: usize,
        sources: &[Source<'_>],
        panels: Range<usize>,
        depths: Range<usize>,
        work: Work,
        mut out: &mut [u32],
    ) {
        if depths.is_empty() || panels.is_empty() {
            return;
        }
        let (parts, group) = match work {
            Work::Alone => (1, panels.len()),
            Work::Shared { parts } => (parts, PACK_GROUP),
        };
        let mut jobs = Vec::new();
        for depths in blocks(depths, step) {
            let panel_len = self.format.panel_len(depths.len(), self.width);
            for (part, panels) in self.parts(panels.clone(), parts).enumerate() {
                for first in panels.clone().step_by(group) {
                    let panels = first..(first + group).min(panels.end);
                    let (words, rest) = out.split_at_mut(panels.len() * panel_len);
                    jobs.push(Job { part, panels, depths: depths.clone(), words });
                    out = rest;
                }
            }
        }
        jobs.sort_by_key(|job| job.part);
        match work {
            Work::Alone => jobs.iter_mut().for_each(|job| self.do_job(sources, job)),
            Work::Shared { .. } => for_each_chunk_mut(&mut jobs, 1, |_, jobs| {
                jobs.iter_mut().for_each(|job| self.do_job(sources, job))
            }),
        }
    }

    /// Panels cut into at most `parts` parts of whole tiles.
    pub(crate) fn parts(
        &self,
        panels: Range<usize>,
        parts: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = panels.len().div_ceil(parts.max(1)).next_multiple_of(self.panels_per_tile()).max(1);
        panels.clone().step_by(len).map(move |start| start..(start + len).min(panels.end))
    }

    fn do_job(&self, sources: &[Source<'_>], job: &mut Job<'_>) {
        let panel_len = self.format.panel_len(job.depths.len(), self.width);
        let mut words = &mut *job.words;
        let mut next = job.panels.start;
        while next < job.panels.end {
            let (matrix, panel) = (next / self.panels(), next % self.panels());
            let count = match sources[matrix] {
                Source::ByLane(_) => 1,
                Source::ByDepth(_) if self.format.is_scaled() => SCALED_TOGETHER,
                Source::ByDepth(_) => PANELS_TOGETHER,
            };
            let count = count.min(job.panels.end - next).min(self.panels() - panel);
            let (some, rest) = words.split_at_mut(count * panel_len);
            match sources[matrix] {
                Source::ByLane(source) => {
                    pack_lanes(source, self, self.lanes_of(panel), job.depths.clone(), some)
                }
                Source::ByDepth(source) => {
                    pack_rows(source, self, panel..panel + count, job.depths.clone(), some)
                }
            }
            (next, words) = (next + count, rest);
        }
    }
}

/// Panels of one packing task.
const PACK_GROUP: usize = 4;

/// Who packs.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// The calling thread.
    Alone,
    /// All threads, each beginning with one of [`parts`](PackedShape::parts). Within a part, threads take
    /// whole blocks of depth: these are likelier than panels to have been written by the same thread.
    Shared { parts: usize },
}

/// Panels of one block of depth, packed by one task.
struct Job<'a> {
    part: usize,
    panels: Range<usize>,
    depths: Range<usize>,
    words: &'a mut [u32],
}

impl PackedMatrix {
    /// Packs `matrix` for one side of a product.
    pub fn new(matrix: Mat<WeightSlice<'_>>, side: PackedSide, precision: Precision) -> Self {
        Self::batch(&[matrix], side, precision)
    }

    /// Packs matrices of one size for [`gemm_batched`](crate::gemm_batched).
    ///
    /// # Panics
    ///
    /// When `matrices` is empty, or their sizes differ.
    pub fn batch(matrices: &[Mat<WeightSlice<'_>>], side: PackedSide, precision: Precision) -> Self {
        let (lanes, depth) = matrices[0].sizes(side);
        assert!(matrices.iter().all(|matrix| matrix.sizes(side) == (lanes, depth)), "sizes differ");
        Self::of_shape(matrices, PackedShape::new(lanes, depth, side, Format::of(precision)))
    }

    /// Packs a `matrix` whose lanes are values and then as many gates, for products whose epilogue has a
    /// [gate](crate::Epilogue::gate).
    ///
    /// # Panics
    ///
    /// When the number of lanes is odd.
    pub fn gated(matrix: Mat<WeightSlice<'_>>, side: PackedSide, precision: Precision) -> Self {
        let (lanes, depth) = matrix.sizes(side);
        Self::of_shape(&[matrix], PackedShape::new(lanes, depth, side, Format::of(precision)).gated())
    }

    fn of_shape(matrices: &[Mat<WeightSlice<'_>>], shape: PackedShape) -> Self {
        let (all, batch) = (0..shape.depth, matrices.len());
        let panels = 0..batch * shape.panels();
        let len = shape.len_of(panels.len(), &all);
        let mut words = zeros_or_unwind(len);
        let sides: Vec<_> = matrices.iter().map(|matrix| Strided::new(matrix, shape.side)).collect();
        let sources: Vec<_> = sides.iter().map(Strided::source).collect();
        shape.pack(&sources, panels, all, Work::Shared { parts: 1 }, &mut words);
        Self { words, shape, batch }
    }

    /// The packed words.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// The memory that a matrix of some lanes and depth will take once it is packed, in bytes.
    pub fn bytes([lanes, depth]: [usize; 2], gated: bool, side: PackedSide, precision: Precision) -> usize {
        let shape = PackedShape::new(lanes, depth, side, Format::of(precision));
        let shape = if gated { shape.gated() } else { shape };
        size_of::<u32>() * shape.len_of(shape.panels(), &(0..depth))
    }

    /// The memory that the words take, in bytes.
    pub fn size_in_bytes(&self) -> usize {
        size_of_val(self.words())
    }
}

thread_local! {
    /// Rows, or one lane, before encoding.
    static ROWS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    /// Encoded lanes before transposition.
    static LANES: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// The lanes of a panel.
fn panel_width(side: PackedSide, lanes: usize) -> usize {
    match side {
        PackedSide::Left => best_height(lanes, &PRODUCT_HEIGHTS),
        PackedSide::Right => tile_shape().nr,
    }
}

/// Tile heights of products where there are 32 vector registers.
const PRODUCT_HEIGHTS: [usize; 2] = [LOWER_MR, WIDE_MR];

/// Distance, in lanes, from the lane that is read to the one that is prefetched.
const PREFETCH_DISTANCE: usize = 4;

/// Panels that are packed together by rows: their parts of a row share pages.
const PANELS_TOGETHER: usize = 8;
/// The same for scaled formats, which read all rows before they encode any.
const SCALED_TOGETHER: usize = 4;
/// Rows that are read at once. More of them, a power of two apart, would evict each other from the cache.
const ROWS_AT_ONCE: usize = 16;

/// Packs a few panels of one matrix by rows.
fn pack_rows(
    source: &dyn ByDepth,
    shape: &PackedShape,
    panels: Range<usize>,
    depths: Range<usize>,
    out: &mut [u32],
) {
    let &PackedShape { width, side, format, .. } = shape;
    let panel_len = format.panel_len(depths.len(), width);
    // All panels for one chunk of rows, then the next chunk; each step prefetches the following one.
    let for_each_chunk = |body: &mut dyn FnMut(usize, Range<usize>, Range<usize>)| {
        for chunk in blocks(depths.clone(), ROWS_AT_ONCE) {
            for panel in panels.clone() {
                if panel + 1 < panels.end {
                    source.prefetch(shape.lanes_of(panel + 1), chunk.clone());
                } else {
                    let next = chunk.end..(chunk.end + ROWS_AT_ONCE).min(depths.end);
                    source.prefetch(shape.lanes_of(panels.start), next);
                }
                body(panel, shape.lanes_of(panel), chunk.clone());
            }
        }
    };
    if format.is_scaled() {
        let len = depths.len() * width;
        with_scratch(&ROWS, panels.len() * len, |rows| {
            for_each_chunk(&mut |panel, lanes, chunk| {
                let start = (panel - panels.start) * len + (chunk.start - depths.start) * width;
                read_rows(source, lanes, chunk.clone(), width, &mut rows[start..][..chunk.len() * width]);
            });
            for (rows, words) in rows.chunks_exact(len).zip(out.chunks_exact_mut(panel_len)) {
                encode_rows(format, side, rows, width, words);
            }
        });
        return;
    }
    with_scratch(&ROWS, ROWS_AT_ONCE * width, |rows| {
        for_each_chunk(&mut |panel, lanes, chunk| {
            let start = (panel - panels.start) * panel_len + format.words(chunk.start - depths.start) * width;
            let words = &mut out[start..][..format.words(chunk.len()) * width];
            if format == Format::F32 {
                return read_rows(source, lanes, chunk, width, bytemuck::cast_slice_mut(words));
            }
            if let Some((data, stride)) = source.floats() {
                let data = &data[chunk.start * stride + lanes.start..];
                let rows = Rows { data, stride, depth: chunk.len(), lanes: lanes.len() };
                if encode_in_place(format, side, &rows, width, words) {
                    return;
                }
            }
            let rows = &mut rows[..chunk.len() * width];
            read_rows(source, lanes, chunk, width, rows);
            encode_rows(format, side, rows, width, words);
        });
    });
}

/// Reads rows, with zeros for missing lanes.
fn read_rows(
    source: &dyn ByDepth,
    lanes: Range<usize>,
    depths: Range<usize>,
    width: usize,
    rows: &mut [f32],
) {
    if lanes.len() < width {
        rows.fill(0.0);
    }
    source.read(lanes, depths, width, rows);
}

/// Packs one panel lane by lane.
fn pack_lanes(
    source: &dyn ByLane,
    shape: &PackedShape,
    lanes: Range<usize>,
    depths: Range<usize>,
    panel: &mut [u32],
) {
    let &PackedShape { width, side, format, .. } = shape;
    let words = format.words(depths.len());
    let (elements, behind) = panel.split_at_mut(words * width);
    if lanes.len() < width {
        elements.fill(0);
        behind.fill(0);
    }
    with_scratch(&ROWS, depths.len(), |run| {
        with_scratch(&LANES, GROUP * words, |buffer| {
            for first in lanes.clone().step_by(GROUP) {
                let count = GROUP.min(lanes.end - first);
                let offset = first - lanes.start;
                for (index, words) in buffer.chunks_exact_mut(words.max(1)).take(count).enumerate() {
                    simd::prefetch(source.stored(first + index + PREFETCH_DISTANCE, &depths));
                    if format == Format::F32 {
                        source.read(first + index, depths.clone(), bytemuck::cast_slice_mut(words));
                        continue;
                    }
                    let encoded = source.encode(first + index, &depths, format, side, words);
                    let scale = encoded.unwrap_or_else(|| {
                        source.read(first + index, depths.clone(), run);
                        encode_lane(format, side, run, words)
                    });
                    if format.is_scaled() {
                        behind[offset + index] = scale.scale.to_bits();
                        behind[width + offset + index] = scale.start as u32;
                    }
                }
                let lanes = Lanes { words: buffer, stride: words, len: words, count };
                transpose(lanes, elements, width, offset);
            }
        });
    });
}

/// Transposes lanes into the rows of a panel, from its lane `offset` on.
pub(crate) fn transpose(lanes: Lanes<'_>, panel: &mut [u32], width: usize, offset: usize) {
    let done = simd::transpose_blocks(lanes, panel, width, offset);
    let Lanes { words, stride, len, count } = lanes;
    for (k, row) in panel.chunks_exact_mut(width).enumerate().take(len).skip(done) {
        for (lane, word) in row[offset..offset + count].iter_mut().enumerate() {
            *word = words[lane * stride + k];
        }
    }
}
