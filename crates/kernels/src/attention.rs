//! Scaled dot-product attention without a score matrix.
//!
//! `out = softmax(query * key^T * scale + mask) * value`, for every image and head. A task takes as many queries
//! as the micro-kernel's tile is wide and walks over blocks of keys with the online softmax of Milakov and
//! Gimelshein (2018), as FlashAttention does: scores of one block live in the L1 cache, and the maximum, the sum
//! and the weighted values are corrected as larger scores turn up.
//!
//! Queries run along the vector lanes, so that the softmax needs no sums across a vector and its result is
//! already in the layout of the second product's right side.

use std::cell::RefCell;
use std::ops::Range;

use rten_simd::Isa;
use rten_simd::ops::{BitOps, FloatOps, NumOps};

use crate::format::{Format, encode_rows};
use crate::gemm::Panels;
use crate::gemm::tile::{self, Microkernel, NARROW_MR, PanelOp, TILE_VECTORS, WIDE_MR, is_wide};
use crate::matrix::{Mat, MatRef};
use crate::panels::{PackedShape, PackedSide, pack_tasks, run_tasks, with_scratch};
use crate::precision::Precision;
use crate::source::{ByDepth, ByLane, Dense, Source};

/// Keys in a block: a multiple of every tile height.
const KEY_BLOCK: usize = 252;
/// Multiply-adds of one head from which on its queries are shared among threads; below, heads are.
const SHARE_QUERIES_FROM: usize = 1 << 23;
/// Multiply-adds of all heads below which everything stays on the calling thread.
const SHARE_FROM: usize = 1 << 18;

thread_local! {
    /// A head's keys and values.
    static PACKED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// A panel of queries, and its weights where they are not `f32`.
    static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// Scores and sums.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
        Self {
            keys: PackedShape::new(keys, dim, PackedSide::Left, format),
            values: PackedShape::new(value_dim, keys, PackedSide::Left, format),
            queries: PackedShape::new(queries, dim, PackedSide::Right, format),
        }
    }

    /// The words of a side whose whole depth is one block.
    fn len(side: &PackedShape) -> usize {
        side.panels() * side.format.panel_len(side.depth, side.width)
    }
}

impl Attention<'_> {
    /// Packs a head's keys and values.
    fn pack(&self, image: usize, head: usize, sides: &Sides, share: bool, packed: &mut [u32]) {
        let AttentionShape { keys, dim, value_dim, .. } = self.shape;
        let (key_words, value_words) = packed.split_at_mut(Sides::len(&sides.keys));
        let key = Dense::new(self.key.layout.matrix(self.key.data, image, head, keys, dim), PackedSide::Left);
        let value = self.value.layout.matrix(self.value.data, image, head, keys, value_dim).transposed();
        let value = Dense::new(value, PackedSide::Left);
        let pack = |source: Source<'_>, side: &PackedShape, words: &mut [u32]| {
            pack_tasks(&[source], side, 0..side.panels(), 0..side.depth, share, words);
        };
        pack(key.source(), &sides.keys, key_words);
        pack(value.source(), &sides.values, value_words);
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
    let shares_queries = work >= SHARE_QUERIES_FROM;
    let attend = |index: usize| {
        let (image, head) = (index / shape.heads, index % shape.heads);
        with_scratch(&PACKED, Sides::len(&sides.keys) + Sides::len(&sides.values), |packed| {
            args.pack(image, head, &sides, shares_queries, packed);
            let (keys, values) = packed.split_at(Sides::len(&sides.keys));
            let head = Head { args, image, head, sides: &sides, keys, values, out: &out };
            run_tasks(shares_queries, panels, |panel| head.run(panel));
        });
    };
    run_tasks(!shares_queries && work * heads >= SHARE_FROM, heads, attend);
}

/// Queries, multiplied by the scores' scale.
struct Scaled<'a>(Dense<&'a [f32]>, f32);

impl Scaled<'_> {
    fn source(&self) -> Source<'_> {
        match self.0.source() {
            Source::ByLane(_) => Source::ByLane(self),
            Source::ByDepth(_) => Source::ByDepth(self),
        }
    }
}

