//! Colours on a terminal. `NO_COLOR` turns them off.

use std::env;
use std::io::{IsTerminal, stderr, stdout};

/// A style of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Error,
    Warning,
    Strong,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Error => "1;31",
            Style::Warning => "1;33",
            Style::Strong => "1",
        }
    }

    /// A text in this style.
    fn of(self, text: &str) -> String {
        format!("\u{1b}[{}m{text}\u{1b}[0m", self.code())
    }
}

/// True if the user wants colours on a stream that is a terminal.
fn is_wanted(is_terminal: bool) -> bool {
    let is_off = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal && !is_off && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The beginnings of messages that have a style.
const BEGINNINGS: [(&str, Style); 3] =
    [("error:", Style::Error), ("warning:", Style::Warning), ("note:", Style::Strong)];

/// A message for standard error, with the word that says its kind in its colour.
pub(super) fn of_message(message: &str) -> String {
    match is_wanted(stderr().is_terminal()) {
        true => highlighted(message),
        false => message.to_string(),
    }
}

fn highlighted(message: &str) -> String {
    for (beginning, style) in BEGINNINGS {
        if let Some(rest) = message.strip_prefix(beginning) {
            return style.of(beginning) + rest;
        }
    }
    message.to_string()
}

/// A text for standard output in a style, where it is a terminal.
pub(super) fn on_stdout(style: Style, text: &str) -> String {
    match is_wanted(stdout().is_terminal()) {
        true => style.of(text),
        false => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kind_of_a_message_is_coloured() {
        assert_eq!(highlighted("error: no such file"), "\u{1b}[1;31merror:\u{1b}[0m no such file");
        assert_eq!(highlighted("no error: none"), "no error: none");
        // Standard error of tests is no terminal, or is one without colours.
        if !is_wanted(stderr().is_terminal()) {
            assert_eq!(of_message("warning: x"), "warning: x");
        }
    }
}
