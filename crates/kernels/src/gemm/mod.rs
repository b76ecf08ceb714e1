//! Matrix products: `out[M, N] = left[M, K] * right[K, N]`, blocked, packed and run on all threads.
//!
//! The scheme is Goto and van de Geijn's ("Anatomy of high-performance matrix multiplication", 2008): both sides
//! are packed block by block into panels ([`crate::gemm::pack`]) that stay in cache, and a micro-kernel keeps one
//! `mr` x `nr` tile of the output in registers. An output element's sum always runs over the depth in the same
//! order, whatever the tile or the thread that computes it.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::encoded::Encoded;
use crate::gemm::format::Format;
use crate::gemm::pack::{PackedMatrix, PackedShape, PackedSide, Work};
use crate::gemm::source::{Dense, Runs, Source};
use crate::isa;
use crate::matrix::{MatMut, MatRef, Operand};
use crate::memory::{Memory, Scratch, with_scratch};
use crate::pool::{run_tasks, threads};
use crate::precision::Precision;
use crate::unary::UnaryOp;
use prefetch::{Stretch, TileAhead, Upcoming};
use tile::{
    Beside, Corner, Finish, LOWER_MR, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Target, Tile, WIDE_MR,
    is_wide, store_tile,
};

pub use tile::Bias;

pub(crate) mod format;
pub(crate) mod pack;
pub(crate) mod prefetch;
pub(crate) mod source;
pub(crate) mod tile;

/// What happens to a tile of the product on its way from registers to memory:
/// `out = activation(product + bias + residual)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the product.
    pub bias: Bias<'a>,
    /// Added too: a matrix of the output's size.
    pub residual: Option<MatRef<'a>>,
    /// Applied to the sum.
    pub activation: Option<UnaryOp>,
}

impl<'a> Epilogue<'a> {
    fn finish(&self, rows: usize, cols: usize) -> Finish<'a> {
        let beside = |mat: MatRef<'a>| {
            assert_eq!((mat.rows, mat.cols), (rows, cols), "the residual's size differs from the output's");
            assert!(mat.col_stride == 1 || cols <= 1, "a residual needs a column stride of 1");
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
            ..Finish::default()
        }
    }
}

/// Words of the shared side that are packed at once: 16 MB.
const SHARE_UP_TO: usize = 1 << 22;
/// Panels of the other side in a task, and how few may be if they are too long to stay in the L2 cache.
const TASK_PANELS: usize = 8;
const SOME_PANELS: usize = 4;
/// Words of the other side that a task packs at once; they stay in the L2 cache.
const TASK_WORDS: usize = 96 << 10;
/// Tasks that a product is cut into at least, as long as they are not tiny.
const LEAST_TASKS: usize = 32;
/// Lanes of the shared side whose sums with a task's panels stay in the L2 cache from one block of the depth to the next.
const SHARED_LANES: usize = 512;
/// Lanes of the shared side that are worth a part of their own.
const PART_LANES: usize = 64;
/// Multiply-adds below which a product stays on the calling thread.
const SHARE_FROM: usize = 1 << 19;
/// Output rows up to which dot products along the weight's rows beat packing the weight.
const DOT_ROWS: usize = 4;

/// Whether [`gemm`] packs a right side whose columns lie together, for so many rows of the left one.
pub fn packs_columns(rows: usize) -> bool {
    rows > DOT_ROWS
}

/// The depth of a block. Where there are several, a right panel of single words stays in the L1 cache; narrower ones come from the
/// L2 cache in time, and long blocks mean that the output is read and written less often.
pub(crate) fn depth_block(format: Format, depth: usize) -> usize {
    let (block, single) = match format {
        Format::Single | Format::Rounded => (256, 384),
        Format::Pairs => (1280, 1280),
        // Scales are shared by what is in a block: smaller ones are more accurate.
        Format::Integers | Format::Quads => (512, 1280),
    };
    if depth <= single {
        return depth.max(1);
    }
    depth.div_ceil(depth.div_ceil(block)).next_multiple_of(4)
}

