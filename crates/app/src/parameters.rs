//! Generation parameters as text, in the format of AUTOMATIC1111's web UI, which its tools read back from an
//! image.
//!
//! The prompt comes first, then the negative prompt after `Negative prompt: `, then one line of `Name: value`
//! pairs separated by commas. A value with a comma, a colon or a line break is a JSON string.

use std::fmt;

use serde_json::{Map, Value};

/// The begin of the line with the negative prompt.
const NEGATIVE: &str = "Negative prompt:";

/// A last line with fewer pairs than this is a part of the prompt, as in the web UI.
const FEWEST_PAIRS: usize = 3;

/// The generation parameters of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty if there was none.
    pub negative_prompt: String,
    /// The settings by name, in order.
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// Adds a setting.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.push((name.to_string(), value.to_string()));
    }

    /// Reads the text of an image. Any text can be read: lines that are no settings are prompt.
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.trim().lines().collect();
        let settings = match lines.last().map(|line| pairs(line)) {
            // A negative prompt with colons and commas is still one.
            Some(pairs) if pairs.len() >= FEWEST_PAIRS && !is_negative(lines[lines.len() - 1]) => {
                lines.pop();
                pairs
            }
            _ => Vec::new(),
        };
        let first_negative = lines.iter().position(|line| is_negative(line)).unwrap_or(lines.len());
        let (prompt, negative) = lines.split_at(first_negative);
        let join = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n");
        let negative = join(negative);
        let negative = negative.strip_prefix(NEGATIVE).unwrap_or_default().trim();
        Parameters { prompt: join(prompt), negative_prompt: negative.to_string(), settings }
    }

    /// The parameters as a JSON object: `prompt`, `negative_prompt` and `settings`.
    pub fn to_json(&self) -> Value {
        let settings: Map<String, Value> =
            self.settings.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        serde_json::json!({
            "prompt": self.prompt, "negative_prompt": self.negative_prompt, "settings": settings,
        })
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "{NEGATIVE} {}", self.negative_prompt)?;
        }
        for (index, (name, value)) in self.settings.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name}: {}", quoted(value))?;
        }
        Ok(())
    }
}

fn is_negative(line: &str) -> bool {
    line.trim().starts_with(NEGATIVE)
}

/// A value, as a JSON string where it would not be read back as it is.
fn quoted(value: &str) -> String {
    let is_plain = !value.contains([',', ':', '\n', '"']) && value.trim() == value && !value.is_empty();
    if is_plain { value.to_string() } else { Value::from(value).to_string() }
}

/// The `Name: value` pairs of a line.
fn pairs(line: &str) -> Vec<(String, String)> {
    let (mut pairs, mut rest) = (Vec::new(), line);
    while let Some((name, after)) = rest.split_once(':') {
        // The name begins after the last comma: a piece without a colon may precede it.
        let name = name.rsplit(',').next().unwrap_or(name).trim();
        let (value, after) = value(after);
        rest = after;
        if is_name(name) {
            pairs.push((name.to_string(), value));
        }
    }
    pairs
}

/// The value at the beginning of a text, and the text after its comma.
fn value(text: &str) -> (String, &str) {
    let text = text.trim_start();
    if text.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
        if let Some(Ok(value)) = values.next() {
            let rest = text[values.byte_offset()..].trim_start();
            if rest.is_empty() || rest.starts_with(',') {
                return (value, rest.strip_prefix(',').unwrap_or(rest));
            }
        }
    }
    let (value, rest) = text.split_once(',').unwrap_or((text, ""));
    (value.trim().to_string(), rest)
}

/// True if a text can be a setting's name: it begins with a letter or digit, and letters, digits, spaces and
/// `_-/` follow.
fn is_name(text: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut characters = text.chars();
    // It would be read back as the negative prompt.
    let is_negative = NEGATIVE.strip_suffix(':') == Some(text);
    !is_negative
        && characters.next().is_some_and(is_word)
        && text.chars().count() > 1
        && characters.all(|c| is_word(c) || " -/".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Parameters {
        let mut parameters = Parameters {
            prompt: "a cat, sitting\non a mat".to_string(),
            negative_prompt: "dogs: all of them".to_string(),
            settings: Vec::new(),
        };
        parameters.set("Steps", 25);
        parameters.set("Sampler", "Euler a");
        parameters.set("CFG scale", 7.5);
        parameters.set("Note", "say \"cheese\", please: now");
        parameters
    }

    #[test]
    fn the_text_is_the_web_ui_s_and_reads_back() {
        let parameters = example();
        assert_eq!(
            parameters.to_string(),
            "a cat, sitting\non a mat\nNegative prompt: dogs: all of them\n\
             Steps: 25, Sampler: Euler a, CFG scale: 7.5, Note: \"say \\\"cheese\\\", please: now\""
        );
        assert_eq!(Parameters::parse(&parameters.to_string()), parameters);
    }

    #[test]
    fn a_negative_prompt_like_settings_stays_one() {
        let text = "a cat\nNegative prompt: one: 1, two: 2, three: 3";
        let parameters = Parameters::parse(text);
        assert_eq!(parameters.negative_prompt, "one: 1, two: 2, three: 3");
        assert_eq!(Parameters::parse(&parameters.to_string()), parameters);
    }

    #[test]
    fn no_setting_is_called_as_the_negative_prompt_is() {
        let parameters = Parameters::parse("a cat,Negative prompt: dogs, Steps: 1, Size: 8x8, Seed: 2");
        assert!(parameters.settings.iter().all(|(name, _)| name != "Negative prompt"), "{parameters:?}");
        assert_eq!(Parameters::parse(&parameters.to_string()), parameters);
    }

    #[test]
    fn values_of_any_kind_read_back() {
        for value in
            ["", " ", "a", "a, b", "a: b", "\"", "\"a\"", "\\", "line\nbreak", "\u{1F600}", "a\"b", ","]
        {
            let mut parameters = example();
            parameters.set("Any", value);
            assert_eq!(Parameters::parse(&parameters.to_string()), parameters, "{value:?}");
        }
    }

    #[test]
    fn text_without_settings_is_prompt() {
        for text in ["", "a cat", "ratio 3:4, at: 5", "a\nb"] {
            let parameters = Parameters::parse(text);
            assert_eq!((parameters.prompt.as_str(), parameters.settings.len()), (text, 0));
        }
    }

    #[test]
    fn what_the_web_ui_wrote_is_read() {
        let text = "photo of a dog\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, \
                    CFG scale: 7, Seed: 1234, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, \
                    Lora hashes: \"detail: 7e16, more: 1fa2\", Version: v1.9.4";
        let parameters = Parameters::parse(text);
        assert_eq!(parameters.prompt, "photo of a dog");
        assert_eq!(parameters.negative_prompt, "blurry");
        let get = |name: &str| {
            parameters.settings.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(get("Size"), Some("512x768"));
        assert_eq!(get("Lora hashes"), Some("detail: 7e16, more: 1fa2"));
        assert_eq!(get("Version"), Some("v1.9.4"));
        assert_eq!(parameters.settings.len(), 10);
    }
}
