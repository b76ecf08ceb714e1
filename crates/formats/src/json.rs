//! Python's dialect of JSON.
//!
//! Python's `json` writes NaN and the infinities as bare words, which JSON lacks: a `scheduler_config.json`
//! of diffusers may have `"lambda_min_clipped": -Infinity`. They are read as strings.

use std::borrow::Cow;

use serde_json::Value;

/// The words. One that ends another comes after it.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses JSON in which a value may also be `NaN`, `Infinity` or `-Infinity`, which become strings.
///
/// # Errors
/// Text that is not JSON, with its line and column.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&quoted(text))
}

/// The text with quotes around every such word outside of strings and field names.
fn quoted(text: &str) -> Cow<'_, str> {
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(['"', '-', 'I', 'N']) {
        let (before, found) = rest.split_at(at);
        quoted.push_str(before);
        let word = WORDS.into_iter().find(|word| is_value(found, word));
        let taken = match word {
            Some(word) => {
                quoted.extend(["\"", word, "\""]);
                word.len()
            }
            None => {
                let taken = if found.starts_with('"') { string_len(found) } else { 1 };
                quoted.push_str(&found[..taken]);
                taken
            }
        };
        rest = &found[taken..];
    }
    quoted.push_str(rest);
    Cow::Owned(quoted)
}

/// True if the text begins with the word as a value, not as the name of a field.
fn is_value(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| !rest.trim_start().starts_with(':'))
}

/// The length of the string at the beginning of the text, quotes included, or of the text if the string does
/// not end.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use mixbit_testkit::Failures;
    use serde_json::json;

    use super::*;

    #[test]
    fn bare_words_are_strings() {
        let cases = [
            ("-Infinity", json!("-Infinity")),
            ("[NaN,Infinity,-Infinity, -1]", json!(["NaN", "Infinity", "-Infinity", -1])),
            (r#"{"a": -Infinity, "NaN": NaN }"#, json!({ "a": "-Infinity", "NaN": "NaN" })),
            (r#"["say \"NaN\" \\", NaN, "Infinity"]"#, json!(["say \"NaN\" \\", "NaN", "Infinity"])),
            (r#"{"é": "-Infinity, NaN", "b": [1]}"#, json!({ "é": "-Infinity, NaN", "b": [1] })),
        ];
        let mut failures = Failures::new("bare words");
        for (text, expected) in cases {
            failures.case(text, || match parse(text) {
                Ok(found) if found == expected => Ok(()),
                Ok(found) => Err(found.to_string()),
                Err(error) => Err(error.to_string()),
            });
        }
        failures.finish();
    }

    #[test]
    fn what_is_not_a_value_stays_an_error() {
        let texts = [
            "{NaN: 1}",
            "-NaN",
            "1NaN",
            "NaNNaN",
            "+Infinity",
            "--Infinity",
            "Inf",
            "nan",
            "\"NaN",
            "NaN\"",
            "[Infinity",
        ];
        for text in texts {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
