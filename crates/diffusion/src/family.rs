//! Data that every published model of the Stable Diffusion families shares.

/// CLIP's own vocabulary, by the names of the tokenizer's files: 49,408 tokens (MIT, by OpenAI).
pub static CLIP_VOCABULARY: [(&str, &str); 2] = [
    ("vocab.json", include_str!("../vocabulary/vocab.json")),
    ("merges.txt", include_str!("../vocabulary/merges.txt")),
];
