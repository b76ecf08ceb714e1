//! The blocked product: the loops around the micro-kernel.

use std::cell::RefCell;
use std::ops::Range;

use rten_simd::Isa;
use rten_simd::ops::{BitOps, NumOps};

use super::blocking::Blocking;
use super::epilogue::{TileEpilogue, store_tile};
use super::format::{Format, PackedSide};
use super::operand::Side;
use super::pack::{PackedMatrix, PackedShape, Work};
use super::prefetch::{PackPrefetch, StridedRuns, TilePrefetch};
use super::source::Source;
use super::tile::{Corner, Target};
use crate::blocks::{blocks, ranges};
use crate::memory::{Memory, Scratch, with_scratch};
use crate::pool::{run_tasks, threads};
use crate::simd::microkernel::{
    LOWER_MR, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Tile, WIDE_MR, is_wide,
};

/// Lanes of the shared side whose sums with a task's panels stay in the L2 cache from one block of depth to
/// the next.
const CACHED_LANES: usize = 512;
/// The fewest lanes of the shared side in a thread's part of it.
const PART_LANES: usize = 64;
/// Multiply-adds below which a product stays on the calling thread.
pub(crate) const SHARE_FROM: usize = 1 << 19;

thread_local! {
    static SHARED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    static STREAMED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// Multiplies a left side by a right side for each matrix of the target. If the epilogue has a gate, one
/// side, `gated`, has values and then as many gates.
pub(crate) fn run(
    target: &Target,
    left: Side<'_>,
    right: &[Side<'_>],
    depth: usize,
    format: Format,
    epilogue: &TileEpilogue<'_>,
    gated: Option<PackedSide>,
) {
    let Some(lanes) = right.first().map(Side::lanes) else { return };
    let shape = |lanes: usize, side: PackedSide| {
        let shape = PackedShape::new(lanes, depth, side, format);
        if gated == Some(side) { shape.gated() } else { shape }
    };
    let (left_shape, right_shape) = (shape(left.lanes(), PackedSide::Left), shape(lanes, PackedSide::Right));
    let lanes = [left_shape, right_shape].map(|shape| shape.lanes / shape.panels_per_tile());
    assert_eq!([target.rows, target.cols], lanes, "the target's size");
    assert_eq!(epilogue.epilogue.gate.is_some(), gated.is_some());
    if target.rows == 0 || target.cols == 0 {
        return;
    }
    let left = Sides { sides: &[left], shape: left_shape };
    let right = Sides { sides: right, shape: right_shape };
    assert_eq!((left.batch(), right.batch()), (1, target.batch), "the number of matrices");
    let blocking = Blocking::of(&left.shape, &right.shape, right.batch());
    let share = target.rows * target.cols * right.batch() * depth.max(1) >= SHARE_FROM;
    let epilogue = &TileEpilogue { coarse: format != Format::F32, ..*epilogue };
    Product { target, left, right, blocking, share, epilogue, gates: epilogue.gates(target) }.run();
}

/// One side of a product: its matrices, packed or to be packed.
struct Sides<'a> {
    sides: &'a [Side<'a>],
    shape: PackedShape,
}

impl Sides<'_> {
    fn packed(&self) -> Option<&PackedMatrix> {
        match self.sides {
            [Side::Packed(packed)] => Some(packed),
            _ => None,
        }
    }

    /// The number of matrices.
    fn batch(&self) -> usize {
        self.packed().map_or(self.sides.len(), |packed| packed.batch)
    }

    /// Panels of all matrices.
    fn panels(&self) -> usize {
        self.shape.panels() * self.batch()
    }

    /// Calls `body` with the given panels, packed, over a range of the depth that consists of whole blocks.
    fn with_panels(
        &self,
        panels: Range<usize>,
        depths: Range<usize>,
        work: Work,
        scratch: &'static Scratch<u32>,
        body: impl FnOnce(PackedPanels<'_>),
    ) {
        let shape = &self.shape;
        if let Some(packed) = self.packed() {
            assert_eq!(
                packed.shape, *shape,
                "the matrix was packed for another instruction set or precision"
            );
            let words = packed.words();
            return body(PackedPanels { words, shape, count: self.panels(), panels, depth: 0 });
        }
        let sources: Vec<Source<'_>> = self.sides.iter().filter_map(Side::source).collect();
        assert_eq!(sources.len(), self.sides.len(), "either all matrices are packed, as one, or none");
        with_scratch(scratch, shape.len_of(panels.len(), &depths), |words| {
            shape.pack(&sources, panels.clone(), depths.clone(), work, words);
            let count = panels.len();
            body(PackedPanels { words, shape, count, panels: 0..count, depth: depths.start });
        });
    }

    /// Prefetch, spread over `tiles` tiles, of the elements of some panels of one matrix at the first `most`
    /// of `depths`.
    fn prefetch(
        &self,
        panels: Range<usize>,
        depths: Range<usize>,
        most: usize,
        tiles: usize,
    ) -> PackPrefetch {
        let (matrix, panel) = (panels.start / self.shape.panels(), panels.start % self.shape.panels());
        let source = self.sides.get(matrix).and_then(Side::source);
        let (Some(source), false) = (source, panels.is_empty() || depths.is_empty()) else {
            return PackPrefetch::new([StridedRuns::NONE; 2], tiles);
        };
        let per_tile = self.shape.panels_per_tile();
        let last = (panel + panels.len()).min(self.shape.panels()) - per_tile;
        let depths = depths.start..depths.end.min(depths.start + most);
        let runs = |half: usize| {
            let lanes = self.shape.lanes_of(panel + half).start..self.shape.lanes_of(last + half).end;
            match source {
                Source::ByDepth(source) => {
                    let row = |depth: usize| source.stored(lanes.clone(), depth.min(depths.end - 1));
                    StridedRuns::new([row(depths.start), row(depths.start + 1)], depths.len())
                }
                Source::ByLane(source) => {
                    let run = |lane: usize| source.stored(lane.min(lanes.end - 1), &depths);
                    StridedRuns::new([run(lanes.start), run(lanes.start + 1)], lanes.len())
                }
            }
        };
        let gates = if per_tile == 2 { runs(1) } else { StridedRuns::NONE };
        PackPrefetch::new([runs(0), gates], tiles)
    }
}

