//! Where panels come from: the sides of a product as they are stored.
//!
//! A new storage form (an image seen through a convolution window, a palettized weight) implements [`ByLane`] or
//! [`ByDepth`], or [`Runs`] if it is a matrix of elements that are decoded a run at a time, to take part in a product.

use std::any::TypeId;
use std::ops::Range;

use crate::convert::Element;
use crate::gemm::format::{Format, LaneScale};
use crate::gemm::pack::PackedSide;
use crate::matrix::Mat;
use crate::simd;

/// A side whose lanes each have their depth together.
pub(crate) trait ByLane: Sync {
    /// The number of rows (left side) or columns (right side).
    fn lanes(&self) -> usize;

    /// Writes the given depths of one lane.
    fn read(&self, lane: usize, depths: Range<usize>, out: &mut [f32]);

    /// Writes the given depths of one lane as words of a format, if that is faster without values in between.
    fn encode(
        &self,
        _lane: usize,
        _depths: &Range<usize>,
        _format: Format,
        _side: PackedSide,
        _words: &mut [u32],
    ) -> Option<LaneScale> {
        None
    }

    /// The memory of some depths of a lane, if they lie together. The lane may be beyond the last.
    fn stored(&self, _lane: usize, _depths: &Range<usize>) -> &[u8] {
        &[]
    }
}

/// A side whose depths each have their lanes together.
pub(crate) trait ByDepth: Sync {
    /// The number of rows (left side) or columns (right side).
    fn lanes(&self) -> usize;

    /// Writes rows of `width` elements, one for each depth, that begin with the given lanes. What is behind them in a row
    /// is left alone.
    fn read(&self, lanes: Range<usize>, depths: Range<usize>, width: usize, rows: &mut [f32]);

    /// The memory of some lanes at one depth, if they lie together.
    fn stored(&self, _lanes: Range<usize>, _depth: usize) -> &[u8] {
        &[]
    }

    /// The elements from the first lane of the first depth on, and how far depths are apart, if they are stored as they are.
    fn floats(&self) -> Option<(&[f32], usize)> {
        None
    }

    /// Asks for what [`read`](Self::read) would read, some time before it does.
    fn prefetch(&self, lanes: Range<usize>, depths: Range<usize>) {
        depths.for_each(|depth| simd::prefetch(self.stored(lanes.clone(), depth)));
    }
}

/// One side of a product as it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    ByLane(&'a dyn ByLane),
    ByDepth(&'a dyn ByDepth),
}

impl Source<'_> {
    pub(crate) fn lanes(&self) -> usize {
        match self {
            Self::ByLane(source) => source.lanes(),
            Self::ByDepth(source) => source.lanes(),
        }
    }
}

/// Stored elements that are widened, or decoded, a run at a time.
pub(crate) trait Runs: Copy + Send + Sync {
    /// The values of the elements from `start` on.
    fn widen_run(&self, start: usize, out: &mut [f32]);

    /// The memory where `len` elements from `start` on lie, as far as there are so many.
    fn stored(&self, start: usize, len: usize) -> &[u8];

    /// All elements, if they are stored as they are.
    fn floats(&self) -> Option<&[f32]> {
        None
    }

    /// Writes `len` elements from `start` on as a lane's words, if that is faster without values in between.
    fn encode_run(
        &self,
        _start: usize,
        _len: usize,
        _format: Format,
        _side: PackedSide,
        _words: &mut [u32],
    ) -> Option<LaneScale> {
        None
    }
}

impl<T: Element> Runs for &[T] {
    #[inline(always)]
    fn widen_run(&self, start: usize, out: &mut [f32]) {
        T::widen_slice(&self[start..start + out.len()], out);
    }

    fn stored(&self, start: usize, len: usize) -> &[u8] {
        bytemuck::cast_slice(self.get(start..start + len).unwrap_or_default())
    }

    fn floats(&self) -> Option<&[f32]> {
        (TypeId::of::<T>() == TypeId::of::<f32>()).then(|| bytemuck::cast_slice(self))
    }

    fn encode_run(
        &self,
        start: usize,
        len: usize,
        format: Format,
        side: PackedSide,
        words: &mut [u32],
    ) -> Option<LaneScale> {
        T::encode(&self[start..start + len], format, side, words)
    }
}

/// A strided matrix as one side of a product.
pub(crate) struct Dense<R> {
    data: R,
    lanes: usize,
    lane_stride: usize,
    depth_stride: usize,
}

impl<R: Runs> Dense<R> {
    pub(crate) fn new(mat: Mat<R>, side: PackedSide) -> Self {
        let Mat { data, rows, cols, row_stride, col_stride } = mat;
        match side {
            PackedSide::Left => Self { data, lanes: rows, lane_stride: row_stride, depth_stride: col_stride },
            PackedSide::Right => {
                Self { data, lanes: cols, lane_stride: col_stride, depth_stride: row_stride }
            }
        }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        if self.lane_stride == 1 { Source::ByDepth(self) } else { Source::ByLane(self) }
    }
}

impl<R: Runs> ByLane for Dense<R> {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn read(&self, lane: usize, depths: Range<usize>, out: &mut [f32]) {
        let start = lane * self.lane_stride;
        if self.depth_stride == 1 {
            return self.data.widen_run(start + depths.start, out);
        }
        for (k, out) in depths.zip(out) {
            self.data.widen_run(start + k * self.depth_stride, std::slice::from_mut(out));
        }
    }

    fn encode(
        &self,
        lane: usize,
        depths: &Range<usize>,
        format: Format,
        side: PackedSide,
        words: &mut [u32],
    ) -> Option<LaneScale> {
        let start = lane * self.lane_stride + depths.start;
        (self.depth_stride == 1).then(|| self.data.encode_run(start, depths.len(), format, side, words))?
    }

    fn stored(&self, lane: usize, depths: &Range<usize>) -> &[u8] {
        match self.depth_stride {
            1 => self.data.stored(lane * self.lane_stride + depths.start, depths.len()),
            _ => &[],
        }
    }
}

impl<R: Runs> ByDepth for Dense<R> {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn read(&self, lanes: Range<usize>, depths: Range<usize>, width: usize, rows: &mut [f32]) {
        for (k, row) in depths.zip(rows.chunks_exact_mut(width)) {
            let start = k * self.depth_stride + lanes.start * self.lane_stride;
            self.data.widen_run(start, &mut row[..lanes.len()]);
        }
    }

    fn stored(&self, lanes: Range<usize>, depth: usize) -> &[u8] {
        self.data.stored(depth * self.depth_stride + lanes.start, lanes.len())
    }

    fn floats(&self) -> Option<(&[f32], usize)> {
        self.data.floats().map(|data| (data, self.depth_stride))
    }
}
