use mixbit_testkit::Failures;
use serde_json::{Value, json};

use super::*;

/// The merges of the test vocabulary: enough for `cat` and `cats` as words.
const MERGES: &str = "#version: 0.2\nc a\nca t</w>\nca t\ncat s</w>\n";

const START: u32 = 1000;
const END: u32 = 1001;
const CAT: u32 = 601;
const CATS: u32 = 603;

/// CLIP's vocabulary with four merges instead of 48,894: bytes, bytes at the end of a word, merges and
/// special tokens.
fn vocabulary() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort();
    let mut vocabulary = serde_json::Map::new();
    for (index, character) in alphabet.into_iter().enumerate() {
        vocabulary.insert(character.to_string(), json!(index));
        vocabulary.insert(format!("{character}</w>"), json!(index + 300));
    }
    for (token, id) in [("ca", 600), ("cat</w>", CAT), ("cat", 602), ("cats</w>", CATS)] {
        vocabulary.insert(token.to_string(), json!(id));
    }
    vocabulary.insert("<|startoftext|>".to_string(), json!(START));
    vocabulary.insert("<|endoftext|>".to_string(), json!(END));
    Value::Object(vocabulary)
}

/// The id of one character, inside a word or at its end.
fn piece(character: char, end: bool) -> u32 {
    let token = if end { format!("{character}</w>") } else { character.to_string() };
    vocabulary()[token].as_u64().unwrap() as u32
}

fn tokenizer(config: &Value) -> Result<Tokenizer, TokenizerError> {
    let (vocab, config) = (vocabulary().to_string(), config.to_string());
    let files = TokenizerFiles {
        vocab: Some(&vocab),
        merges: Some(MERGES),
        config: Some(&config),
        ..TokenizerFiles::default()
    };
    Tokenizer::new(&files)
}

fn ids(tokenizer: &Tokenizer, prompt: &str) -> Vec<u32> {
    let encoding = tokenizer.encode(prompt).unwrap();
    assert_eq!(encoding.ids.len(), tokenizer.length());
    assert_eq!(encoding.ids[0], START);
    assert_eq!(encoding.ids[encoding.used - 1], END);
    encoding.ids[1..encoding.used - 1].to_vec()
}

#[test]
fn prompts_become_start_tokens_end_and_padding() {
    let tokenizer = tokenizer(&json!({ "model_max_length": 6 })).unwrap();
    let encoding = tokenizer.encode("cat").unwrap();
    assert_eq!(encoding, Encoding { ids: vec![START, CAT, END, END, END, END], used: 3, dropped: None });
    assert!(ids(&tokenizer, "").is_empty());
    assert_eq!((tokenizer.end(), tokenizer.length()), (END, 6));
    assert_eq!(tokenizer.vocabulary_size(), 518);
}

#[test]
fn what_does_not_fit_is_told() {
    let tokenizer = tokenizer(&json!({ "model_max_length": 5 })).unwrap();
    let fits = tokenizer.encode("cat cat cat").unwrap();
    assert_eq!((fits.used, fits.dropped), (5, None));
    let cut = tokenizer.encode("cat cat cat Cats  é!").unwrap();
    assert_eq!(cut.ids, [START, CAT, CAT, CAT, END]);
    assert_eq!(cut.dropped.as_deref(), Some("cats é !"));
    let cut = tokenizer.encode("cat cat cat cat\u{1c}").unwrap();
    assert_eq!(cut.dropped.as_deref(), Some("cat"), "separators are stripped as Python does");
}

#[test]
fn special_tokens_are_found_in_prompts() {
    // Stable Diffusion XL's second tokenizer pads with `!`, which makes every `!` the padding token.
    let padded = tokenizer(&json!({ "pad_token": "!", "model_max_length": 5 })).unwrap();
    let bang = piece('!', false);
    assert_eq!(padded.encode("cat!").unwrap().ids, [START, CAT, bang, END, bang]);

    // As an object, the end token may request matching in lower case. The string of another role overrides
    // that.
    let end = json!({ "__type": "AddedToken", "content": "<|endoftext|>", "normalized": true });
    let all_objects = tokenizer(&json!({ "eos_token": end, "unk_token": end, "pad_token": end })).unwrap();
    assert_eq!(ids(&all_objects, "<|ENDOFTEXT|>"), [END]);
    let overridden = tokenizer(&json!({ "eos_token": end, "unk_token": end })).unwrap();
    assert_ne!(ids(&overridden, "<|ENDOFTEXT|>"), [END]);

    let listed = json!({ "7": { "content": "<Cat>", "normalized": false, "special": true } });
    let listed = tokenizer(&json!({ "added_tokens_decoder": listed })).unwrap();
    assert_eq!(ids(&listed, "<Cat>"), [518], "an added token takes the next free id, whatever the list says");
    assert_ne!(ids(&listed, "<cat>"), [518]);
}