thread_local! {
    static SHARED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static STREAMED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// One side of a product: packed as it is needed, or beforehand.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Source(Source<'a>),
    Packed(&'a PackedMatrix),
}

impl<'a> Side<'a> {
    pub(crate) fn source(&self) -> Option<Source<'a>> {
        match self {
            Self::Source(source) => Some(*source),
            Self::Packed(..) => None,
        }
    }

    fn lanes(&self) -> usize {
        match self {
            Self::Source(source) => source.lanes(),
            Self::Packed(packed) => packed.shape.lanes,
        }
    }
}

/// Multiplies `left[M, K]` by `right[K, N]` into `out[M, N]`, whose column stride must be 1.
///
/// Operands are converted to `precision` panel by panel: all of the side with fewer lanes, or 16 MB of it at a time, and a few
/// panels of the other one in each thread. A product of few rows by a right side whose columns lie together is computed in
/// `f32` in any precision: it costs no more than reading them. The packing scratch is kept between calls.
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
    if !packs_columns(rows)
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
            run(&target, left, &[right], depth, Format::of(precision), &finish, None);
        });
    });
}

/// Multiplies `left[M, K]` by `right[K, 2 N]`, which has values and then gates, into `out[M, N]`, whose column stride must be 1:
/// `(left * values + bias) * activation(left * gates + bias)`, with a `bias` of `2 N`, values and gates, or none.
///
/// # Panics
///
/// As [`gemm`]; besides, a packed right side must be [packed so](PackedMatrix::gated).
pub fn gated_gemm(
    out: MatMut<'_>,
    left: Operand<'_>,
    right: Operand<'_>,
    precision: Precision,
    bias: Option<&[f32]>,
    activation: UnaryOp,
) {
    let (rows, left_depth) = sizes(left, PackedSide::Left);
    let (cols, depth) = sizes(right, PackedSide::Right);
    assert_eq!(left_depth, depth, "depths of the two sides differ");
    assert_eq!((out.rows, 2 * out.cols), (rows, cols), "output size differs from half the product's");
    assert!(bias.is_none_or(|bias| bias.len() == cols), "bias length differs from the product's columns");
    let bias = bias.map_or(Bias::None, Bias::PerColumn);
    let finish = Finish { bias, gate: Some(activation), ..Finish::default() };
    let target = Target::new(out);
    with_side(left, PackedSide::Left, |left| {
        with_side(right, PackedSide::Right, |right| {
            let gated = Some(PackedSide::Right);
            run(&target, left, &[right], depth, Format::of(precision), &finish, gated);
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

/// Multiplies `left[M, K]` by several `rights[K, N]`, all of one size, into as many matrices `out[M, N]`, one after the other:
/// packs the left side once for all. A `bias` has `N` values for each of them. They may also be one operand that is
/// [packed so](PackedMatrix::several).
///
/// # Panics
///
/// When sizes do not agree, the bias or `out` has the wrong length, or a packed operand was packed for the other side or another
/// precision.
pub fn gemm_several(
    out: &mut [f32],
    left: Operand<'_>,
    rights: &[Operand<'_>],
    precision: Precision,
    bias: Option<&[f32]>,
) {
    let images = rights.iter().map(images_of).sum::<usize>();
    let Some(&first) = rights.first() else { return assert!(out.is_empty(), "output length") };
    let (rows, depth) = sizes(left, PackedSide::Left);
    let (cols, _) = sizes(first, PackedSide::Right);
    assert!(
        rights.iter().all(|right| sizes(*right, PackedSide::Right) == (cols, depth)),
        "sizes of the sides differ"
    );
    assert_eq!(out.len(), images * rows * cols, "output length differs from the products'");
    assert!(bias.is_none_or(|bias| bias.len() == images * cols), "bias length differs from the columns");
    if out.is_empty() {
        return;
    }
    let finish =
        Finish { bias: bias.map_or(Bias::None, Bias::PerColumn), bias_stride: cols, ..Finish::default() };
    let target = Target::images(out, images, rows, cols, rows * cols);
    with_side(left, PackedSide::Left, |left| {
        with_sides(rights, PackedSide::Right, |rights| {
            run(&target, left, rights, depth, Format::of(precision), &finish, None);
        });
    });
}

/// The matrices that an operand is.
fn images_of(operand: &Operand<'_>) -> usize {
    match operand {
        Operand::Packed(packed) => packed.images,
        _ => 1,
    }
}

/// Calls `body` with the operand as a side of a product.
pub(crate) fn with_side(operand: Operand<'_>, side: PackedSide, body: impl FnOnce(Side<'_>)) {
    with_sides(&[operand], side, |sides| body(sides[0]));
}

/// Calls `body` with operands as sides of a product.
pub(crate) fn with_sides(operands: &[Operand<'_>], side: PackedSide, body: impl FnOnce(&[Side<'_>])) {
    enum Stored<'a> {
        F32(Dense<&'a [f32]>),
        F16(Dense<&'a [f16]>),
        Bf16(Dense<&'a [bf16]>),
        Encoded(Dense<Encoded<'a>>),
        Packed(&'a PackedMatrix),
    }
    let stored = operands.iter().map(|operand| match *operand {
        Operand::F32(mat) => Stored::F32(Dense::new(mat, side)),
        Operand::F16(mat) => Stored::F16(Dense::new(mat, side)),
        Operand::Bf16(mat) => Stored::Bf16(Dense::new(mat, side)),
        Operand::Encoded(mat) => Stored::Encoded(Dense::new(mat, side)),
        Operand::Packed(packed) => Stored::Packed(packed),
    });
    let stored: Vec<Stored<'_>> = stored.collect();
    let sides = stored.iter().map(|stored| match stored {
        Stored::F32(dense) => Side::Source(dense.source()),
        Stored::F16(dense) => Side::Source(dense.source()),
        Stored::Bf16(dense) => Side::Source(dense.source()),
        Stored::Encoded(dense) => Side::Source(dense.source()),
        Stored::Packed(packed) => Side::Packed(packed),
    });
    body(&sides.collect::<Vec<_>>());
}

/// The blocked product of a left side and, for each image of the target, a right side of the target's columns. If the finish
/// has a gate, one side, `gated`, has gates behind as many values.
pub(crate) fn run(
    target: &Target,
    left: Side<'_>,
    right: &[Side<'_>],
    depth: usize,
    format: Format,
    finish: &Finish<'_>,
    gated: Option<PackedSide>,
) {
    let Some(lanes) = right.first().map(Side::lanes) else { return };
    let shape = |lanes: usize, side: PackedSide| {
        let shape = PackedShape::new(lanes, depth, side, format);
        if gated == Some(side) { shape.gated() } else { shape }
    };
    let (left_shape, right_shape) = (shape(left.lanes(), PackedSide::Left), shape(lanes, PackedSide::Right));
    let lanes = [left_shape, right_shape].map(|shape| shape.lanes / shape.unit());
    assert_eq!([target.rows, target.cols], lanes, "the target's size");
    assert_eq!(finish.gate.is_some(), gated.is_some());
    if target.rows == 0 || target.cols == 0 {
        return;
    }
    let left = Part { sides: &[left], shape: left_shape };
    let right = Part { sides: right, shape: right_shape };
    let share = target.rows * target.cols * right.images() * depth.max(1) >= SHARE_FROM;
    let finish = &Finish { coarse: format != Format::Single, ..*finish };
    Product { target, left, right, share, finish, gates: finish.gates(target) }.run();
}

/// A side of a product: what is packed, or to be packed, for each image.
struct Part<'a> {
    sides: &'a [Side<'a>],
    shape: PackedShape,
}

impl Part<'_> {
    fn packed(&self) -> Option<&PackedMatrix> {
        match self.sides {
            [Side::Packed(packed)] => Some(packed),
            _ => None,
        }
    }

    fn images(&self) -> usize {
        self.packed().map_or(self.sides.len(), |packed| packed.images)
    }

    /// The panels of all images.
    fn panels(&self) -> usize {
        self.shape.panels() * self.images()
    }

    /// Calls `body` with the given panels over a range of the depth that consists of blocks.
    fn with_panels(
        &self,
        panels: Range<usize>,
        depths: Range<usize>,
        work: Work,
        scratch: &'static Scratch<u32>,
        body: impl FnOnce(Held<'_>),
    ) {
        let shape = &self.shape;
        if let Some(packed) = self.packed() {
            assert_eq!(
                packed.shape, *shape,
                "the matrix was packed for another instruction set or precision"
            );
            return body(Held { words: packed.words(), shape, count: self.panels(), panels, depth: 0 });
        }
        let sources: Vec<Source<'_>> = self.sides.iter().filter_map(Side::source).collect();
        assert_eq!(sources.len(), self.sides.len(), "sides are packed together, or not at all");
        with_scratch(scratch, shape.len_of(panels.len(), &depths), |words| {
            shape.pack(&sources, panels.clone(), depths.clone(), work, words);
            let count = panels.len();
            body(Held { words, shape, count, panels: 0..count, depth: depths.start });
        });
    }

    /// What is to be packed of some panels, of one image, at the first of some depths.
    fn upcoming(&self, panels: Range<usize>, depths: Range<usize>, most: usize, tiles: usize) -> Upcoming {
        let (image, panel) = (panels.start / self.shape.panels(), panels.start % self.shape.panels());
        let source = self.sides.get(image).and_then(Side::source);
        let (Some(source), false) = (source, panels.is_empty() || depths.is_empty()) else {
            return Upcoming::new([Stretch::NONE; 2], tiles);
        };
        let unit = self.shape.unit();
        let last = (panel + panels.len()).min(self.shape.panels()) - unit;
        let depths = depths.start..depths.end.min(depths.start + most);
        let stretch = |half: usize| {
            let lanes = self.shape.lanes_of(panel + half).start..self.shape.lanes_of(last + half).end;
            match source {
                Source::ByDepth(source) => {
                    let row = |depth: usize| source.stored(lanes.clone(), depth.min(depths.end - 1));
                    Stretch::new([row(depths.start), row(depths.start + 1)], depths.len())
                }
                Source::ByLane(source) => {
                    let run = |lane: usize| source.stored(lane.min(lanes.end - 1), &depths);
                    Stretch::new([run(lanes.start), run(lanes.start + 1)], lanes.len())
                }
            }
        };
        let gates = if unit == 2 { stretch(1) } else { Stretch::NONE };
        Upcoming::new([stretch(0), gates], tiles)
    }
}

/// Packed panels of a side.
struct Held<'a> {
    /// For each block of the depth, from `depth` on, `count` panels.
    words: &'a [u32],
    shape: &'a PackedShape,
    count: usize,
    depth: usize,
    /// Which of them are meant.
    panels: Range<usize>,
}

impl Held<'_> {
    /// The panels over one block of the depth.
    fn block(&self, depths: &Range<usize>) -> Panels<'_> {
        let before = self.shape.len_of(self.count, &(self.depth..depths.start));
        let stride = self.shape.format.panel_len(depths.len(), self.shape.width);
        Panels::new(&self.words[(before + self.panels.start * stride).min(self.words.len())..], stride)
    }
}

/// What all tasks of a product have in common.
struct Product<'a> {
    target: &'a Target,
    left: Part<'a>,
    right: Part<'a>,
    share: bool,
    finish: &'a Finish<'a>,
    /// How gates are finished.
    gates: Finish<'a>,
}

impl Product<'_> {
    /// One side, the smaller, is packed first. Each task then packs a few panels of the other and multiplies them by all of
    /// that, so that they are used while they are in its cache, and nobody waits for anybody else's. Panels that are packed
    /// already are free to take: tasks multiply them by a part of the smaller side, the part that the same thread packed, and
    /// the next product's, too.
    fn run(&self) {
        let Self { left, right, share, .. } = self;
        let depth = left.shape.depth;
        let shares_left = left.shape.lanes < right.shape.lanes * right.images();
        let (shared, streamed) = if shares_left { (left, right) } else { (right, left) };
        let panel_len = shared.shape.len_of(1, &(0..depth));
        let block = depth_block(left.shape.format, depth);
        let block_len = streamed.shape.format.panel_len(block, streamed.shape.width);
        let mut group = TASK_PANELS;
        while (streamed.panels().div_ceil(group) < LEAST_TASKS && group > streamed.shape.unit())
            || (group * block_len > TASK_WORDS && group > SOME_PANELS)
        {
            group /= 2;
        }
        let groups = streamed.panels().div_ceil(group);
        let group_len = group * block_len;
        let is_gated = self.finish.gate.is_some();
        let depth_step = if is_gated { depth } else { block * (TASK_WORDS / group_len).max(1) };
        let shared_step = (SHARE_UP_TO / panel_len.max(1)).max(1).next_multiple_of(shared.shape.unit());
        for shared_panels in ranges(shared.panels(), shared_step) {
            let first = shared_panels.start;
            let lanes = shared_panels.len() / shared.shape.unit() * shared.shape.width;
            let parts =
                if streamed.packed().is_some() { (lanes / PART_LANES).clamp(1, threads()) } else { 1 };
            let parts: Vec<_> = shared.shape.parts(shared_panels.clone(), parts).collect();
            let work = if *share { Work::Shared { parts: parts.len() } } else { Work::Alone };
            shared.with_panels(shared_panels, 0..depth, work, &SHARED, |shared| {
                run_tasks(*share, parts.len() * groups, |task| {
                    let (part, task) = (&parts[task / groups], task % groups);
                    let before = shared.panels.start + part.start - first;
                    let shared = Held { panels: before..before + part.len(), ..shared };
                    let tiles = group * part.len() * depth_step.min(depth).div_ceil(block);
                    let panels = |task: usize| task * group..((task + 1) * group).min(streamed.panels());
                    for depths in blocks(0..depth, depth_step) {
                        let upcoming = match depths.end < depth {
                            true => streamed.upcoming(panels(task), depths.end..depth, depths.len(), tiles),
                            false => streamed.upcoming(panels(task + 1), 0..depth, depth_step, tiles),
                        };
                        let work = Work::Alone;
                        streamed.with_panels(panels(task), depths.clone(), work, &STREAMED, |streamed| {
                            let firsts = [part.start, panels(task).start];
                            let (left, right, [left_first, right_first]) = if shares_left {
                                (&shared, &streamed, firsts)
                            } else {
                                (&streamed, &shared, [firsts[1], firsts[0]])
                            };
                            let upcoming = &upcoming;
                            let tiles = Tiles {
                                product: self,
                                left,
                                right,
                                left_first,
                                right_first,
                                depths,
                                upcoming,
                            };
                            tile::dispatch(self.left.shape.format, tiles);
                        });
                    }
                });
            });
        }
    }
}

/// Consecutive ranges of at most `step` that cover `depths`; one, if that is empty: a product over no depth is still a
/// product, zero, to be stored once.
pub(crate) fn blocks(depths: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = depths;
    (start..end.max(start + 1)).step_by(step.max(1)).map(move |start| start..(start + step).min(end))
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

/// One task: panels of both sides over some blocks of the depth.
struct Tiles<'a> {
    product: &'a Product<'a>,
    left: &'a Held<'a>,
    right: &'a Held<'a>,
    /// The numbers of the first panels.
    left_first: usize,
    right_first: usize,
    depths: Range<usize>,
    upcoming: &'a Upcoming,
}

impl PanelOp for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) {
        match (is_wide(isa), self.product.left.shape.width) {
            (true, LOWER_MR) => self.tiles::<I, K, LOWER_MR>(isa),
            (true, _) => self.tiles::<I, K, WIDE_MR>(isa),
            (false, _) => self.tiles::<I, K, NARROW_MR>(isa),
        }
    }
}

