//! Checkpoints of published sizes with random weights: what a model costs can be measured without having it.
//!
//! [`MODELS`] are published configurations in the diffusers layout, without weights. Names and shapes of the tensors are what
//! [`mixbit_diffusion::arch`] asks for when it builds the networks.

mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use mixbit_diffusion::arch::{ARCHITECTURES, Architecture, Config};
use mixbit_formats::Diffusers;
use mixbit_formats::diffusers::Component;
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_mil::{Bytes, DType, Progress, Tally, TensorType, Unit};

use weights::Fill;

const INDEX: &str = "model_index.json";

/// A published model without weights.
pub struct PublishedModel {
    /// The name on command lines.
    pub name: &'static str,
    /// Paths in the model's directory, and what is in them.
    files: &'static [(&'static str, &'static str)],
}

macro_rules! model {
    ($name:literal: $($path:literal),* $(,)?) => {
        PublishedModel {
            name: $name,
            files: &[$(($path, include_str!(concat!("../../synthetic/", $name, "/", $path)))),*],
        }
    };
}

/// Every model.
pub static MODELS: &[PublishedModel] = &[
    model!("sd15":
        "model_index.json",
        "safety_checker/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    model!("sd21":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    model!("sdxl-base":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    model!("sdxl-refiner":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/config.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
];

/// CLIP's own vocabulary, for the tokenizers of models that bring none.
const VOCABULARY: [(&str, &str); 2] = [
    ("vocab.json", include_str!("../../../../fixtures/tokenizer/vocab.json")),
    ("merges.txt", include_str!("../../../../fixtures/tokenizer/merges.txt")),
];

/// The class of tokenizers that take it.
const TOKENIZER: &str = "CLIPTokenizer";

impl PublishedModel {
    /// The model of that name.
    pub fn of_name(name: &str) -> Option<&'static PublishedModel> {
        MODELS.iter().find(|model| model.name == name)
    }

    /// The model, to be written with weights.
    ///
    /// # Errors
    /// If its files are malformed.
    pub fn skeleton(&self) -> anyhow::Result<Skeleton> {
        Skeleton::new(self.name, self.files.iter().map(|(path, text)| (path.to_string(), text.to_string())))
    }
}

/// Names and shapes of a component's tensors.
type Shapes = BTreeMap<String, Vec<usize>>;

/// A model without weights: its small files, and the tensors that it needs.
pub struct Skeleton {
    model: Diffusers,
    /// Paths in the model's directory, and what is in them.
    files: BTreeMap<String, String>,
    /// The tensors of each component that has some.
    shapes: BTreeMap<String, Shapes>,
}

impl Skeleton {
    /// A model of these files, by their paths in its directory. Tokenizers without a vocabulary get CLIP's.
    ///
    /// # Errors
    /// If a configuration is malformed or not supported.
    pub fn new(name: &str, files: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut files: BTreeMap<String, String> = files.into_iter().collect();
        let bytes = |(path, text): (&String, &String)| (path.clone(), Bytes::new(text.clone().into_bytes()));
        let model = Diffusers::from_files(name, files.iter().map(bytes))?;
        let shapes = shapes(&model)?;
        let components = model.components().iter();
        for (folder, _) in
            components.filter(|(_, part)| part.as_ref().is_some_and(|it| it.class == TOKENIZER))
        {
            if !files.contains_key(&format!("{folder}/tokenizer.json")) {
                for (file, text) in VOCABULARY {
                    files.entry(format!("{folder}/{file}")).or_insert_with(|| text.to_string());
                }
            }
        }
        Ok(Skeleton { model, files, shapes })
    }

    /// The same without a component.
    pub fn without(mut self, component: &str) -> Self {
        self.shapes.remove(component);
        self.files.retain(|path, _| path.split('/').next() != Some(component));
        self
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        self.shapes.values().flat_map(BTreeMap::values).map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Writes the model with random weights of a type, `fp16` or `fp32`, into a directory, which is made if it is not there.
    /// Files of the same names are replaced. `progress` counts the bytes of weights and
    /// may stop the writing. `model_index.json` comes last: a run that was cut off leaves no model.
    ///
    /// # Errors
    /// A file that can't be written, with its path.
    pub fn write(
        &self,
        directory: &Path,
        seed: u64,
        dtype: DType,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        let size = (dtype.bits() / 8) as u64;
        let tally = Tally::new(progress, size * self.parameters() as u64, Unit::Bytes);
        let files = self.files.iter().filter(|(path, _)| *path != INDEX);
        for (path, text) in files {
            write_text(&directory.join(path), text)?;
        }
        for (name, shapes) in &self.shapes {
            let path = directory.join(name).join(weights_file(self.model.component(name)?)?);
            make_folder(&path)?;
            write_weights(&path, shapes, seed, dtype, &tally)?;
        }
        write_text(&directory.join(INDEX), self.files.get(INDEX).map(String::as_str).unwrap_or_default())
    }
}

/// The tensors of every component that has weights.
fn shapes(model: &Diffusers) -> anyhow::Result<BTreeMap<String, Shapes>> {
    let mut configs = BTreeMap::new();
    for (name, component) in model.components() {
        let Some(architecture) = component.as_ref().and_then(architecture) else { continue };
        let config = architecture.config(&model.config(name)?).with_context(|| name.clone())?;
        configs.insert(name.clone(), config);
    }
    // In the order of names the last text encoder is the one whose pooled output the UNet takes.
    let pooled = configs.values().rev().find_map(|config| match config {
        Config::TextEncoder(config) => Some(config.pooled_channels()),
        _ => None,
    });
    let pooled = pooled.context("the model has no text encoder")?;
    let all = configs.into_iter().map(|(name, config)| {
        let shapes = config.tensors(pooled).with_context(|| name.clone())?;
        Ok((name, shapes))
    });
    all.collect()
}

fn architecture(component: &Component) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.class == component.class)
}

/// What a component's library calls its weights.
fn weights_file(component: &Component) -> anyhow::Result<&'static str> {
    match component.library.as_str() {
        "diffusers" => Ok("diffusion_pytorch_model.safetensors"),
        // diffusers' own modules that derive from transformers' classes name their pipeline.
        "transformers" | "stable_diffusion" => Ok("model.safetensors"),
        other => bail!("no weights are known of {other}'s {}", component.class),
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))
}

fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    make_folder(path)?;
    Ok(mixbit_formats::write_atomically(path, |file| file.write_all(text.as_bytes()))?)
}

/// Writes one file of weights.
fn write_weights(path: &Path, shapes: &Shapes, seed: u64, dtype: DType, tally: &Tally) -> anyhow::Result<()> {
    let specs: Vec<TensorSpec> = shapes
        .iter()
        .map(|(name, shape)| TensorSpec { name: name.clone(), ty: TensorType::new(dtype, shape.clone()) })
        .collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::write(path, &metadata, &specs, |index, writer| {
        let TensorSpec { name, ty } = &specs[index];
        weights::write(writer, dtype, &Fill::of(seed, name, &ty.shape), ty.count())?;
        tally.add(ty.byte_len().unwrap_or(0) as u64).map_err(std::io::Error::other)
    })?)
}

#[cfg(test)]
mod tests;