impl ByLane for Scaled<'_> {
    fn lanes(&self) -> usize {
        ByLane::lanes(&self.0)
    }

    fn read(&self, lane: usize, depths: Range<usize>, out: &mut [f32]) {
        ByLane::read(&self.0, lane, depths, out);
        out.iter_mut().for_each(|value| *value *= self.1);
    }
}

impl ByDepth for Scaled<'_> {
    fn lanes(&self) -> usize {
        ByDepth::lanes(&self.0)
    }

    fn read(&self, lanes: Range<usize>, depths: Range<usize>, width: usize, rows: &mut [f32]) {
        let count = lanes.len();
        ByDepth::read(&self.0, lanes, depths, width, rows);
        for row in rows.chunks_exact_mut(width) {
            row[..count].iter_mut().for_each(|value| *value *= self.1);
        }
    }
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
        let weights_len = if format == Format::Single { 0 } else { format.panel_len(KEY_BLOCK, nr) };
        with_scratch(&WORDS, query_len + weights_len, |words| {
            let (query, weights) = words.split_at_mut(query_len);
            let layout = self.args.query.layout;
            let matrix = layout.matrix(self.args.query.data, self.image, self.head, shape.queries, shape.dim);
            let source = Scaled(Dense::new(matrix.transposed(), PackedSide::Right), self.args.scale);
            pack_tasks(&[source.source()], queries, panel..panel + 1, 0..shape.dim, false, query);
            with_scratch(&SCORES, (KEY_BLOCK + values.panels() * values.width) * nr, |scratch| {
                let (scores, sums) = scratch.split_at_mut(KEY_BLOCK * nr);
                sums.fill(0.0);
                let panel = QueryPanel { head: self, first, count, query, scores, weights, sums };
                tile::dispatch(format, panel);
            });
        });
    }
}

/// A panel of queries with its scratch.
struct QueryPanel<'a> {
    head: &'a Head<'a>,
    first: usize,
    count: usize,
    /// `dim` by `nr`, scaled.
    query: &'a [u32],
    /// `[KEY_BLOCK][nr]`.
    scores: &'a mut [f32],
    /// The scores' weights as a panel, where they are not `f32`.
    weights: &'a mut [u32],
    /// `[value_dim rounded up][nr]`: weighted values.
    sums: &'a mut [f32],
}

impl PanelOp for QueryPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) {
        if is_wide(isa) {
            self.attend::<I, K, WIDE_MR>(isa);
        } else {
            self.attend::<I, K, NARROW_MR>(isa);
        }
    }
}

/// One value for each query of a panel.
type PerQuery<I> = [<I as Isa>::F32; TILE_VECTORS];

