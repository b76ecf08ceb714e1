//! Scaled dot-product attention without a score matrix.
//!
//! `out = softmax(query * key^T * scale + mask) * value`, for every image and head. A task takes as many queries
//! as the micro-kernel's tile is wide and walks over tiles of keys. A tile's scores become weights before they leave
//! the registers; the weights of a block of keys live in the L1 cache and are multiplied with the values.
//!
//! Weights are relative to a reference, as in the online softmax of Milakov and Gimelshein (2018). But the reference
//! follows the largest score only when that exceeds it by [`SLACK`]: floating point is as accurate anywhere, and so
//! what was summed is hardly ever corrected.
//!
//! Queries run along the vector lanes, so that the softmax needs no sums across a vector and its result is
//! already in the layout of the second product's right side. The weights' sum is the product with a row of ones
//! below the values: it costs half an addition, and often a row that would be padding.

use std::cell::RefCell;

use rten_simd::Isa;
use rten_simd::ops::{BitOps, FloatOps, MaskOps, NumOps};

use crate::gemm::Panels;
use crate::gemm::format::{Format, encode_rows};
use crate::gemm::pack::{self, GROUP, Lanes, PackedShape, PackedSide, Work};
use crate::gemm::source::{Dense, Source};
use crate::gemm::tile::{self, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, Tile, best_height, is_wide};
use crate::math::exp_nonpositive;
use crate::matrix::{Mat, MatRef};
use crate::memory::{Memory, with_scratch};
use crate::pool::{for_each_chunk_mut, rows_per_task, run_tasks};
use crate::precision::Precision;
use crate::simd;

/// The most keys in a block: their weights, and the sums, fit the L1 cache.
const KEY_BLOCK: usize = 256;
/// The heights of tiles of scores where there are 32 registers: even, as [`Format::Pairs`] holds two keys in a word.
const SCORE_HEIGHTS: [usize; 4] = [8, 10, 12, 14];
/// The heights of tiles of weighted values where there are 32 registers.
const VALUE_HEIGHTS: [usize; 6] = [9, 10, 11, 12, 13, 14];
/// How far a score may exceed its query's reference: weights up to `exp(SLACK)` are far from overflow.
const SLACK: f32 = 16.0;
/// Multiply-adds of one head from which on its queries are shared among threads; below, heads are, if there are some.
const SHARE_QUERIES_FROM: usize = 1 << 26;
/// The same where there are fewer than [`SOME_HEADS`].
const SHARE_QUERIES_OF_FEW_FROM: usize = 1 << 23;
const SOME_HEADS: usize = 8;
/// Multiply-adds of all heads below which everything stays on the calling thread.
const SHARE_FROM: usize = 1 << 18;

thread_local! {
    /// What is added to the scores.
    static MASK: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    /// A head's keys and values.
    static PACKED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    /// A panel of queries, and a block of weights in their format.
    static WORDS: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
    /// A block of weights, and sums.
    static FLOATS: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
}

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Images.
    pub batch: usize,
    /// Heads of each image.
    pub heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key and value tokens.
    pub keys: usize,
    /// Channels of a head's queries and keys.
    pub dim: usize,
    /// Channels of a head's values and output.
    pub value_dim: usize,
}

/// Where a head's elements are: the distance, in elements, between neighbours along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Between images.
    pub batch: usize,
    /// Between heads.
    pub head: usize,
    /// Between tokens.
    pub token: usize,
    /// Between channels.
    pub channel: usize,
}

