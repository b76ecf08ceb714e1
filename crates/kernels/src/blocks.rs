//! Ranges cut into consecutive blocks.

use std::ops::Range;

/// Consecutive ranges of at most `step` that cover `range`. An empty range gives one empty block: a product
/// over no depth is still a product, zero, which must be stored once.
pub(crate) fn blocks(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = range;
    (start..end.max(start + 1)).step_by(step.max(1)).map(move |start| start..(start + step).min(end))
}

/// Consecutive ranges of at most `step` that cover `0..end`; none if that is empty.
pub(crate) fn ranges(end: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(step.max(1)).map(move |start| start..(start + step).min(end))
}
