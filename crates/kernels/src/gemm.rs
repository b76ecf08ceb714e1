//! Matrix products: `out[M, N] = left[M, K] * right[K, N]`, blocked, packed and run on all threads.
//!
//! The scheme is Goto and van de Geijn's ("Anatomy of high-performance matrix multiplication", 2008): both sides
//! are packed block by block into panels ([`crate::panels`]) that stay in cache, and a micro-kernel keeps one
//! `mr` x `nr` tile of the output in registers. An output element's sum always runs over the depth in the same
//! order, whatever the tile or the thread that computes it.

use std::cell::RefCell;
use std::ops::Range;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath::Silu;

use crate::isa;
use crate::matrix::{MatMut, MatRef, Operand};
use crate::panels::{
    Dense, PackedMatrix, PackedSide, PanelSource, Runs, pack_tasks, run_tasks, with_scratch,
};

/// A vector that is added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// No bias.
    #[default]
    None,
    /// One value for each output row: a convolution's bias.
    PerRow(&'a [f32]),
    /// One value for each output column: a linear layer's bias.
    PerColumn(&'a [f32]),
}

/// What the output holds before the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initial {
    /// Nothing: it is overwritten, and may hold anything, NaN included.
    #[default]
    Overwrite,
    /// A summand, for instance a residual: the product is added to it.
    Accumulate,
}

/// A function of the finished sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The sum itself.
    #[default]
    Identity,
    /// `x * sigmoid(x)`.
    Silu,
}

/// What happens to a tile of the product on its way from registers to memory:
/// `out = activation(product + initial + bias)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the product.
    pub bias: Bias<'a>,
    /// Whether the output's content is a summand.
    pub initial: Initial,
    /// Applied last.
    pub activation: Activation,
}

/// The depth of a block when there are several: a right panel of it stays in the L1 cache.
const DEPTH_BLOCK: usize = 256;
/// The depth up to which one block is better than two, which would read and write the output twice.
const SINGLE_DEPTH_BLOCK: usize = 384;
/// The lanes of a block on either side, in panels' elements: a block of it stays in the L2 cache.
const LANE_BLOCK: usize = 1536;
/// Output columns from which a left side is packed whole: each of their blocks would pack it again. With a few blocks, fresh
/// memory costs as much as it saves.
const PACK_LEFT_FROM: usize = 8 * LANE_BLOCK;
/// Elements up to which it is: 16 MB in single precision.
const PACK_LEFT_UP_TO: usize = 1 << 22;
/// Multiply-adds below which a product stays on the calling thread.
const SHARE_FROM: usize = 1 << 19;
/// Output rows up to which dot products along the weight's rows beat packing the weight.
const DOT_ROWS: usize = 4;

thread_local! {
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The micro-kernel's tile: rows and columns of the output in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
}

impl TileShape {
    pub(crate) fn width(self, side: PackedSide) -> usize {
        match side {
            PackedSide::Left => self.mr,
            PackedSide::Right => self.nr,
        }
    }
}

/// Rows of the tile where 32 registers are known to exist, and elsewhere.
pub(crate) const WIDE_MR: usize = 12;
pub(crate) const NARROW_MR: usize = 6;
/// Vectors in a tile row.
pub(crate) const TILE_VECTORS: usize = 2;

/// Whether this instruction set has the registers for [`WIDE_MR`] rows. Constant once compiled.
#[inline(always)]
pub(crate) fn is_wide<I: Isa>(isa: I) -> bool {
    isa.f32().len() == 16
}

/// The tile shape of this CPU's instruction set.
pub(crate) fn tile_shape() -> TileShape {
    struct Shape;
    impl SimdOp for Shape {
        type Output = TileShape;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> TileShape {
            let mr = if is_wide(isa) { WIDE_MR } else { NARROW_MR };
            TileShape { mr, nr: TILE_VECTORS * isa.f32().len() }
        }
    }
    isa::dispatch(Shape)
}

