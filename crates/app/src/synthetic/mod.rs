//! Checkpoints of published sizes with random weights, to measure the cost of a model without having it.
//!
//! Configurations are those of [`mixbit_diffusion::family`]. Names and shapes of the tensors are those that
//! [`mixbit_diffusion::arch`] builds the networks from.

mod single_file;
mod weights;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use mixbit_diffusion::arch::{ARCHITECTURES, ArchError, Architecture, Config};
use mixbit_diffusion::family::{CLIP_VOCABULARY, Family};
use mixbit_formats::diffusers::Component;
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_formats::{Diffusers, make_directory};
use mixbit_mil::{Bytes, DType, Progress, Tally, TensorType, Unit};

use thiserror::Error;

use weights::Fill;

const INDEX: &str = "model_index.json";

/// A model that can't be made or written.
#[derive(Debug, Error)]
pub enum SyntheticError {
    /// A configuration that is not supported.
    #[error("{component}: {source}")]
    Config {
        /// The component's folder.
        component: String,
        /// The reason.
        source: ArchError,
    },
    /// A model without a text encoder.
    #[error("the model has no text encoder")]
    NoTextEncoder,
    /// A component whose library has no known name for its weights.
    #[error("no file name is known for the weights of {library}'s {class}")]
    Library {
        /// The library.
        library: String,
        /// The component's class.
        class: String,
    },
    /// A tensor that the original layout has no name for.
    #[error("the original layout has no place for {tensor}")]
    NoPlace {
        /// The component's folder and the tensor's name.
        tensor: String,
    },
    /// A file that is malformed or can't be written, or a directory that can't be made.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

/// The class of tokenizers that take CLIP's vocabulary.
const TOKENIZER: &str = "CLIPTokenizer";

/// Names and shapes of a component's tensors.
type Shapes = BTreeMap<String, Vec<usize>>;

/// A model without weights: its small files, and the tensors that it needs.
pub struct Skeleton {
    model: Diffusers,
    /// Contents by their paths in the model's directory.
    files: BTreeMap<String, String>,
    /// The tensors of each component that has some.
    shapes: BTreeMap<String, Shapes>,
}

impl Skeleton {
    /// A published family, to be written with weights.
    ///
    /// # Errors
    /// If its files are malformed.
    pub fn of_family(family: &Family) -> Result<Self, SyntheticError> {
        Skeleton::new(
            family.name,
            family.texts.iter().map(|(path, text)| (path.to_string(), text.to_string())),
        )
    }

    /// A model of these files, by their paths in its directory. Tokenizers without a vocabulary get CLIP's.
    ///
    /// # Errors
    /// If a configuration is malformed or not supported.
    pub fn new(
        name: &str,
        files: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SyntheticError> {
        let mut files: BTreeMap<String, String> = files.into_iter().collect();
        let bytes = |(path, text): (&String, &String)| (path.clone(), Bytes::new(text.clone().into_bytes()));
        let model = Diffusers::from_files(name, files.iter().map(bytes))?;
        let shapes = shapes(&model)?;
        let components = model.components().iter();
        for (folder, _) in
            components.filter(|(_, part)| part.as_ref().is_some_and(|it| it.class == TOKENIZER))
        {
            if !files.contains_key(&format!("{folder}/tokenizer.json")) {
                for (file, text) in CLIP_VOCABULARY {
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

    /// Writes the model with random weights of a type, `fp16` or `fp32`, into a directory, which is made if
    /// it is not there. Files of the same names are replaced. `progress` counts the bytes of weights and may
    /// stop the writing. `model_index.json` comes last: a run that was cut off leaves no model.
    ///
    /// # Errors
    /// A file that can't be written, with its path.
    pub fn write(
        &self,
        directory: &Path,
        seed: u64,
        dtype: DType,
        progress: &dyn Progress,
    ) -> Result<(), SyntheticError> {
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
fn shapes(model: &Diffusers) -> Result<BTreeMap<String, Shapes>, SyntheticError> {
    let mut configs = BTreeMap::new();
    for (name, component) in model.components() {
        let Some(architecture) = component.as_ref().and_then(architecture) else { continue };
        let config = architecture.config(&model.config(name)?).map_err(|error| unsupported(name, error))?;
        configs.insert(name.clone(), config);
    }
    // In the order of names the last text encoder is the one whose pooled output the UNet takes.
    let pooled = configs.values().rev().find_map(|config| match config {
        Config::TextEncoder(config) => Some(config.pooled_channels()),
        _ => None,
    });
    let pooled = pooled.ok_or(SyntheticError::NoTextEncoder)?;
    let all = configs.into_iter().map(|(name, config)| {
        let shapes = config.tensors(pooled).map_err(|error| unsupported(&name, error))?;
        Ok((name, shapes))
    });
    all.collect()
}

fn unsupported(component: &str, source: ArchError) -> SyntheticError {
    SyntheticError::Config { component: component.to_string(), source }
}

fn architecture(component: &Component) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.class == component.class)
}

/// The file name of a component's weights, by its library.
fn weights_file(component: &Component) -> Result<&'static str, SyntheticError> {
    match component.library.as_str() {
        "diffusers" => Ok("diffusion_pytorch_model.safetensors"),
        // diffusers' own modules that derive from transformers' classes name their pipeline.
        "transformers" | "stable_diffusion" => Ok("model.safetensors"),
        library => {
            Err(SyntheticError::Library { library: library.to_string(), class: component.class.clone() })
        }
    }
}

fn make_folder(path: &Path) -> Result<(), SyntheticError> {
    Ok(make_directory(path.parent().unwrap_or(path))?)
}

fn write_text(path: &Path, text: &str) -> Result<(), SyntheticError> {
    make_folder(path)?;
    Ok(mixbit_formats::write_atomically(path, |file| file.write_all(text.as_bytes()))?)
}

/// Writes one file of weights.
fn write_weights(
    path: &Path,
    shapes: &Shapes,
    seed: u64,
    dtype: DType,
    tally: &Tally,
) -> Result<(), mixbit_formats::Error> {
    let specs: Vec<TensorSpec> = shapes
        .iter()
        .map(|(name, shape)| TensorSpec { name: name.clone(), ty: TensorType::new(dtype, shape.clone()) })
        .collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::write(path, &metadata, &specs, |index, writer| {
        let TensorSpec { name, ty } = &specs[index];
        weights::write(writer, dtype, &Fill::of(seed, name, &ty.shape), ty.count())?;
        tally.add(ty.byte_len().unwrap_or(0) as u64).map_err(std::io::Error::other)
    })
}

#[cfg(test)]
mod tests;