impl HeadLayout {
    /// `[batch, tokens, heads * dim]`, what a linear layer gives.
    pub fn token_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: tokens * heads * dim, head: dim, token: heads * dim, channel: 1 }
    }

    /// `[batch, heads, tokens, dim]`.
    pub fn head_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: heads * tokens * dim, head: tokens * dim, token: dim, channel: 1 }
    }

    /// `[batch, heads, dim, tokens]`, what a 1x1 convolution gives.
    pub fn channel_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: heads * tokens * dim, head: tokens * dim, token: 1, channel: tokens }
    }

    /// The head's matrix `[tokens, dim]`.
    fn matrix<'a>(
        &self,
        data: &'a [f32],
        image: usize,
        head: usize,
        tokens: usize,
        dim: usize,
    ) -> MatRef<'a> {
        let start = if tokens * dim == 0 { 0 } else { image * self.batch + head * self.head };
        Mat::with_strides(&data[start..], tokens, dim, self.token, self.channel)
    }

    /// Panics unless all elements lie within `len` and have places of their own.
    fn check_output(&self, shape: &AttentionShape, len: usize) {
        let sizes = [shape.batch, shape.heads, shape.queries, shape.value_dim];
        if sizes.contains(&0) {
            return;
        }
        let mut axes =
            [(self.batch, sizes[0]), (self.head, sizes[1]), (self.token, sizes[2]), (self.channel, sizes[3])];
        axes.sort_unstable();
        let mut extent = 1;
        for (stride, size) in axes {
            assert!(size == 1 || stride >= extent, "elements of the attention's output overlap: {self:?}");
            extent += stride * (size - 1);
        }
        assert!(extent <= len, "the attention's output needs {extent} elements, got {len}");
    }
}

/// One input of an attention with its layout.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// All images and heads.
    pub data: &'a [f32],
    /// Where they are.
    pub layout: HeadLayout,
}

/// The inputs of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The sizes.
    pub shape: AttentionShape,
    /// `queries` tokens of `dim` channels.
    pub query: Heads<'a>,
    /// `keys` tokens of `dim` channels.
    pub key: Heads<'a>,
    /// `keys` tokens of `value_dim` channels.
    pub value: Heads<'a>,
    /// Multiplies the scores: usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// `[queries, keys]`, added to every head's scores; negative infinity hides a key.
    pub mask: Option<MatRef<'a>>,
    /// Whether threads take images, and not heads of all images, even if there are more channels than tokens: products with
    /// [packed](crate::PackedMatrix) weights leave them so.
    pub by_image: bool,
}

/// The panels of an attention's sides.
#[derive(Clone, Copy)]
struct Sides {
    keys: PackedShape,
    values: PackedShape,
    queries: PackedShape,
}

impl Sides {
    fn new(shape: &AttentionShape, format: Format) -> Self {
        let &AttentionShape { queries, keys, dim, value_dim, .. } = shape;
        // One format for all, also where there is nothing to multiply.
        let format = if keys * dim == 0 { Format::Single } else { format };
        let side = |lanes, depth, side| PackedShape::new(lanes, depth, side, format);
        let with_height = |shape: PackedShape, lanes, heights: &[usize]| PackedShape {
            width: best_height(lanes, heights),
            ..shape
        };
        Self {
            keys: with_height(side(keys, dim, PackedSide::Left), keys, &SCORE_HEIGHTS),
            values: with_height(side(value_dim, keys, PackedSide::Left), value_dim + 1, &VALUE_HEIGHTS),
            queries: side(queries, dim, PackedSide::Right),
        }
    }

    /// Panels of values and the row of ones below them.
    fn value_panels(&self) -> usize {
        (self.values.lanes + 1).div_ceil(self.values.width)
    }

    /// The words of all keys.
    fn key_words(&self) -> usize {
        self.keys.panels() * self.keys.format.panel_len(self.keys.depth, self.keys.width)
    }

    /// The words of all values and the ones.
    fn value_words(&self) -> usize {
        self.value_panels() * self.values.format.panel_len(self.values.depth, self.values.width)
    }
}

