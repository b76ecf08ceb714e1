//! Matrix products: `out[M, N] = left[M, K] * right[K, N]`, blocked, packed and run on all threads.
//!
//! The scheme is Goto and van de Geijn's ("Anatomy of high-performance matrix multiplication", 2008): both sides
//! are packed block by block into panels ([`crate::panels`]) that stay in cache, and a micro-kernel keeps one
//! `mr` x `nr` tile of the output in registers. An output element's sum always runs over the depth in the same
//! order, whatever the tile or the thread that computes it.

use std::cell::RefCell;
use std::ops::Range;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::format::Format;
use crate::isa;
use crate::matrix::{MatMut, MatRef, Operand};
use crate::panels::{PackedMatrix, PackedShape, PackedSide, Scratch, pack_tasks, run_tasks, with_scratch};
use crate::precision::Precision;
use crate::source::{Dense, Runs, Source};
use crate::unary::UnaryOp;
use tile::{
    Beside, Corner, Finish, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Target, WIDE_MR, finish_tile,
    is_wide, store_tile,
};

pub use tile::Bias;

pub(crate) mod tile;

/// What happens to a tile of the product on its way from registers to memory:
/// `out = activation(product + bias + residual) * multiplier`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the product.
    pub bias: Bias<'a>,
    /// Added too: a matrix of the output's size.
    pub residual: Option<MatRef<'a>>,
    /// Applied to the sum.
    pub activation: Option<UnaryOp>,
    /// Multiplies what the activation gives: a matrix of the output's size, for gated units.
    pub multiplier: Option<MatRef<'a>>,
}

impl<'a> Epilogue<'a> {
    fn finish(&self, rows: usize, cols: usize) -> Finish<'a> {
        let beside = |mat: MatRef<'a>| {
            assert_eq!(
                (mat.rows, mat.cols),
                (rows, cols),
                "a residual's or multiplier's size differs from the output's"
            );
            assert!(mat.col_stride == 1 || cols <= 1, "a residual or multiplier needs a column stride of 1");
            Beside { data: mat.data, row_stride: mat.row_stride, image_stride: 0 }
        };
        match self.bias {
            Bias::None => {}
            Bias::PerRow(bias) => assert_eq!(bias.len(), rows, "bias length differs from the output's rows"),
            Bias::PerColumn(bias) => {
                assert_eq!(bias.len(), cols, "bias length differs from the output's columns")
            }
        }
        Finish {
            bias: self.bias,
            bias_stride: 0,
            residual: self.residual.map(beside),
            activation: self.activation,
            multiplier: self.multiplier.map(beside),
        }
    }
}

/// The lanes of a block on either side: a block of panels stays in the L2 cache.
const LANE_BLOCK: usize = 1536;
/// Words up to which a left side that several blocks of columns need is packed once for all of them: 16 MB.
const PACK_LEFT_UP_TO: usize = 1 << 22;
/// Multiply-adds below which a product stays on the calling thread.
const SHARE_FROM: usize = 1 << 19;
/// Output rows up to which dot products along the weight's rows beat packing the weight.
const DOT_ROWS: usize = 4;

/// The depth of a block. When there are several, a right panel of it stays in the L1 cache; two are worse than one, for the
/// output is read and written twice.
pub(crate) fn depth_block(format: Format, depth: usize) -> usize {
    let (block, single) = match format {
        Format::Single | Format::Rounded => (256, 384),
        Format::Pairs => (512, 768),
        // Scales are shared by what is in a block: smaller ones are more accurate.
        Format::Integers | Format::Quads => (512, 768),
    };
    if depth <= single {
        return depth.max(1);
    }
    depth.div_ceil(depth.div_ceil(block)).next_multiple_of(4)
}

thread_local! {
    static LEFT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static WHOLE_LEFT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// One side of a product: packed as it is needed, or beforehand.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Source(Source<'a>),
    Packed(&'a PackedShape, &'a [u32]),
}

impl<'a> Side<'a> {
    fn source(&self) -> Option<Source<'a>> {
        match self {
            Self::Source(source) => Some(*source),
            Self::Packed(..) => None,
        }
    }

    fn lanes(&self) -> usize {
        match self {
            Self::Source(source) => source.lanes(),
            Self::Packed(shape, _) => shape.lanes,
        }
    }
}

impl<'a> From<&'a PackedMatrix> for Side<'a> {
    fn from(packed: &'a PackedMatrix) -> Self {
        Self::Packed(&packed.shape, packed.words())
    }
}

