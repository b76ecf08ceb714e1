//! 3x3 convolutions with 16 instead of 36 multiplications: Winograd's minimal filtering F(2x2, 3x3), as
//! described by Lavin and Gray ("Fast algorithms for convolutional neural networks", 2015).
//!
//! The output is cut into tiles of 2x2 pixels, each computed from 4x4 pixels of the input. With the
//! transformed filter `U = G g G^T` and the transformed tile `V = B^T d B`, both 4x4, the output tile is
//! `A^T (U * V) A`, where `*` multiplies element by element and sums over channels. The convolution becomes
//! 16 matrix products `[O, C] x [C, tiles]`, one for each *position* of the 4x4, with sums and differences
//! before and after.
//!
//! None of these matrices is stored whole. Filters are decoded and transformed panel by panel while they are
//! packed, and so are tiles. The products of a few panels are kept until all 16 positions are summed to the
//! output.
//!
//! A sum of four rounded products replaces one, so the error of rounding to bfloat16 is 1.7 times that of the
//! direct product. Larger tiles, which save more multiplications, lose more accuracy and are not used.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use rten_simd::Isa;
use rten_simd::ops::BitOps;

use super::shape::ConvShape;
use crate::blocks::ranges;
use crate::gemm::epilogue::{Bias, Epilogue, TileEpilogue};
use crate::gemm::format::{Format, PackedSide, encode_rows};
use crate::gemm::tile::{Corner, LINE, Target};
use crate::isa;
use crate::memory::{Memory, with_scratch};
use crate::pool::{for_each_chunk_mut, run_tasks};
use crate::precision::Precision;
use crate::simd;
use crate::simd::microkernel::{
    Microkernel, NARROW_MR, PanelOp, Prefetch, TILE_VECTORS, TileShape, WIDE_MR, is_wide, tile_shape,
};
use crate::simd::operands::{OutputPiece, PackTiles};
use tiles::{TileRun, Tiles, TransformTiles};
use weights::FilterTransform;

pub(crate) use weights::{Filters, PackedFilters};

mod tiles;
mod weights;

/// Elements of a transformed filter or tile.
const POSITIONS: usize = 16;
/// The fewest input channels at which this beats the direct product.
const LEAST_CHANNELS: usize = 32;
/// The fewest tiles that repay the transformation of filters.
const LEAST_TILES: usize = 32;
/// Words up to which all transformed filters are kept: 16 MB.
const FILTER_WORDS: usize = 1 << 22;
/// Words of transformed tiles that are kept where the filters are not: 32 MB.
const TILE_WORDS: usize = 1 << 23;
/// Left panels whose products with a right one are kept until they are summed to the output.
const TOGETHER: usize = 2;
/// Channels that are transformed at once, of tiles and of filters.
const TILE_CHANNELS: usize = 16;
const WEIGHT_CHANNELS: usize = 64;
/// Distance, in channels, from the tiles that are transformed to those that are prefetched.
const PREFETCH_DISTANCE: usize = 4;
/// The widest right panel.
const WIDEST: usize = 32;

