//! Software prefetch of a product's output and of the elements that are packed next.

use std::cell::Cell;

use super::epilogue::TileEpilogue;
use super::tile::{Corner, Target};
use crate::memory::LINE_BYTES;
use crate::simd;
use crate::simd::microkernel::{Prefetch, WIDE_MR};

/// Portions of a tile's prefetch, at most one for each row.
const TILE_PORTIONS: usize = WIDE_MR;

/// Prefetch interleaved with one tile: a row of the output and of the residual in each portion, and the
/// elements that are packed next.
#[derive(Clone, Copy)]
pub(crate) struct TilePrefetch<'a> {
    pub(crate) target: &'a Target,
    pub(crate) epilogue: Option<&'a TileEpilogue<'a>>,
    pub(crate) corner: Corner,
    pub(crate) size: [usize; 2],
    /// True if the output was not touched before.
    pub(crate) is_new: bool,
    pub(crate) packing: &'a PackPrefetch,
}

impl Prefetch for TilePrefetch<'_> {
    const PORTIONS: usize = TILE_PORTIONS;

    #[inline(always)]
    fn issue(self, portion: usize) {
        let Self { target, epilogue, corner, size: [mr, nr], is_new, packing } = self;
        packing.issue();
        let corner = Corner { row: corner.row + portion, ..corner };
        if portion >= mr || corner.row >= target.rows {
            return;
        }
        if is_new {
            target.prefetch_row(corner, nr);
        }
        if let Some(epilogue) = epilogue {
            epilogue.prefetch_row(corner, nr);
        }
    }
}

/// Prefetch of the runs that are packed next, a few cache lines at a time.
pub(crate) struct PackPrefetch {
    runs: [StridedRuns; 2],
    /// The group of runs, the run and the line to go on with.
    next: Cell<[usize; 3]>,
    lines_at_once: usize,
}

/// Runs of memory that begin equally far apart.
#[derive(Clone, Copy)]
pub(crate) struct StridedRuns {
    start: *const u8,
    /// Bytes from one run to the next.
    stride: isize,
    runs: usize,
    /// Cache lines of a run.
    lines: usize,
}

impl StridedRuns {
    /// No runs.
    pub(crate) const NONE: StridedRuns =
        StridedRuns { start: std::ptr::null(), stride: 0, runs: 0, lines: 0 };

    /// `runs` runs, given the first two.
    pub(crate) fn new([first, second]: [&[u8]; 2], runs: usize) -> Self {
        if first.is_empty() {
            return Self::NONE;
        }
        let stride = second.as_ptr().addr().wrapping_sub(first.as_ptr().addr()) as isize;
        StridedRuns { start: first.as_ptr(), stride, runs, lines: first.len().div_ceil(LINE_BYTES) }
    }
}

impl PackPrefetch {
    /// Prefetch of two groups of runs, one after the other, spread over `tiles` tiles.
    pub(crate) fn new(runs: [StridedRuns; 2], tiles: usize) -> Self {
        let lines: usize = runs.iter().map(|runs| runs.runs * runs.lines).sum();
        let lines_at_once = lines.div_ceil((tiles * TILE_PORTIONS).max(1));
        Self { runs, next: Cell::new([0; 3]), lines_at_once }
    }

    #[inline(always)]
    fn issue(&self) {
        let [mut index, mut run, mut line] = self.next.get();
        for _ in 0..self.lines_at_once {
            let Some(runs) = self.runs.get(index) else { return };
            let offset = run as isize * runs.stride + (line * LINE_BYTES) as isize;
            simd::prefetch_to_l2(runs.start.wrapping_offset(offset));
            line += 1;
            if line >= runs.lines {
                (run, line) = (run + 1, 0);
            }
            if run >= runs.runs {
                (index, run) = (index + 1, 0);
            }
        }
        self.next.set([index, run, line]);
    }
}
