//! Sources of panels: the sides of a product as they are stored.
//!
//! A storage form whose elements are decoded a run at a time implements [`Elements`]. Anything else that
//! takes part in a product, such as an image seen through a convolution window, implements [`ByLane`] or
//! [`ByDepth`].

use std::ops::Range;

use super::format::{Format, PackedSide};
use crate::elements::Elements;
use crate::matrix::{Mat, WeightSlice};
use crate::simd::quantize::LaneScale;

/// A side whose lanes are contiguous: each lane's depth is stored together.
pub(crate) trait ByLane: Sync {
    /// Writes the given depths of one lane.
    fn read(&self, lane: usize, depths: Range<usize>, out: &mut [f32]);

    /// Encodes the given depths of one lane, where that is faster than [`read`](Self::read). `None`, with
    /// nothing written, elsewhere.
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

    /// The memory of the given depths of a lane, for prefetching; empty if unknown. The lane may be out of
    /// range.
    fn stored(&self, _lane: usize, _depths: &Range<usize>) -> &[u8] {
        &[]
    }
}

/// A side whose depths are contiguous: the lanes at each depth are stored together.
pub(crate) trait ByDepth: Sync {
    /// The number of rows (left side) or columns (right side).
    fn lanes(&self) -> usize;

    /// Writes a row of `width` elements for each depth, beginning with the given lanes. The rest of a row is
    /// left alone.
    fn read(&self, lanes: Range<usize>, depths: Range<usize>, width: usize, rows: &mut [f32]);

    /// The memory of the given lanes at one depth, for prefetching; empty if unknown.
    fn stored(&self, _lanes: Range<usize>, _depth: usize) -> &[u8] {
        &[]
    }

    /// All elements and the distance between depths, if they are stored as `f32`.
    fn floats(&self) -> Option<(&[f32], usize)> {
        None
    }

    /// Prefetches what [`read`](Self::read) would read.
    fn prefetch(&self, _lanes: Range<usize>, _depths: Range<usize>) {}
}

/// One side of a product as it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    ByLane(&'a dyn ByLane),
    ByDepth(&'a dyn ByDepth),
}

/// A strided matrix as one side of a product.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    data: &'a dyn Elements,
    pub(crate) lanes: usize,
    lane_stride: usize,
    depth_stride: usize,
}

impl<'a> Strided<'a> {
    /// A matrix of any stored type.
    pub(crate) fn new(mat: &'a Mat<WeightSlice<'a>>, side: PackedSide) -> Self {
        Self::over(mat.data.elements(), mat, side)
    }

    /// An `f32` matrix.
    pub(crate) fn of_floats(mat: &'a Mat<&'a [f32]>, side: PackedSide) -> Self {
        Self::over(&mat.data, mat, side)
    }

    fn over<D>(data: &'a dyn Elements, mat: &Mat<D>, side: PackedSide) -> Self {
        let &Mat { rows, cols, row_stride, col_stride, .. } = mat;
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

impl ByLane for Strided<'_> {
    fn read(&self, lane: usize, depths: Range<usize>, out: &mut [f32]) {
        let start = lane * self.lane_stride + depths.start * self.depth_stride;
        match self.depth_stride {
            1 => self.data.widen_run(start, out),
            stride => self.data.widen_strided(start, stride, &mut out[..depths.len()]),
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

impl ByDepth for Strided<'_> {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn read(&self, lanes: Range<usize>, depths: Range<usize>, width: usize, rows: &mut [f32]) {
        let start = depths.start * self.depth_stride + lanes.start * self.lane_stride;
        let rows = &mut rows[..depths.len() * width];
        self.data.widen_rows(start, self.depth_stride, lanes.len(), width, rows);
    }

    fn stored(&self, lanes: Range<usize>, depth: usize) -> &[u8] {
        self.data.stored(depth * self.depth_stride + lanes.start, lanes.len())
    }

    fn floats(&self) -> Option<(&[f32], usize)> {
        self.data.floats().map(|data| (data, self.depth_stride))
    }

    fn prefetch(&self, lanes: Range<usize>, depths: Range<usize>) {
        let start = depths.start * self.depth_stride + lanes.start;
        self.data.prefetch_rows(start, self.depth_stride, lanes.len(), depths.len());
    }
}