thread_local! {
    static WEIGHTS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static TILES: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    /// Filters or tiles that all tasks of a call share.
    static SHARED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static PRODUCTS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    /// A few channels between transformation and encoding.
    static FLOATS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    static WORDS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// The panels' format for a convolution of the given precision; `None` where the direct product is as good.
///
/// `f32` is left to the direct product: an infinity must stay one, and the difference of two is NaN. Where
/// bfloat16 is fast, it replaces bytes too: byte products are twice as fast, but there would be 2.25 times as
/// many, and less accurate.
pub(crate) fn format(shape: &ConvShape, precision: Precision) -> Option<Format> {
    let fits = shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.dilation == [1, 1]
        && shape.groups == 1
        && shape.in_channels >= LEAST_CHANNELS
        && Tiles::of(shape).count() >= LEAST_TILES;
    match precision {
        Precision::F32 => None,
        Precision::Int8 if Precision::fastest() != Precision::Bf16 => None,
        Precision::Int8 => fits.then(|| Format::of(Precision::Bf16)),
        Precision::Bf16 => fits.then(|| Format::of(precision)),
    }
}

/// Convolves `input` with `filters` into the matrices of `target`: one for each image, with a row for each
/// output channel.
pub(crate) fn conv2d(
    shape: &ConvShape,
    input: &[f32],
    filters: Filters<'_>,
    target: &Target,
    epilogue: &TileEpilogue<'_>,
) {
    match filters {
        Filters::Packed(filters) => {
            let channels = [shape.in_channels, shape.out_channels];
            assert_eq!(filters.channels, channels, "packed weight differs from the shape");
            Convolution::new(shape, input, filters.format, target, epilogue).by_tiles(&filters.words);
        }
        Filters::Stored(weight, format) => {
            let convolution = Convolution::new(shape, input, format, target, epilogue);
            let source = FilterTransform::new(shape, weight, format);
            let len = source.panels * source.panel_len;
            if len <= FILTER_WORDS {
                with_scratch(&SHARED, len, |words| {
                    source.transform(words);
                    convolution.by_tiles(words);
                });
            } else {
                convolution.by_weights(&source, TILE_WORDS);
            }
        }
    }
}

/// The data that all tasks of a convolution share.
struct Convolution<'a> {
    shape: &'a ConvShape,
    input: &'a [f32],
    format: Format,
    target: &'a Target,
    epilogue: &'a TileEpilogue<'a>,
    tiles: Tiles,
    /// Lanes of the panels.
    mr: usize,
    nr: usize,
    left_panels: usize,
    right_panels: usize,
    /// Words of a left and of a right panel over all positions, one position after the other.
    left_len: usize,
    right_len: usize,
}

impl<'a> Convolution<'a> {
    fn new(
        shape: &'a ConvShape,
        input: &'a [f32],
        format: Format,
        target: &'a Target,
        epilogue: &'a TileEpilogue<'a>,
    ) -> Self {
        let tiles = Tiles::of(shape);
        let TileShape { mr, nr } = tile_shape();
        let words = format.words(shape.in_channels);
        Self {
            shape,
            input,
            format,
            target,
            epilogue,
            tiles,
            mr,
            nr,
            left_panels: shape.out_channels.div_ceil(mr),
            right_panels: tiles.count().div_ceil(nr),
            left_len: POSITIONS * words * mr,
            right_len: POSITIONS * words * nr,
        }
    }

    /// Convolves with all transformed filters at hand; each task transforms its own tiles.
    fn by_tiles(&self, weights: &[u32]) {
        let &Self { left_panels, right_panels, left_len, right_len, .. } = self;
        run_tasks(true, right_panels, |right| {
            with_scratch(&TILES, right_len, |tiles| {
                self.transform_tiles(right, tiles);
                for left in ranges(left_panels, TOGETHER) {
                    let weights = &weights[left.start * left_len..left.end * left_len];
                    self.multiply(left, weights, right, tiles);
                }
            });
        });
    }

    /// Convolves with tiles transformed first, up to `words` words at a time; each task transforms its own
    /// filters.
    fn by_weights(&self, source: &FilterTransform<'_>, words: usize) {
        let &Self { left_panels, right_panels, left_len, right_len, .. } = self;
        for held in ranges(right_panels, (words / right_len).max(1)) {
            with_scratch(&SHARED, held.len() * right_len, |tiles| {
                for_each_chunk_mut(tiles, right_len, |index, words| {
                    self.transform_tiles(held.start + index, words);
                });
                run_tasks(true, left_panels.div_ceil(TOGETHER), |task| {
                    let left = task * TOGETHER..((task + 1) * TOGETHER).min(left_panels);
                    with_scratch(&WEIGHTS, left.len() * left_len, |weights| {
                        for (panel, words) in left.clone().zip(weights.chunks_exact_mut(left_len)) {
                            source.transform_panel(panel, words);
                        }
                        for (right, tiles) in held.clone().zip(tiles.chunks_exact(right_len)) {
                            self.multiply(left.clone(), weights, right, tiles);
                        }
                    });
                });
            });
        }
    }

