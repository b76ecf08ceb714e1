//! Models in one file, in the original layouts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mixbit_diffusion::embedding::Embedding;
use mixbit_diffusion::model::ModelFiles;
use mixbit_diffusion::original::{
    Base, ControlNetFile, Original, OriginalError, OriginalFiles, PARAMETERIZATION,
};
use mixbit_formats::{TensorFile, read_text};
use mixbit_mil::Weights;

use super::{Component, DIFFUSERS, DiffusersModel, OpenOptions, OpenedModel, Probe, SINGLE_FILE, open};
use crate::error::OpenError;

/// The most bytes of a `.yaml` beside a checkpoint.
const YAML_LIMIT: u64 = 1 << 20;

/// Extensions of files of tensors.
pub(crate) const EXTENSIONS: [&str; 7] = ["safetensors", "ckpt", "pt", "pth", "bin", "gguf", "sft"];

/// A textual inversion given as a model.
const EMBEDDING: &str = "a textual inversion, which adds a word to a model: name the model with --model and \
                         this file with --embedding";

/// Names of tensors, or parts of them, that tell files which are no model, and what those are.
const OTHERS: [(&[&str], &str); 3] = [
    (
        &[
            ".lora_down.",
            ".lora_up.",
            ".lora_A.",
            ".lora_B.",
            ".hada_w1",
            ".lokr_w",
            "_lora.down.",
            ".dora_scale",
        ],
        "a LoRA, which changes a model: name the model with --model and this file with --lora",
    ),
    (&["emb_params", "string_to_param", "clip_l", "clip_g"], EMBEDDING),
    (
        &["input_hint_block.", "controlnet_cond_embedding."],
        "a ControlNet, which guides a model: `mixbit convert --convert-controlnet` takes it",
    ),
];

/// True if a path has the name of a file of tensors.
pub(crate) fn is_named(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// What a file of tensors is, if it is known and no model.
pub(crate) fn other_kind(weights: &dyn Weights) -> Option<&'static str> {
    let names = weights.names();
    let is = |marks: &[&str]| names.iter().any(|name| marks.iter().any(|mark| name.contains(mark)));
    let other = OTHERS.iter().find(|(marks, _)| is(marks)).map(|(_, what)| *what);
    let is_embedding = || Embedding::read(weights, &BTreeMap::new(), "file").is_ok();
    other.or_else(|| is_embedding().then_some(EMBEDDING))
}

/// What a file of tensors is that is no LoRA, if it is known.
pub(super) fn kind_besides_lora(weights: Arc<dyn Weights>) -> Option<String> {
    let other = other_kind(&*weights).map(str::to_string);
    other.or_else(|| match Original::find(weights, &BTreeMap::new(), false) {
        Ok(original) => Some(format!("a model ({original}), not a LoRA: name it with --model")),
        Err(_) => None,
    })
}

/// A file of tensors with what it says of itself, that of a `.yaml` beside it among it.
///
/// # Errors
/// If it can't be read.
pub(crate) fn read(path: &Path) -> Result<(Arc<TensorFile>, BTreeMap<String, String>), OpenError> {
    let file = TensorFile::open(path)?;
    let mut metadata = file.metadata().clone();
    // The writer of a safetensors file cannot know this name; it is the .yaml's alone.
    metadata.remove(PARAMETERIZATION);
    if let Ok(text) = read_text(&path.with_extension("yaml"), YAML_LIMIT)
        && let Some(value) = text.lines().find_map(|line| line.trim().strip_prefix("parameterization:"))
    {
        metadata.insert(PARAMETERIZATION.to_string(), value.trim().trim_matches(['"', '\'']).to_string());
    }
    Ok((Arc::new(file), metadata))
}

pub(super) fn probe(path: Option<&Path>, options: &OpenOptions) -> Result<Probe, OpenError> {
    let Some(path) = path else { return Ok(Probe::Skipped) };
    if !path.is_file() {
        return Ok(Probe::Declined("it is a directory".to_string()));
    }
    if !is_named(path) {
        let names: Vec<String> = EXTENSIONS.iter().map(|extension| format!(".{extension}")).collect();
        return Ok(Probe::Declined(format!("its name does not end in {}", names.join(", "))));
    }
    let unusable = |source| OpenError::Original { path: path.to_path_buf(), source: Box::new(source) };
    let (file, metadata) = read(path)?;
    let base = Base {
        config: options.config.as_deref().map(configuration).transpose()?,
        model: options.base.as_deref().map(base_model).transpose()?,
    };
    let original = match Original::find(file.clone(), &metadata, options.use_ema) {
        Err(OriginalError::NoNetwork { first }) => {
            return Err(match other_kind(&*file) {
                Some(what) => OpenError::Package { path: path.to_path_buf(), what: format!("it is {what}") },
                None => unusable(OriginalError::NoNetwork { first }),
            });
        }
        found => found.map_err(unusable)?,
    };
    let mut kind = original.to_string();
    let files = OriginalFiles::new(original, base).map_err(unusable)?;
    let borrowed = files.borrowed();
    if let (false, Some(from)) = (borrowed.is_empty(), options.base.as_ref().or(options.config.as_ref())) {
        kind += &format!("; {} from {}", borrowed.join(", "), from.display());
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Probe::Found(OpenedModel::new(name, files).with_kind(kind)))
}

/// A ControlNet of a path: a directory with `config.json` and weights, or a file. Its name is the path's.
///
/// # Errors
/// If it is none.
pub fn controlnet(path: &Path) -> Result<(String, Box<dyn ModelFiles>), OpenError> {
    if !path.is_file() {
        let component = Component::open(path, None)?;
        return Ok((component.name().to_string(), Box::new(component)));
    }
    let (file, _) = read(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let found = ControlNetFile::find(file, &name)
        .map_err(|source| OpenError::Original { path: path.to_path_buf(), source: Box::new(source) })?;
    match found {
        Some(file) => Ok((name, Box::new(file))),
        None => {
            Err(OpenError::Package { path: path.to_path_buf(), what: "it holds no ControlNet".to_string() })
        }
    }
}

/// The configurations of a directory in the diffusers layout.
fn configuration(path: &Path) -> Result<Box<dyn ModelFiles>, OpenError> {
    Ok(Box::new(DiffusersModel::open(path, None)?))
}

/// The model from which networks come that a file lacks.
fn base_model(path: &Path) -> Result<Box<dyn ModelFiles>, OpenError> {
    open(Some(path), &OpenOptions::default(), [&SINGLE_FILE, &DIFFUSERS])?.into_files()
}
