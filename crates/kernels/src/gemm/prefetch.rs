//! Memory that is asked for while a product is computed. The CPU waits if too much is asked for at once, so it is asked for in
//! parts.

use std::cell::Cell;
use std::ops::Range;

use super::tile::{Corner, Finish, Target, WIDE_MR};
use crate::memory::LINE_BYTES;
use crate::simd;

/// Memory that will be needed when a product is done.
pub(crate) trait Ahead: Copy {
    /// The number of parts.
    const PARTS: usize;

    /// Asks for a part.
    fn ask(self, part: usize);

    /// The words that are multiplied after the given part is asked for, of all that there are.
    #[inline(always)]
    fn words(part: usize, words: usize) -> Range<usize> {
        part * words / Self::PARTS..(part + 1) * words / Self::PARTS
    }
}

/// Nothing.
impl Ahead for () {
    const PARTS: usize = 1;

    #[inline(always)]
    fn ask(self, _part: usize) {}
}

/// Parts in which a tile asks: as many as it has rows at most.
pub(crate) const TILE_PARTS: usize = WIDE_MR;

/// The output's memory below a tile of `size`, and what it is finished with, a row in each part; and what is upcoming.
#[derive(Clone, Copy)]
pub(crate) struct TileAhead<'a> {
    pub(crate) target: &'a Target,
    pub(crate) finish: Option<&'a Finish<'a>>,
    pub(crate) corner: Corner,
    pub(crate) size: [usize; 2],
    /// Whether the output has not been touched before.
    pub(crate) is_new: bool,
    pub(crate) upcoming: &'a Upcoming,
}

impl Ahead for TileAhead<'_> {
    const PARTS: usize = TILE_PARTS;

    #[inline(always)]
    fn ask(self, part: usize) {
        let Self { target, finish, corner, size: [mr, nr], is_new, upcoming } = self;
        upcoming.ask();
        let corner = Corner { row: corner.row + part, ..corner };
        if part >= mr || corner.row >= target.rows {
            return;
        }
        if is_new {
            target.prefetch_row(corner, nr);
        }
        if let Some(finish) = finish {
            finish.prefetch_row(corner, nr);
        }
    }
}

/// Runs of memory that will be packed next: a few cache lines are asked for at a time.
pub(crate) struct Upcoming {
    stretches: [Stretch; 2],
    /// The stretch, run and line to go on with.
    next: Cell<[usize; 3]>,
    at_once: usize,
}

/// Runs that begin equally far apart.
#[derive(Clone, Copy)]
pub(crate) struct Stretch {
    start: *const u8,
    /// Bytes from one run to the next.
    stride: isize,
    runs: usize,
    /// Cache lines of a run.
    lines: usize,
}

/// Elements of a cache line.
pub(crate) const LINE: usize = LINE_BYTES / 4;

impl Stretch {
    /// No runs.
    pub(crate) const NONE: Stretch = Stretch { start: std::ptr::null(), stride: 0, runs: 0, lines: 0 };

    /// So many runs, given the first two.
    pub(crate) fn new([first, second]: [&[u8]; 2], runs: usize) -> Self {
        if first.is_empty() {
            return Self::NONE;
        }
        let stride = second.as_ptr().addr().wrapping_sub(first.as_ptr().addr()) as isize;
        Stretch { start: first.as_ptr(), stride, runs, lines: first.len().div_ceil(LINE_BYTES) }
    }
}

impl Upcoming {
    /// Two stretches, one after the other, in the time of so many tiles.
    pub(crate) fn new(stretches: [Stretch; 2], tiles: usize) -> Self {
        let lines: usize = stretches.iter().map(|stretch| stretch.runs * stretch.lines).sum();
        let at_once = lines.div_ceil((tiles * TILE_PARTS).max(1));
        Self { stretches, next: Cell::new([0; 3]), at_once }
    }

    #[inline(always)]
    fn ask(&self) {
        let [mut index, mut run, mut line] = self.next.get();
        for _ in 0..self.at_once {
            let Some(stretch) = self.stretches.get(index) else { return };
            let offset = run as isize * stretch.stride + (line * LINE_BYTES) as isize;
            simd::prefetch_to_l2(stretch.start.wrapping_offset(offset));
            line += 1;
            if line >= stretch.lines {
                (run, line) = (run + 1, 0);
            }
            if run >= stretch.runs {
                (index, run) = (index + 1, 0);
            }
        }
        self.next.set([index, run, line]);
    }
}
