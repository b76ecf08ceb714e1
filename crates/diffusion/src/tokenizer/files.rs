//! The reader of tokenizer files, with transformers' rules for merging them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::TokenizerError;
use super::words::{WORDS_KEY, Word};

/// The id limit. Larger ids are a mistake or an attack: no text encoder has that many embeddings.
const ID_LIMIT: u64 = 1 << 24;

/// The prompt limit. Longer prompts are a mistake or an attack.
const LENGTH_LIMIT: u64 = 1 << 16;

/// transformers' value for "no limit" in `model_max_length`.
const NO_LENGTH: f64 = 1e20;

/// The limit of added and special tokens. Each costs a search in every prompt.
const ADDED_LIMIT: usize = 100_000;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

const VOCABULARY_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_FILE: &str = "special_tokens_map.json";
const ADDED_FILE: &str = "added_tokens.json";

/// The field of a newer `tokenizer_config.json` with every added token by its id.
const ADDED_LIST: &str = "added_tokens_decoder";

/// The contents of the files in a `tokenizer` folder; absent files are `None`.
///
/// Required: `tokenizer`, or both `vocab` and `merges`. `tokenizer` takes precedence, as in transformers.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// `vocab.json`: ids by token.
    pub vocab: Option<&'a str>,
    /// `merges.txt`: pairs of pieces, in order of priority.
    pub merges: Option<&'a str>,
    /// `tokenizer.json`: vocabulary, merges and added tokens in one file.
    pub tokenizer: Option<&'a str>,
    /// `tokenizer_config.json`: special tokens and the maximum length.
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`: special tokens, in older models.
    pub special_tokens_map: Option<&'a str>,
    /// `added_tokens.json`: ids of added tokens, in older models.
    pub added_tokens: Option<&'a str>,
}

/// Ids by token.
type Vocabulary = HashMap<String, u32>;

/// Added tokens by id.
type AddedTokens = BTreeMap<u64, AddedToken>;

/// Pairs of pieces, in order of priority.
type Merges = Vec<(String, String)>;

/// The merged content of all files.
pub(super) struct Parts {
    pub(super) vocabulary: Vocabulary,
    pub(super) merges: Merges,
    /// Tokens that are matched before the prompt is split into words.
    pub(super) added: Vec<AddedToken>,
    pub(super) special: Special,
    /// `model_max_length`, if set.
    pub(super) length: Option<usize>,
    /// The words that [`WORDS_KEY`] adds.
    pub(super) words: Vec<Word>,
}

/// The content of the special tokens.
pub(super) struct Special {
    pub(super) start: String,
    pub(super) end: String,
    pub(super) unknown: String,
    pub(super) padding: String,
}

/// The roles of special tokens, in the order in which transformers adds them.
const ROLES: [(&str, Option<&str>); 7] = [
    ("bos_token", Some(START)),
    ("eos_token", Some(END)),
    ("unk_token", Some(END)),
    ("sep_token", None),
    ("pad_token", Some(END)),
    ("cls_token", None),
    ("mask_token", None),
];

impl TokenizerFiles<'_> {
    /// The content of a `tokenizer_config.json` that says by itself what all files say about special and
    /// added tokens. With it, the vocabulary and the merges make the same tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError`] with the invalid file.
    pub fn merged_config(&self) -> Result<String, TokenizerError> {
        let tokenizer = self.tokenizer.map(|text| object(TOKENIZER_FILE, text)).transpose()?;
        let (mut config, added) = settings(self, tokenizer.as_ref())?;
        let token = |token: AddedToken| {
            json!({
                "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
                "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
            })
        };
        if !config.contains_key(ADDED_LIST) {
            let added: Map<String, Value> =
                added.into_iter().map(|(id, added)| (id.to_string(), token(added))).collect();
            config.insert(ADDED_LIST.to_string(), added.into());
        }
        Ok(Value::Object(config).to_string())
    }
}