impl QueryPanel<'_> {
    #[inline(always)]
    fn attend<I: Isa, K: Microkernel<I>, const MR: usize>(mut self, isa: I) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let shape = self.head.args.shape;
        let format = self.head.sides.values.format;
        let mut max = [ops.splat(f32::MIN); TILE_VECTORS];
        let mut total = [ops.zero(); TILE_VECTORS];
        let value_panels = Panels::new(self.head.values, format.panel_len(shape.keys, MR));
        for start in (0..shape.keys).step_by(KEY_BLOCK) {
            let count = KEY_BLOCK.min(shape.keys - start);
            self.score_block::<I, K, MR>(isa, start, count);
            let shrink = self.softmax_block(isa, count, &mut max, &mut total);
            let weights: &[u32] = if format == Format::Single {
                bytemuck::cast_slice(self.scores)
            } else {
                encode_rows(format, PackedSide::Right, &self.scores[..count * nr], nr, self.weights);
                self.weights
            };
            for panel in 0..shape.value_dim.div_ceil(MR) {
                let values = &value_panels.panel(panel)[format.words(start) * MR..];
                let products = K::multiply::<MR>(isa, format.words(count), values, weights);
                for (row, products) in products.into_iter().enumerate() {
                    for (vector, product) in products.into_iter().enumerate() {
                        let place = ((panel * MR + row) * TILE_VECTORS + vector) * ops.len();
                        let sum = &mut self.sums[place..place + ops.len()];
                        ops.store(ops.mul_add(ops.load(sum), shrink[vector], product), sum);
                    }
                }
            }
        }
        self.store(isa, total);
    }

    /// Scores of the queries with a block of keys, the mask added.
    #[inline(always)]
    fn score_block<I: Isa, K: Microkernel<I>, const MR: usize>(
        &mut self,
        isa: I,
        start: usize,
        count: usize,
    ) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let args = self.head.args;
        let format = self.head.sides.keys.format;
        let keys = Panels::new(self.head.keys, format.panel_len(args.shape.dim, MR));
        for (panel, block) in self.scores.chunks_exact_mut(MR * nr).take(count.div_ceil(MR)).enumerate() {
            let words = format.words(args.shape.dim);
            let products = K::multiply::<MR>(isa, words, keys.panel(start / MR + panel), self.query);
            for (row, products) in block.chunks_exact_mut(nr).zip(products) {
                for (place, product) in row.chunks_exact_mut(ops.len()).zip(products) {
                    ops.store(product, place);
                }
            }
        }
        if let Some(mask) = args.mask {
            for (key, row) in self.scores.chunks_exact_mut(nr).take(count).enumerate() {
                for (query, score) in row.iter_mut().take(self.count).enumerate() {
                    *score +=
                        mask.data[(self.first + query) * mask.row_stride + (start + key) * mask.col_stride];
                }
            }
        }
    }

    /// Turns a block of scores into weights relative to the new maximum; returns what earlier sums shrink by.
    #[inline(always)]
    fn softmax_block<I: Isa>(
        &mut self,
        isa: I,
        count: usize,
        max: &mut PerQuery<I>,
        total: &mut PerQuery<I>,
    ) -> PerQuery<I> {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let mut new_max = *max;
        for row in self.scores.chunks_exact(nr).take(count) {
            for (place, max) in row.chunks_exact(ops.len()).zip(&mut new_max) {
                *max = ops.max(*max, ops.load(place));
            }
        }
        let mut sum = [ops.zero(); TILE_VECTORS];
        for row in self.scores.chunks_exact_mut(nr).take(count) {
            for ((place, max), sum) in row.chunks_exact_mut(ops.len()).zip(new_max).zip(&mut sum) {
                let weight = crate::math::exp_nonpositive(isa, ops.sub(ops.load(place), max));
                ops.store(weight, place);
                *sum = ops.add(*sum, weight);
            }
        }
        let mut shrink = [ops.zero(); TILE_VECTORS];
        for vector in 0..TILE_VECTORS {
            shrink[vector] = crate::math::exp_nonpositive(isa, ops.sub(max[vector], new_max[vector]));
            total[vector] = ops.mul_add(total[vector], shrink[vector], sum[vector]);
        }
        *max = new_max;
        shrink
    }

    /// Divides by the weights' sum and writes the queries' rows.
    #[inline(always)]
    fn store<I: Isa>(self, isa: I, total: PerQuery<I>) {
        let ops = isa.f32();
        let nr = TILE_VECTORS * ops.len();
        let inverse =
            total.map(|total| ops.select(ops.zero(), ops.reciprocal(total), ops.eq(total, ops.zero())));
        for row in self.sums.chunks_exact_mut(nr) {
            for (place, inverse) in row.chunks_exact_mut(ops.len()).zip(inverse) {
                ops.store(ops.mul(ops.load(place), inverse), place);
            }
        }
        let Head { image, head, out, args, .. } = self.head;
        let base = image * out.layout.batch + head * out.layout.head;
        for query in 0..self.count {
            let base = base + (self.first + query) * out.layout.token;
            for channel in 0..args.shape.value_dim {
                // SAFETY: image, head, query and channel are within the shape that `check_output` measured the
                // output against, and this query belongs to this task alone.
                unsafe {
                    *out.data.add(base + channel * out.layout.channel) = self.sums[channel * nr + query]
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
