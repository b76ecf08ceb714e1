//! CLIP's byte-pair encoding, equal to Hugging Face's on every input.
//!
//! The vocabulary and the merges come from the model's files. The rest is fixed, as in transformers'
//! `CLIPTokenizer`, which also ignores those settings of `tokenizer.json`. The steps are Unicode NFC,
//! collapsed white space, lower case, CLIP's word pattern, bytes as characters and `</w>` at the end of a
//! word. Hugging Face's own `tokenizers` crate does the arithmetic. The files are checked first, because it
//! panics on some.
//!
//! Words of textual inversion are added by [`WORDS_KEY`], a field of mixbit in `tokenizer_config.json`. They
//! are found before all other tokens.

mod files;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use thiserror::Error;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, Normalizer, SplitDelimiterBehavior, TokenizerBuilder, TokenizerImpl, normalizer,
};

pub use files::TokenizerFiles;
use files::{Parts, parse};
use words::Words;
pub use words::{EMBEDDING_PREFIX, WORDS_KEY, Word};

/// CLIP's word pattern.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The suffix of a word's last piece.
const END_OF_WORD: &str = "</w>";

/// The number of positions in every published CLIP text encoder; the padded length if `model_max_length` is
/// absent.
pub const DEFAULT_LENGTH: usize = 77;

/// An error in loading or using a tokenizer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenizerError {
    /// Neither `tokenizer.json` nor both of `vocab.json` and `merges.txt`.
    #[error("the tokenizer has neither tokenizer.json nor both vocab.json and merges.txt")]
    NoVocabulary,
    /// A file with invalid content.
    #[error("{file}: {what}")]
    File {
        /// The file's name.
        file: &'static str,
        /// The fault and its place.
        what: String,
    },
    /// A prompt that the vocabulary cannot encode.
    #[error("the prompt can't be tokenized: {0}")]
    Prompt(String),
}

/// A prompt as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The ids: start, the prompt's tokens, end, then padding up to [`Tokenizer::length`].
    pub ids: Vec<u32>,
    /// The number of ids before the padding.
    pub used: usize,
    /// The text of the truncated tokens, as in diffusers' warning; `None` if nothing was truncated.
    pub dropped: Option<String>,
}

type Pipeline = TokenizerImpl<
    BPE,
    Normalizers,
    PreTokenizers,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// A CLIP tokenizer.
pub struct Tokenizer {
    pipeline: Pipeline,
    length: usize,
    start: u32,
    end: u32,
    padding: u32,
    several: Vec<SeveralVectors>,
    words: Words,
    /// The text encoder's embeddings; an id from here on has none.
    embeddings: usize,
}

/// An added token that stands for several, as textual inversion makes them: `<cat>`, `<cat>_1`, `<cat>_2`.
struct SeveralVectors {
    id: u32,
    token: String,
    /// All of them, separated by spaces.
    all: String,
}

impl Tokenizer {
    /// Builds a tokenizer from the contents of a model's tokenizer files.
    ///
    /// # Errors
    /// [`TokenizerError`] with the invalid file or token.
    pub fn new(files: &TokenizerFiles<'_>) -> Result<Self, TokenizerError> {
        let parts = parse(files)?;
        let length = parts.length.unwrap_or(DEFAULT_LENGTH);
        let Parts { vocabulary, merges, added, special, words, .. } = parts;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
            .unk_token(special.unknown.clone())
            .end_of_word_suffix(END_OF_WORD.to_string())
            .build()
            .map_err(internal)?;
        let mut pipeline = pipeline(bpe).map_err(internal)?;
        pipeline.add_tokens(added).map_err(internal)?;
        let id = |token: &str| {
            pipeline.token_to_id(token).ok_or_else(|| internal(format!("no id for `{token}`").into()))
        };
        let (start, end, padding) = (id(&special.start)?, id(&special.end)?, id(&special.padding)?);
        let several = several_vectors(&pipeline);
        let words = Words::new(words, |name| normalized(&pipeline, name).get().trim().to_string());
        Ok(Tokenizer { pipeline, length, start, end, padding, several, words, embeddings: usize::MAX })
    }

    /// The tokenizer for a text encoder with this number of embeddings; prompts with a token beyond them are
    /// refused. `None` if the vocabulary without added tokens is larger, or the start, end or padding token
    /// has no embedding.
    pub fn with_embeddings(self, embeddings: usize) -> Option<Self> {
        let largest = [self.start, self.end, self.padding].into_iter().max().unwrap_or(0);
        let fits = self.base_size() <= embeddings && (largest as usize) < embeddings;
        fits.then_some(Tokenizer { embeddings, ..self })
    }

    /// The number of ids of the vocabulary, without added tokens.
    pub fn base_size(&self) -> usize {
        self.pipeline.get_vocab_size(false)
    }

    /// The length of every encoding: `model_max_length`, or [`DEFAULT_LENGTH`].
    pub fn length(&self) -> usize {
        self.length
    }

    /// The id of the end token.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The number of ids, including added tokens. A special or added token that the vocabulary lacks gets the
    /// next free id, as in transformers.
    pub fn vocabulary_size(&self) -> usize {
        self.pipeline.get_vocab_size(true)
    }

    /// The added tokens that the vocabulary lacks, by id.
    pub fn added_tokens(&self) -> BTreeMap<u32, String> {
        let vocabulary = self.pipeline.get_vocab(false);
        let added = self.pipeline.get_added_tokens_decoder().into_iter();
        added
            .filter(|(_, token)| !vocabulary.contains_key(&token.content))
            .map(|(id, token)| (id, token.content))
            .collect()
    }

