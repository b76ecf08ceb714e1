//! Packing: the layout that the micro-kernel reads.
//!
//! A product's left side is cut into panels of `mr` rows, its right side into panels of `nr` columns; rows and
//! columns are both called *lanes* here. A panel is stored depth first: element `(lane, k)` of a panel `width`
//! lanes wide is at `k * width + lane`. Missing lanes of the last panel are zero.
//!
//! [`PanelSource`] is the one thing that a new storage form (an image seen through a convolution window, a
//! palettized weight) has to implement to take part in a product.

use std::cell::RefCell;
use std::ops::Range;
use std::thread::LocalKey;

use crate::convert::Element;
use crate::encoded::EncodedMat;
use crate::matrix::{Mat, Operand};
use crate::pool::{for_each_chunk_mut, parallel_for};

/// A matrix side that can write itself as panels.
pub(crate) trait PanelSource: Sync {
    /// The number of rows (left side) or columns (right side).
    fn lanes(&self) -> usize;

    /// Writes the given lanes, at most `width`, over the given depth range to `panel`, which is
    /// `depth.len() * width` long.
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]);
}

/// Stored elements that are widened, or decoded, a run at a time.
pub(crate) trait Runs: Copy + Send + Sync {
    /// The values of the elements from `start` on.
    fn widen_run(&self, start: usize, out: &mut [f32]);
}

impl<T: Element> Runs for &[T] {
    #[inline(always)]
    fn widen_run(&self, start: usize, out: &mut [f32]) {
        T::widen_slice(&self[start..start + out.len()], out);
    }
}

/// A strided matrix as a source: lanes along one axis, depth along the other.
pub(crate) struct Dense<R> {
    data: R,
    lanes: usize,
    lane_stride: usize,
    depth_stride: usize,
}

impl<'a, T> Dense<&'a [T]> {
    /// The left side of a product: rows are lanes.
    pub(crate) fn left(mat: Mat<'a, T>) -> Self {
        Self { data: mat.data, lanes: mat.rows, lane_stride: mat.row_stride, depth_stride: mat.col_stride }
    }

    /// The right side of a product: columns are lanes.
    pub(crate) fn right(mat: Mat<'a, T>) -> Self {
        Self::left(mat.transposed())
    }
}

impl<'a> Dense<crate::Encoded<'a>> {
    /// The left side of a product, compressed.
    pub(crate) fn encoded_left(mat: EncodedMat<'a>) -> Self {
        Self { data: mat.data, lanes: mat.rows, lane_stride: mat.row_stride, depth_stride: mat.col_stride }
    }

    /// The right side of a product, compressed.
    pub(crate) fn encoded_right(mat: EncodedMat<'a>) -> Self {
        Self::encoded_left(mat.transposed())
    }
}

/// Depth that is widened at once when a lane's depth is contiguous.
const RUN: usize = 64;
/// Lanes that are interleaved at once.
const GROUP: usize = 4;

impl<R: Runs> PanelSource for Dense<R> {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        if lanes.len() < width {
            panel.fill(0.0);
        }
        if self.lane_stride == 1 {
            for (k, row) in depth.zip(panel.chunks_exact_mut(width)) {
                let start = k * self.depth_stride + lanes.start;
                self.data.widen_run(start, &mut row[..lanes.len()]);
            }
        } else if self.depth_stride == 1 {
            self.interleave(lanes, depth, width, panel);
        } else {
            for (k, row) in depth.zip(panel.chunks_exact_mut(width)) {
                for (lane, out) in lanes.clone().zip(row) {
                    let start = k * self.depth_stride + lane * self.lane_stride;
                    self.data.widen_run(start, std::slice::from_mut(out));
                }
            }
        }
    }
}

impl<R: Runs> Dense<R> {
    /// [`PanelSource::pack`] where each lane's depth is contiguous.
    fn interleave(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let mut runs = [[0.0; RUN]; GROUP];
        for start in depth.clone().step_by(RUN) {
            let len = RUN.min(depth.end - start);
            let rows = &mut panel[(start - depth.start) * width..];
            for first in lanes.clone().step_by(GROUP) {
                let count = GROUP.min(lanes.end - first);
                for (index, run) in runs[..count].iter_mut().enumerate() {
                    let from = (first + index) * self.lane_stride + start;
                    self.data.widen_run(from, &mut run[..len]);
                }
                let offset = first - lanes.start;
                if count == GROUP {
                    for (k, row) in rows.chunks_exact_mut(width).take(len).enumerate() {
                        row[offset..offset + GROUP].copy_from_slice(&runs.each_ref().map(|run| run[k]));
                    }
                } else {
                    for (k, row) in rows.chunks_exact_mut(width).take(len).enumerate() {
                        for (out, run) in row[offset..].iter_mut().zip(&runs[..count]) {
                            *out = run[k];
                        }
                    }
                }
            }
        }
    }
}