/// Packed panels of one side.
struct PackedPanels<'a> {
    /// For each block of the depth, from `depth` on, `count` panels.
    words: &'a [u32],
    shape: &'a PackedShape,
    count: usize,
    depth: usize,
    /// The panels that are multiplied.
    panels: Range<usize>,
}

impl PackedPanels<'_> {
    /// The panels over one block of the depth.
    fn block(&self, depths: &Range<usize>) -> Panels<'_> {
        let before = self.shape.len_of(self.count, &(self.depth..depths.start));
        let stride = self.shape.format.panel_len(depths.len(), self.shape.width);
        Panels::new(&self.words[(before + self.panels.start * stride).min(self.words.len())..], stride)
    }
}

/// The data that all tasks of a product share.
struct Product<'a> {
    target: &'a Target,
    left: Sides<'a>,
    right: Sides<'a>,
    blocking: Blocking,
    /// True if tasks are shared among threads.
    share: bool,
    epilogue: &'a TileEpilogue<'a>,
    /// The epilogue of the gates.
    gates: TileEpilogue<'a>,
}

impl Product<'_> {
    /// Packs `nc` panels of the shared side, then runs a task for each `mc` panels of the streamed side.
    ///
    /// A streamed side that is packed beforehand costs nothing to read again. The shared panels are then also
    /// split into one part for each thread: the part that it packed itself, as it will in the next product.
    fn run(&self) {
        let Self { left, right, blocking, share, .. } = self;
        let Blocking { shares_left, nc, mc, .. } = *blocking;
        let (shared, streamed) = if shares_left { (left, right) } else { (right, left) };
        let depth = shared.shape.depth;
        let groups = streamed.panels().div_ceil(mc);
        for shared_panels in ranges(shared.panels(), nc) {
            let first = shared_panels.start;
            let lanes = shared_panels.len() / shared.shape.panels_per_tile() * shared.shape.width;
            let parts =
                if streamed.packed().is_some() { (lanes / PART_LANES).clamp(1, threads()) } else { 1 };
            let parts: Vec<_> = shared.shape.parts(shared_panels.clone(), parts).collect();
            let work = if *share { Work::Shared { parts: parts.len() } } else { Work::Alone };
            shared.with_panels(shared_panels, 0..depth, work, &SHARED, |shared| {
                run_tasks(*share, parts.len() * groups, |task| {
                    let (part, group) = (&parts[task / groups], task % groups);
                    let before = shared.panels.start + part.start - first;
                    let shared = PackedPanels { panels: before..before + part.len(), ..shared };
                    self.task(streamed, group, &shared, part.start);
                });
            });
        }
    }

    /// Packs the `group`-th `mc` panels of the streamed side, `kc` deep at a time, and multiplies them by the
    /// shared panels, of which the first has number `shared_first`.
    fn task(&self, streamed: &Sides<'_>, group: usize, shared: &PackedPanels<'_>, shared_first: usize) {
        let Blocking { shares_left, mc, kc, block, .. } = self.blocking;
        let depth = streamed.shape.depth;
        let tiles = mc * shared.panels.len() * kc.min(depth).div_ceil(block);
        let panels = |group: usize| group * mc..((group + 1) * mc).min(streamed.panels());
        for depths in blocks(0..depth, kc) {
            let packing = &match depths.end < depth {
                true => streamed.prefetch(panels(group), depths.end..depth, depths.len(), tiles),
                false => streamed.prefetch(panels(group + 1), 0..depth, kc, tiles),
            };
            streamed.with_panels(panels(group), depths.clone(), Work::Alone, &STREAMED, |streamed| {
                let firsts = [shared_first, panels(group).start];
                let (left, right, [left_first, right_first]) = match shares_left {
                    true => (shared, &streamed, firsts),
                    false => (&streamed, shared, [firsts[1], firsts[0]]),
                };
                let tiles = Tiles { product: self, left, right, left_first, right_first, depths, packing };
                self.left.shape.format.dispatch(tiles);
            });
        }
    }
}