/// One side of a product: packed as it is needed, or beforehand.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Source(&'a dyn PanelSource),
    Packed(&'a PackedMatrix),
}

impl Side<'_> {
    fn lanes(&self) -> usize {
        match self {
            Self::Source(source) => source.lanes(),
            Self::Packed(packed) => packed.lanes,
        }
    }
}

/// Multiplies `left[M, K]` by `right[K, N]` into `out[M, N]`, whose column stride must be 1.
///
/// Half-precision operands are widened panel by panel; no full copy is made, but of a left side of at most 16 MB in single
/// precision where the output is very wide. Up to two megabytes of packing
/// scratch per thread are kept between calls.
///
/// # Panics
///
/// When sizes do not agree, a bias has the wrong length, `out`'s column stride is not 1, or a packed operand was
/// packed for the other side.
pub fn gemm(out: MatMut<'_>, left: Operand<'_>, right: Operand<'_>, epilogue: &Epilogue<'_>) {
    let (rows, left_depth) = sizes(left, PackedSide::Left);
    let (cols, depth) = sizes(right, PackedSide::Right);
    assert_eq!(left_depth, depth, "depths of the two sides differ");
    assert_eq!((out.rows, out.cols), (rows, cols), "output size differs from the product's");
    if rows <= DOT_ROWS
        && let Operand::F32(left) = left
        && left.col_stride == 1
    {
        match right {
            Operand::F32(mat) if mat.row_stride == 1 => {
                return dot_rows(out, left, mat.data, mat.col_stride, epilogue);
            }
            Operand::F16(mat) if mat.row_stride == 1 => {
                return dot_rows(out, left, mat.data, mat.col_stride, epilogue);
            }
            Operand::Bf16(mat) if mat.row_stride == 1 => {
                return dot_rows(out, left, mat.data, mat.col_stride, epilogue);
            }
            Operand::Encoded(mat) if mat.row_stride == 1 => {
                return dot_rows(out, left, mat.data, mat.col_stride, epilogue);
            }
            _ => {}
        }
    }
    with_side(left, PackedSide::Left, |left| {
        with_side(right, PackedSide::Right, |right| run(out, left, right, depth, epilogue));
    });
}

/// Lanes and depth of an operand.
fn sizes(operand: Operand<'_>, side: PackedSide) -> (usize, usize) {
    let (rows, cols) = match operand {
        Operand::F32(mat) => (mat.rows, mat.cols),
        Operand::F16(mat) => (mat.rows, mat.cols),
        Operand::Bf16(mat) => (mat.rows, mat.cols),
        Operand::Encoded(mat) => (mat.rows, mat.cols),
        Operand::Packed(packed) => {
            assert_eq!(packed.side, side, "the matrix is packed for the other side of a product");
            return (packed.lanes, packed.depth);
        }
    };
    match side {
        PackedSide::Left => (rows, cols),
        PackedSide::Right => (cols, rows),
    }
}

/// Calls `body` with the operand as a side of a product.
fn with_side(operand: Operand<'_>, side: PackedSide, body: impl FnOnce(Side<'_>)) {
    match (operand, side) {
        (Operand::F32(mat), PackedSide::Left) => body(Side::Source(&Dense::left(mat))),
        (Operand::F32(mat), PackedSide::Right) => body(Side::Source(&Dense::right(mat))),
        (Operand::F16(mat), PackedSide::Left) => body(Side::Source(&Dense::left(mat))),
        (Operand::F16(mat), PackedSide::Right) => body(Side::Source(&Dense::right(mat))),
        (Operand::Bf16(mat), PackedSide::Left) => body(Side::Source(&Dense::left(mat))),
        (Operand::Bf16(mat), PackedSide::Right) => body(Side::Source(&Dense::right(mat))),
        (Operand::Encoded(mat), PackedSide::Left) => body(Side::Source(&Dense::encoded_left(mat))),
        (Operand::Encoded(mat), PackedSide::Right) => body(Side::Source(&Dense::encoded_right(mat))),
        (Operand::Packed(packed), _) => body(Side::Packed(packed)),
    }
}

