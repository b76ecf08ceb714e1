//! Adapters that are added to a model's weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mixbit_diffusion::adapter::{Adapter, AdapterError, Fit, Merged, PEFT_CONFIG, Strength};
use mixbit_diffusion::model::ModelFiles;
use mixbit_formats::{TensorFile, read_text};

use super::single_file;
use crate::error::OpenError;

/// The file of an adapter in a directory of PEFT's and of diffusers'.
const FILES: [&str; 3] =
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];
/// The most bytes of an adapter's configuration.
const CONFIG_LIMIT: u64 = 1 << 20;

/// An adapter in a file, to be added to a model's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// The file, or a directory of PEFT's or diffusers'.
    pub path: PathBuf,
    /// The factor of its changes.
    pub strength: Strength,
}

impl Lora {
    /// The name for people: the file's, without its extension.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// An adapter that was added to a model.
#[derive(Clone, Debug)]
pub struct AppliedLora {
    /// Its name for people.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The factor of its changes.
    pub strength: Strength,
    /// How it fits the model.
    pub fit: Fit,
}

/// A model with adapters added, in order.
///
/// # Errors
/// [`OpenError::Adapter`] if one can't be used with the model.
pub(super) fn added(
    files: Box<dyn ModelFiles>,
    loras: &[Lora],
) -> Result<(Merged, Vec<AppliedLora>), OpenError> {
    let unusable = |path: &Path| {
        let path = path.to_path_buf();
        move |source: AdapterError| OpenError::Adapter { path, source: Box::new(source) }
    };
    let first = loras.first().map_or(Path::new(""), |lora| &lora.path);
    let mut merged = Merged::new(files).map_err(unusable(first))?;
    let mut applied = Vec::new();
    for lora in loras {
        let adapter = read(&lora.path)?;
        let fit = merged.add(&adapter, lora.strength).map_err(unusable(&lora.path))?;
        let (name, path) = (lora.name(), lora.path.clone());
        applied.push(AppliedLora { name, path, strength: lora.strength, fit });
    }
    Ok((merged, applied))
}

/// Reads an adapter. Files of other kinds are answered by what they are.
fn read(path: &Path) -> Result<Adapter, OpenError> {
    let file = match path.is_dir() {
        true => FILES.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(|| {
            let what = format!("it holds no LoRA: none of {}", FILES.join(", "));
            OpenError::Package { path: path.to_path_buf(), what }
        })?,
        false => path.to_path_buf(),
    };
    if !file.exists() {
        return Err(OpenError::NotFound { path: file });
    }
    let tensors = Arc::new(TensorFile::open(&file)?);
    let mut metadata = tensors.metadata().clone();
    metadata.remove(PEFT_CONFIG);
    if let Ok(text) = read_text(&file.with_file_name("adapter_config.json"), CONFIG_LIMIT) {
        metadata.insert(PEFT_CONFIG.to_string(), text);
    }
    Adapter::read(&*tensors, &metadata).map_err(|source| {
        let path = path.to_path_buf();
        let is_other = matches!(source, AdapterError::NoAdapter { .. });
        match is_other.then(|| single_file::kind_besides_lora(tensors.clone())).flatten() {
            Some(what) => OpenError::Package { path, what: format!("it is {what}") },
            None => OpenError::Adapter { path, source: Box::new(source) },
        }
    })
}

#[cfg(test)]
mod tests;
