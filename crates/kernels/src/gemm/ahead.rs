//! Memory that is asked for while a product is computed. The CPU waits if too much is asked for at once, so it is asked for in
//! parts.

use std::cell::Cell;
use std::ops::Range;

use super::tile::{Corner, Finish, Target, WIDE_MR};
use crate::arch;

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

/// Rows that will be packed next: a few cache lines are asked for at a time.
pub(crate) struct Upcoming {
    start: *const u8,
    /// Bytes from one row to the next.
    stride: isize,
    /// A row is as many lines as two to this power.
    row_lines: u32,
    lines: usize,
    next: Cell<usize>,
    at_once: usize,
}

/// Elements of a cache line.
pub(crate) const LINE: usize = 16;
const LINE_BYTES: usize = 64;

impl Upcoming {
    /// Nothing.
    pub(crate) fn nothing() -> Self {
        Self::rows([&[]; 2], 0, 0)
    }

    /// So many rows, given the first two, in the time of so many tiles.
    pub(crate) fn rows([first, second]: [&[u8]; 2], rows: usize, tiles: usize) -> Self {
        let row_lines = first.len().div_ceil(LINE_BYTES).next_power_of_two().trailing_zeros();
        let lines = if first.is_empty() { 0 } else { rows << row_lines };
        Self {
            start: first.as_ptr(),
            stride: second.as_ptr().addr().wrapping_sub(first.as_ptr().addr()) as isize,
            row_lines,
            lines,
            next: Cell::new(0),
            at_once: lines.div_ceil((tiles * TILE_PARTS).max(1)),
        }
    }

    #[inline(always)]
    fn ask(&self) {
        let first = self.next.get();
        if first >= self.lines {
            return;
        }
        for line in first..first + self.at_once {
            let (row, line) = (line >> self.row_lines, line & ((1 << self.row_lines) - 1));
            let offset = row as isize * self.stride + (line * LINE_BYTES) as isize;
            arch::prefetch_to_l2(self.start.wrapping_offset(offset));
        }
        self.next.set(first + self.at_once);
    }
}
