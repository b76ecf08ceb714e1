//! Text from foreign files, made safe to print: it must not control the terminal.

/// The most characters of an error.
const LONGEST_LINE: usize = 2000;

/// Escapes control characters besides line ends and tabs, and those that change the direction of text.
pub(super) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => visible.push(c),
            _ if is_hostile(c) => visible.extend(c.escape_default()),
            _ => visible.push(c),
        }
    }
    visible
}

/// The same on one line: line ends and tabs are escaped too.
pub(super) fn visible_line(text: &str) -> String {
    visible(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// A message on one line, in which any white space is one blank. Long ones are cut.
pub(super) fn one_line(text: &str) -> String {
    let line = visible(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    match line.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// True for control characters and for marks that reorder the text around them (Unicode's bidirectional
/// controls, with which a name can be made to read as another).
fn is_hostile(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(visible("a\tcat\n\u{1b}[31m猫\r\u{9b}1m"), "a\tcat\n\\u{1b}[31m猫\\r\\u{9b}1m");
        assert_eq!(visible_line("a\tb\n\u{202e}c"), "a\\tb\\n\\u{202e}c");
        assert_eq!(one_line(" a\n\tb\u{1b}]0;x\u{7} "), "a b\\u{1b}]0;x\\u{7}");
    }

    #[test]
    fn long_messages_are_cut() {
        assert_eq!(one_line(&"é".repeat(LONGEST_LINE)).chars().count(), LONGEST_LINE);
        let cut = one_line(&"é".repeat(LONGEST_LINE + 1));
        assert!(cut.ends_with('…') && cut.chars().count() == LONGEST_LINE + 1);
    }
}