/// A block of consecutive panels over a common depth range.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    /// Elements from one panel's start of the depth range to the next one's.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Packed panels of the given size, one after the other.
    pub(crate) fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    /// Panel `index`, from the depth range on.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..]
    }
}

/// The blocked product of two sides.
pub(crate) fn run(out: MatMut<'_>, left: Side<'_>, right: Side<'_>, depth: usize, epilogue: &Epilogue<'_>) {
    let (rows, cols) = (left.lanes(), right.lanes());
    assert!(out.col_stride == 1 || cols <= 1, "the output of a product needs a column stride of 1");
    check_bias(epilogue.bias, rows, cols);
    if rows == 0 || cols == 0 {
        return;
    }
    let tile = tile_shape();
    let share = rows * cols * depth.max(1) >= SHARE_FROM;
    let whole;
    let left = match left {
        Side::Source(source) if cols >= PACK_LEFT_FROM && rows * depth <= PACK_LEFT_UP_TO => {
            whole = PackedMatrix::pack(source, depth, PackedSide::Left, share);
            Side::Packed(&whole)
        }
        left => left,
    };
    let target = Target::new(out);
    let panel_block = |lanes: usize, width: usize| lanes.min(LANE_BLOCK).div_ceil(width);
    let (left_block, right_block) = (panel_block(rows, tile.mr), panel_block(cols, tile.nr));
    let depth_blocks = if depth <= SINGLE_DEPTH_BLOCK { 1 } else { depth.div_ceil(DEPTH_BLOCK) };
    let depth_block = depth.div_ceil(depth_blocks);
    for right_panels in ranges(cols.div_ceil(tile.nr), right_block) {
        // A product over no depth is still a product: zero, to be stored once.
        for depths in ranges(depth.max(1), depth_block) {
            let depths = depths.start..depths.end.min(depth);
            with_panels(right, &right_panels, &depths, tile.nr, share, &RIGHT, |right| {
                for left_panels in ranges(rows.div_ceil(tile.mr), left_block) {
                    with_panels(left, &left_panels, &depths, tile.mr, share, &LEFT, |left| {
                        let block = Block {
                            left,
                            right,
                            left_panels: left_panels.clone(),
                            right_panels: right_panels.clone(),
                            depth: depths.len(),
                            target: &target,
                            epilogue: block_epilogue(epilogue, depths.start == 0, depths.end == depth),
                        };
                        block.run(share);
                    });
                }
            });
        }
    }
}

fn check_bias(bias: Bias<'_>, rows: usize, cols: usize) {
    match bias {
        Bias::None => {}
        Bias::PerRow(bias) => assert_eq!(bias.len(), rows, "bias length differs from the output's rows"),
        Bias::PerColumn(bias) => {
            assert_eq!(bias.len(), cols, "bias length differs from the output's columns")
        }
    }
}

/// Consecutive ranges of at most `step` that cover `0..end`.
fn ranges(end: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(step.max(1)).map(move |start| start..(start + step).min(end))
}

/// The part of the epilogue that one depth block applies: later blocks add to what the earlier ones stored.
fn block_epilogue<'a>(epilogue: &Epilogue<'a>, first: bool, last: bool) -> Epilogue<'a> {
    Epilogue {
        bias: if last { epilogue.bias } else { Bias::None },
        initial: if first { epilogue.initial } else { Initial::Accumulate },
        activation: if last { epilogue.activation } else { Activation::Identity },
    }
}

