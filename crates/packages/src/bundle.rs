//! Models as Core ML packages: a directory of `.mlpackage`s, or a `Resources` directory of `.mlmodelc`s.
//!
//! A bundle that mixbit converted carries its configurations and the names of its weights, so it is a model like any
//! other: its graphs are built again over the packages' weights, for any size. The packages of other tools are run as
//! they are, at the size that they were made for, under what their family is known for.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use mixbit_diffusion::model::{DiffusionModel, FileError, ModelFiles, TEXT_ENCODERS};
use mixbit_formats::coreml;
use mixbit_mil::{Constant, Def, Function, WeightError, WeightRef, Weights, constexpr, join};
use serde_json::Value;

use crate::package::{PARTS, Part, SAFETY_CHECKER, keys};

/// The ends of a part's names that is not cut, in packages and compiled.
pub const WHOLE: [&str; 2] = ["", ""];
/// Those of the chunks of one that is.
pub const CHUNKS: [[&str; 2]; 2] = [["_chunk1", "Chunk1"], ["_chunk2", "Chunk2"]];

/// Whether a package or a compiled model of that name, without extension, is a part, or the chunk of it with those ends.
pub fn is_named(stem: &str, part: &Part, [package, compiled]: [&str; 2]) -> bool {
    let end = format!("{}{package}", part.name);
    stem == end || stem.ends_with(&format!("_{end}")) || stem == format!("{}{compiled}", part.compiled)
}

/// A directory of Core ML packages.
pub struct Bundle {
    directory: PathBuf,
    parts: BTreeMap<&'static str, Packaged>,
}

/// A part of a bundle.
struct Packaged {
    path: PathBuf,
    function: Function,
    metadata: coreml::Metadata,
}

impl Bundle {
    /// Whether a directory holds packages.
    pub fn is_at(path: &Path) -> bool {
        fs::read_dir(path).is_ok_and(|entries| {
            entries.filter_map(Result::ok).any(|entry| {
                let path = entry.path();
                path.extension().is_some_and(|extension| extension == "mlpackage" || extension == "mlmodelc")
            })
        })
    }

    /// Reads the packages of a directory that are parts of a model. Weights are not read.
    ///
    /// # Errors
    /// If a package can't be read, or there is no UNet among them.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut stems: BTreeMap<String, PathBuf> = BTreeMap::new();
        let entries = fs::read_dir(path).with_context(|| format!("{} can't be listed", path.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(stem), Some("mlpackage" | "mlmodelc")) = (stem, extension) {
                stems.insert(stem.to_string(), path.clone());
            }
        }
        let mut parts = BTreeMap::new();
        // No image is drawn with a safety checker: one that can't be read is no obstacle.
        for part in PARTS.iter().filter(|part| **part != SAFETY_CHECKER) {
            if let Some(packaged) = Packaged::find(&stems, part)? {
                parts.insert(part.name, packaged);
            }
        }
        if !parts.contains_key("unet") && !parts.contains_key("refiner") {
            let found: Vec<&str> = stems.keys().map(String::as_str).collect();
            bail!("{} has no UNet among its packages: {}", path.display(), found.join(", "));
        }
        Ok(Bundle { directory: path.to_path_buf(), parts })
    }

    /// The model.
    ///
    /// # Errors
    /// If the packages lack a part of it, or don't fit each other.
    pub fn model(&self) -> anyhow::Result<DiffusionModel> {
        match self.parts.values().all(|part| part.metadata.user_defined.contains_key(keys::CONFIG)) {
            true => Ok(DiffusionModel::from_files(self)?),
            false => foreign::model(self),
        }
    }

    /// The first part that is of a component.
    fn of_component(&self, component: &str) -> Option<&Packaged> {
        self.parts.values().find(|part| part.says(keys::COMPONENT) == Some(component))
    }

    /// A file beside the packages.
    fn file(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.directory.join(name);
        match path.is_file() {
            true => Ok(Some(
                fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?,
            )),
            false => Ok(None),
        }
    }
}

fn absent(component: &str) -> FileError {
    format!("the bundle has no package of `{component}`").into()
}

