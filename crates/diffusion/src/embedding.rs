//! Textual inversion (arXiv 2208.01618): words that stand for trained input vectors of a text encoder.
//!
//! [`Embedding`] reads the forms in which trainers and web UIs write them. [`EmbeddedFiles`] is a model whose
//! tokenizers know the words and whose text encoders have the vectors. It is a layer over the model's files:
//! what is converted has the words too.

mod error;
mod files;

use std::collections::{BTreeMap, BTreeSet};

use mixbit_mil::{DType, WeightRef, Weights};

pub use error::EmbeddingError;
pub use files::{EmbeddedFiles, VectorChannels};

use crate::model::TEXT_ENCODERS;
use crate::tokenizer::{Tokenizer, Word};

/// The web UI's dictionary of vectors by placeholder; the placeholder is `*`.
const WEB_UI: &str = "string_to_param.";

/// The name of the vectors in safetensors files for one text encoder.
const PARAMS: &str = "emb_params";

/// Names of vectors that say which text encoder they are for: kohya's and ComfyUI's, then those of diffusers'
/// scripts for pivotal tuning.
const BY_ENCODER: [(&str, usize); 5] =
    [("clip_l", 0), ("clip_g", 1), ("clip_h", 0), ("text_encoders_0", 0), ("text_encoders_1", 1)];

/// The channels of published text encoders, and the models that have these text encoders.
const PUBLISHED: [(&[usize], &str); 4] = [
    (&[768], "Stable Diffusion 1.x"),
    (&[1024], "Stable Diffusion 2.x"),
    (&[768, 1280], "Stable Diffusion XL"),
    (&[1280], "the second text encoder of Stable Diffusion XL"),
];

/// The most vectors of a word. No prompt has room for more than 75.
const MOST_VECTORS: usize = 1024;

/// Ends of names that weights of networks have, and no word.
const OF_NETWORKS: [&str; 3] = [".weight", ".bias", ".alpha"];

/// A textual inversion: vectors, and the word that stands for them.
#[derive(Clone, Debug)]
pub struct Embedding {
    names: Vec<String>,
    vectors: Vec<Vectors>,
}

/// Vectors for one text encoder.
#[derive(Clone, Debug)]
struct Vectors {
    /// Vectors by channels.
    tensor: WeightRef,
    /// The index in [`TEXT_ENCODERS`], where the file says it; else the channels do.
    encoder: Option<usize>,
}

impl Embedding {
    /// Reads a file's tensors and metadata. `stem` is the file's name without its extension.
    ///
    /// The word is `stem`, as in the web UI and ComfyUI. In diffusers' form it is the token in the file; then
    /// `stem` is another spelling of it, and so is the `name` that the web UI stores.
    ///
    /// # Errors
    /// [`EmbeddingError::NotAnEmbedding`], [`EmbeddingError::Tensor`].
    pub fn read(
        weights: &dyn Weights,
        metadata: &BTreeMap<String, String>,
        stem: &str,
    ) -> Result<Self, EmbeddingError> {
        let tensors = weights.names();
        let by_encoder: Vec<(&str, usize)> =
            BY_ENCODER.into_iter().filter(|(name, _)| tensors.contains(name)).collect();
        let web_ui: Vec<&str> = tensors.iter().copied().filter(|name| name.starts_with(WEB_UI)).collect();
        let (vectors, names) = match (&web_ui[..], &by_encoder[..], &tensors[..]) {
            ([name], _, _) => {
                let stored = metadata.get("name").cloned();
                (vec![vectors(weights, name, None)?], [Some(stem.to_string()), stored])
            }
            ([_, other, ..], _, _) => return Err(several(other)),
            ([], [_, ..], _) => {
                let read = |(name, encoder): &(&str, usize)| vectors(weights, name, Some(*encoder));
                let all = by_encoder.iter().map(read).collect::<Result<_, _>>()?;
                (all, [Some(stem.to_string()), None])
            }
            ([], [], names) if names.contains(&PARAMS) => {
                (vec![vectors(weights, PARAMS, None)?], [Some(stem.to_string()), None])
            }
            ([], [], [token]) if !OF_NETWORKS.iter().any(|end| token.ends_with(end)) => {
                (vec![vectors(weights, token, None)?], [Some(token.to_string()), Some(stem.to_string())])
            }
            ([], [], all) => return Err(not_an_embedding(all)),
        };
        let mut known = BTreeSet::new();
        let is_name = |name: &String| !matches!(name.trim(), "" | "*") && known.insert(name.clone());
        let names: Vec<String> = names.into_iter().flatten().filter(is_name).collect();
        if names.is_empty() {
            return Err(EmbeddingError::NotAnEmbedding { what: "it has no name".to_string() });
        }
        Ok(Embedding { names, vectors })
    }

    /// The same vectors under another name alone.
    pub fn named(self, name: &str) -> Self {
        Embedding { names: vec![name.to_string()], ..self }
    }

    /// The word.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// All spellings of the word, its own first.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// True if one of the prompts has the word.
    pub fn is_in(&self, prompts: &[String], tokenizer: &Tokenizer) -> bool {
        let word = Word { names: self.names.clone(), ids: Vec::new() };
        prompts.iter().any(|prompt| tokenizer.mentions(prompt, &word))
    }