#[test]
fn older_files_add_tokens_too() {
    let (vocab, added) = (vocabulary().to_string(), json!({ "<toy>": 1002 }).to_string());
    let map = json!({ "pad_token": { "content": "!", "normalized": false }, "eos_token": "<|endoftext|>" });
    let map = map.to_string();
    let config = json!({ "pad_token": "?", "model_max_length": 5 }).to_string();
    let files = TokenizerFiles {
        vocab: Some(&vocab),
        merges: Some(MERGES),
        config: Some(&config),
        special_tokens_map: Some(&map),
        added_tokens: Some(&added),
        ..TokenizerFiles::default()
    };
    let tokenizer = Tokenizer::new(&files).unwrap();
    let bang = piece('!', false);
    assert_eq!(tokenizer.encode("<TOY>!").unwrap().ids, [START, 518, bang, END, bang]);
}

/// A `tokenizer.json` of the test vocabulary.
fn tokenizer_json(merges: Value) -> Value {
    let token = |content: &str, id: u32| json!({ "id": id, "content": content, "special": true, "normalized": false });
    json!({
        "added_tokens": [token("<|startoftext|>", START), token("<|endoftext|>", END)],
        "model": { "type": "BPE", "vocab": vocabulary(), "merges": merges },
    })
}

#[test]
fn a_tokenizer_json_gives_the_same_ids() {
    let reference = tokenizer(&json!({})).unwrap();
    let old = json!(["c a", "ca t</w>", "ca t", "cat s</w>"]);
    let new = json!([["c", "a"], ["ca", "t</w>"], ["ca", "t"], ["cat", "s</w>"]]);
    for merges in [old, new] {
        let text = tokenizer_json(merges).to_string();
        let files = TokenizerFiles { tokenizer: Some(&text), vocab: Some("{"), ..TokenizerFiles::default() };
        let tokenizer = Tokenizer::new(&files).unwrap();
        for prompt in ["cat cats CAT é", "<|endoftext|>!", "12 cat's"] {
            assert_eq!(tokenizer.encode(prompt), reference.encode(prompt));
        }
    }
}