impl Attention<'_> {
    /// From one key's row of the laid out mask to the next: whole panels of queries, one if all queries have the same mask.
    fn mask_stride(&self, sides: &Sides) -> usize {
        match self.mask {
            Some(Mat { row_stride: 0, .. }) => sides.queries.width,
            _ => self.shape.queries.next_multiple_of(sides.queries.width),
        }
    }

    /// Writes the mask as tiles of scores have it: key by key, in their unit.
    fn lay_out_mask(&self, sides: &Sides, rows: &mut [f32]) {
        let Some(mask) = self.mask else { return };
        let (stride, inverse) = (self.mask_stride(sides), 1.0 / unit(sides.keys.format));
        for_each_chunk_mut(rows, stride * rows_per_task(stride), |task, rows| {
            for (row, key) in rows.chunks_exact_mut(stride).zip(task * rows_per_task(stride)..) {
                row.fill(0.0);
                for (place, query) in row.iter_mut().zip(0..self.shape.queries) {
                    let masked = mask.data[query * mask.row_stride + key * mask.col_stride];
                    // What is finite stays so: a query that only sees the lowest number sees all keys alike.
                    let limit = if masked.is_finite() { f32::MAX } else { f32::INFINITY };
                    *place = (masked * inverse).clamp(-limit, limit);
                }
            }
        });
    }

    /// Packs a head's keys and values.
    fn pack(&self, image: usize, head: usize, sides: &Sides, work: Work, packed: &mut [u32]) {
        let AttentionShape { keys, dim, value_dim, .. } = self.shape;
        let (key_words, value_words) = packed.split_at_mut(sides.key_words());
        let key = Dense::new(self.key.layout.matrix(self.key.data, image, head, keys, dim), PackedSide::Left);
        let value = self.value.layout.matrix(self.value.data, image, head, keys, value_dim).transposed();
        let value = Dense::new(value, PackedSide::Left);
        let pack = |source: Source<'_>, side: &PackedShape, words: &mut [u32]| {
            side.pack_by(side.depth, &[source], 0..side.panels(), 0..side.depth, work, words);
        };
        pack(key.source(), &sides.keys, key_words);
        pack(value.source(), &sides.values, value_words);
        let PackedShape { format, width, .. } = sides.values;
        let panel_len = format.panel_len(keys, width);
        if value_dim.is_multiple_of(width) {
            value_words[value_dim / width * panel_len..].fill(0);
        }
        let ones = &mut value_words[value_dim / width * panel_len..];
        for word in ones.iter_mut().skip(value_dim % width).step_by(width).take(format.words(keys)) {
            *word = if format == Format::Pairs { 0x3f80_3f80 } else { 1_f32.to_bits() };
        }
    }
}

/// Computes an attention into `out`, laid out as `layout` says. The queries, keys and values, and the weights that the
/// softmax gives, are rounded to `precision` before they are multiplied; for [`Precision::Int8`], which they would not
/// survive, to [`Precision::fastest`].
///
/// A query whose every key is hidden by negative infinity gets zeros.
/// Scratch: a packed copy of one head's keys and values, and some ten kilobytes per thread.
///
/// # Panics
///
/// When a slice is too short for its layout, the mask's size is not `[queries, keys]`, or elements of the output
/// overlap.
pub fn attention(args: &Attention<'_>, precision: Precision, out: &mut [f32], layout: HeadLayout) {
    let shape = &args.shape;
    layout.check_output(shape, out.len());
    if let Some(mask) = args.mask {
        assert_eq!((mask.rows, mask.cols), (shape.queries, shape.keys), "mask size differs from the scores'");
    }
    let format = Format::of(if precision == Precision::Int8 { Precision::fastest() } else { precision });
    let sides = Sides::new(shape, format);
    let out = Output { data: out.as_mut_ptr(), layout };
    let heads = shape.batch * shape.heads;
    let panels = sides.queries.panels();
    let work = shape.queries * shape.keys * (shape.dim + shape.value_dim);
    let shares_queries =
        work >= if heads < SOME_HEADS { SHARE_QUERIES_OF_FEW_FROM } else { SHARE_QUERIES_FROM };
    // In the order in which a product is likely to have made them, and on the same threads: by images, or by channels where
    // there are more of these than tokens of all images ([`crate::gemm`] shares the longer side).
    let by_head = !args.by_image && shape.queries * shape.batch < shape.heads * shape.dim;
    with_scratch(&MASK, args.mask.map_or(0, |_| shape.keys * args.mask_stride(&sides)), |mask| {
        args.lay_out_mask(&sides, mask);
        let attend = |index: usize| {
            let (image, head) = match by_head {
                true => (index % shape.batch, index / shape.batch),
                false => (index / shape.heads, index % shape.heads),
            };
            with_scratch(&PACKED, sides.key_words() + sides.value_words(), |packed| {
                let who = if shares_queries { Work::Shared { parts: 1 } } else { Work::Alone };
                args.pack(image, head, &sides, who, packed);
                let (keys, values) = packed.split_at(sides.key_words());
                let head = Head { args, image, head, sides: &sides, keys, values, mask, out: &out };
                run_tasks(shares_queries, panels, |panel| head.run(panel));
            });
        };
        run_tasks(!shares_queries && work * heads >= SHARE_FROM, heads, attend);
    });
}