pub(super) fn parse(files: &TokenizerFiles<'_>) -> Result<Parts, TokenizerError> {
    let tokenizer = files.tokenizer.map(|text| object(TOKENIZER_FILE, text)).transpose()?;
    let (config, added) = settings(files, tokenizer.as_ref())?;
    let (vocabulary, merges) = match (&tokenizer, files.vocab, files.merges) {
        (Some(tokenizer), _, _) => from_tokenizer(tokenizer)?,
        (None, Some(vocab), Some(merges)) => {
            (vocabulary(VOCABULARY_FILE, &object(VOCABULARY_FILE, vocab)?)?, merges_of_text(merges)?)
        }
        _ => return Err(TokenizerError::NoVocabulary),
    };
    check_merges(files.tokenizer.map_or(MERGES_FILE, |_| TOKENIZER_FILE), &vocabulary, &merges)?;
    if config.get("padding_side").is_some_and(|side| side != "right") {
        return Err(wrong(CONFIG_FILE, "only `right` is supported as `padding_side`"));
    }
    let length = length(&config)?;
    let (special, added) = special_tokens(&config, added.into_values().collect())?;
    let words = config.get(WORDS_KEY).map_or(Ok(Vec::new()), words)?;
    Ok(Parts { vocabulary, merges, added, special, length, words })
}

/// The configuration with the special tokens of all files, and the added tokens by id.
fn settings(
    files: &TokenizerFiles<'_>,
    tokenizer: Option<&Map<String, Value>>,
) -> Result<(Map<String, Value>, AddedTokens), TokenizerError> {
    let mut config = files.config.map(|text| object(CONFIG_FILE, text)).transpose()?.unwrap_or_default();
    // Newer configurations list every added token; older ones are spread over three files.
    let mut added: BTreeMap<u64, AddedToken> = BTreeMap::new();
    if let Some(list) = config.get(ADDED_LIST) {
        let list =
            list.as_object().ok_or_else(|| wrong(CONFIG_FILE, format!("`{ADDED_LIST}` is no object")))?;
        for (id, token) in list {
            let id = id
                .parse()
                .map_err(|_| wrong(CONFIG_FILE, format!("added token id `{}` is no number", brief(id))))?;
            added.insert(id, added_token(CONFIG_FILE, token, false)?);
        }
    } else {
        if let Some(text) = files.special_tokens_map {
            for (role, mut token) in object(SPECIAL_FILE, text)? {
                if let Some(token) = token.as_object_mut() {
                    token.insert("special".to_string(), Value::Bool(true));
                }
                config.insert(role, token);
            }
        }
        if let Some(text) = files.added_tokens {
            add_legacy(text, &config, &mut added)?;
        }
        let list = tokenizer.and_then(|tokenizer| tokenizer.get("added_tokens"));
        for token in list.and_then(Value::as_array).into_iter().flatten() {
            let id = token.get("id").and_then(Value::as_u64);
            let id = id.ok_or_else(|| wrong(TOKENIZER_FILE, "an added token has no id"))?;
            added.insert(id, added_token(TOKENIZER_FILE, token, false)?);
        }
    }
    Ok((config, added))
}

/// Sets the special tokens and adds those that are not yet among the added tokens.
///
/// transformers adds a special token twice if one role gives it as a string and another as an object. The
/// later one's flags count. In Stable Diffusion 1.x the string of `pad_token` overrides the `eos_token`
/// object.
fn special_tokens(
    config: &Map<String, Value>,
    mut added: Vec<AddedToken>,
) -> Result<(Special, Vec<AddedToken>), TokenizerError> {
    let mut content: BTreeMap<&str, String> = BTreeMap::new();
    let mut candidates: Vec<Value> = Vec::new();
    for (role, default) in ROLES {
        let value = config.get(role).filter(|value| !value.is_null()).cloned();
        let Some(value) = value.or(default.map(Value::from)) else { continue };
        content.insert(role, added_token(CONFIG_FILE, &value, true)?.content);
        candidates.push(value);
    }
    for key in ["extra_special_tokens", "additional_special_tokens"] {
        candidates.extend(config.get(key).and_then(Value::as_array).into_iter().flatten().cloned());
    }
    if candidates.len() + added.len() > ADDED_LIMIT {
        let what = format!("it has more than {ADDED_LIMIT} added and special tokens");
        return Err(wrong(CONFIG_FILE, what));
    }
    let listed: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
    let mut seen: HashMap<String, Vec<(bool, AddedToken)>> = HashMap::new();
    for value in candidates {
        let token = (value.is_string(), added_token(CONFIG_FILE, &value, true)?);
        let alike = seen.entry(token.1.content.clone()).or_default();
        if !listed.contains(&token.1.content) && !alike.contains(&token) {
            added.push(token.1.clone());
            alike.push(token);
        }
    }
    let mut take = |role: &str| content.remove(role).unwrap_or_default();
    let special = Special {
        start: take("bos_token"),
        end: take("eos_token"),
        unknown: take("unk_token"),
        padding: take("pad_token"),
    };
    Ok((special, added))
}

