//! Data that every published model of the Stable Diffusion families shares.

/// CLIP's vocabulary of 49,408 tokens, as tokenizer file names and contents (MIT, by OpenAI).
pub static CLIP_VOCABULARY: [(&str, &str); 2] = [
    ("vocab.json", include_str!("../vocabulary/vocab.json")),
    ("merges.txt", include_str!("../vocabulary/merges.txt")),
];
