//! The tokenizer's files beside the packages, for Apple's tools.

use std::collections::{BTreeMap, BTreeSet};

use mixbit_diffusion::model::{ModelError, ModelFiles, TEXT_ENCODERS, read_tokenizer};
use serde_json::{Map, Value};
use thiserror::Error;

/// A vocabulary that can't be given.
#[derive(Debug, Error)]
pub enum VocabularyError {
    /// A file of the model that can't be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model without a tokenizer.
    #[error("the model has no tokenizer: download the whole model")]
    Absent,
    /// A `tokenizer.json` without what the two files hold.
    #[error("{component}/tokenizer.json {what}")]
    Malformed {
        /// The tokenizer's folder.
        component: &'static str,
        /// The defect.
        what: String,
    },
}

/// The tokens that a model's tokenizers have besides the vocabulary, such as those of textual inversion.
/// Apple's Swift tokenizer reads the vocabulary and the merges alone, and does not know them.
///
/// # Errors
/// [`VocabularyError::Model`].
pub fn added_tokens(model: &dyn ModelFiles) -> Result<BTreeMap<u32, String>, VocabularyError> {
    let mut all = BTreeMap::new();
    for (encoder, tokenizer) in TEXT_ENCODERS {
        if model.component(encoder).is_some() {
            all.extend(read_tokenizer(model, tokenizer)?.added_tokens());
        }
    }
    Ok(all)
}

/// The words that a model's tokenizers have besides the vocabulary: those of [`added_tokens`], and one for
/// all tokens of a word of textual inversion.
///
/// # Errors
/// [`VocabularyError::Model`].
pub fn added_words(model: &dyn ModelFiles) -> Result<Vec<String>, VocabularyError> {
    let mut all = BTreeSet::new();
    for (encoder, tokenizer) in TEXT_ENCODERS {
        if model.component(encoder).is_some() {
            let tokenizer = read_tokenizer(model, tokenizer)?;
            let of_words: Vec<u32> =
                tokenizer.words().iter().flat_map(|word| word.ids.iter().copied()).collect();
            let tokens = tokenizer.added_tokens().into_iter();
            all.extend(tokens.filter(|(id, _)| !of_words.contains(id)).map(|(_, token)| token));
            all.extend(tokenizer.words().iter().filter_map(|word| word.names.first().cloned()));
        }
    }
    Ok(all.into_iter().collect())
}

/// The names of the files that [`vocabulary`] gives.
pub(crate) const VOCABULARY: [&str; 3] = ["vocab.json", "merges.txt", "added_tokens.json"];

/// `vocab.json` and `merges.txt` of a model's first tokenizer, by name; XL's two have the same. Where there
/// are added tokens, also `added_tokens.json` with their ids.
///
/// # Errors
/// [`VocabularyError`].
pub fn vocabulary(model: &dyn ModelFiles) -> Result<Vec<(&'static str, String)>, VocabularyError> {
    let [vocab, merges] = contents(model)?;
    let mut files = vec![(VOCABULARY[0], vocab), (VOCABULARY[1], merges)];
    let added = added_tokens(model)?;
    if !added.is_empty() {
        let ids: Map<String, Value> = added.into_iter().map(|(id, token)| (token, id.into())).collect();
        files.push((VOCABULARY[2], Value::Object(ids).to_string()));
    }
    Ok(files)
}

fn contents(model: &dyn ModelFiles) -> Result<[String; 2], VocabularyError> {
    let read = |component, file| model.text(component, file).map_err(ModelError::File);
    for (_, tokenizer) in TEXT_ENCODERS {
        if let (Some(vocab), Some(merges)) = (read(tokenizer, "vocab.json")?, read(tokenizer, "merges.txt")?)
        {
            return Ok([vocab, merges]);
        }
        if let Some(text) = read(tokenizer, "tokenizer.json")? {
            let malformed = |what| VocabularyError::Malformed { component: tokenizer, what };
            return from_tokenizer(&text).map_err(malformed);
        }
    }
    Err(VocabularyError::Absent)
}

/// The contents of both files from a `tokenizer.json`, or its defect.
fn from_tokenizer(text: &str) -> Result<[String; 2], String> {
    let tokenizer: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let (vocab, merges) = (&tokenizer["model"]["vocab"], &tokenizer["model"]["merges"]);
    let merges = vocab.as_object().and(merges.as_array()).ok_or("has no vocabulary with merges")?;
    let mut lines = "#version: 0.2\n".to_string();
    for merge in merges {
        let line = match merge {
            Value::String(pair) => pair.clone(),
            pair => match (pair[0].as_str(), pair[1].as_str()) {
                (Some(left), Some(right)) => format!("{left} {right}"),
                _ => return Err("has a merge that is not a pair".to_string()),
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