impl Packaged {
    /// A part among packages by name; two chunks win over the whole, as in Apple's tools.
    fn find(stems: &BTreeMap<String, PathBuf>, part: &Part) -> anyhow::Result<Option<Self>> {
        let named = |ends| stems.iter().find(|(stem, _)| is_named(stem, part, ends)).map(|(_, path)| path);
        if let (Some(first), Some(second)) = (named(CHUNKS[0]), named(CHUNKS[1])) {
            let (first, second) = (Self::read(first)?, Self::read(second)?);
            let function = join(&first.function, &second.function).with_context(|| {
                format!("{} does not follow {}", second.path.display(), first.path.display())
            })?;
            return Ok(Some(Packaged { function, ..first }));
        }
        named(WHOLE).map(|path| Self::read(path)).transpose()
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let model = coreml::read(path)?;
        let function = model.program.main().cloned();
        let function = function.with_context(|| format!("{} has no function `main`", path.display()))?;
        Ok(Packaged { path: path.to_path_buf(), function, metadata: model.metadata })
    }

    /// A value of the user-defined metadata.
    fn says(&self, key: &str) -> Option<&str> {
        self.metadata.user_defined.get(key).map(String::as_str)
    }

    fn parsed(&self, key: &str) -> Result<Value, FileError> {
        let path = self.path.display();
        let text = self.says(key).ok_or_else(|| format!("{path}: it has no metadata `{key}`"))?;
        Ok(serde_json::from_str(text).map_err(|error| format!("{path}: metadata `{key}`: {error}"))?)
    }
}

impl ModelFiles for Bundle {
    fn class(&self) -> &str {
        "Core ML bundle"
    }

    fn component(&self, name: &str) -> Option<&str> {
        match name {
            "scheduler" => self.of_component("unet").map(|_| "scheduler"),
            _ => self.of_component(name)?.says(keys::CLASS),
        }
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.of_component("unet")?.parsed(keys::MODEL_INDEX).ok()?.get(name).cloned()
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        let (component, key) = match file {
            "scheduler_config.json" => ("unet", keys::SCHEDULER),
            _ => (component, keys::CONFIG),
        };
        self.of_component(component).ok_or_else(|| absent(component))?.parsed(key)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        let encoder = TEXT_ENCODERS.iter().find(|(_, tokenizer)| *tokenizer == component);
        match (file, encoder) {
            ("tokenizer_config.json", Some((encoder, _))) => {
                let packaged = self.of_component(encoder);
                Ok(packaged.and_then(|packaged| packaged.says(keys::TOKENIZER)).map(str::to_string))
            }
            ("vocab.json" | "merges.txt", Some(_)) => Ok(self.file(file)?),
            _ => Ok(None),
        }
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        let parts = self.parts.values().filter(|part| part.says(keys::COMPONENT) == Some(component));
        let mut all = BTreeMap::new();
        for part in parts {
            // What is compressed stays so, and is known by the name of what it decodes to.
            let function = constexpr::decoded(&part.function)
                .map_err(|error| format!("{}: {error}", part.path.display()))?;
            all.extend(constants(&function));
        }
        Ok(Arc::new(PackagedWeights { constants: all }))
    }

    fn full_precision(&self, component: &str) -> BTreeSet<String> {
        let part = self.of_component(component);
        let text = part.and_then(|part| part.says(keys::FULL_PRECISION)).unwrap_or_default();
        text.split_whitespace().map(|layer| format!("{layer}.weight")).collect()
    }
}

/// The weights of a function by their checkpoint names, which packages carry.
fn constants(function: &Function) -> impl Iterator<Item = (String, WeightRef)> {
    function.values().iter().filter_map(|value| match &value.def {
        Def::Const(Constant::Weight(weight)) => Some((weight.name().to_string(), weight.clone())),
        _ => None,
    })
}

/// A checkpoint's tensors, found in packages.
struct PackagedWeights {
    constants: BTreeMap<String, WeightRef>,
}

impl Weights for PackagedWeights {
    fn names(&self) -> Vec<&str> {
        self.constants.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.constants.get(name).cloned()
    }

    /// Kernels and columns in a graph are matrices and vectors in its checkpoint: the elements are the same.
    fn require(&self, name: &str, shape: &[usize]) -> Result<WeightRef, WeightError> {
        let weight = self.get(name).ok_or_else(|| WeightError::Missing { name: name.to_string() })?;
        let found = weight.ty().shape.clone();
        weight.reshape(shape).map_err(|_| WeightError::Shape {
            name: name.to_string(),
            expected: shape.to_vec(),
            found,
        })
    }
}
