//! Text tables.

use std::fmt;
use std::io::{IsTerminal, stdout};

use console::Term;

use super::printable::visible_line;

/// The maximum length of a value in text; JSON has it whole.
pub(super) const LONGEST_VALUE: usize = 60;

/// The fewest characters of a shortened cell.
const LEAST_LAST: usize = 12;

/// A byte size in the most readable unit.
pub(super) fn byte_size(bytes: usize) -> String {
    match bytes as f64 {
        bytes if bytes < 1e5 => format!("{:.1} kB", bytes / 1e3),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A header and rows. Columns are as wide as their widest cell, except the last, which is not padded, and
/// which is shortened in its middle where the terminal is narrower.
pub(super) struct Table<const N: usize> {
    sides: [Side; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table with a header.
    pub(super) fn new(columns: [(&str, Side); N]) -> Self {
        Table { sides: columns.map(|(_, side)| side), rows: vec![columns.map(|(name, _)| name.to_string())] }
    }

    /// Adds a row. Control characters are escaped, because names come from files.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| visible_line(&cell)));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = Term::stdout().size_checked().map(|(_, columns)| columns.into());
        f.write_str(&self.within(columns.filter(|_| stdout().is_terminal()).unwrap_or(usize::MAX)))
    }
}

impl<const N: usize> Table<N> {
    /// The table with every cell whole.
    pub(super) fn whole(&self) -> String {
        self.within(usize::MAX)
    }

    /// The table in so many columns of the terminal, as far as that shortens the last column only.
    fn within(&self, columns: usize) -> String {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        let others: usize = widths.iter().take(N.saturating_sub(1)).map(|width| width + 3).sum();
        let room = columns.saturating_sub(others + 2).max(LEAST_LAST);
        let mut lines = Vec::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (width, is_last) = (widths[column], column + 1 == N);
                line += if column == 0 { "  " } else { "   " };
                match self.sides[column] {
                    Side::Left if is_last => line += &without_middle(cell, room),
                    Side::Left => line += &format!("{cell:<width$}"),
                    Side::Right => line += &format!("{cell:>width$}"),
                }
            }
            lines.push(line.trim_end().to_string());
        }
        lines.join("\n")
    }
}

/// A text of at most so many characters, with an ellipsis for its middle if it is longer. More is kept of the
/// end, where the names of layers differ most.
fn without_middle(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_string();
    }
    let start = most * 4 / 9;
    let end = most.saturating_sub(start + 1);
    let [first, last] = [&characters[..start], &characters[characters.len() - end..]];
    first.iter().chain(&['…']).chain(last).collect()
}

/// A number of things, such as `1 package` and `2 packages`.
pub(super) fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A value on one line, shortened if long.
pub(super) fn shortened(value: &str) -> String {
    let line: String = visible_line(&value.split_whitespace().collect::<Vec<_>>().join(" "));
    match line.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}... ({} bytes)", &line[..end], value.len()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([("bits", Side::Right), ("kind", Side::Left), ("name", Side::Left)]);
        table.row(["4.00".into(), "palette".into(), "a\u{1b}[1m".into()]);
        table.row(["16.00".into(), "fp16".into(), "b".into()]);
        let expected = "   bits   kind      name\n   4.00   palette   a\\u{1b}[1m\n  16.00   fp16      b";
        assert_eq!(table.within(usize::MAX), expected);
    }

    #[test]
    fn a_long_name_loses_its_middle() {
        let mut table = Table::new([("dB", Side::Right), ("layer", Side::Left)]);
        table.row(["43.6".into(), "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0".into()]);
        assert_eq!(table.within(40), "    dB   layer\n  43.6   down_blocks.1….0.attn1.to_out.0");
        assert!(table.within(40).lines().all(|line| line.chars().count() <= 40));
        assert!(table.within(usize::MAX).contains("transformer_blocks"));
    }
}
