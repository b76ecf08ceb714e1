//! 3x3 convolutions with 16 multiplications in place of 36: Winograd's minimal filtering F(2x2, 3x3), as Lavin and Gray
//! describe it ("Fast algorithms for convolutional neural networks", 2015).
//!
//! The output is cut into tiles of 2x2 pixels, each of which sees 4x4 pixels of the input. With the transformed weight
//! `U = G g G^T` and the transformed tile `V = B^T d B`, both 4x4, the tile is `A^T (U * V) A`, where `*` multiplies element by
//! element and sums over channels. So the convolution is 16 matrix products `[O, C] x [C, tiles]`, one for each *position* of
//! the 4x4, with sums and differences before and after.
//!
//! Nothing of that is in memory as a whole: weights are decoded and transformed panel by panel as they are packed for other
//! products, and so are tiles; the products of a few panels are kept until the 16 of them are one output.
//!
//! A sum of four rounded products stands where one stood, so the error of rounding to bfloat16 is 1.7 times that of
//! the direct product. That is why larger tiles, which save more, are not used.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use rten_simd::Isa;
use rten_simd::ops::BitOps;

use crate::conv::ConvShape;
use crate::gemm::format::{Format, encode_rows};
use crate::gemm::pack::PackedSide;
use crate::gemm::prefetch::{Ahead, LINE};
use crate::gemm::ranges;
use crate::gemm::tile::{
    self, Bias, Corner, Finish, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Target, TileShape, WIDE_MR,
    is_wide, tile_shape,
};
use crate::isa;
use crate::memory::{Memory, with_scratch};
use crate::pool::{for_each_chunk_mut, run_tasks};
use crate::precision::Precision;
use crate::simd;
use tiles::{MadePiece, PackTiles, Stretch, Tiles, TransformTiles};
use weights::Filtering;

pub(crate) use weights::{Filters, Weights};

pub(crate) mod tiles;
mod weights;

/// Elements of a transformed weight or tile.
const POSITIONS: usize = 16;
/// Input channels from which on this is faster than the direct product.
const LEAST_CHANNELS: usize = 32;
/// Tiles from which on it is worth to transform weights.
const LEAST_TILES: usize = 32;
/// Words up to which all transformed weights are held: 16 MB.
const HOLD_WEIGHTS_UP_TO: usize = 1 << 22;
/// Words of transformed tiles that are held where the weights are not: 32 MB.
const HOLD_TILES_UP_TO: usize = 1 << 23;
/// Left panels whose products with a right one are kept until they are an output.
const TOGETHER: usize = 2;
/// Channels that are transformed at once, of tiles and of weights.
const TILE_CHANNELS: usize = 16;
const WEIGHT_CHANNELS: usize = 64;
/// Channels from the one whose tiles are transformed to the one that is asked for.
const AHEAD: usize = 4;
/// The widest right panel.
const WIDEST: usize = 32;

thread_local! {
    static WEIGHTS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static TILES: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    /// What all tasks of a call share.
    static SHARED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static PRODUCTS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    /// A few channels between transformation and encoding.
    static FLOATS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    static WORDS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// What panels hold in a convolution of the given precision; `None` if it cannot be done this way, or is not faster so.
///
/// In single precision an infinity must stay one, and differences of two would make it NaN; so that is left to the direct product.
/// Where bfloat16 is as fast as it should be, its products stand for those of bytes too: these are twice as fast, but
/// there are 2.25 times as many of them, and they are less exact.
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

/// Convolves `input` with `weights` into the images of `target`, one row for each output channel.
pub(crate) fn conv2d(
    shape: &ConvShape,
    input: &[f32],
    weights: Weights<'_>,
    target: &Target,
    finish: &Finish<'_>,
) {
    match weights {
        Weights::Packed(filters) => {
            let channels = [shape.in_channels, shape.out_channels];
            assert_eq!(filters.channels, channels, "packed weight differs from the shape");
            Convolution::new(shape, input, filters.format, target, finish).by_tiles(&filters.words);
        }
        Weights::Stored(weight, format) => {
            let convolution = Convolution::new(shape, input, format, target, finish);
            let source = Filtering::new(shape, weight, format);
            let len = source.panels * source.panel_len;
            if len <= HOLD_WEIGHTS_UP_TO {
                with_scratch(&SHARED, len, |words| {
                    source.transform(words);
                    convolution.by_tiles(words);
                });
            } else {
                convolution.by_weights(&source, HOLD_TILES_UP_TO);
            }
        }
    }
}

/// What all tasks have in common.
struct Convolution<'a> {
    shape: &'a ConvShape,
    input: &'a [f32],
    format: Format,
    target: &'a Target,
    finish: &'a Finish<'a>,
    tiles: Tiles,
    /// Lanes of the panels.
    mr: usize,
    nr: usize,
    left_panels: usize,
    right_panels: usize,
    /// Words of a left panel and of a right one, all positions together. Position follows upon position.
    left_len: usize,
    right_len: usize,
}