    /// Multiplies some left panels by a right one, and stores the output.
    fn multiply(&self, left: Range<usize>, weights: &[u32], right: usize, tiles: &[u32]) {
        let len = POSITIONS * left.len() * self.mr * self.nr;
        with_scratch(&PRODUCTS, len, |products| {
            self.format.dispatch(Group { convolution: self, left, weights, right, tiles, products });
        });
    }

    /// Transforms and packs the tiles of a panel.
    fn transform_tiles(&self, panel: usize, words: &mut [u32]) {
        let &Self { shape, format, nr, .. } = self;
        let [in_rows, in_cols] = shape.in_size;
        let plane = in_rows * in_cols;
        let position_len = self.right_len / POSITIONS;
        let runs: Vec<TileRun> = self.tiles.runs(panel, nr).collect();
        if format == Format::Bf16x2 {
            let image_stride = shape.in_channels * plane;
            let pieces: Vec<_> = runs.iter().flat_map(|run| run.input_pieces(shape, image_stride)).collect();
            let (input, channels) = (self.input, shape.in_channels);
            let (pieces, words) = (&pieces[..], &mut words[..]);
            if simd::pack_tiles(PackTiles { input, plane, channels, pieces, words, position_len }) {
                return;
            }
        }
        with_scratch(&FLOATS, POSITIONS * TILE_CHANNELS * nr, |rows| {
            for block in ranges(shape.in_channels, TILE_CHANNELS) {
                for (index, channel) in block.clone().enumerate() {
                    self.prefetch(&runs, channel + PREFETCH_DISTANCE);
                    isa::dispatch(TransformTiles {
                        planes: &self.input[channel * plane..],
                        image_stride: shape.in_channels * plane,
                        size: shape.in_size,
                        origin: [shape.padding.top, shape.padding.left],
                        runs: &runs,
                        out: &mut rows[index * nr..],
                        stride: TILE_CHANNELS * nr,
                    });
                }
                let start = format.words(block.start) * nr;
                let len = format.words(block.len()) * nr;
                for position in 0..POSITIONS {
                    let rows = &rows[position * TILE_CHANNELS * nr..][..block.len() * nr];
                    let panel = &mut words[position * position_len + start..][..len];
                    encode_rows(format, PackedSide::Right, rows, nr, panel);
                }
            }
        });
    }

    /// Prefetches the pixels under some tiles in a channel, which may be beyond the last.
    fn prefetch(&self, runs: &[TileRun], channel: usize) {
        let ConvShape { in_channels, in_size: [rows, cols], padding, .. } = *self.shape;
        for &TileRun { len, image, at, .. } in runs {
            let first = (2 * at[1]).saturating_sub(padding.left);
            for row in 0..4 {
                let y = (2 * at[0] + row).saturating_sub(padding.top);
                let start = ((image * in_channels + channel) * rows + y) * cols + first;
                if let Some(pixels) = self.input.get(start..start + 2 * len + 2) {
                    simd::prefetch(bytemuck::cast_slice(pixels));
                }
            }
        }
    }
}

/// Some left panels times a right one at every position, and their output.
struct Group<'a, 'b> {
    convolution: &'a Convolution<'b>,
    left: Range<usize>,
    weights: &'a [u32],
    right: usize,
    tiles: &'a [u32],
    /// For each position, one row for each lane of the left panels.
    products: &'a mut [f32],
}

impl PanelOp for Group<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(mut self, isa: I) {
        if is_wide(isa) {
            self.products::<I, K, WIDE_MR>(isa);
            self.output::<16>(isa);
        } else {
            self.products::<I, K, NARROW_MR>(isa);
            self.output::<8>(isa);
        }
    }
}

