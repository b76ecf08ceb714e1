//! Scaled dot-product attention without a score matrix.
//!
//! `out = softmax(query * key^T * scale + mask) * value`, for every image and head. A task takes one panel of
//! queries, as wide as the micro-kernel's tile, and walks over tiles of keys. A tile's scores become weights
//! before they leave the registers. The weights of a block of keys stay in the L1 cache until they are
//! multiplied by the values.
//!
//! Weights are relative to a reference, as in the online softmax of Milakov and Gimelshein (2018). Here the
//! reference is raised only when a score exceeds it by more than a slack of 16: floating point is as accurate
//! at any scale, so sums rarely need rescaling.
//!
//! Queries run along the vector lanes. The softmax therefore needs no sums across a vector, and its result
//! already has the layout of the second product's right side. The weights' sum is the product with a row of
//! ones below the values: that costs half an addition, and the row often replaces padding.

mod inputs;
mod panel;
mod shape;

pub use inputs::{Attention, Partition};
pub use shape::{AttentionShape, HeadLayout, Heads};

use std::cell::RefCell;

use inputs::PackedInputs;
use panel::{Head, Output};

use crate::gemm::format::Format;
use crate::gemm::pack::Work;
use crate::memory::{Memory, with_scratch};
use crate::pool::run_tasks;
use crate::precision::Precision;

/// Multiply-adds of one head from which on its queries, rather than the heads, are shared among threads.
const SHARE_QUERIES_FROM: usize = 1 << 26;
/// The same where there are fewer than [`SOME_HEADS`].
const SHARE_QUERIES_OF_FEW_FROM: usize = 1 << 23;
const SOME_HEADS: usize = 8;
/// Multiply-adds of all heads below which everything stays on the calling thread.
const SHARE_FROM: usize = 1 << 18;

thread_local! {
    /// The transposed mask.
    static MASK: RefCell<Memory<f32>> = const { RefCell::new(Memory::new()) };
    /// A head's keys and values.
    static PACKED: RefCell<Memory<u32>> = const { RefCell::new(Memory::new()) };
}

/// Computes an attention into `out`, which has the given `layout`.
///
/// Queries, keys, values and softmax weights are rounded to `precision` before they are multiplied.
/// [`Precision::Int8`] is too coarse for them: [`Precision::fastest`] is used instead. A query whose keys are
/// all hidden by negative infinity gets zeros.
///
/// Scratch: a packed copy of one head's keys and values, and some ten kilobytes per thread.
///
/// # Panics
///
/// When a slice is too short for its layout, the mask's size is not `[queries, keys]`, or elements of the
/// output overlap.
pub fn attention(args: &Attention<'_>, precision: Precision, out: &mut [f32], layout: HeadLayout) {
    let shape = &args.shape;
    layout.check_output(shape, out.len());
    if let Some(mask) = args.mask {
        assert_eq!((mask.rows, mask.cols), (shape.queries, shape.keys), "mask size differs from the scores'");
    }
    let format = Format::of(if precision == Precision::Int8 { Precision::fastest() } else { precision });
    let packed = PackedInputs::new(shape, format);
    let out = Output { data: out.as_mut_ptr(), layout };
    let heads = shape.batch * shape.heads;
    let panels = packed.queries.panels();
    let work = shape.queries * shape.keys * (shape.dim + shape.value_dim);
    let shares_queries =
        work >= if heads < SOME_HEADS { SHARE_QUERIES_OF_FEW_FROM } else { SHARE_QUERIES_FROM };
    with_scratch(&MASK, args.mask.map_or(0, |_| shape.keys * args.mask_stride(&packed)), |mask| {
        args.transpose_mask(&packed, mask);
        let attend = |index: usize| {
            let (image, head) = match args.partition {
                Partition::Heads => (index % shape.batch, index / shape.batch),
                Partition::Images => (index / shape.heads, index % shape.heads),
            };
            with_scratch(&PACKED, packed.key_words() + packed.value_words(), |words| {
                let who = if shares_queries { Work::Shared { parts: 1 } } else { Work::Alone };
                args.pack(image, head, &packed, who, words);
                let (keys, values) = words.split_at(packed.key_words());
                let head = Head { args, image, head, packed: &packed, keys, values, mask, out: &out };
                run_tasks(shares_queries, panels, |panel| head.run(panel));
            });
        };
        run_tasks(!shares_queries && work * heads >= SHARE_FROM, heads, attend);
    });
}

#[cfg(test)]
mod tests;