/// The output, shared by tasks that write disjoint queries of it.
struct Output {
    data: *mut f32,
    layout: HeadLayout,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the tasks, all elements have places of their
// own (`HeadLayout::check_output`), and each query of each head is written by one task.
unsafe impl Sync for Output {}

/// One head, ready to be attended to.
struct Head<'a> {
    args: &'a Attention<'a>,
    image: usize,
    head: usize,
    sides: &'a Sides,
    keys: &'a [u32],
    values: &'a [u32],
    /// See [`Attention::lay_out_mask`].
    mask: &'a [f32],
    out: &'a Output,
}

impl Head<'_> {
    /// Computes the queries of one panel.
    fn run(&self, panel: usize) {
        let shape = &self.args.shape;
        let Sides { values, queries, .. } = self.sides;
        let (format, nr) = (queries.format, queries.width);
        let first = panel * nr;
        let count = nr.min(shape.queries - first);
        let query_len = format.panel_len(shape.dim, nr);
        let words_len = if format == Format::Single { 0 } else { format.panel_len(KEY_BLOCK, nr) };
        with_scratch(&WORDS, query_len + words_len, |words| {
            let (query, words) = words.split_at_mut(query_len);
            // Both hold other things before and after: see `pack_query` and `store`.
            let depth = shape.dim.next_multiple_of(GROUP);
            let sums_len = (self.sides.value_panels() * values.width).next_multiple_of(GROUP) * nr;
            let sums_len = sums_len.max(GROUP * depth);
            let weights_len = KEY_BLOCK.max(depth) * nr;
            with_scratch(&FLOATS, weights_len + sums_len, |scratch| {
                let (weights, sums) = scratch.split_at_mut(weights_len);
                let panel = QueryPanel { head: self, first, count, query, weights, words, sums };
                match format {
                    Format::Pairs => simd::attend_pairs(panel),
                    _ => tile::dispatch(format, panel),
                }
            });
        });
    }
}

/// What a score is a number of: natural logarithms, or binary ones where that makes exponentials cheaper.
fn unit(format: Format) -> f32 {
    if format == Format::Pairs { std::f32::consts::LN_2 } else { 1.0 }
}

/// A panel of queries with its scratch.
pub(crate) struct QueryPanel<'a> {
    head: &'a Head<'a>,
    first: usize,
    count: usize,
    /// `dim` by `nr`, scaled.
    query: &'a mut [u32],
    /// `[KEY_BLOCK][nr]`: weights but where [`Weigh::GIVES_WORDS`]. Before and after those, what is on its way from the
    /// queries or to the output.
    weights: &'a mut [f32],
    /// The weights as a panel, where they are not `f32`.
    words: &'a mut [u32],
    /// `[value_dim + 1 rounded up][nr]`: weighted values and, in their last row, the weights' sums.
    sums: &'a mut [f32],
}