impl Group<'_, '_> {
    #[inline(always)]
    fn products<I: Isa, K: Microkernel<I>, const MR: usize>(&mut self, isa: I) {
        let ops = isa.f32();
        let len = ops.len();
        let nr = TILE_VECTORS * len;
        let left_len = self.convolution.left_len;
        let words = left_len / POSITIONS / MR;
        let &Convolution { shape, target, epilogue, tiles, .. } = self.convolution;
        let mut lines = Vec::with_capacity(nr);
        for run in tiles.runs(self.right, nr) {
            for (col, count) in run.output_rows(shape.out_size()) {
                lines.extend((col..col + count).step_by(LINE).map(|col| (run.image, col)));
            }
        }
        let rows = self.left.start * MR..(self.left.end * MR).min(target.rows);
        let portions = POSITIONS * self.left.len() * OutputPrefetch::PORTIONS;
        let lines_at_once = (rows.len() * lines.len()).div_ceil(portions);
        let (lines, end, next) = (&lines[..], rows.end, &Cell::new((rows.start, 0)));
        let prefetch = OutputPrefetch { target, epilogue, lines, end, lines_at_once, next };
        let positions = self.products.chunks_exact_mut(self.left.len() * MR * nr);
        for (position, products) in positions.enumerate() {
            let tiles = &self.tiles[position * words * nr..];
            for (left, product) in products.chunks_exact_mut(MR * nr).enumerate() {
                let weights = &self.weights[left * left_len + position * words * MR..];
                let sums = K::multiply::<MR, _>(isa, words, weights, tiles, prefetch);
                for (row, sums) in sums.iter().enumerate() {
                    for (vector, sum) in sums.iter().enumerate() {
                        // SAFETY: the product has MR rows of TILE_VECTORS vectors.
                        unsafe { ops.store_ptr(*sum, product.as_mut_ptr().add(row * nr + vector * len)) };
                    }
                }
            }
        }
    }

    /// Stores the output of the products, `N` lanes at a time.
    #[inline(always)]
    fn output<const N: usize>(&self, isa: impl Isa) {
        let nr = TILE_VECTORS * isa.f32().len();
        let first = self.left.start * self.convolution.mr;
        let outputs = first..(self.left.end * self.convolution.mr).min(self.convolution.shape.out_channels);
        let position_len = self.left.len() * self.convolution.mr * nr;
        let &Convolution { shape, target, tiles, .. } = self.convolution;
        let runs = tiles.runs(self.right, nr);
        let pieces: Vec<OutputPiece> =
            runs.flat_map(|run| run.output_pieces(shape.out_size(), target.matrix_stride)).collect();
        for output in outputs {
            let products = &self.products[(output - first) * nr..];
            if self.store_pieces(output, products, position_len, &pieces) {
                continue;
            }
            let mut pixels = [[0.0; 2 * WIDEST]; 2];
            for lane in (0..nr).step_by(N) {
                let product = |position: usize| -> &[f32; N] {
                    let at = position * position_len + (output - first) * nr + lane;
                    self.products[at..].first_chunk().expect("a vector of lanes")
                };
                combine_products(product, lane, &mut pixels);
            }
            self.store(output, &pixels);
        }
    }