    /// The largest number of vectors that it has for a text encoder.
    pub fn vector_count(&self) -> usize {
        self.vectors.iter().map(|vectors| vectors.tensor.ty().shape[0]).max().unwrap_or(0)
    }

    /// The models that take its vectors, for people.
    pub fn made_for(&self) -> String {
        made_for(self.vectors.iter().map(Vectors::channels).collect())
    }

    /// Checks that a model's text encoders take the vectors. Gives the folders of those that get some, if not
    /// all do.
    ///
    /// # Errors
    /// [`EmbeddingError::OtherFamily`] if some of the vectors fit none.
    pub fn check(&self, channels: &VectorChannels) -> Result<Option<Vec<&'static str>>, EmbeddingError> {
        let placed = self.placed(channels)?;
        let with_vectors = channels.0.iter().zip(&placed).filter(|(_, vectors)| vectors.is_some());
        let folders: Vec<&str> = with_vectors.map(|((index, _), _)| TEXT_ENCODERS[*index].0).collect();
        Ok((folders.len() < placed.len()).then_some(folders))
    }

    /// The vectors for each of a model's text encoders, by the channels that these take.
    ///
    /// # Errors
    /// [`EmbeddingError::OtherFamily`] if some of the vectors fit none.
    fn placed(&self, channels: &VectorChannels) -> Result<Vec<Option<&WeightRef>>, EmbeddingError> {
        let encoders = &channels.0;
        let mut placed = vec![None; encoders.len()];
        for vectors in &self.vectors {
            let fits = |(index, channels): &(usize, usize)| {
                *channels == vectors.channels() && vectors.encoder.is_none_or(|encoder| encoder == *index)
            };
            let place = encoders.iter().position(fits).ok_or_else(|| {
                let takes: Vec<String> = encoders.iter().map(|(_, channels)| channels.to_string()).collect();
                EmbeddingError::OtherFamily { made_for: self.made_for(), takes: takes.join(" and ") }
            })?;
            placed[place] = Some(&vectors.tensor);
        }
        Ok(placed)
    }
}

impl Vectors {
    fn channels(&self) -> usize {
        self.tensor.ty().shape[1]
    }
}

/// The models whose text encoders take vectors of these channels.
fn made_for(mut channels: Vec<usize>) -> String {
    channels.sort_unstable();
    let numbers: Vec<String> = channels.iter().map(usize::to_string).collect();
    let numbers = numbers.join(" and ");
    match PUBLISHED.iter().find(|(published, _)| *published == channels) {
        Some((_, models)) => format!("{models} ({numbers} channels)"),
        None => format!("text encoders of {numbers} channels"),
    }
}

/// A tensor as vectors by channels; a tensor of one axis is one vector.
fn vectors(weights: &dyn Weights, name: &str, encoder: Option<usize>) -> Result<Vectors, EmbeddingError> {
    let wrong = |what: String| EmbeddingError::Tensor { tensor: name.to_string(), what };
    let tensor = weights.get(name).ok_or_else(|| wrong("is not there".to_string()))?;
    let ty = tensor.ty().clone();
    if !ty.dtype.is_float() {
        return Err(wrong(format!("is of type {}, not of floats", ty.dtype)));
    }
    let inner: Vec<usize> = ty.shape.iter().copied().skip_while(|&extent| extent == 1).collect();
    let [count, channels] = match (&inner[..], &ty.shape[..]) {
        (&[channels], _) => [1, channels],
        (&[count, channels], _) => [count, channels],
        _ => return Err(wrong(format!("has shape {:?}, not vectors by channels", ty.shape))),
    };
    if !(1..=MOST_VECTORS).contains(&count) || channels == 0 {
        return Err(wrong(format!("has {count} vectors of {channels} channels, not 1 to {MOST_VECTORS}")));
    }
    let tensor = tensor.reshape([count, channels]).map_err(|error| wrong(error.to_string()))?;
    let bytes = tensor.cast(DType::F32).read().map_err(|error| wrong(error.to_string()))?.into_owned();
    let is_finite = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).is_finite();
    if !bytes.chunks_exact(4).all(is_finite) {
        return Err(wrong("has an infinity or a NaN: its training failed".to_string()));
    }
    Ok(Vectors { tensor, encoder })
}

fn several(other: &str) -> EmbeddingError {
    let what = format!("it has several words, `{other}` among them");
    EmbeddingError::NotAnEmbedding { what }
}

/// The error of a file with these tensors.
fn not_an_embedding(names: &[&str]) -> EmbeddingError {
    let has = |marks: &[&str]| names.iter().any(|name| marks.iter().any(|mark| name.contains(mark)));
    let what = match names {
        [] => "it holds no tensors".to_string(),
        _ if has(&["lora_", ".hada_", ".lokr_", "_lora."]) => "it is a LoRA: give it with --lora".to_string(),
        _ if has(&["model.diffusion_model.", "down_blocks.", "text_model.", "decoder.conv_in"]) => {
            "it holds a network: give it with --model".to_string()
        }
        [first, ..] => format!("its first tensor is `{first}` of {}", names.len()),
    };
    EmbeddingError::NotAnEmbedding { what }
}

#[cfg(test)]
mod tests;