impl<'a> Convolution<'a> {
    fn new(
        shape: &'a ConvShape,
        input: &'a [f32],
        format: Format,
        target: &'a Target,
        finish: &'a Finish<'a>,
    ) -> Self {
        let tiles = Tiles::of(shape);
        let TileShape { mr, nr } = tile_shape();
        let words = format.words(shape.in_channels);
        Self {
            shape,
            input,
            format,
            target,
            finish,
            tiles,
            mr,
            nr,
            left_panels: shape.out_channels.div_ceil(mr),
            right_panels: tiles.count().div_ceil(nr),
            left_len: POSITIONS * words * mr,
            right_len: POSITIONS * words * nr,
        }
    }

    /// Given all transformed weights; every task has tiles of its own.
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

    /// Transforms tiles of up to `words` words first; every task has weights of its own.
    fn by_weights(&self, source: &Filtering<'_>, words: usize) {
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
            tile::dispatch(self.format, Group { convolution: self, left, weights, right, tiles, products });
        });
    }

    /// The transformed tiles of a panel.
    fn transform_tiles(&self, panel: usize, words: &mut [u32]) {
        let &Self { shape, format, nr, .. } = self;
        let [in_rows, in_cols] = shape.in_size;
        let plane = in_rows * in_cols;
        let position_len = self.right_len / POSITIONS;
        let stretches: Vec<Stretch> = self.tiles.stretches(panel, nr).collect();
        if format == Format::Pairs {
            let image_stride = shape.in_channels * plane;
            let pieces: Vec<_> =
                stretches.iter().flat_map(|stretch| stretch.seen(shape, image_stride)).collect();
            let (input, channels) = (self.input, shape.in_channels);
            let (pieces, words) = (&pieces[..], &mut words[..]);
            if simd::pack_tiles(PackTiles { input, plane, channels, pieces, words, position_len }) {
                return;
            }
        }
        with_scratch(&FLOATS, POSITIONS * TILE_CHANNELS * nr, |rows| {
            for block in ranges(shape.in_channels, TILE_CHANNELS) {
                for (index, channel) in block.clone().enumerate() {
                    self.prefetch(&stretches, channel + AHEAD);
                    isa::dispatch(TransformTiles {
                        planes: &self.input[channel * plane..],
                        image_stride: shape.in_channels * plane,
                        size: shape.in_size,
                        origin: [shape.padding.top, shape.padding.left],
                        stretches: &stretches,
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

    /// Asks for what tiles see of a channel, which may be beyond the last.
    fn prefetch(&self, stretches: &[Stretch], channel: usize) {
        let ConvShape { in_channels, in_size: [rows, cols], padding, .. } = *self.shape;
        for &Stretch { len, image, at, .. } in stretches {
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

/// Some left panels times a right one, at every position.
struct Group<'a, 'b> {
    convolution: &'a Convolution<'b>,
    left: Range<usize>,
    weights: &'a [u32],
    right: usize,
    tiles: &'a [u32],
    /// For each position, a row for each lane of the left panels.
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
        let &Convolution { shape, target, finish, tiles, .. } = self.convolution;
        let mut lines = Vec::with_capacity(nr);
        for stretch in tiles.stretches(self.right, nr) {
            for (col, count) in stretch.made_rows(shape.out_size()) {
                lines.extend((col..col + count).step_by(LINE).map(|col| (stretch.image, col)));
            }
        }
        let rows = self.left.start * MR..(self.left.end * MR).min(target.rows);
        let at_once = (rows.len() * lines.len()).div_ceil(POSITIONS * self.left.len() * OutputAhead::PARTS);
        let next = Cell::new((rows.start, 0));
        let ahead = OutputAhead { target, finish, lines: &lines, end: rows.end, at_once, next: &next };
        let positions = self.products.chunks_exact_mut(self.left.len() * MR * nr);
        for (position, products) in positions.enumerate() {
            let tiles = &self.tiles[position * words * nr..];
            for (left, product) in products.chunks_exact_mut(MR * nr).enumerate() {
                let weights = &self.weights[left * left_len + position * words * MR..];
                let sums = K::multiply::<MR, _>(isa, words, weights, tiles, ahead);
                for (row, sums) in sums.iter().enumerate() {
                    for (vector, sum) in sums.iter().enumerate() {
                        // SAFETY: the product has MR rows of TILE_VECTORS vectors.
                        unsafe { ops.store_ptr(*sum, product.as_mut_ptr().add(row * nr + vector * len)) };
                    }
                }
            }
        }
    }

    /// The output of the products, `N` lanes at a time.
    #[inline(always)]
    fn output<const N: usize>(&self, isa: impl Isa) {
        let nr = TILE_VECTORS * isa.f32().len();
        let first = self.left.start * self.convolution.mr;
        let outputs = first..(self.left.end * self.convolution.mr).min(self.convolution.shape.out_channels);
        let position_len = self.left.len() * self.convolution.mr * nr;
        let &Convolution { shape, target, tiles, .. } = self.convolution;
        let stretches = tiles.stretches(self.right, nr);
        let pieces: Vec<MadePiece> =
            stretches.flat_map(|stretch| stretch.made(shape.out_size(), target.image_stride())).collect();
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

    /// Writes the pixels of a panel in one channel by the CPU's own instructions, and says whether there are such.
    fn store_pieces(
        &self,
        output: usize,
        products: &[f32],
        position_len: usize,
        pieces: &[MadePiece],
    ) -> bool {
        let &Convolution { shape, target, finish, tiles, nr, .. } = self.convolution;
        let residual = match &finish.residual {
            Some(residual) => match residual.rows_of_images(output, target) {
                Some(rows) => Some(rows.as_ptr()),
                None => return false,
            },
            None => None,
        };
        let (bias, out) = (|image| finish.row_bias(image, output), target.row_start(output));
        // SAFETY: pieces are pixels of the output, of which every tile belongs to one panel, and every panel with every output
        // to one task; the residual has as many.
        let is_stored = unsafe { simd::store_tiles(products, position_len, pieces, bias, out, residual) };
        if is_stored && finish.activation.is_some() {
            let rest = Finish { bias: Bias::None, residual: None, ..*finish };
            for stretch in tiles.stretches(self.right, nr) {
                for (col, count) in stretch.made_rows(shape.out_size()) {
                    let corner = Corner { image: stretch.image, row: output, col };
                    // SAFETY: every tile belongs to one panel, and every panel with every output to one task.
                    rest.finish_row(corner, unsafe { target.row_mut(corner, count) });
                }
            }
        }
        is_stored
    }

    /// Writes two rows of pixels of a panel of tiles in one channel.
    #[inline(always)]
    fn store(&self, output: usize, pixels: &[[f32; 2 * WIDEST]; 2]) {
        let &Convolution { shape, target, finish, tiles, nr, .. } = self.convolution;
        for stretch in tiles.stretches(self.right, nr) {
            let Stretch { lane, image, .. } = stretch;
            for (pixels, (col, count)) in pixels.iter().zip(stretch.made_rows(shape.out_size())) {
                let corner = Corner { image, row: output, col };
                // SAFETY: every tile belongs to one panel, and every panel with every output to one task.
                let out = unsafe { target.row_mut(corner, count) };
                out.copy_from_slice(&pixels[2 * lane..][..count]);
                finish.finish_row(corner, out);
            }
        }
    }
}

/// The output's memory below some products, and what it is finished with: some cache lines of the rows in each part.
#[derive(Clone, Copy)]
struct OutputAhead<'a> {
    target: &'a Target,
    finish: &'a Finish<'a>,
    /// For each cache line of a row, an image and a column in it.
    lines: &'a [(usize, usize)],
    /// The end of the rows.
    end: usize,
    at_once: usize,
    /// The row and the line that are next.
    next: &'a Cell<(usize, usize)>,
}

impl Ahead for OutputAhead<'_> {
    const PARTS: usize = 8;

    #[inline(always)]
    fn ask(self, _part: usize) {
        let Self { target, finish, lines, end, at_once, next } = self;
        let (mut row, mut line) = next.get();
        for _ in 0..at_once {
            if row < end {
                let (image, col) = lines[line];
                let corner = Corner { image, row, col };
                target.prefetch_row(corner, 1);
                finish.prefetch_row(corner, 1);
            }
            line += 1;
            if line == lines.len() {
                (row, line) = (row + 1, 0);
            }
        }
        next.set((row, line));
    }
}

/// `A^T m A` of the products of `N` tiles, each tile's two pixels of a row beside each other.
#[inline(always)]
fn combine_products<'a, const N: usize>(
    product: impl Fn(usize) -> &'a [f32; N],
    lane: usize,
    pixels: &mut [[f32; 2 * WIDEST]; 2],
) {
    // A^T m, of the four columns.
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