    /// Stores the pixels of a panel in one channel by instructions of the CPU. Returns false, with nothing
    /// written, where there are none or the residual lies otherwise than the output.
    fn store_pieces(
        &self,
        output: usize,
        products: &[f32],
        position_len: usize,
        pieces: &[OutputPiece],
    ) -> bool {
        let &Convolution { shape, target, epilogue, tiles, nr, .. } = self.convolution;
        let Ok(residual) = epilogue.residual_rows(output, target) else { return false };
        let residual = residual.map(<[f32]>::as_ptr);
        let (bias, out) = (|image| epilogue.row_bias(image, output), target.row_start(output));
        // SAFETY: pieces are pixels of the output. Each tile belongs to one panel, and each panel, for each
        // output channel, to one task. The residual has as many pixels.
        let is_stored = unsafe { simd::store_tiles(products, position_len, pieces, bias, out, residual) };
        if is_stored && epilogue.epilogue.activation.is_some() {
            let rest = Epilogue { bias: Bias::None, residual: None, ..epilogue.epilogue };
            let rest = TileEpilogue { epilogue: rest, ..*epilogue };
            for run in tiles.runs(self.right, nr) {
                for (col, count) in run.output_rows(shape.out_size()) {
                    let corner = Corner { matrix: run.image, row: output, col };
                    // SAFETY: as above.
                    rest.apply_row(corner, unsafe { target.row_mut(corner, count) });
                }
            }
        }
        is_stored
    }

    /// Stores the two rows of pixels of a panel of tiles in one channel.
    #[inline(always)]
    fn store(&self, output: usize, pixels: &[[f32; 2 * WIDEST]; 2]) {
        let &Convolution { shape, target, epilogue, tiles, nr, .. } = self.convolution;
        for run in tiles.runs(self.right, nr) {
            let TileRun { lane, image, .. } = run;
            for (pixels, (col, count)) in pixels.iter().zip(run.output_rows(shape.out_size())) {
                let corner = Corner { matrix: image, row: output, col };
                // SAFETY: each tile belongs to one panel, and each panel, for each output channel, to one
                // task.
                let out = unsafe { target.row_mut(corner, count) };
                out.copy_from_slice(&pixels[2 * lane..][..count]);
                epilogue.apply_row(corner, out);
            }
        }
    }
}

/// Prefetch of the output and the residual under some products: a few cache lines in each portion.
#[derive(Clone, Copy)]
struct OutputPrefetch<'a> {
    target: &'a Target,
    epilogue: &'a TileEpilogue<'a>,
    /// The image and the column of each cache line of a row.
    lines: &'a [(usize, usize)],
    /// The end of the rows.
    end: usize,
    lines_at_once: usize,
    /// The row and the line to go on with.
    next: &'a Cell<(usize, usize)>,
}

impl Prefetch for OutputPrefetch<'_> {
    const PORTIONS: usize = 8;

    #[inline(always)]
    fn issue(self, _portion: usize) {
        let Self { target, epilogue, lines, end, lines_at_once, next } = self;
        let (mut row, mut line) = next.get();
        for _ in 0..lines_at_once {
            if row < end {
                let (image, col) = lines[line];
                let corner = Corner { matrix: image, row, col };
                target.prefetch_row(corner, 1);
                epilogue.prefetch_row(corner, 1);
            }
            line += 1;
            if line == lines.len() {
                (row, line) = (row + 1, 0);
            }
        }
        next.set((row, line));
    }
}

/// `A^T m A` of the products of `N` tiles: two pixels of each tile in each row.
#[inline(always)]
fn combine_products<'a, const N: usize>(
    product: impl Fn(usize) -> &'a [f32; N],
    lane: usize,
    pixels: &mut [[f32; 2 * WIDEST]; 2],
) {
    // A^T m, column by column.
    let mut columns = [[[0.0; N]; 2]; 4];
    for (col, results) in columns.iter_mut().enumerate() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| product(4 * row + col));
        for lane in 0..N {
            results[0][lane] = a[lane] + b[lane] + c[lane];
            results[1][lane] = b[lane] - c[lane] - d[lane];
        }
    }
    let [a, b, c, d] = columns;
    for (row, pixels) in pixels.iter_mut().enumerate() {
        let pixels = &mut pixels[2 * lane..2 * (lane + N)];
        for lane in 0..N {
            pixels[2 * lane] = a[row][lane] + b[row][lane] + c[row][lane];
            pixels[2 * lane + 1] = b[row][lane] - c[row][lane] - d[row][lane];
        }
    }
}

#[cfg(test)]
mod tests;
