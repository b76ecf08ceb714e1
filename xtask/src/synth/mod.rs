//! Checkpoints of published sizes with random weights.
//!
//! `xtask/models/` has a folder for each model, in the diffusers layout, with the published configurations and without
//! weights. Names and shapes of the tensors are what [`diffusion::arch`] asks for when it builds the networks.

mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use diffusion::arch::{ARCHITECTURES, Architecture, Config};
use formats::Diffusers;
use formats::diffusers::Component;
use formats::safetensors::{self, TensorSpec};
use mil::{DType, TensorType};

use crate::repository;
use weights::Fill;

/// The folders of `xtask/models`.
const MODELS: [&str; 4] = ["sd15", "sd21", "sdxl-base", "sdxl-refiner"];

/// CLIP's own vocabulary, for the tokenizers of models that bring none.
const VOCABULARY: [&str; 2] = ["fixtures/tokenizer/vocab.json", "fixtures/tokenizer/merges.txt"];

const INDEX: &str = "model_index.json";

/// What to write.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which model
    #[arg(value_parser = PossibleValuesParser::new(MODELS))]
    model: String,
    /// The directory to write; made if it is not there, files of the same names are replaced
    directory: PathBuf,
    /// Other seeds give other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The type of the weights
    #[arg(long, value_enum, default_value_t = Type::F16)]
    dtype: Type,
}

/// The types that weights are published in.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    F16,
    F32,
}

impl Type {
    fn dtype(self) -> DType {
        match self {
            Type::F16 => DType::F16,
            Type::F32 => DType::F32,
        }
    }
}

/// Names and shapes of a component's tensors.
type Shapes = BTreeMap<String, Vec<usize>>;

/// Writes the model that is asked for.
///
/// # Errors
/// A file that can't be written, with its path.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let source = Diffusers::open(&repository().join("xtask/models").join(&arguments.model))?;
    let parameters = write(&source, &arguments.directory, arguments.seed, arguments.dtype.dtype())?;
    let (directory, seconds) = (arguments.directory.display(), start.elapsed().as_secs_f64());
    println!("{directory}: {} with {parameters} random parameters in {seconds:.1} s", arguments.model);
    Ok(())
}

/// Writes `source` with random weights, and says how many parameters it has. `model_index.json` comes last: a run that
/// was cut off leaves no model.
fn write(source: &Diffusers, directory: &Path, seed: u64, dtype: DType) -> anyhow::Result<usize> {
    let shapes = shapes(source)?;
    let mut parameters = 0;
    for (name, component) in source.components() {
        let Some(component) = component else { continue };
        let folder = directory.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
        copy_descriptions(&source.path().join(name), &folder)?;
        if component.class == "CLIPTokenizer" {
            add_vocabulary(&folder)?;
        }
        if let Some(shapes) = shapes.get(name.as_str()) {
            parameters += write_weights(&folder.join(weights_file(component)?), shapes, seed, dtype)?;
        }
    }
    copy(&source.path().join(INDEX), &directory.join(INDEX))?;
    Ok(parameters)
}

/// The tensors of every component that has weights.
fn shapes(model: &Diffusers) -> anyhow::Result<BTreeMap<&str, Shapes>> {
    let mut configs = BTreeMap::new();
    for (name, component) in model.components() {
        let Some(architecture) = component.as_ref().and_then(architecture) else { continue };
        let config = architecture.config(&model.config(name)?).with_context(|| name.clone())?;
        configs.insert(name.as_str(), config);
    }
    // In the order of names the last text encoder is the one whose pooled output the UNet takes.
    let pooled = configs.values().rev().find_map(|config| match config {
        Config::TextEncoder(config) => Some(config.pooled_channels()),
        _ => None,
    });
    let pooled = pooled.context("the model has no text encoder")?;
    let all = configs.into_iter().map(|(name, config)| {
        let shapes = config.tensors(pooled).with_context(|| name.to_string())?;
        Ok((name, shapes))
    });
    all.collect()
}

fn architecture(component: &Component) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.class == component.class)
}

/// Copies a component's files except weights.
fn copy_descriptions(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("{} can't be read", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json" || extension == "txt") {
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn add_vocabulary(folder: &Path) -> anyhow::Result<()> {
    for file in VOCABULARY.map(|file| repository().join(file)) {
        let target = folder.join(file.file_name().unwrap_or_default());
        if !target.exists() && !folder.join("tokenizer.json").exists() {
            copy(&file, &target)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("{} can't be copied to {}", from.display(), to.display()))?;
    Ok(())
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

/// Writes one file of weights, and says how many parameters it has.
fn write_weights(path: &Path, shapes: &Shapes, seed: u64, dtype: DType) -> anyhow::Result<usize> {
    let start = Instant::now();
    let specs: Vec<TensorSpec> = shapes
        .iter()
        .map(|(name, shape)| TensorSpec { name: name.clone(), ty: TensorType::new(dtype, shape.clone()) })
        .collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::write(path, &metadata, &specs, |index, writer| {
        let TensorSpec { name, ty } = &specs[index];
        weights::write(writer, dtype, &Fill::of(seed, name, &ty.shape), ty.shape.iter().product())
    })?;
    let parameters = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
    let (tensors, seconds) = (specs.len(), start.elapsed().as_secs_f64());
    println!("{}: {tensors} tensors, {parameters} parameters in {seconds:.1} s", path.display());
    Ok(parameters)
}

#[cfg(test)]
mod tests;
