//! The layer over a model's files that adds words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mixbit_mil::{Bytes, DType, Overlay, TensorType, WeightRef, Weights};
use serde_json::{Map, Value, json};

use super::{Embedding, EmbeddingError, TEXT_ENCODERS};
use crate::arch::{Config, text_encoder};
use crate::model::{
    FileError, ModelError, ModelFiles, ModelFilesLayer, component_config, merged_tokenizer_config,
    read_tokenizer,
};
use crate::tokenizer::{Tokenizer, WORDS_KEY, Word};

const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The table of input vectors, with the prefix that some checkpoints leave out.
const TABLES: [&str; 2] =
    ["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"];

/// The `eos_token_id` by which a text encoder pools the token of the highest id. That is the end only without
/// added tokens.
const HIGHEST_ID: u64 = 2;

/// A model with the words and vectors of textual inversions.
///
/// New ids follow the rows of the text encoders' tables. The tokenizer's configuration lists the words under
/// [`WORDS_KEY`], and their vectors as added tokens named as diffusers names them (`word`, `word_1`, …).
pub struct EmbeddedFiles {
    base: Box<dyn ModelFiles>,
    encoders: Vec<Encoder>,
}

/// A text encoder and its tokenizer with the added words.
struct Encoder {
    component: &'static str,
    tokenizer: &'static str,
    config: Value,
    tokenizer_config: String,
    weights: Arc<dyn Weights>,
}

/// A text encoder before words are added.
struct Plain {
    index: usize,
    config: text_encoder::Config,
    tokenizer: Tokenizer,
}

impl EmbeddedFiles {
    /// A model with words added.
    ///
    /// A word whose embedding has vectors for one of two text encoders is left out of the other's prompts, as
    /// ComfyUI does.
    ///
    /// # Errors
    /// [`EmbeddingError::OtherFamily`], [`EmbeddingError::SameName`], or an error of the model's files.
    pub fn new(base: Box<dyn ModelFiles>, embeddings: &[Embedding]) -> Result<Self, EmbeddingError> {
        let plain = plain_encoders(&*base)?;
        let channels =
            VectorChannels(plain.iter().map(|plain| (plain.index, plain.config.hidden_size)).collect());
        let placed: Vec<Vec<Option<&WeightRef>>> =
            embeddings.iter().map(|it| it.placed(&channels)).collect::<Result<_, _>>()?;
        let mut encoders = Vec::new();
        for (position, plain) in plain.iter().enumerate() {
            let spellings = spellings(embeddings, &plain.tokenizer)?;
            let words: Vec<(Vec<String>, Option<&WeightRef>)> =
                spellings.into_iter().zip(placed.iter().map(|placed| placed[position])).collect();
            encoders.push(extended(&*base, plain, words)?);
        }
        Ok(EmbeddedFiles { base, encoders })
    }

    fn encoder(&self, is_asked: impl Fn(&Encoder) -> bool) -> Option<&Encoder> {
        self.encoders.iter().find(|encoder| is_asked(encoder))
    }
}

/// The channels of the vectors that a model's text encoders take.
pub struct VectorChannels(pub(super) Vec<(usize, usize)>);

impl VectorChannels {
    /// Those of a model.
    ///
    /// # Errors
    /// An error of the text encoders' configurations.
    pub fn of(model: &dyn ModelFiles) -> Result<Self, ModelError> {
        let mut all = Vec::new();
        for (index, (component, _)) in TEXT_ENCODERS.into_iter().enumerate() {
            if model.component(component).is_some()
                && let Config::TextEncoder(config) = component_config(model, component)?
            {
                all.push((index, config.hidden_size));
            }
        }
        Ok(VectorChannels(all))
    }
}

impl ModelFilesLayer for EmbeddedFiles {
    fn base(&self) -> &dyn ModelFiles {
        &*self.base
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        match self.encoder(|encoder| encoder.component == component && file == CONFIG) {
            Some(encoder) => Ok(encoder.config.clone()),
            None => self.base.json(component, file),
        }
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        match self.encoder(|encoder| encoder.tokenizer == component && file == TOKENIZER_CONFIG) {
            Some(encoder) => Ok(Some(encoder.tokenizer_config.clone())),
            None => self.base.text(component, file),
        }
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        match self.encoder(|encoder| encoder.component == component) {
            Some(encoder) => Ok(encoder.weights.clone()),
            None => self.base.weights(component),
        }
    }
}

/// The text encoders of a model.
fn plain_encoders(base: &dyn ModelFiles) -> Result<Vec<Plain>, EmbeddingError> {
    let mut plain = Vec::new();
    for (index, (component, tokenizer)) in TEXT_ENCODERS.into_iter().enumerate() {
        if base.component(component).is_none() {
            continue;
        }
        if let Config::TextEncoder(config) = component_config(base, component)? {
            plain.push(Plain { index, config, tokenizer: read_tokenizer(base, tokenizer)? });
        }
    }
    Ok(plain)
}

/// The spellings of each word. Of those that two words have, or that are words of the vocabulary, only a
/// word's own name counts.
fn spellings(embeddings: &[Embedding], tokenizer: &Tokenizer) -> Result<Vec<Vec<String>>, EmbeddingError> {
    let mut own = BTreeSet::new();
    for embedding in embeddings {
        if !own.insert(tokenizer.normalized(embedding.name())) {
            return Err(EmbeddingError::SameName { name: embedding.name().to_string() });
        }
    }
    let mut all = Vec::new();
    for embedding in embeddings {
        let (name, others) = (embedding.name().to_string(), &embedding.names()[1..]);
        let others = others
            .iter()
            .filter(|other| !tokenizer.is_word(other) && own.insert(tokenizer.normalized(other)));
        all.push([name].into_iter().chain(others.cloned()).collect());
    }
    Ok(all)
}