/// Multiplies `left[M, K]` by `right[K, N]` into `out[M, N]`, whose column stride must be 1.
///
/// Operands are converted to `precision` panel by panel; no full copy is made, but of a left side of at most 16 MB where the
/// output is wide. A product of few rows by a right side whose columns lie together is computed in `f32` in any precision: it
/// costs no more than reading them. Some megabytes of packing scratch per thread are kept between calls.
///
/// # Panics
///
/// When sizes do not agree, a bias has the wrong length, `out`'s column stride is not 1, or a packed operand was
/// packed for the other side or another precision.
pub fn gemm(
    out: MatMut<'_>,
    left: Operand<'_>,
    right: Operand<'_>,
    precision: Precision,
    epilogue: &Epilogue<'_>,
) {
    let (rows, left_depth) = sizes(left, PackedSide::Left);
    let (cols, depth) = sizes(right, PackedSide::Right);
    assert_eq!(left_depth, depth, "depths of the two sides differ");
    assert_eq!((out.rows, out.cols), (rows, cols), "output size differs from the product's");
    let finish = epilogue.finish(rows, cols);
    let target = Target::new(out);
    if rows <= DOT_ROWS
        && let Operand::F32(left) = left
        && left.col_stride == 1
    {
        match right {
            Operand::F32(mat) if mat.row_stride == 1 => {
                return dot_rows(&target, left, mat.data, mat.col_stride, &finish);
            }
            Operand::F16(mat) if mat.row_stride == 1 => {
                return dot_rows(&target, left, mat.data, mat.col_stride, &finish);
            }
            Operand::Bf16(mat) if mat.row_stride == 1 => {
                return dot_rows(&target, left, mat.data, mat.col_stride, &finish);
            }
            Operand::Encoded(mat) if mat.row_stride == 1 => {
                return dot_rows(&target, left, mat.data, mat.col_stride, &finish);
            }
            _ => {}
        }
    }
    with_side(left, PackedSide::Left, |left| {
        with_side(right, PackedSide::Right, |right| {
            run(&target, left, &[right], depth, Format::of(precision), &finish);
        });
    });
}

/// Lanes and depth of an operand.
pub(crate) fn sizes(operand: Operand<'_>, side: PackedSide) -> (usize, usize) {
    let (rows, cols) = match operand {
        Operand::F32(mat) => (mat.rows, mat.cols),
        Operand::F16(mat) => (mat.rows, mat.cols),
        Operand::Bf16(mat) => (mat.rows, mat.cols),
        Operand::Encoded(mat) => (mat.rows, mat.cols),
        Operand::Packed(packed) => {
            assert_eq!(packed.shape.side, side, "the matrix is packed for the other side of a product");
            return (packed.shape.lanes, packed.shape.depth);
        }
    };
    match side {
        PackedSide::Left => (rows, cols),
        PackedSide::Right => (cols, rows),
    }
}

/// Calls `body` with the operand as a side of a product.
pub(crate) fn with_side(operand: Operand<'_>, side: PackedSide, body: impl FnOnce(Side<'_>)) {
    match operand {
        Operand::F32(mat) => body(Side::Source(Dense::new(mat, side).source())),
        Operand::F16(mat) => body(Side::Source(Dense::new(mat, side).source())),
        Operand::Bf16(mat) => body(Side::Source(Dense::new(mat, side).source())),
        Operand::Encoded(mat) => body(Side::Source(Dense::new(mat, side).source())),
        Operand::Packed(packed) => body(packed.into()),
    }
}

/// The blocked product of a left side and, for each image of the target, a right side of the target's columns.
pub(crate) fn run(
    target: &Target,
    left: Side<'_>,
    right: &[Side<'_>],
    depth: usize,
    format: Format,
    finish: &Finish<'_>,
) {
    let Some(lanes) = right.first().map(Side::lanes) else { return };
    assert_eq!((target.rows, target.cols), (left.lanes(), lanes), "the target's size");
    if target.rows == 0 || target.cols == 0 {
        return;
    }
    let left_shape = PackedShape::new(target.rows, depth, PackedSide::Left, format);
    let right_shape = PackedShape::new(target.cols, depth, PackedSide::Right, format);
    let share = target.rows * target.cols * right.len() * depth.max(1) >= SHARE_FROM;
    let right_panels = right_shape.panels() * right.len();
    let right_block = (LANE_BLOCK / right_shape.width).max(1);
    let product = Product { target, left_shape, right_shape, share, finish };
    match left {
        Side::Source(source) if right_panels > right_block && left_shape.len() <= PACK_LEFT_UP_TO => {
            with_scratch(&WHOLE_LEFT, left_shape.len(), |words| {
                left_shape.pack(source, share, words);
                product.run(Side::Packed(&left_shape, words), right, right_block);
            });
        }
        left => product.run(left, right, right_block),
    }
}

/// What all blocks of a product have in common.
struct Product<'a> {
    target: &'a Target,
    left_shape: PackedShape,
    right_shape: PackedShape,
    share: bool,
    finish: &'a Finish<'a>,
}

