//! Text tables.

use std::fmt;

use super::printable::visible_line;

/// The maximum length of a value in text; JSON has it whole.
pub(super) const LONGEST_VALUE: usize = 60;

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

/// A header and rows. Columns are as wide as their widest cell, except the last, which is not padded.
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
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += if column == 0 { "  " } else { "   " };
                match self.sides[column] {
                    Side::Left => line += &format!("{cell:<width$}"),
                    Side::Right => line += &format!("{cell:>width$}"),
                }
            }
            let end = if index + 1 < self.rows.len() { "\n" } else { "" };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
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
        assert_eq!(table.to_string(), expected);
    }
}