impl Tiles<'_> {
    #[inline(always)]
    fn tiles<I: Isa, K: Microkernel<I>, const MR: usize>(self, isa: I) {
        let shape = &self.product.left.shape;
        let nr = TILE_VECTORS * isa.f32().len();
        if self.product.finish.gate.is_some() {
            return self.gated::<I, K, MR>(isa);
        }
        for lefts in ranges(self.left.panels.len(), SHARED_LANES / MR) {
            for rights in ranges(self.right.panels.len(), SHARED_LANES / nr) {
                for depths in blocks(self.depths.clone(), depth_block(shape.format, shape.depth)) {
                    self.block::<I, K, MR>(isa, lefts.clone(), rights.clone(), depths);
                }
            }
        }
    }

    /// The products of some left and some right panels over one block of the depth.
    #[inline(always)]
    fn block<I: Isa, K: Microkernel<I>, const MR: usize>(
        &self,
        isa: I,
        lefts: Range<usize>,
        rights: Range<usize>,
        depths: Range<usize>,
    ) {
        let Product { target, left, right, finish, .. } = self.product;
        let nr = TILE_VECTORS * isa.f32().len();
        let words = left.shape.format.words(depths.len());
        let (left_panels, right_panels) = (self.left.block(&depths), self.right.block(&depths));
        // Earlier blocks' sums are in the output; the last block's are the last.
        let accumulate = depths.start > 0;
        let finish = (depths.end == left.shape.depth).then_some(*finish);
        for index in rights {
            let right_panel = right_panels.panel(index);
            let number = self.right_first + index;
            let (image, col) = (number / right.shape.panels(), number % right.shape.panels() * nr);
            for index in lefts.clone() {
                let corner = Corner { image, row: (self.left_first + index) * MR, col };
                let (size, is_new, upcoming) = ([MR, nr], !accumulate, self.upcoming);
                let ahead = TileAhead { target, finish, corner, size, is_new, upcoming };
                let sums = K::multiply::<MR, _>(isa, words, left_panels.panel(index), right_panel, ahead);
                store_tile::<I, MR>(isa, sums, target, corner, accumulate, finish, None);
            }
        }
    }
}