impl Product<'_> {
    fn run(&self, left: Side<'_>, right: &[Side<'_>], right_block: usize) {
        let Self { left_shape, right_shape, share, .. } = self;
        let depth = left_shape.depth;
        let left_block = (LANE_BLOCK / left_shape.width).max(1);
        for right_panels in ranges(right_shape.panels() * right.len(), right_block) {
            // A product over no depth is still a product: zero, to be stored once.
            for depths in ranges(depth.max(1), depth_block(left_shape.format, depth)) {
                let depths = depths.start..depths.end.min(depth);
                with_panels(right, right_shape, &right_panels, &depths, *share, &RIGHT, |right| {
                    for left_panels in ranges(left_shape.panels(), left_block) {
                        with_panels(&[left], left_shape, &left_panels, &depths, *share, &LEFT, |left| {
                            let block = Block {
                                product: self,
                                left,
                                right,
                                left_panels: left_panels.clone(),
                                right_panels: right_panels.clone(),
                                words: left_shape.format.words(depths.len()),
                                accumulate: depths.start > 0,
                                is_last: depths.end == depth,
                            };
                            block.run();
                        });
                    }
                });
            }
        }
    }
}

/// Consecutive ranges of at most `step` that cover `0..end`.
pub(crate) fn ranges(end: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(step.max(1)).map(move |start| start..(start + step).min(end))
}

/// Consecutive panels over a common range of the depth.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    words: &'a [u32],
    /// Words from one panel's start to the next one's.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Packed panels of the given size, one after the other.
    pub(crate) fn new(words: &'a [u32], stride: usize) -> Self {
        Self { words, stride }
    }

    /// Panel `index`.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> &'a [u32] {
        &self.words[index * self.stride..]
    }
}

/// Calls `body` with the given panels of a side, which has one part for each image, packed in parallel if need be.
fn with_panels(
    sides: &[Side<'_>],
    shape: &PackedShape,
    panels: &Range<usize>,
    depths: &Range<usize>,
    share: bool,
    scratch: &'static Scratch<u32>,
    body: impl FnOnce(Panels<'_>),
) {
    match sides {
        [Side::Packed(packed, words)] => {
            assert_eq!(*packed, shape, "the matrix was packed for another instruction set or precision");
            let (words, stride) = packed.panels_at(words, panels.start, depths);
            body(Panels::new(words, stride));
        }
        sides => {
            let sources: Vec<Source<'_>> = sides.iter().filter_map(Side::source).collect();
            assert_eq!(sources.len(), sides.len(), "a packed side has one image");
            let stride = shape.format.panel_len(depths.len(), shape.width);
            with_scratch(scratch, panels.len() * stride, |buffer| {
                pack_tasks(&sources, shape, panels.clone(), depths.clone(), share, buffer);
                body(Panels::new(buffer, stride));
            });
        }
    }
}

/// Some left panels times some right panels over one block of the depth.
struct Block<'a> {
    product: &'a Product<'a>,
    left: Panels<'a>,
    right: Panels<'a>,
    left_panels: Range<usize>,
    right_panels: Range<usize>,
    words: usize,
    /// Whether earlier blocks' sums are in the output.
    accumulate: bool,
    /// Whether this block's sums are the last.
    is_last: bool,
}

impl Block<'_> {
    /// Computes the block as a grid of tasks, each some left panels times some right panels.
    fn run(&self) {
        let (left_count, right_count) = (self.left_panels.len(), self.right_panels.len());
        let (mut left_group, mut right_group) = (8, 8);
        // Enough tasks to keep several threads busy, as long as the tasks are not tiny.
        while left_count.div_ceil(left_group) * right_count.div_ceil(right_group) < 8 && left_group > 1 {
            if right_group > 2 {
                right_group /= 2;
            } else {
                left_group /= 2;
            }
        }
        let across = right_count.div_ceil(right_group);
        run_tasks(self.product.share, left_count.div_ceil(left_group) * across, |task| {
            let left_start = task / across * left_group;
            let right_start = task % across * right_group;
            let group = TileGroup {
                block: self,
                left: left_start..(left_start + left_group).min(left_count),
                right: right_start..(right_start + right_group).min(right_count),
            };
            tile::dispatch(self.product.left_shape.format, group);
        });
    }
}

/// One task of a block: the panels are counted from the block's first.
struct TileGroup<'a, 'b> {
    block: &'a Block<'b>,
    left: Range<usize>,
    right: Range<usize>,
}

