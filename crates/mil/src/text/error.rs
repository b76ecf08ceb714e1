//! Errors of MIL text.

use thiserror::Error;

/// The reason why a text is not a program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}, column {column}: {what}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The fault.
    pub what: String,
}

impl ParseError {
    pub(super) fn at(text: &str, position: usize, what: impl Into<String>) -> Self {
        let before = &text[..position.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ParseError { line, column: before[start..].chars().count() + 1, what: what.into() }
    }
}