/// Calls `body` with the given panels of a side, packed in parallel if need be.
fn with_panels(
    side: Side<'_>,
    panels: &Range<usize>,
    depths: &Range<usize>,
    width: usize,
    share: bool,
    scratch: &'static crate::panels::Scratch,
    body: impl FnOnce(Panels<'_>),
) {
    match side {
        Side::Packed(packed) => {
            assert_eq!(packed.width, width, "the matrix was packed for another instruction set");
            let stride = packed.depth * width;
            let start = panels.start * stride + depths.start * width;
            body(Panels::new(&packed.data[start.min(packed.data.len())..], stride));
        }
        Side::Source(source) => {
            let stride = depths.len() * width;
            with_scratch(scratch, panels.len() * stride, |buffer| {
                pack_tasks(source, panels.clone(), depths.clone(), width, share, buffer);
                body(Panels::new(buffer, stride));
            });
        }
    }
}

/// The output, shared by tasks that write disjoint tiles of it.
pub(crate) struct Target {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the product, and tasks write through it only
// in `store_tile`, each to tiles of its own.
unsafe impl Sync for Target {}

impl Target {
    /// A view with column stride 1.
    pub(crate) fn new(out: MatMut<'_>) -> Self {
        Self { data: out.data.as_mut_ptr(), rows: out.rows, cols: out.cols, row_stride: out.row_stride }
    }
}

/// Everything that the tiles of one block have in common.
struct Block<'a> {
    left: Panels<'a>,
    right: Panels<'a>,
    left_panels: Range<usize>,
    right_panels: Range<usize>,
    depth: usize,
    target: &'a Target,
    epilogue: Epilogue<'a>,
}

impl Block<'_> {
    /// Computes the block as a grid of tasks, each some left panels times some right panels.
    fn run(&self, share: bool) {
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
        run_tasks(share, left_count.div_ceil(left_group) * across, |task| {
            let left_start = task / across * left_group;
            let right_start = task % across * right_group;
            isa::dispatch(TileGroup {
                block: self,
                left: left_start..(left_start + left_group).min(left_count),
                right: right_start..(right_start + right_group).min(right_count),
            });
        });
    }
}

/// One task of a block: the panels are counted from the block's first.
struct TileGroup<'a, 'b> {
    block: &'a Block<'b>,
    left: Range<usize>,
    right: Range<usize>,
}

impl SimdOp for TileGroup<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        if is_wide(isa) {
            self.tiles::<I, WIDE_MR>(isa);
        } else {
            self.tiles::<I, NARROW_MR>(isa);
        }
    }
}

impl TileGroup<'_, '_> {
    #[inline(always)]
    fn tiles<I: Isa, const MR: usize>(self, isa: I) {
        let block = self.block;
        let nr = TILE_VECTORS * isa.f32().len();
        for right in self.right {
            let right_panel = block.right.panel(right);
            for left in self.left.clone() {
                let sums = multiply_panels::<I, MR>(isa, block.depth, block.left.panel(left), right_panel);
                let row = (block.left_panels.start + left) * MR;
                let col = (block.right_panels.start + right) * nr;
                store_tile::<I, MR>(isa, sums, block.target, row, col, &block.epilogue);
            }
        }
    }
}

/// A tile of sums in registers.
pub(crate) type Tile<I, const MR: usize> = [[<I as Isa>::F32; TILE_VECTORS]; MR];

/// The micro-kernel: the product of a left panel, `MR` lanes wide, and a right panel over `depth`.
#[inline(always)]
pub(crate) fn multiply_panels<I: Isa, const MR: usize>(
    isa: I,
    depth: usize,
    left: &[f32],
    right: &[f32],
) -> Tile<I, MR> {
    let ops = isa.f32();
    let len = ops.len();
    assert!(left.len() >= depth * MR && right.len() >= depth * TILE_VECTORS * len);
    let mut sums = [[ops.zero(); TILE_VECTORS]; MR];
    let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
    for _ in 0..depth {
        let mut columns = [ops.zero(); TILE_VECTORS];
        for (vector, column) in columns.iter_mut().enumerate() {
            // SAFETY: `right` has `depth` rows of `TILE_VECTORS * len` elements, checked above.
            *column = unsafe { ops.load_ptr(right.add(vector * len)) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `left` has `depth` rows of `MR` elements, checked above.
            let value = ops.splat(unsafe { *left.add(row) });
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = ops.mul_add(value, column, *sum);
            }
        }
        // SAFETY: at most one past the end of the checked extent, after the last row.
        (left, right) = unsafe { (left.add(MR), right.add(TILE_VECTORS * len)) };
    }
    sums
}