#[test]
fn malformed_files_are_refused() {
    type Change = fn(&mut Content);
    /// The file contents of one case.
    struct Content {
        vocab: String,
        merges: String,
        tokenizer: Option<String>,
        config: String,
        added: Option<String>,
    }
    let cases: [(&str, Change); 22] = [
        ("vocab.json: it is not JSON", |c| c.vocab = "{".into()),
        ("vocab.json: it is not a JSON object", |c| c.vocab = "[]".into()),
        ("vocab.json: the vocabulary is empty", |c| c.vocab = "{}".into()),
        ("vocab.json: token `a` has no id below", |c| c.vocab = r#"{"a": -1}"#.into()),
        ("vocab.json: token `a` has no id below", |c| c.vocab = r#"{"a": 4294967295}"#.into()),
        (r"vocab.json: token `a\nb` has no id below", |c| c.vocab = r#"{"a\nb": "x"}"#.into()),
        ("merges.txt: line 2 is not a pair", |c| c.merges = "c a\nabc".into()),
        ("merges.txt: line 1 is not a pair", |c| c.merges = "c a t".into()),
        ("the vocabulary lacks `ct`, which the merge `c t` needs", |c| c.merges = "c t".into()),
        ("the vocabulary lacks `cats</w>cats</w>`", |c| c.merges = "cats</w> cats</w>".into()),
        ("tokenizer.json: it has no `model`", |c| c.tokenizer = Some("{}".into())),
        ("is not CLIP's", |c| c.tokenizer = Some(r#"{"model": {"type": "Unigram"}}"#.into())),
        ("no object `vocab`", |c| c.tokenizer = Some(r#"{"model": {"vocab": []}}"#.into())),
        ("no list `merges`", |c| c.tokenizer = Some(r#"{"model": {"vocab": {}}}"#.into())),
        ("is not a pair", |c| c.tokenizer = Some(tokenizer_json(json!([["c"]])).to_string())),
        ("an added token has no id", |c| {
            let mut value = tokenizer_json(json!([]));
            value["added_tokens"] = json!([{ "content": "x" }]);
            c.tokenizer = Some(value.to_string());
        }),
        ("`model_max_length` is 2, not a number", |c| c.config = r#"{"model_max_length": 2}"#.into()),
        ("`model_max_length` is 70000,", |c| c.config = r#"{"model_max_length": 70000}"#.into()),
        ("only `right` is supported", |c| c.config = r#"{"padding_side": "left"}"#.into()),
        ("neither string nor object: 3", |c| c.config = r#"{"pad_token": 3}"#.into()),
        ("a special token is empty", |c| c.config = r#"{"bos_token": ""}"#.into()),
        ("added_tokens.json: the id of `x` is no number", |c| c.added = Some(r#"{"x": "y"}"#.into())),
    ];
    let mut failures = Failures::new("malformed tokenizer files");
    for (expected, change) in cases {
        let mut content = Content {
            vocab: vocabulary().to_string(),
            merges: MERGES.to_string(),
            tokenizer: None,
            config: "{}".to_string(),
            added: None,
        };
        change(&mut content);
        failures.case(expected, || {
            let files = TokenizerFiles {
                vocab: Some(&content.vocab),
                merges: Some(&content.merges),
                tokenizer: content.tokenizer.as_deref(),
                config: Some(&content.config),
                special_tokens_map: None,
                added_tokens: content.added.as_deref(),
            };
            let message =
                Tokenizer::new(&files).map(|_| "accepted".to_string()).unwrap_or_else(|e| e.to_string());
            let right = message.contains(expected) && !message.contains('\n') && message.len() < 400;
            if right { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
    assert_eq!(Tokenizer::new(&TokenizerFiles::default()).unwrap_err(), TokenizerError::NoVocabulary);
    let only_vocab = TokenizerFiles { vocab: Some("{}"), ..TokenizerFiles::default() };
    assert_eq!(Tokenizer::new(&only_vocab).unwrap_err(), TokenizerError::NoVocabulary);
}

#[test]
fn lengths_without_a_limit_are_the_default() {
    for length in [json!(1e30), Value::Null] {
        let tokenizer = tokenizer(&json!({ "model_max_length": length })).unwrap();
        assert_eq!(tokenizer.length(), DEFAULT_LENGTH);
    }
}

#[test]
fn a_vocabulary_without_the_unknown_token_says_what_it_lacks() {
    let files = TokenizerFiles {
        vocab: Some(r#"{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}"#),
        merges: Some(""),
        config: Some(r#"{"unk_token": "<unk>"}"#),
        ..TokenizerFiles::default()
    };
    let tokenizer = Tokenizer::new(&files).unwrap();
    assert_eq!(tokenizer.encode("a").unwrap().used, 3);
    assert!(matches!(tokenizer.encode("b"), Err(TokenizerError::Prompt(_))));
}

/// The tokenizer of files, and the one of the vocabulary with the merged configuration.
fn both(files: TokenizerFiles<'_>) -> [Tokenizer; 2] {
    let config = files.merged_config().unwrap();
    let merged = TokenizerFiles {
        config: Some(&config),
        tokenizer: None,
        special_tokens_map: None,
        added_tokens: None,
        ..files
    };
    [files, merged].map(|files| Tokenizer::new(&files).unwrap())
}

#[test]
fn a_merged_configuration_makes_the_same_tokenizer() {
    let vocab = vocabulary().to_string();
    let added = json!({"<toy>": 1002, "<toy>_1": 1003, "sks": 1004}).to_string();
    let map = json!({"pad_token": "!", "bos_token": {"content": "<|startoftext|>", "normalized": true}});
    let config = json!({"model_max_length": 12}).to_string();
    let whole = json!({
        "model": {"vocab": vocabulary(), "merges": ["c a", "ca t</w>", "ca t", "cat s</w>"]},
        "added_tokens": [{"id": 1002, "content": "<toy>", "special": false, "normalized": true}],
    });
    let (map, whole) = (map.to_string(), whole.to_string());
    let plain = TokenizerFiles {
        vocab: Some(&vocab),
        merges: Some(MERGES),
        config: Some(&config),
        ..TokenizerFiles::default()
    };
    let cases = [
        ("plain", plain),
        ("added", TokenizerFiles { added_tokens: Some(&added), ..plain }),
        ("map", TokenizerFiles { special_tokens_map: Some(&map), added_tokens: Some(&added), ..plain }),
        ("whole", TokenizerFiles { tokenizer: Some(&whole), ..plain }),
    ];
    let mut failures = Failures::new("merged configurations");
    for (name, files) in cases {
        failures.case(name, || {
            let [own, merged] = both(files);
            for prompt in ["a cat <toy> cats", "<toy>_1 sks <TOY>", "!", ""] {
                let [own, merged] = [&own, &merged].map(|tokenizer| ids(tokenizer, prompt));
                if own != merged {
                    return Err(format!("{prompt}: {merged:?}, not {own:?}"));
                }
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn a_token_of_several_vectors_calls_for_all_of_them() {
    let config = json!({"added_tokens_decoder": {
        "1002": {"content": "<toy>", "normalized": true},
        "1003": {"content": "<toy>_1", "normalized": true},
        "1005": {"content": "<toy>_3", "normalized": true},
    }});
    let tokenizer = tokenizer(&config).unwrap();
    let added: Vec<(u32, String)> = tokenizer.added_tokens().into_iter().collect();
    assert_eq!(added.len(), 3);
    let [first, second] = [added[0].0, added[1].0];
    let found = ids(&tokenizer, "a <toy> cat");
    let place = found.iter().position(|&id| id == first).unwrap();
    assert_eq!(found[place..place + 3], [first, second, CAT]);
    assert_eq!(ids(&tokenizer, "cats").iter().filter(|&&id| id == CATS).count(), 1);
}
