//! The inputs of an attention, packed for its products.

use super::shape::{AttentionShape, Heads};
use crate::gemm::format::{Format, PackedSide};
use crate::gemm::pack::{PackedShape, Work};
use crate::gemm::source::Strided;
use crate::matrix::{Mat, MatRef};
use crate::pool::{for_each_chunk_mut, rows_per_task};
use crate::simd::microkernel::best_height;

/// Heights of score tiles where there are 32 vector registers: even, because [`Format::Bf16x2`] holds two
/// keys in a word.
const SCORE_HEIGHTS: [usize; 4] = [8, 10, 12, 14];
/// Heights of tiles of weighted values where there are 32 vector registers.
const VALUE_HEIGHTS: [usize; 6] = [9, 10, 11, 12, 13, 14];

/// The division of an attention's heads among threads. It affects speed only: each thread finds in its cache
/// the rows that it wrote in the layer before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// Image by image: the layers before split their work by token.
    Images,
    /// Head by head of all images: the layers before split their work by channel.
    Heads,
}

impl Partition {
    /// The partition that follows layers without packed weights, which split the longer of tokens and
    /// channels. Layers with [packed](crate::PackedMatrix) weights split tokens: use [`Images`](Self::Images)
    /// after them.
    pub fn of(shape: &AttentionShape) -> Self {
        if shape.queries * shape.batch < shape.heads * shape.dim { Self::Heads } else { Self::Images }
    }
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
    /// The scale of the scores: usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// `[queries, keys]`, added to every head's scores; negative infinity hides a key.
    pub mask: Option<MatRef<'a>>,
    /// The division of the heads among threads.
    pub partition: Partition,
}

/// The shapes of an attention's packed inputs.
#[derive(Clone, Copy)]
pub(super) struct PackedInputs {
    pub(super) keys: PackedShape,
    pub(super) values: PackedShape,
    pub(super) queries: PackedShape,
}

impl PackedInputs {
    pub(super) fn new(shape: &AttentionShape, format: Format) -> Self {
        let &AttentionShape { queries, keys, dim, value_dim, .. } = shape;
        // All three need one format, also where one of them is empty.
        let format = if keys * dim == 0 { Format::F32 } else { format };
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

    /// Panels of the values and of the row of ones below them.
    pub(super) fn value_panels(&self) -> usize {
        (self.values.lanes + 1).div_ceil(self.values.width)
    }

    /// Words of all keys.
    pub(super) fn key_words(&self) -> usize {
        self.keys.panels() * self.keys.format.panel_len(self.keys.depth, self.keys.width)
    }

    /// Words of all values and the ones.
    pub(super) fn value_words(&self) -> usize {
        self.value_panels() * self.values.format.panel_len(self.values.depth, self.values.width)
    }
}

/// The unit of scores in natural logarithms: binary ones where that makes exponentials cheaper.
pub(super) fn score_unit(format: Format) -> f32 {
    if format == Format::Bf16x2 { std::f32::consts::LN_2 } else { 1.0 }
}

impl Attention<'_> {
    /// Elements between the rows of two keys in the transposed mask: whole panels of queries, or a single
    /// panel if all queries have the same mask.
    pub(super) fn mask_stride(&self, packed: &PackedInputs) -> usize {
        match self.mask {
            Some(Mat { row_stride: 0, .. }) => packed.queries.width,
            _ => self.shape.queries.next_multiple_of(packed.queries.width),
        }
    }

    /// Writes the mask as score tiles need it: a row for each key, in the scores' unit.
    pub(super) fn transpose_mask(&self, packed: &PackedInputs, rows: &mut [f32]) {
        let Some(mask) = self.mask else { return };
        let (stride, inverse) = (self.mask_stride(packed), 1.0 / score_unit(packed.keys.format));
        for_each_chunk_mut(rows, stride * rows_per_task(stride), |task, rows| {
            for (row, key) in rows.chunks_exact_mut(stride).zip(task * rows_per_task(stride)..) {
                row.fill(0.0);
                for (place, query) in row.iter_mut().zip(0..self.shape.queries) {
                    let masked = mask.data[query * mask.row_stride + key * mask.col_stride];
                    // Finite values stay finite: a query whose every key has the lowest number sees all keys
                    // alike.
                    let limit = if masked.is_finite() { f32::MAX } else { f32::INFINITY };
                    *place = (masked * inverse).clamp(-limit, limit);
                }
            }
        });
    }

    /// Packs a head's keys and values.
    pub(super) fn pack(
        &self,
        image: usize,
        head: usize,
        packed: &PackedInputs,
        work: Work,
        words: &mut [u32],
    ) {
        let AttentionShape { keys, dim, value_dim, .. } = self.shape;
        let (key_words, value_words) = words.split_at_mut(packed.key_words());
        let key = self.key.layout.matrix(self.key.data, image, head, keys, dim);
        let value = self.value.layout.matrix(self.value.data, image, head, keys, value_dim).transposed();
        let pack = |mat: &MatRef<'_>, shape: &PackedShape, words: &mut [u32]| {
            let source = Strided::of_floats(mat, PackedSide::Left);
            shape.pack_by(shape.depth, &[source.source()], 0..shape.panels(), 0..shape.depth, work, words);
        };
        pack(&key, &packed.keys, key_words);
        pack(&value, &packed.values, value_words);
        let PackedShape { format, width, .. } = packed.values;
        let panel_len = format.panel_len(keys, width);
        if value_dim.is_multiple_of(width) {
            value_words[value_dim / width * panel_len..].fill(0);
        }
        let ones = &mut value_words[value_dim / width * panel_len..];
        for word in ones.iter_mut().skip(value_dim % width).step_by(width).take(format.words(keys)) {
            *word = if format == Format::Bf16x2 { 0x3f80_3f80 } else { 1_f32.to_bits() };
        }
    }
}