impl PanelOp for QueryPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) {
        self.attend::<I, K, Exponentials<false>>(isa);
    }
}

/// One value for each query of a panel.
pub(crate) type PerQuery<I> = [<I as Isa>::F32; TILE_VECTORS];

/// Makes weights of scores.
pub(crate) trait Weigh<I: Isa> {
    /// Whether that fills `words`, not `weights`.
    const GIVES_WORDS: bool;

    /// Writes rows of `exp(score - reference)`. If one is NaN and cannot be told by the weights, it makes that query's
    /// value of `seen` NaN.
    fn weigh<const MR: usize>(
        isa: I,
        scores: &Tile<I, MR>,
        reference: &PerQuery<I>,
        seen: &mut PerQuery<I>,
        words: &mut [u32],
        weights: &mut [f32],
    );
}

/// Weights as accurate as `f32`, of scores that are natural logarithms or binary ones.
pub(crate) struct Exponentials<const BINARY: bool>;

impl<I: Isa, const BINARY: bool> Weigh<I> for Exponentials<BINARY> {
    const GIVES_WORDS: bool = false;

    #[inline(always)]
    fn weigh<const MR: usize>(
        isa: I,
        scores: &Tile<I, MR>,
        reference: &PerQuery<I>,
        _seen: &mut PerQuery<I>,
        _words: &mut [u32],
        weights: &mut [f32],
    ) {
        let ops = isa.f32();
        for (scores, row) in scores.iter().zip(weights.chunks_exact_mut(TILE_VECTORS * ops.len())) {
            let vectors = scores.iter().zip(reference).zip(row.chunks_exact_mut(ops.len()));
            for ((score, reference), place) in vectors {
                let mut power = ops.sub(*score, *reference);
                if BINARY {
                    power = ops.mul(power, ops.splat(std::f32::consts::LN_2));
                }
                ops.store(exp_nonpositive(isa, power), place);
            }
        }
    }
}

/// What a panel's weights relate to.
struct References<I: Isa> {
    /// Never more than the largest score so far, and less by at most [`SLACK`].
    reference: PerQuery<I>,
    /// See [`Weigh::weigh`].
    seen: PerQuery<I>,
}

