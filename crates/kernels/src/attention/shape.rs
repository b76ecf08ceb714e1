//! Sizes of an attention, and where its heads are in memory.

use crate::matrix::{Mat, MatRef};

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

/// The distances, in elements, between neighbours along each axis of all heads.
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
    /// `[batch, tokens, heads * dim]`: the output of a linear layer.
    pub fn token_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: tokens * heads * dim, head: dim, token: heads * dim, channel: 1 }
    }

    /// `[batch, heads, tokens, dim]`.
    pub fn head_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: heads * tokens * dim, head: tokens * dim, token: dim, channel: 1 }
    }

    /// `[batch, heads, dim, tokens]`: the output of a 1x1 convolution.
    pub fn channel_major(heads: usize, tokens: usize, dim: usize) -> Self {
        Self { batch: heads * tokens * dim, head: tokens * dim, token: 1, channel: tokens }
    }

    /// The head's matrix `[tokens, dim]`.
    pub(super) fn matrix<'a>(
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

    /// Panics unless all elements of the output lie within `len` and none overlap.
    pub(super) fn check_output(&self, shape: &AttentionShape, len: usize) {
        let sizes = [shape.batch, shape.heads, shape.queries, shape.value_dim];
        if sizes.contains(&0) {
            return;
        }
        let mut axes =
            [(self.batch, sizes[0]), (self.head, sizes[1]), (self.token, sizes[2]), (self.channel, sizes[3])];
        axes.sort_unstable();
        let mut extent = Some(1_usize);
        for (stride, size) in axes {
            let is_apart = size == 1 || extent.is_some_and(|extent| stride >= extent);
            assert!(is_apart, "elements of the attention's output overlap: {self:?}");
            extent = stride.checked_mul(size - 1).and_then(|more| extent?.checked_add(more));
        }
        assert!(
            extent.is_some_and(|extent| extent <= len),
            "the attention's output exceeds its {len} elements: {self:?}"
        );
    }
}

/// One input of an attention with its layout.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// All images and heads.
    pub data: &'a [f32],
    /// Their layout in `data`.
    pub layout: HeadLayout,
}