/// `added_tokens.json`: a token is special if it has a role, otherwise normalized.
fn add_legacy(
    text: &str,
    config: &Map<String, Value>,
    added: &mut BTreeMap<u64, AddedToken>,
) -> Result<(), TokenizerError> {
    for (token, id) in object(ADDED_FILE, text)? {
        let id = id
            .as_u64()
            .ok_or_else(|| wrong(ADDED_FILE, format!("the id of `{}` is no number", brief(&token))))?;
        let is_special = ROLES.iter().any(|(role, _)| {
            let value = config.get(*role);
            let content = value.and_then(|value| value.get("content")).or(value);
            content.and_then(Value::as_str) == Some(&token)
        });
        added.insert(id, AddedToken::from(token, is_special));
    }
    Ok(())
}

/// The words of [`WORDS_KEY`]: a list of objects with `names` and `ids`.
fn words(value: &Value) -> Result<Vec<Word>, TokenizerError> {
    let listed = value.as_array().filter(|words| words.len() <= ADDED_LIMIT);
    let words: Option<Vec<Word>> = listed.and_then(|words| words.iter().map(word).collect());
    let what = || format!("`{WORDS_KEY}` is no list of names and ids: {}", brief(value));
    words.ok_or_else(|| wrong(CONFIG_FILE, what()))
}

fn word(value: &Value) -> Option<Word> {
    let names = value.get("names")?.as_array()?.iter();
    let names = names.map(|name| name.as_str().filter(|name| !name.trim().is_empty()).map(str::to_string));
    let ids = value.get("ids")?.as_array()?.iter();
    let ids = ids.map(|id| id.as_u64().filter(|&id| id < ID_LIMIT).map(|id| id as u32));
    Some(Word { names: names.collect::<Option<_>>()?, ids: ids.collect::<Option<_>>()? })
}