/// A text encoder with words, each of spellings and vectors.
fn extended(
    base: &dyn ModelFiles,
    plain: &Plain,
    words: Vec<(Vec<String>, Option<&WeightRef>)>,
) -> Result<Encoder, EmbeddingError> {
    let (component, tokenizer) = TEXT_ENCODERS[plain.index];
    let rows = plain.config.vocab_size;
    let table = base.weights(component).map_err(EmbeddingError::File)?;
    let (weights, count) = extended_table(table, &plain.config, words.iter().filter_map(|word| word.1))?;
    let mut next = rows as u32;
    let words: Vec<Word> = words
        .into_iter()
        .map(|(names, vectors)| {
            let begin = next;
            next += vectors.map_or(0, |vectors| vectors.ty().shape[0] as u32);
            Word { names, ids: (begin..next).collect() }
        })
        .collect();
    let mut config = base.json(component, CONFIG).map_err(EmbeddingError::File)?;
    if count > 0 {
        let is_nested = config["model_type"] == "clip" && config["text_config"].is_object();
        let fields = if is_nested { &mut config["text_config"] } else { &mut config };
        fields["vocab_size"] = (rows + count).into();
        if fields["eos_token_id"].as_u64() == Some(HIGHEST_ID) {
            fields["eos_token_id"] = plain.tokenizer.end().into();
        }
    }
    let settings = merged_tokenizer_config(base, tokenizer)?.unwrap_or_else(|| "{}".to_string());
    let tokenizer_config = with_words(&settings, plain, &words).map_err(|error| {
        let what = format!("{TOKENIZER_CONFIG}: {error}");
        ModelError::Mismatch { component: tokenizer.to_string(), what }
    })?;
    Ok(Encoder { component, tokenizer, config, tokenizer_config, weights })
}

/// The weights of a text encoder with vectors after its table, in the table's element type, and their number.
fn extended_table<'a>(
    weights: Arc<dyn Weights>,
    config: &text_encoder::Config,
    vectors: impl Iterator<Item = &'a WeightRef>,
) -> Result<(Arc<dyn Weights>, usize), EmbeddingError> {
    let unusable = |error: mixbit_mil::WeightError| EmbeddingError::File(error.into());
    let name = TABLES.into_iter().find(|name| weights.get(name).is_some()).unwrap_or(TABLES[0]);
    let table = weights.require(name, &[config.vocab_size, config.hidden_size]).map_err(unusable)?;
    let mut parts = vec![table.uncast()];
    for vectors in vectors {
        parts.push(rows(vectors, table.stored_dtype()).map_err(unusable)?);
    }
    let count = parts[1..].iter().map(|part| part.ty().shape[0]).sum();
    if count == 0 {
        return Ok((weights, 0));
    }
    let joined = WeightRef::concat(name, &parts, 0).map_err(unusable)?.cast(table.ty().dtype);
    let replaced = BTreeMap::from([(name.to_string(), joined)]);
    Ok((Arc::new(Overlay::new(weights, replaced)), count))
}

/// Vectors in another element type.
fn rows(vectors: &WeightRef, dtype: DType) -> Result<WeightRef, mixbit_mil::WeightError> {
    let bytes = vectors.cast(dtype).read()?.into_owned();
    let ty = TensorType::new(dtype, vectors.ty().shape.clone());
    WeightRef::new(vectors.name(), ty, Bytes::new(bytes))
}

/// A tokenizer's configuration with words.
fn with_words(settings: &str, plain: &Plain, words: &[Word]) -> Result<String, serde_json::Error> {
    let mut settings: Map<String, Value> = serde_json::from_str(settings)?;
    let listed = words.iter().map(|word| json!({"names": word.names, "ids": word.ids}));
    match settings.entry(WORDS_KEY).or_insert_with(|| json!([])) {
        Value::Array(known) => known.extend(listed),
        other => *other = listed.collect(),
    }
    if let Some(Value::Object(added)) = settings.get_mut("added_tokens_decoder")
        && let Some(tokens) = tokens(plain, words, added)
    {
        added.extend(tokens);
    }
    Ok(Value::Object(settings).to_string())
}

/// The added tokens of words, by id. `None` if the tokenizer would give them other ids or has one of them:
/// then other tools can't know the words.
fn tokens(plain: &Plain, words: &[Word], added: &Map<String, Value>) -> Option<Vec<(String, Value)>> {
    let tokenizer = &plain.tokenizer;
    let is_listed = |id: &u32| added.contains_key(&id.to_string());
    if tokenizer.vocabulary_size() != plain.config.vocab_size
        || !tokenizer.added_tokens().keys().all(is_listed)
    {
        return None;
    }
    let mut known = BTreeSet::new();
    let mut tokens = Vec::new();
    for Word { names, ids } in words {
        let name = &names[0];
        let is_free =
            |name: &String| !tokenizer.has_token(name) && !tokenizer.has_token(&name.to_lowercase());
        let first = [name.clone(), format!("<{name}>")].into_iter().find(is_free)?;
        for (index, id) in ids.iter().enumerate() {
            let content = if index == 0 { first.clone() } else { format!("{first}_{index}") };
            if !is_free(&content) || !known.insert(content.clone()) {
                return None;
            }
            let token = json!({
                "content": content, "single_word": !content.starts_with('<'), "lstrip": false,
                "rstrip": false, "normalized": true, "special": false,
            });
            tokens.push((id.to_string(), token));
        }
    }
    Some(tokens)
}