/// Consecutive panels over a common range of the depth.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    words: &'a [u32],
    /// Words from one panel to the next.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Packed panels of `stride` words, one after the other.
    pub(crate) fn new(words: &'a [u32], stride: usize) -> Self {
        Self { words, stride }
    }

    /// The words of panel `index`, and what follows them.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> &'a [u32] {
        &self.words[index * self.stride..]
    }
}

/// Panels of both sides over some blocks of the depth, and the tiles that they make.
struct Tiles<'a> {
    product: &'a Product<'a>,
    left: &'a PackedPanels<'a>,
    right: &'a PackedPanels<'a>,
    /// The numbers of the first panels.
    left_first: usize,
    right_first: usize,
    depths: Range<usize>,
    packing: &'a PackPrefetch,
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
        let nr = TILE_VECTORS * isa.f32().len();
        if self.product.epilogue.epilogue.gate.is_some() {
            return self.gated::<I, K, MR>(isa);
        }
        for lefts in ranges(self.left.panels.len(), CACHED_LANES / MR) {
            for rights in ranges(self.right.panels.len(), CACHED_LANES / nr) {
                for depths in blocks(self.depths.clone(), self.product.blocking.block) {
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
        let Product { target, left, right, epilogue, .. } = self.product;
        let nr = TILE_VECTORS * isa.f32().len();
        let words = left.shape.format.words(depths.len());
        let (left_panels, right_panels) = (self.left.block(&depths), self.right.block(&depths));
        // The sums of earlier blocks are in the output; the epilogue follows the last block.
        let accumulate = depths.start > 0;
        let epilogue = (depths.end == left.shape.depth).then_some(*epilogue);
        for index in rights {
            let right_panel = right_panels.panel(index);
            let number = self.right_first + index;
            let (matrix, col) = (number / right.shape.panels(), number % right.shape.panels() * nr);
            for index in lefts.clone() {
                let corner = Corner { matrix, row: (self.left_first + index) * MR, col };
                let (size, is_new, packing) = ([MR, nr], !accumulate, self.packing);
                let prefetch = TilePrefetch { target, epilogue, corner, size, is_new, packing };
                let left_panel = left_panels.panel(index);
                let sums = K::multiply::<MR, _>(isa, words, left_panel, right_panel, prefetch);
                store_tile::<I, MR>(isa, sums, target, corner, accumulate, epilogue, None);
            }
        }
    }

    /// Tiles of values, each multiplied by a tile of gates.
    #[inline(always)]
    fn gated<I: Isa, K: Microkernel<I>, const MR: usize>(&self, isa: I) {
        let Product { target, left, right, epilogue, gates, .. } = self.product;
        let nr = TILE_VECTORS * isa.f32().len();
        let [left_step, right_step] = [left.shape.panels_per_tile(), right.shape.panels_per_tile()];
        for right_panel in (0..self.right.panels.len()).step_by(right_step) {
            let number = self.right_first + right_panel;
            let (matrix, panel) = (number / right.shape.panels(), number % right.shape.panels());
            for left_panel in (0..self.left.panels.len()).step_by(left_step) {
                let row = (self.left_first + left_panel) / left_step * MR;
                let corner = Corner { matrix, row, col: panel / right_step * nr };
                let panels = [left_panel, right_panel];
                let gate_panels = [left_panel + left_step - 1, right_panel + right_step - 1];
                let tile = self.whole_depth::<I, K, MR>(isa, gate_panels, corner);
                let gates = gates.applied::<I, MR>(isa, tile, target, corner);
                let tile = self.whole_depth::<I, K, MR>(isa, panels, corner);
                store_tile::<I, MR>(isa, tile, target, corner, false, Some(epilogue), Some(&gates));
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
        for depths in blocks(self.depths.clone(), self.product.blocking.block) {
            let (is_new, packing) = (depths.start == 0, self.packing);
            let prefetch = TilePrefetch { target, epilogue: None, corner, size, is_new, packing };
            let words = shape.format.words(depths.len());
            let (left, right) =
                (self.left.block(&depths).panel(left), self.right.block(&depths).panel(right));
            let more = K::multiply::<MR, _>(isa, words, left, right, prefetch);
            for (sum, more) in sums.as_flattened_mut().iter_mut().zip(more.as_flattened()) {
                *sum = ops.add(*sum, *more);
            }
        }
        sums
    }
}
