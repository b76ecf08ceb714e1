//! Names from files in messages.

/// A name from a file, safe to print: control characters escaped, and cut at 200 characters.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 200;
    let mut text = String::new();
    for (count, character) in name.chars().enumerate() {
        if count == LIMIT {
            text.push('…');
            break;
        }
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_one_line() {
        assert_eq!(shown("a\nb\u{1b}[2Jé"), "a\\nb\\u{1b}[2Jé");
        assert_eq!(shown(&"x".repeat(5000)).chars().count(), 201);
    }
}