/// A token given as a string or as an object with flags.
fn added_token(file: &'static str, value: &Value, special: bool) -> Result<AddedToken, TokenizerError> {
    let (content, flags) = match value {
        Value::String(content) => (content.as_str(), None),
        Value::Object(flags) => {
            let content = flags.get("content").and_then(Value::as_str);
            (content.ok_or_else(|| wrong(file, "a token has no `content`"))?, Some(flags))
        }
        _ => return Err(wrong(file, format!("a token is neither string nor object: {}", brief(value)))),
    };
    if content.is_empty() {
        return Err(wrong(file, "a special token is empty"));
    }
    let flag = |name: &str| flags.and_then(|flags| flags.get(name)).and_then(Value::as_bool);
    let is_special = flag("special").unwrap_or(false);
    Ok(AddedToken {
        content: content.to_string(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        // The library's default: special tokens are matched in the prompt before normalization.
        normalized: flag("normalized").unwrap_or(!(is_special || flags.is_none())),
        special: is_special || special,
    })
}

fn from_tokenizer(tokenizer: &Map<String, Value>) -> Result<(Vocabulary, Merges), TokenizerError> {
    let model = tokenizer.get("model").and_then(Value::as_object);
    let model = model.ok_or_else(|| wrong(TOKENIZER_FILE, "it has no `model`"))?;
    if let Some(kind) = model.get("type").filter(|kind| *kind != "BPE") {
        return Err(wrong(
            TOKENIZER_FILE,
            format!("a model of type {} is not CLIP's, which is BPE", brief(kind)),
        ));
    }
    let vocab = model.get("vocab").and_then(Value::as_object);
    let vocab = vocab.ok_or_else(|| wrong(TOKENIZER_FILE, "its `model` has no object `vocab`"))?;
    let merges = model.get("merges").and_then(Value::as_array);
    let merges = merges.ok_or_else(|| wrong(TOKENIZER_FILE, "its `model` has no list `merges`"))?;
    let pairs: Option<Merges> = merges.iter().map(pair_of_json).collect();
    let pairs = pairs.ok_or_else(|| wrong(TOKENIZER_FILE, "one of its `merges` is not a pair"))?;
    Ok((vocabulary(TOKENIZER_FILE, vocab)?, pairs))
}

/// A merge, `"a b"` in older files and `["a", "b"]` in newer ones.
fn pair_of_json(value: &Value) -> Option<(String, String)> {
    match value {
        Value::String(text) => pair(text),
        Value::Array(parts) => match &parts[..] {
            [Value::String(first), Value::String(second)] => Some((first.clone(), second.clone())),
            _ => None,
        },
        _ => None,
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (first, second) = text.split_once(' ')?;
    (!second.contains(' ')).then(|| (first.to_string(), second.to_string()))
}

fn merges_of_text(text: &str) -> Result<Merges, TokenizerError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    lines
        .map(|(index, line)| {
            pair(line)
                .ok_or_else(|| wrong(MERGES_FILE, format!("line {} is not a pair of pieces", index + 1)))
        })
        .collect()
}

fn vocabulary(file: &'static str, object: &Map<String, Value>) -> Result<Vocabulary, TokenizerError> {
    let mut vocabulary = HashMap::with_capacity(object.len());
    for (token, id) in object {
        let id = id.as_u64().filter(|&id| id < ID_LIMIT);
        let id =
            id.ok_or_else(|| wrong(file, format!("token `{}` has no id below {ID_LIMIT}", brief(token))))?;
        vocabulary.insert(token.clone(), id as u32);
    }
    if vocabulary.is_empty() {
        return Err(wrong(file, "the vocabulary is empty"));
    }
    Ok(vocabulary)
}

/// The library panics if a merge's result is longer than every token, so all results are looked up first.
fn check_merges(
    file: &'static str,
    vocabulary: &Vocabulary,
    merges: &[(String, String)],
) -> Result<(), TokenizerError> {
    for (first, second) in merges {
        let merged = format!("{first}{second}");
        for token in [first, second, &merged] {
            if !vocabulary.contains_key(token) {
                let (merge, token) = (brief(&format!("{first} {second}")), brief(token));
                let what = format!("the vocabulary lacks `{token}`, which the merge `{merge}` needs");
                return Err(wrong(file, what));
            }
        }
    }
    Ok(())
}

fn length(config: &Map<String, Value>) -> Result<Option<usize>, TokenizerError> {
    let Some(value) = config.get("model_max_length").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    if value.as_f64().is_some_and(|length| length > NO_LENGTH) {
        return Ok(None);
    }
    // Start, end and at least one token between them.
    let length = value.as_u64().filter(|length| (3..=LENGTH_LIMIT).contains(length));
    let length = length.ok_or_else(|| {
        let value = brief(value);
        wrong(CONFIG_FILE, format!("`model_max_length` is {value}, not a number from 3 to {LENGTH_LIMIT}"))
    })?;
    Ok(Some(length as usize))
}

fn object(file: &'static str, text: &str) -> Result<Map<String, Value>, TokenizerError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong(file, "it is not a JSON object")),
        Err(error) => Err(wrong(file, format!("it is not JSON: {}", brief(&error)))),
    }
}

/// A file's value for an error message: shortened, and on one line.
fn brief(value: &(impl Display + ?Sized)) -> String {
    value.to_string().chars().take(80).flat_map(char::escape_debug).collect()
}

fn wrong(file: &'static str, what: impl Into<String>) -> TokenizerError {
    TokenizerError::File { file, what: what.into() }
}
