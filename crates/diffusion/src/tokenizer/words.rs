//! Words of textual inversion, which stand for ids beyond the vocabulary.

use std::collections::BTreeMap;
use std::ops::Range;

/// The field of `tokenizer_config.json` that adds words: a list of objects with `names`, the spellings of a
/// word, and `ids`, the tokens that it stands for. It is mixbit's own; other tools ignore it.
pub const WORDS_KEY: &str = "_mixbit_words";

/// ComfyUI's prefix of a word of textual inversion.
pub const EMBEDDING_PREFIX: &str = "embedding:";

/// Extensions of files, which ComfyUI's prompts may have after a name.
const EXTENSIONS: [&str; 3] = [".safetensors", ".pt", ".bin"];

/// A word that stands for any number of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The spellings, the word's own name first. A prompt may also have `embedding:name` and `<name>`.
    pub names: Vec<String>,
    /// The ids of its tokens; without any, the word is left out of the prompt.
    pub ids: Vec<u32>,
}

/// Words, and their spellings by first character.
pub(super) struct Words {
    all: Vec<Word>,
    spellings: BTreeMap<char, Vec<Spelling>>,
}

struct Spelling {
    text: String,
    word: usize,
}

impl Words {
    /// Words with their spellings as `normalized` gives them. Of equal spellings, the first counts.
    pub(super) fn new(all: Vec<Word>, normalized: impl Fn(&str) -> String) -> Self {
        let mut spellings: BTreeMap<char, Vec<Spelling>> = BTreeMap::new();
        for (word, names) in all.iter().map(|word| &word.names).enumerate() {
            for text in names.iter().flat_map(|name| spelled(&normalized(name))) {
                if let Some(first) = text.chars().next() {
                    spellings.entry(first).or_default().push(Spelling { text, word });
                }
            }
        }
        for alike in spellings.values_mut() {
            // The longest is found first.
            alike.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
            alike.dedup_by(|later, earlier| later.text == earlier.text);
        }
        Words { all, spellings }
    }

    pub(super) fn all(&self) -> &[Word] {
        &self.all
    }

    /// The places of words in a normalized prompt, from left to right: the longest at each place.
    pub(super) fn find(&self, text: &str) -> Vec<(Range<usize>, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(first) = text[at..].chars().next() {
            let alike = self.spellings.get(&first).into_iter().flatten();
            let fits = |spelling: &&Spelling| is_apart(text, at, &spelling.text);
            at += match alike.into_iter().find(fits) {
                Some(Spelling { text, word }) => {
                    found.push((at..at + text.len(), *word));
                    text.len()
                }
                None => first.len_utf8(),
            };
        }
        found
    }
}

/// All spellings of a normalized name.
fn spelled(name: &str) -> Vec<String> {
    if name.is_empty() {
        return Vec::new();
    }
    let mut spellings = vec![name.to_string(), format!("{EMBEDDING_PREFIX}{name}")];
    spellings.extend(EXTENSIONS.map(|extension| format!("{EMBEDDING_PREFIX}{name}{extension}")));
    if !name.starts_with('<') {
        spellings.push(format!("<{name}>"));
    }
    spellings
}

/// True if a text has a word at a place, and not as a part of a longer one.
fn is_apart(text: &str, at: usize, word: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let Some(after) = text[at..].strip_prefix(word) else { return false };
    let runs_on = |inside: Option<char>, outside: Option<char>| is_letter(inside) && is_letter(outside);
    !runs_on(word.chars().next(), text[..at].chars().next_back())
        && !runs_on(word.chars().next_back(), after.chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Failures;

    #[test]
    fn words_stand_alone_and_the_longest_counts() {
        let word =
            |names: &[&str]| Word { names: names.iter().map(|it| it.to_string()).collect(), ids: vec![] };
        let words = [word(&["Bad-Hands"]), word(&["bad-hands 5", "<five>"]), word(&["bad"]), word(&["bad"])];
        let words = Words::new(words.to_vec(), |name| name.to_lowercase());
        let mut failures = Failures::new("words");
        for (text, expected) in [
            ("bad", vec![("bad", 2)]),
            ("a bad-hands, (bad-hands 5:1.2)", vec![("bad-hands", 0), ("bad-hands 5", 1)]),
            ("bad-handset bad_ 2bad ébad", vec![("bad", 2)]),
            ("<bad-hands> <five> <bad>", vec![("<bad-hands>", 0), ("<five>", 1), ("<bad>", 2)]),
            ("five <fives>", vec![]),
            (
                "embedding:bad-hands embedding:bad-hands.pt,",
                vec![("embedding:bad-hands", 0), ("embedding:bad-hands.pt", 0)],
            ),
            ("xembedding:bad", vec![("bad", 2)]),
            ("", vec![]),
            ("é—", vec![]),
        ] {
            failures.case(text, || {
                let found: Vec<(&str, usize)> =
                    words.find(text).into_iter().map(|(place, word)| (&text[place], word)).collect();
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
        failures.finish();
    }
}
