//! One panel of queries: scores, weights and weighted values, a block of keys at a time.

use std::cell::RefCell;

use rten_simd::Isa;
use rten_simd::ops::{BitOps, FloatOps, MaskOps, NumOps};

use super::inputs::{Attention, PackedInputs, score_unit};
use super::shape::{AttentionShape, HeadLayout};
use crate::gemm::format::{Format, PackedSide, encode_rows};
use crate::gemm::pack::{self, PackedShape};
use crate::gemm::product::Panels;
use crate::math::exp_nonpositive;
use crate::matrix::Mat;
use crate::memory::{Memory, with_scratch};
use crate::simd;
use crate::simd::microkernel::{Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Tile, is_wide};
use crate::simd::operands::{GROUP, Lanes};
use crate::simd::weigh::{Exponentials, PerQuery, Weigh, WeighOp};

/// The most keys in a block: their weights, and the sums, fit the L1 cache.
const KEY_BLOCK: usize = 256;
/// The most by which a score may exceed its query's reference. Weights up to `exp(SLACK)` are far from
/// overflow.
const SLACK: f32 = 16.0;

thread_local! {
    /// A panel of queries, and a block of weights in their format.
    static WORDS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    /// A block of weights, and sums.
    static FLOATS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
}

/// The output, shared by tasks that write disjoint queries of it.
pub(super) struct Output {
    pub(super) data: *mut f32,
    pub(super) layout: HeadLayout,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the tasks, no elements overlap
// (`HeadLayout::check_output`), and each query of each head is written by one task.
unsafe impl Sync for Output {}

/// One head with its packed keys and values.
pub(super) struct Head<'a> {
    pub(super) args: &'a Attention<'a>,
    pub(super) image: usize,
    pub(super) head: usize,
    pub(super) packed: &'a PackedInputs,
    pub(super) keys: &'a [u32],
    pub(super) values: &'a [u32],
    /// See [`Attention::transpose_mask`].
    pub(super) mask: &'a [f32],
    pub(super) out: &'a Output,
}

impl Head<'_> {
    /// Computes the queries of one panel.
    pub(super) fn run(&self, panel: usize) {
        let shape = &self.args.shape;
        let PackedInputs { values, queries, .. } = self.packed;
        let (format, nr) = (queries.format, queries.width);
        let first = panel * nr;
        let count = nr.min(shape.queries - first);
        let query_len = format.panel_len(shape.dim, nr);
        let words_len = if format == Format::F32 { 0 } else { format.panel_len(KEY_BLOCK, nr) };
        with_scratch(&WORDS, query_len + words_len, |words| {
            let (query, words) = words.split_at_mut(query_len);
            // `pack_query` and `store` use weights and sums as scratch before and after the walk over keys.
            let depth = shape.dim.next_multiple_of(GROUP);
            let sums_len = (self.packed.value_panels() * values.width).next_multiple_of(GROUP) * nr;
            let sums_len = sums_len.max(GROUP * depth);
            let weights_len = KEY_BLOCK.max(depth) * nr;
            with_scratch(&FLOATS, weights_len + sums_len, |scratch| {
                let (weights, sums) = scratch.split_at_mut(weights_len);
                let panel = QueryPanel { head: self, first, count, query, weights, words, sums };
                match format {
                    Format::Bf16x2 => simd::dispatch_weigh_bf16x2(panel),
                    _ => format.dispatch(panel),
                }
            });
        });
    }
}

/// A panel of queries with its scratch.
struct QueryPanel<'a> {
    head: &'a Head<'a>,
    first: usize,
    count: usize,
    /// The packed queries, `dim` by `nr`, multiplied by the scale.
    query: &'a mut [u32],
    /// `[KEY_BLOCK][nr]`: weights, unless [`Weigh::WRITES_WORDS`]; scratch before and after the walk over
    /// keys.
    weights: &'a mut [f32],
    /// The weights as a panel, in formats other than `f32`.
    words: &'a mut [u32],
    /// `[value_dim + 1, rounded up][nr]`: weighted values, and the weights' sums in the row behind them.
    sums: &'a mut [f32],
}

impl PanelOp for QueryPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) {
        self.attend::<I, K, Exponentials<false>>(isa);
    }
}