impl QueryPanel<'_> {
    /// Computes the panel's output.
    #[inline(always)]
    pub(crate) fn attend<I: Isa, K: Microkernel<I>, W: Weigh<I>>(mut self, isa: I) {
        let ops = isa.f32();
        let Sides { keys, .. } = self.head.sides;
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

    /// Packs the queries, multiplied by the scores' scale.
    #[inline(always)]
    fn pack_query<I: Isa>(&mut self, isa: I) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let Head { image, head, args, sides, .. } = self.head;
        let AttentionShape { queries, dim, .. } = args.shape;
        let format = sides.queries.format;
        let scale = args.scale / unit(format);
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

    /// Makes weights of the keys from `key` on, of a block that begins at `start`: see [`score_tile`](Self::score_tile).
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
        match self.head.sides.keys.width {
            8 => self.score_tile::<I, K, W, 8>(isa, start, key, state),
            10 => self.score_tile::<I, K, W, 10>(isa, start, key, state),
            12 => self.score_tile::<I, K, W, 12>(isa, start, key, state),
            _ => self.score_tile::<I, K, W, 14>(isa, start, key, state),
        }
    }

    /// Makes weights of the keys of one tile. If that needs another reference and there are weights already that relate
    /// to the old one, does nothing and says so with `false`.
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
        let PackedShape { format, depth, lanes, .. } = self.head.sides.keys;
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
            self.refer(isa, max, state);
        }
        let words = self.words.get_mut(format.words(key - start) * nr..).unwrap_or_default();
        let weights = &mut self.weights[(key - start) * nr..];
        W::weigh::<MR>(isa, &scores, &state.reference, &mut state.seen, words, weights);
        true
    }

    /// Adds the mask to the scores of a tile, and hides keys that are not there.
    #[inline(always)]
    fn mask<I: Isa, const MR: usize>(&self, isa: I, first_key: usize, scores: &mut Tile<I, MR>) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let Head { args, sides, mask, .. } = self.head;
        let stride = args.mask_stride(sides);
        // The first panel is everybody's if there is one only.
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

    /// Makes the largest of some scores the reference where they are larger, and what was summed relate to that.
    #[inline(always)]
    fn refer<I: Isa>(&mut self, isa: I, max: PerQuery<I>, state: &mut References<I>) {
        let ops = isa.f32();
        let unit = ops.splat(unit(self.head.sides.keys.format));
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

    /// Adds the values of `count` keys from `start` on, multiplied by their weights.
    #[inline(always)]
    fn multiply<I: Isa, K: Microkernel<I>, W: Weigh<I>>(&mut self, isa: I, start: usize, count: usize) {
        let nr = TILE_VECTORS * isa.f32().len();
        let PackedShape { format, width, .. } = self.head.sides.values;
        if !W::GIVES_WORDS && format != Format::Single {
            encode_rows(format, PackedSide::Right, &self.weights[..count * nr], nr, self.words);
        }
        for panel in 0..self.head.sides.value_panels() {
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

    /// [`multiply`](Self::multiply) for one panel of values.
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
        let PackedShape { format, depth, .. } = self.head.sides.values;
        let values = Panels::new(self.head.values, format.panel_len(depth, MR));
        let values = &values.panel(panel)[format.words(start) * MR..];
        let weights: &[u32] =
            if format == Format::Single { bytemuck::cast_slice(self.weights) } else { self.words };
        let products = K::multiply::<MR, _>(isa, format.words(count), values, weights, ());
        let sums = &mut self.sums[panel * MR * nr..][..MR * nr];
        for (products, row) in products.into_iter().zip(sums.chunks_exact_mut(nr)) {
            for (product, place) in products.into_iter().zip(row.chunks_exact_mut(ops.len())) {
                ops.store(ops.add(ops.load(place), product), place);
            }
        }
    }

    /// Divides by the weights' sum and writes the queries' rows.
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
        // SAFETY: image, head, query and channel are within the shape that `check_output` measured the output against, and
        // these queries belong to this task alone.
        let place = |query: usize, channel: usize| unsafe {
            data.add(base + query * layout.token + channel * layout.channel)
        };
        if layout.token == 1 {
            for (channel, row) in self.sums.chunks_exact(nr).take(value_dim).enumerate() {
                // SAFETY: these are `count` queries of the channel, side by side.
                unsafe { place(0, channel).copy_from_nonoverlapping(row.as_ptr(), self.count) };
            }
            return;
        }
        for (block, rows) in self.sums.chunks_exact(GROUP * nr).take(value_dim.div_ceil(GROUP)).enumerate() {
            let (first, count) = (block * GROUP, GROUP.min(value_dim - block * GROUP));
            transpose(rows, nr, GROUP, self.weights, GROUP, 0);
            for (query, lane) in self.weights.chunks_exact(GROUP).take(self.count).enumerate() {
                if layout.channel == 1 && count == GROUP {
                    // SAFETY: these are sixteen channels of the query, side by side.
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

/// [`pack::transpose`] of elements.
fn transpose(lanes: &[f32], len: usize, count: usize, rows: &mut [f32], width: usize, offset: usize) {
    let lanes = Lanes { words: bytemuck::cast_slice(lanes), stride: len, len, count };
    pack::transpose(lanes, bytemuck::cast_slice_mut(rows), width, offset);
}

#[cfg(test)]
mod tests;