impl Tiles<'_> {
    /// Tiles of values, each multiplied by a tile of gates.
    #[inline(always)]
    fn gated<I: Isa, K: Microkernel<I>, const MR: usize>(&self, isa: I) {
        let Product { target, left, right, finish, gates, .. } = self.product;
        let nr = TILE_VECTORS * isa.f32().len();
        let [left_unit, right_unit] = [left.shape.unit(), right.shape.unit()];
        for right_panel in (0..self.right.panels.len()).step_by(right_unit) {
            let number = self.right_first + right_panel;
            let (image, panel) = (number / right.shape.panels(), number % right.shape.panels());
            for left_panel in (0..self.left.panels.len()).step_by(left_unit) {
                let row = (self.left_first + left_panel) / left_unit * MR;
                let corner = Corner { image, row, col: panel / right_unit * nr };
                let panels = [left_panel, right_panel];
                let gate_panels = [left_panel + left_unit - 1, right_panel + right_unit - 1];
                let tile = self.whole_depth::<I, K, MR>(isa, gate_panels, corner);
                let gates = gates.spilled::<I, MR>(isa, tile, target, corner);
                let tile = self.whole_depth::<I, K, MR>(isa, panels, corner);
                store_tile::<I, MR>(isa, tile, target, corner, false, Some(finish), Some(&gates));
            }
        }
    }

    /// The product of two panels over the whole depth.
    #[inline(always)]
    fn whole_depth<I: Isa, K: Microkernel<I>, const MR: usize>(
        &self,
        isa: I,
        [left, right]: [usize; 2],
        corner: Corner,
    ) -> Tile<I, MR> {
        let (ops, Product { target, .. }) = (isa.f32(), self.product);
        let shape = &self.product.left.shape;
        let size = [MR, TILE_VECTORS * ops.len()];
        let mut sums = [[ops.zero(); TILE_VECTORS]; MR];
        for depths in blocks(self.depths.clone(), depth_block(shape.format, shape.depth)) {
            let (is_new, upcoming) = (depths.start == 0, self.upcoming);
            let ahead = TileAhead { target, finish: None, corner, size, is_new, upcoming };
            let words = shape.format.words(depths.len());
            let (left, right) =
                (self.left.block(&depths).panel(left), self.right.block(&depths).panel(right));
            let more = K::multiply::<MR, _>(isa, words, left, right, ahead);
            for (sum, more) in sums.as_flattened_mut().iter_mut().zip(more.as_flattened()) {
                *sum = ops.add(*sum, *more);
            }
        }
        sums
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
        for (row, sums) in sums.iter_mut().enumerate().take(target.rows) {
            let (sums, corner) = (&mut sums[..count], Corner { image: 0, row, col: start });
            finish.finish_row(corner, sums);
            // SAFETY: every task has columns of its own.
            unsafe { target.row_mut(corner, count) }.copy_from_slice(sums);
        }
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

#[cfg(test)]
mod tests;