    /// The words that [`WORDS_KEY`] adds to the vocabulary.
    pub fn words(&self) -> &[Word] {
        self.words.all()
    }

    /// The places of added words in a prompt, from left to right, and their indices in
    /// [`words`](Self::words).
    pub fn find_words(&self, prompt: &str) -> Vec<(Range<usize>, usize)> {
        if self.words.all().is_empty() {
            return Vec::new();
        }
        let text = normalized(&self.pipeline, prompt);
        let original = |range| text.convert_offsets(normalizer::Range::Normalized(range));
        let found = self.words.find(text.get()).into_iter();
        found.filter_map(|(range, word)| Some((original(range)?, word))).collect()
    }

    /// True if a prompt has a word, in one of its spellings, that need not be added.
    pub fn mentions(&self, prompt: &str, word: &Word) -> bool {
        let word = Words::new(vec![word.clone()], |name| self.normalized(name));
        !word.find(normalized(&self.pipeline, prompt).get()).is_empty()
    }

    /// A text as prompts are compared with it: Unicode NFC, lower case, single spaces.
    pub fn normalized(&self, text: &str) -> String {
        normalized(&self.pipeline, text).get().trim().to_string()
    }

    /// True if the vocabulary or the added tokens have a token of this text.
    pub fn has_token(&self, token: &str) -> bool {
        self.pipeline.token_to_id(token).is_some()
    }

    /// True if a text is one word of the vocabulary.
    pub fn is_word(&self, text: &str) -> bool {
        self.has_token(&format!("{}{END_OF_WORD}", self.normalized(text)))
    }

    /// Tokenizes a prompt, truncated and padded to [`length`](Self::length) ids.
    ///
    /// # Errors
    /// [`TokenizerError::Prompt`] if a character has no token and the vocabulary has no unknown token, or a
    /// token has no embedding.
    pub fn encode(&self, prompt: &str) -> Result<Encoding, TokenizerError> {
        let mut all = Vec::new();
        let mut begin = 0;
        for (place, word) in self.find_words(prompt) {
            all.extend(self.plain_ids(&prompt[begin..place.start])?);
            all.extend_from_slice(&self.words.all()[word].ids);
            begin = place.end;
        }
        all.extend(self.plain_ids(&prompt[begin..])?);
        if let Some(&id) = all.iter().find(|&&id| id as usize >= self.embeddings) {
            let token = self.pipeline.id_to_token(id).unwrap_or_default();
            let what =
                format!("the text encoder has no embedding for the added token `{token}`; leave it out");
            return Err(TokenizerError::Prompt(what));
        }
        let (kept, cut) = all.split_at(all.len().min(self.length - 2));
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.start);
        ids.extend_from_slice(kept);
        ids.push(self.end);
        let used = ids.len();
        ids.resize(self.length, self.padding);
        let dropped = if cut.is_empty() { None } else { Some(self.decode(cut).map_err(unencodable)?) };
        Ok(Encoding { ids, used, dropped })
    }

    /// The ids of a part of a prompt without added words.
    fn plain_ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.pipeline.encode_fast(text, false).map_err(unencodable)?;
        // As in diffusers, the first of several vectors calls for the others.
        let is_used = |several: &&SeveralVectors| encoding.get_ids().contains(&several.id);
        let used: Vec<&SeveralVectors> = self.several.iter().filter(is_used).collect();
        if used.is_empty() {
            return Ok(encoding.get_ids().to_vec());
        }
        let whole = used.iter().fold(text.to_string(), |text, it| text.replace(&it.token, &it.all));
        Ok(self.pipeline.encode_fast(whole, false).map_err(unencodable)?.get_ids().to_vec())
    }

    /// The text of token ids, words separated by spaces.
    fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        let text = self.pipeline.decode(ids, false)?;
        // Python's `str.strip` removes Unicode's white space and four separators.
        let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        Ok(text.replace(END_OF_WORD, " ").trim_matches(is_space).to_string())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids, length {})", self.vocabulary_size(), self.length)
    }
}

/// The added tokens that stand for several.
fn several_vectors(pipeline: &Pipeline) -> Vec<SeveralVectors> {
    let added = pipeline.get_added_tokens_decoder();
    let known: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    let mut several = Vec::new();
    for (&id, token) in &added {
        let token = &token.content;
        let others = (1..).map(|index| format!("{token}_{index}"));
        let all: Vec<String> = others.take_while(|other| known.contains(other.as_str())).collect();
        if !all.is_empty() {
            several.push(SeveralVectors {
                id,
                token: token.clone(),
                all: format!("{token} {}", all.join(" ")),
            });
        }
    }
    several.sort_by_key(|several| several.id);
    several
}

fn pipeline(bpe: BPE) -> tokenizers::Result<Pipeline> {
    let whitespace = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_string()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    TokenizerBuilder::new()
        .with_model(bpe)
        .with_normalizer(Some(Normalizers::new(vec![NFC.into(), whitespace.into(), Lowercase.into()])))
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])))
        .with_decoder(Some(bytes.into()))
        .with_post_processor(None)
        .build()
}

/// A text after the steps that come before the split into words.
fn normalized(pipeline: &Pipeline, text: &str) -> NormalizedString {
    let mut normalized = NormalizedString::from(text);
    // CLIP's steps accept any text.
    let _ = pipeline.get_normalizer().map(|steps| steps.normalize(&mut normalized));
    normalized
}

/// An error of the library in a prompt.
fn unencodable(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Prompt(error.to_string())
}

/// An error of the library that the file checks did not catch.
fn internal(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::File { file: "tokenizer", what: error.to_string() }
}

#[cfg(test)]
mod tests;