/// Which side of a product a matrix is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedSide {
    /// The left factor.
    Left,
    /// The right factor.
    Right,
}

/// A whole matrix in the layout of this CPU's micro-kernel, in `f32`.
///
/// Worth its memory for small models, whose weights are packed again in every call otherwise.
#[derive(Debug)]
pub struct PackedMatrix {
    pub(crate) data: Vec<f32>,
    pub(crate) lanes: usize,
    pub(crate) depth: usize,
    pub(crate) width: usize,
    pub(crate) side: PackedSide,
}

impl PackedMatrix {
    /// Packs `matrix` for one side of a product.
    ///
    /// # Panics
    ///
    /// When `matrix` is itself packed.
    pub fn new(matrix: Operand<'_>, side: PackedSide) -> Self {
        match (matrix, side) {
            (Operand::F32(mat), PackedSide::Left) => Self::pack(&Dense::left(mat), mat.cols, side, false),
            (Operand::F32(mat), PackedSide::Right) => Self::pack(&Dense::right(mat), mat.rows, side, false),
            (Operand::F16(mat), PackedSide::Left) => Self::pack(&Dense::left(mat), mat.cols, side, false),
            (Operand::F16(mat), PackedSide::Right) => Self::pack(&Dense::right(mat), mat.rows, side, false),
            (Operand::Bf16(mat), PackedSide::Left) => Self::pack(&Dense::left(mat), mat.cols, side, false),
            (Operand::Bf16(mat), PackedSide::Right) => Self::pack(&Dense::right(mat), mat.rows, side, false),
            (Operand::Encoded(mat), PackedSide::Left) => {
                Self::pack(&Dense::encoded_left(mat), mat.cols, side, false)
            }
            (Operand::Encoded(mat), PackedSide::Right) => {
                Self::pack(&Dense::encoded_right(mat), mat.rows, side, false)
            }
            (Operand::Packed(_), _) => panic!("the matrix is packed already"),
        }
    }

    /// Packs a source for one side of a product, on all threads if that is worth it.
    pub(crate) fn pack(source: &dyn PanelSource, depth: usize, side: PackedSide, share: bool) -> Self {
        let width = crate::gemm::tile_shape().width(side);
        let lanes = source.lanes();
        let panels = lanes.div_ceil(width);
        let mut data = vec![0.0; panels * width * depth];
        pack_tasks(source, 0..panels, 0..depth, width, share, &mut data);
        Self { data, lanes, depth, width, side }
    }

    /// The memory that it takes, in bytes.
    pub fn size_in_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// Packs a range of panels over a depth range, one after the other.
pub(crate) fn pack_panels(
    source: &dyn PanelSource,
    panels: Range<usize>,
    depth: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    for (panel, chunk) in panels.zip(out.chunks_exact_mut(width * depth.len())) {
        let start = panel * width;
        let end = (start + width).min(source.lanes());
        source.pack(start..end, depth.clone(), width, chunk);
    }
}

/// Panels handed to one packing task.
const PACK_GROUP: usize = 4;

/// [`pack_panels`], several panels to a task if that is worth sharing.
pub(crate) fn pack_tasks(
    source: &dyn PanelSource,
    panels: Range<usize>,
    depth: Range<usize>,
    width: usize,
    share: bool,
    out: &mut [f32],
) {
    if depth.is_empty() || panels.is_empty() {
        return;
    }
    let group = if share { PACK_GROUP } else { panels.len() };
    for_each_chunk_mut(out, group * depth.len() * width, |index, chunk| {
        let start = panels.start + index * group;
        let end = (start + group).min(panels.end);
        pack_panels(source, start..end, depth.clone(), width, chunk);
    });
}

/// A scratch buffer that a thread keeps from call to call.
pub(crate) type Scratch = LocalKey<RefCell<Vec<f32>>>;

/// Lends `len` elements of unspecified content from this thread's `scratch`.
///
/// The buffer is taken out while it is lent, so that a kernel that another one waits for on the same thread
/// gets a buffer of its own.
pub(crate) fn with_scratch<R>(
    scratch: &'static Scratch,
    len: usize,
    body: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = scratch.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = body(&mut buffer[..len]);
    scratch.replace(buffer);
    result
}

/// Runs tasks on the pool, or here when they are too small to share.
pub(crate) fn run_tasks(worth_sharing: bool, tasks: usize, body: impl Fn(usize) + Sync) {
    if worth_sharing {
        parallel_for(tasks, body);
    } else {
        (0..tasks).for_each(body);
    }
}
