//! Any texts as the files of a tokenizer, divided by zero bytes: no panic, no hang, and encodings are as long
//! as the tokenizer says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};

fuzz_target!(|file: &[u8]| {
    let Ok(text) = std::str::from_utf8(file) else { return };
    let mut texts = text.split('\0').map(|text| (!text.is_empty()).then_some(text));
    let mut next = || texts.next().flatten();
    let files = TokenizerFiles {
        vocab: next(),
        merges: next(),
        tokenizer: next(),
        config: next(),
        special_tokens_map: next(),
        added_tokens: next(),
    };
    let Ok(tokenizer) = Tokenizer::new(&files) else { return };
    for prompt in ["", "a red circle on blue", "<|endoftext|> 猫 \u{301}", next().unwrap_or("x")] {
        if let Ok(encoding) = tokenizer.encode(prompt) {
            assert_eq!(encoding.ids.len(), tokenizer.length());
        }
    }
});