/// Writes a tile to its place through the epilogue, but for the parts beyond the output's edges.
#[inline(always)]
fn store_tile<I: Isa, const MR: usize>(
    isa: I,
    sums: Tile<I, MR>,
    target: &Target,
    row: usize,
    col: usize,
    epilogue: &Epilogue<'_>,
) {
    let ops = isa.f32();
    let len = ops.len();
    assert!(row < target.rows && col < target.cols);
    let used_rows = target.rows - row;
    let used_cols = target.cols - col;
    for (index, sums) in sums.into_iter().enumerate() {
        if index >= used_rows {
            break;
        }
        for (vector, mut value) in sums.into_iter().enumerate() {
            let start = vector * len;
            if start >= used_cols {
                break;
            }
            let mask = ops.first_n_mask(len.min(used_cols - start));
            let whole = start + len <= used_cols;
            // SAFETY: the row is below `rows` and the first column below `cols`, so this is an element.
            let place = unsafe { target.data.add((row + index) * target.row_stride + col + start) };
            if epilogue.initial == Initial::Accumulate {
                // SAFETY: all of the vector, or the masked part of it, lies within the row; no other task
                // touches this tile.
                let old = unsafe { if whole { ops.load_ptr(place) } else { ops.load_ptr_mask(place, mask) } };
                value = ops.add(value, old);
            }
            match epilogue.bias {
                Bias::None => {}
                Bias::PerRow(bias) => value = ops.add(value, ops.splat(bias[row + index])),
                Bias::PerColumn(bias) => value = ops.add(value, ops.load_pad(&bias[col + start..]).0),
            }
            if epilogue.activation == Activation::Silu {
                value = Silu {}.eval(isa, value);
            }
            // SAFETY: as for the load.
            unsafe {
                if whole { ops.store_ptr(value, place) } else { ops.store_ptr_mask(value, place, mask) }
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
fn dot_rows(out: MatMut<'_>, left: MatRef<'_>, right: impl Runs, stride: usize, epilogue: &Epilogue<'_>) {
    assert!(out.col_stride == 1 || out.cols <= 1, "the output of a product needs a column stride of 1");
    check_bias(epilogue.bias, out.rows, out.cols);
    if out.rows == 0 || out.cols == 0 {
        return;
    }
    let cols = out.cols;
    let share = out.rows * cols * left.cols >= SHARE_FROM;
    let target = Target::new(out);
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
        isa::dispatch(StoreRows { target: &target, col: start, count, sums: &sums, epilogue });
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

/// Stores sums of [`dot_rows`] through the epilogue.
struct StoreRows<'a> {
    target: &'a Target,
    col: usize,
    count: usize,
    sums: &'a [[f32; DOT_COLS]; DOT_ROWS],
    epilogue: &'a Epilogue<'a>,
}

impl SimdOp for StoreRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let len = TILE_VECTORS * isa.f32().len();
        for start in (0..self.count).step_by(len) {
            for (row, sums) in self.sums.iter().enumerate().take(self.target.rows) {
                let mut tile = [[isa.f32().zero(); TILE_VECTORS]; 1];
                for (vector, value) in tile[0].iter_mut().enumerate() {
                    *value =
                        isa.f32().load_pad(sums.get(start + vector * isa.f32().len()..).unwrap_or(&[])).0;
                }
                store_tile::<I, 1>(isa, tile, self.target, row, self.col + start, self.epilogue);
            }
        }
    }
}

#[cfg(test)]
mod tests;
