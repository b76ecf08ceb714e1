//! The tokenizer's files beside the packages, as Apple's tools read them.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use mixbit_diffusion::model::{ModelError, ModelFiles, TEXT_ENCODERS};
use mixbit_formats::write_atomically;
use serde_json::Value;

/// Writes `vocab.json` and `merges.txt` of a model's first tokenizer into a directory; XL's two have the same.
///
/// # Errors
/// If the model has no tokenizer, or the files can't be written.
pub fn write_vocabulary(model: &dyn ModelFiles, directory: &Path) -> anyhow::Result<()> {
    let [vocab, merges] = vocabulary(model)?;
    for (name, text) in [("vocab.json", vocab), ("merges.txt", merges)] {
        write_atomically(&directory.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(())
}

/// The contents of `vocab.json` and `merges.txt`.
fn vocabulary(model: &dyn ModelFiles) -> anyhow::Result<[String; 2]> {
    let read = |component, file| model.text(component, file).map_err(ModelError::File);
    for (_, tokenizer) in TEXT_ENCODERS {
        if let (Some(vocab), Some(merges)) = (read(tokenizer, "vocab.json")?, read(tokenizer, "merges.txt")?)
        {
            return Ok([vocab, merges]);
        }
        if let Some(text) = read(tokenizer, "tokenizer.json")? {
            return from_tokenizer(&text).with_context(|| format!("{tokenizer}/tokenizer.json"));
        }
    }
    anyhow::bail!("the model has no tokenizer")
}

/// The two files that a `tokenizer.json` stands for.
fn from_tokenizer(text: &str) -> anyhow::Result<[String; 2]> {
    let tokenizer: Value = serde_json::from_str(text)?;
    let (vocab, merges) = (&tokenizer["model"]["vocab"], &tokenizer["model"]["merges"]);
    let merges = vocab.as_object().and(merges.as_array()).context("it has no vocabulary with merges")?;
    let mut lines = "#version: 0.2\n".to_string();
    for merge in merges {
        let line = match merge {
            Value::String(pair) => pair.clone(),
            pair => match (pair[0].as_str(), pair[1].as_str()) {
                (Some(left), Some(right)) => format!("{left} {right}"),
                _ => anyhow::bail!("one of its merges is not a pair"),
            },
        };
        lines.push_str(&line);
        lines.push('\n');
    }
    Ok([vocab.to_string(), lines])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_merges_are_written() {
        let text = r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b", ["a", "b</w>"]]}}"#;
        let [vocab, merges] = from_tokenizer(text).unwrap();
        assert_eq!(vocab, r#"{"a":0,"b":1}"#);
        assert_eq!(merges, "#version: 0.2\na b\na b</w>\n");
        for wrong in ["", "{}", r#"{"model": {"vocab": {}, "merges": [3]}}"#] {
            assert!(from_tokenizer(wrong).is_err(), "{wrong}");
        }
    }
}
