//! Tensors `[outer, axis, inner]` for kernels that work along one axis, and blocks of their columns.

use crate::pool::{GRAIN, parallel_for};

/// The sizes of a tensor `[outer, axis, inner]`, for kernels that work along its middle axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisShape {
    /// The product of the sizes before the axis.
    pub outer: usize,
    /// The size of the axis.
    pub axis: usize,
    /// The product of the sizes after the axis; 1 if it is the last.
    pub inner: usize,
}

impl AxisShape {
    /// The number of elements.
    ///
    /// # Panics
    ///
    /// When it overflows.
    pub fn element_count(&self) -> usize {
        let Self { outer, axis, inner } = *self;
        let count = outer.checked_mul(axis).and_then(|count| count.checked_mul(inner));
        count.unwrap_or_else(|| panic!("the elements of [{outer}, {axis}, {inner}] overflow"))
    }
}

/// The most columns in a block: a few cache lines of each row.
pub(crate) const WIDTH: usize = 64;

/// Neighbouring columns of one `[axis, inner]` matrix of the output, owned by one task.
pub(crate) struct ColumnBlock<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

impl ColumnBlock<'_> {
    /// The size of the axis.
    #[inline(always)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns, at most [`WIDTH`].
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Elements between rows.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The block's elements of a row.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows);
        // SAFETY: the row lies within the output, which `for_each_column_block` borrowed and measured, and no
        // other block has these columns.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index * self.stride), self.width) }
    }
}

/// The start of the output, shared by tasks that take disjoint blocks of it.
struct Start(*mut f32);

// SAFETY: used only to make disjoint `ColumnBlock`s, each owned by one task.
unsafe impl Sync for Start {}

/// Calls `body(first, block)` for blocks that cover `out[outer, axis, inner]`; `first` is the index in `out`
/// of the block's first element.
pub(crate) fn for_each_column_block(
    shape: &AxisShape,
    out: &mut [f32],
    body: impl Fn(usize, ColumnBlock<'_>) + Sync,
) {
    assert_eq!(out.len(), shape.element_count());
    let blocks = shape.inner.div_ceil(WIDTH);
    let start = Start(out.as_mut_ptr());
    let start = &start;
    let run = |index: usize| {
        let column = index % blocks * WIDTH;
        let first = index / blocks * shape.axis * shape.inner + column;
        // SAFETY: `index` is below `outer * blocks`, so `first` is an element of `out`.
        let data = unsafe { start.0.add(first) };
        let width = WIDTH.min(shape.inner - column);
        body(
            first,
            ColumnBlock {
                data,
                rows: shape.axis,
                width,
                stride: shape.inner,
                borrow: std::marker::PhantomData,
            },
        );
    };
    if shape.axis == 0 || shape.inner == 0 {
        return;
    }
    let count = shape.outer * blocks;
    let per_task = (GRAIN / (WIDTH * shape.axis)).max(1);
    parallel_for(count.div_ceil(per_task), |task| {
        (task * per_task..((task + 1) * per_task).min(count)).for_each(run);
    });
}