impl WeighOp for QueryPanel<'_> {
    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>, W: Weigh<I>>(self, isa: I) {
        self.attend::<I, K, W>(isa);
    }
}

/// The reference of a panel's weights.
struct References<I: Isa> {
    /// At most the largest score so far, and at least that minus [`SLACK`].
    reference: PerQuery<I>,
    /// See [`Weigh::weigh`].
    seen: PerQuery<I>,
}

impl QueryPanel<'_> {
    /// Computes the panel's output.
    #[inline(always)]
    fn attend<I: Isa, K: Microkernel<I>, W: Weigh<I>>(mut self, isa: I) {
        let ops = isa.f32();
        let PackedInputs { keys, .. } = self.head.packed;
        let mut state =
            References { reference: [ops.splat(f32::MIN); TILE_VECTORS], seen: [ops.zero(); TILE_VECTORS] };
        self.pack_query(isa);
        self.sums.fill(0.0);
        let mut start = 0;
        while start < keys.lanes {
            let mut end = start;
            while end < keys.lanes && end + keys.width <= start + KEY_BLOCK {
                if !self.score::<I, K, W>(isa, start, end, &mut state) {
                    break;
                }
                end += keys.width;
            }
            self.multiply::<I, K, W>(isa, start, end.min(keys.lanes) - start);
            start = end;
        }
        let poison = state.seen.map(|seen| ops.sub(seen, seen));
        self.store(isa, poison);
    }

    /// Packs the queries, multiplied by the scale.
    #[inline(always)]
    fn pack_query<I: Isa>(&mut self, isa: I) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let Head { image, head, args, packed, .. } = self.head;
        let AttentionShape { queries, dim, .. } = args.shape;
        let format = packed.queries.format;
        let scale = args.scale / score_unit(format);
        let Mat { data, row_stride, col_stride, .. } =
            args.query.layout.matrix(args.query.data, *image, *head, queries, dim);
        let rows = &mut *self.weights;
        if row_stride == 1 {
            for (channel, row) in rows.chunks_exact_mut(nr).take(dim).enumerate() {
                let (row, rest) = row.split_at_mut(self.count);
                let source = &data[channel * col_stride + self.first..][..self.count];
                row.iter_mut().zip(source).for_each(|(place, x)| *place = x * scale);
                rest.fill(0.0);
            }
        } else {
            let len = dim.next_multiple_of(GROUP);
            let lanes = &mut self.sums[..GROUP * len];
            for first in (0..nr).step_by(GROUP) {
                let count = GROUP.min(nr - first);
                for (query, lane) in lanes.chunks_exact_mut(len.max(1)).take(count).enumerate() {
                    let query = first + query;
                    if query >= self.count {
                        lane.fill(0.0);
                    } else if col_stride == 1 {
                        let source = &data[(self.first + query) * row_stride..][..dim];
                        lane.iter_mut().zip(source).for_each(|(place, x)| *place = x * scale);
                    } else {
                        let source = &data[(self.first + query) * row_stride..];
                        let source = source.iter().step_by(col_stride);
                        lane.iter_mut().take(dim).zip(source).for_each(|(place, x)| *place = x * scale);
                    }
                }
                transpose(lanes, len, count, rows, nr, first);
            }
        }
        encode_rows(format, PackedSide::Right, &rows[..dim * nr], nr, self.query);
    }

    /// [`score_tile`](Self::score_tile) at the height of the keys' panels.
    #[inline(always)]
    fn score<I: Isa, K: Microkernel<I>, W: Weigh<I>>(
        &mut self,
        isa: I,
        start: usize,
        key: usize,
        state: &mut References<I>,
    ) -> bool {
        if !is_wide(isa) {
            return self.score_tile::<I, K, W, NARROW_MR>(isa, start, key, state);
        }
        match self.head.packed.keys.width {
            8 => self.score_tile::<I, K, W, 8>(isa, start, key, state),
            10 => self.score_tile::<I, K, W, 10>(isa, start, key, state),
            12 => self.score_tile::<I, K, W, 12>(isa, start, key, state),
            _ => self.score_tile::<I, K, W, 14>(isa, start, key, state),
        }
    }

    /// Computes the weights of one tile of keys, from `key` on, in a block that begins at `start`. Returns
    /// false, with nothing written, if they need a new reference while the block has weights that relate to
    /// the old one.
    #[inline(always)]
    fn score_tile<I: Isa, K: Microkernel<I>, W: Weigh<I>, const MR: usize>(
        &mut self,
        isa: I,
        start: usize,
        key: usize,
        state: &mut References<I>,
    ) -> bool {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let PackedShape { format, depth, lanes, .. } = self.head.packed.keys;
        let keys = Panels::new(self.head.keys, format.panel_len(depth, MR));
        let mut scores = K::multiply::<MR, _>(isa, format.words(depth), keys.panel(key / MR), self.query, ());
        if self.head.args.mask.is_some() || lanes < key + MR {
            self.mask(isa, key, &mut scores);
        }
        let mut max = scores[0];
        for scores in &scores[1..] {
            for (max, score) in max.iter_mut().zip(scores) {
                *max = ops.max(*max, *score);
            }
        }
        let exceeds = |vector: usize| {
            let limit = ops.add(state.reference[vector], ops.splat(SLACK));
            isa.m32().any(ops.gt(max[vector], limit))
        };
        if (0..TILE_VECTORS).any(exceeds) {
            if key > start {
                return false;
            }
            self.raise_reference(isa, max, state);
        }
        let words = self.words.get_mut(format.words(key - start) * nr..).unwrap_or_default();
        let weights = &mut self.weights[(key - start) * nr..];
        W::weigh::<MR>(isa, &scores, &state.reference, &mut state.seen, words, weights);
        true
    }

    /// Adds the mask to a tile of scores, and hides missing keys.
    #[inline(always)]
    fn mask<I: Isa, const MR: usize>(&self, isa: I, first_key: usize, scores: &mut Tile<I, MR>) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let Head { args, packed, mask, .. } = self.head;
        let stride = args.mask_stride(packed);
        // A mask of one panel is the same for all queries.
        let first = self.first % stride;
        for (scores, key) in scores.iter_mut().zip(first_key..) {
            if key >= args.shape.keys {
                *scores = [ops.splat(f32::NEG_INFINITY); TILE_VECTORS];
            } else if args.mask.is_some() {
                let row = &mask[key * stride + first..][..nr];
                for (score, masked) in scores.iter_mut().zip(row.chunks_exact(ops.len())) {
                    *score = ops.add(*score, ops.load(masked));
                }
            }
        }
    }

    /// Raises the reference to the largest scores where these exceed it, and rescales the sums.
    #[inline(always)]
    fn raise_reference<I: Isa>(&mut self, isa: I, max: PerQuery<I>, state: &mut References<I>) {
        let ops = isa.f32();
        let unit = ops.splat(score_unit(self.head.packed.keys.format));
        let mut shrink = [ops.zero(); TILE_VECTORS];
        for ((reference, max), shrink) in state.reference.iter_mut().zip(max).zip(&mut shrink) {
            let larger = ops.max(*reference, max);
            let decay = ops.mul(ops.sub(*reference, larger), unit);
            *shrink = exp_nonpositive(isa, decay);
            *reference = larger;
        }
        for row in self.sums.chunks_exact_mut(TILE_VECTORS * ops.len()) {
            for (place, shrink) in row.chunks_exact_mut(ops.len()).zip(shrink) {
                ops.store(ops.mul(ops.load(place), shrink), place);
            }
        }
    }

    /// Adds the values of `count` keys from `start` on, times their weights, to the sums.
    #[inline(always)]
    fn multiply<I: Isa, K: Microkernel<I>, W: Weigh<I>>(&mut self, isa: I, start: usize, count: usize) {
        let nr = TILE_VECTORS * isa.f32().len();
        let PackedShape { format, width, .. } = self.head.packed.values;
        if !W::WRITES_WORDS && format != Format::F32 {
            encode_rows(format, PackedSide::Right, &self.weights[..count * nr], nr, self.words);
        }
        for panel in 0..self.head.packed.value_panels() {
            if !is_wide(isa) {
                self.multiply_tile::<I, K, NARROW_MR>(isa, start, count, panel);
                continue;
            }
            match width {
                9 => self.multiply_tile::<I, K, 9>(isa, start, count, panel),
                10 => self.multiply_tile::<I, K, 10>(isa, start, count, panel),
                11 => self.multiply_tile::<I, K, 11>(isa, start, count, panel),
                12 => self.multiply_tile::<I, K, 12>(isa, start, count, panel),
                13 => self.multiply_tile::<I, K, 13>(isa, start, count, panel),
                _ => self.multiply_tile::<I, K, 14>(isa, start, count, panel),
            }
        }
    }

    /// [`multiply`](Self::multiply) of one panel of values.
    #[inline(always)]
    fn multiply_tile<I: Isa, K: Microkernel<I>, const MR: usize>(
        &mut self,
        isa: I,
        start: usize,
        count: usize,
        panel: usize,
    ) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let PackedShape { format, depth, .. } = self.head.packed.values;
        let values = Panels::new(self.head.values, format.panel_len(depth, MR));
        let values = &values.panel(panel)[format.words(start) * MR..];
        let weights: &[u32] =
            if format == Format::F32 { bytemuck::cast_slice(self.weights) } else { self.words };
        let products = K::multiply::<MR, _>(isa, format.words(count), values, weights, ());
        let sums = &mut self.sums[panel * MR * nr..][..MR * nr];
        for (products, row) in products.into_iter().zip(sums.chunks_exact_mut(nr)) {
            for (product, place) in products.into_iter().zip(row.chunks_exact_mut(ops.len())) {
                ops.store(ops.add(ops.load(place), product), place);
            }
        }
    }

    /// Divides by the weights' sums and writes the output.
    #[inline(always)]
    fn store<I: Isa>(self, isa: I, poison: PerQuery<I>) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let mut inverse = [ops.zero(); TILE_VECTORS];
        let totals = &self.sums[self.head.args.shape.value_dim * nr..][..nr];
        for ((inverse, total), poison) in inverse.iter_mut().zip(totals.chunks_exact(ops.len())).zip(poison) {
            let total = ops.add(ops.load(total), poison);
            *inverse = ops.select(ops.zero(), ops.reciprocal(total), ops.eq(total, ops.zero()));
        }
        let value_dim = self.head.args.shape.value_dim;
        for row in self.sums.chunks_exact_mut(nr).take(value_dim) {
            for (place, inverse) in row.chunks_exact_mut(ops.len()).zip(inverse) {
                ops.store(ops.mul(ops.load(place), inverse), place);
            }
        }
        let Head { image, head, out: &Output { data, layout }, .. } = *self.head;
        let base = image * layout.batch + head * layout.head + self.first * layout.token;
        // SAFETY: image, head, query and channel are within the shape that `check_output` measured the output
        // against, and these queries belong to this task alone.
        let place = |query: usize, channel: usize| unsafe {
            data.add(base + query * layout.token + channel * layout.channel)
        };
        if layout.token == 1 {
            for (channel, row) in self.sums.chunks_exact(nr).take(value_dim).enumerate() {
                // SAFETY: these are `count` contiguous queries of the channel.
                unsafe { place(0, channel).copy_from_nonoverlapping(row.as_ptr(), self.count) };
            }
            return;
        }
        for (block, rows) in self.sums.chunks_exact(GROUP * nr).take(value_dim.div_ceil(GROUP)).enumerate() {
            let (first, count) = (block * GROUP, GROUP.min(value_dim - block * GROUP));
            transpose(rows, nr, GROUP, self.weights, GROUP, 0);
            for (query, lane) in self.weights.chunks_exact(GROUP).take(self.count).enumerate() {
                if layout.channel == 1 && count == GROUP {
                    // SAFETY: these are sixteen contiguous channels of the query.
                    unsafe { place(query, first).copy_from_nonoverlapping(lane.as_ptr(), GROUP) };
                    continue;
                }
                for (channel, value) in lane.iter().take(count).enumerate() {
                    // SAFETY: this is an element of the output.
                    unsafe { *place(query, first + channel) = *value };
                }
            }
        }
    }
}

/// [`pack::transpose`] of floats.
fn transpose(lanes: &[f32], len: usize, count: usize, rows: &mut [f32], width: usize, offset: usize) {
    let lanes = Lanes { words: bytemuck::cast_slice(lanes), stride: len, len, count };
    pack::transpose(lanes, bytemuck::cast_slice_mut(rows), width, offset);
}