impl PanelOp for TileGroup<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) {
        if is_wide(isa) {
            self.tiles::<I, K, WIDE_MR>(isa);
        } else {
            self.tiles::<I, K, NARROW_MR>(isa);
        }
    }
}

impl TileGroup<'_, '_> {
    #[inline(always)]
    fn tiles<I: Isa, K: Microkernel<I>, const MR: usize>(self, isa: I) {
        let block = self.block;
        let Product { target, right_shape, finish, .. } = block.product;
        let nr = TILE_VECTORS * isa.f32().len();
        let finish = block.is_last.then_some(*finish);
        for right in self.right {
            let right_panel = block.right.panel(right);
            let index = block.right_panels.start + right;
            let (image, col) = (index / right_shape.panels(), index % right_shape.panels() * nr);
            for left in self.left.clone() {
                let sums = K::multiply::<MR>(isa, block.words, block.left.panel(left), right_panel);
                let corner = Corner { image, row: (block.left_panels.start + left) * MR, col };
                store_tile::<I, MR>(isa, sums, target, corner, block.accumulate, finish);
                if let Some(finish) = finish {
                    finish_tile::<MR>(target, corner, nr, finish);
                }
            }
        }
    }
}

/// Output columns in one task of [`dot_rows`].
const DOT_COLS: usize = 64;
/// Depth that is widened at once in [`dot_rows`].
const DOT_DEPTH: usize = 1024;

/// A product with few rows whose right side is stored column after column: dot products, nothing packed.
/// Columns begin `stride` elements apart.
fn dot_rows(target: &Target, left: MatRef<'_>, right: impl Runs, stride: usize, finish: &Finish<'_>) {
    if target.rows == 0 || target.cols == 0 {
        return;
    }
    let cols = target.cols;
    let share = target.rows * cols * left.cols >= SHARE_FROM;
    run_tasks(share, cols.div_ceil(DOT_COLS), |task| {
        let start = task * DOT_COLS;
        let count = DOT_COLS.min(cols - start);
        let mut sums = [[0.0; DOT_COLS]; DOT_ROWS];
        let mut widened = [0.0; DOT_DEPTH];
        for offset in 0..count {
            for depths in ranges(left.cols, DOT_DEPTH) {
                let from = (start + offset) * stride;
                let weights = &mut widened[..depths.len()];
                right.widen_run(from + depths.start, weights);
                for (row, sums) in sums.iter_mut().enumerate().take(target.rows) {
                    let values = &left.data[row * left.row_stride..][depths.clone()];
                    sums[offset] += isa::dispatch(Dot(values, weights));
                }
            }
        }
        isa::dispatch(StoreRows { target, col: start, count, sums: &sums, finish });
    });
}

/// The dot product of two equally long slices.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl SimdOp for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f32 {
        let ops = isa.f32();
        let len = ops.len();
        let mut sums = [ops.zero(); 4];
        let (mut xs, mut ys) = (self.0.chunks_exact(4 * len), self.1.chunks_exact(4 * len));
        for (x, y) in (&mut xs).zip(&mut ys) {
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = ops.mul_add(ops.load(&x[index * len..]), ops.load(&y[index * len..]), *sum);
            }
        }
        for (x, y) in xs.remainder().chunks(len).zip(ys.remainder().chunks(len)) {
            sums[0] = ops.mul_add(ops.load_pad(x).0, ops.load_pad(y).0, sums[0]);
        }
        ops.sum(ops.add(ops.add(sums[0], sums[1]), ops.add(sums[2], sums[3])))
    }
}

/// Stores sums of [`dot_rows`] as tiles of one row.
struct StoreRows<'a> {
    target: &'a Target,
    col: usize,
    count: usize,
    sums: &'a [[f32; DOT_COLS]; DOT_ROWS],
    finish: &'a Finish<'a>,
}

impl SimdOp for StoreRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let len = isa.f32().len();
        let nr = TILE_VECTORS * len;
        for start in (0..self.count).step_by(nr) {
            for (row, sums) in self.sums.iter().enumerate().take(self.target.rows) {
                let mut tile = [[isa.f32().zero(); TILE_VECTORS]; 1];
                for (vector, value) in tile[0].iter_mut().enumerate() {
                    *value = isa.f32().load_pad(sums.get(start + vector * len..).unwrap_or(&[])).0;
                }
                let corner = Corner { image: 0, row, col: self.col + start };
                store_tile::<I, 1>(isa, tile, self.target, corner, false, Some(self.finish));
                finish_tile::<1>(self.target, corner, nr, self.finish);
            }
        }
    }
}

#[cfg(test)]
mod tests;
