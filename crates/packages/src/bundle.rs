//! Models as Core ML packages: a directory of `.mlpackage`s, or a `Resources` directory of `.mlmodelc`s.
//!
//! A bundle that mixbit converted carries its configurations and the names of its weights: it is a model like
//! any other, whose graphs are built again over the packages' weights, for any size. Packages of other tools
//! are run unchanged, at the size that they were made for, with the scheduler and the scales of their family.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mixbit_diffusion::model::{DiffusionModel, FileError, ModelError, ModelFiles, TEXT_ENCODERS};
use mixbit_formats::{coreml, read_model_text};
use mixbit_mil::{Constant, Def, Function, WeightError, WeightRef, Weights, constexpr, join};
use serde_json::Value;

use crate::assumption::Assumption;
use crate::error::OpenError;
use crate::package::{CHUNKS, PACKAGE_KINDS, PackageKind, SAFETY_CHECKER, WHOLE, keys};

/// The remedy for a directory that lacks a part of its model.
const REMEDY: &str = "convert the missing part into this directory, or download the whole model";

/// A directory of Core ML packages.
pub struct Bundle {
    directory: PathBuf,
    /// By [`PackageKind::name`].
    packages: BTreeMap<&'static str, Packaged>,
}

/// A package of a bundle.
struct Packaged {
    path: PathBuf,
    function: Function,
    metadata: coreml::Metadata,
}

impl Bundle {
    /// True if a directory holds packages.
    pub fn is_at(path: &Path) -> bool {
        let is_package = |path: &PathBuf| {
            path.extension().is_some_and(|extension| extension == "mlpackage" || extension == "mlmodelc")
        };
        entries(path).is_ok_and(|entries| entries.iter().any(is_package))
    }

    /// Reads the packages of a directory that belong to a model. Weights are not read.
    ///
    /// # Errors
    /// If a package can't be read, or there is no UNet among them.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut stems: BTreeMap<String, PathBuf> = BTreeMap::new();
        for path in entries(path)? {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(stem), Some("mlpackage" | "mlmodelc")) = (stem, extension) {
                stems.insert(stem.to_string(), path.clone());
            }
        }
        let mut packages = BTreeMap::new();
        // No image is drawn with a safety checker: one that can't be read is no obstacle.
        for kind in PACKAGE_KINDS.iter().filter(|kind| **kind != SAFETY_CHECKER) {
            if let Some(packaged) = Packaged::find(&stems, kind)? {
                packages.insert(kind.name, packaged);
            }
        }
        if !packages.contains_key("unet") && !packages.contains_key("refiner") {
            let found: Vec<&str> = stems.keys().map(String::as_str).collect();
            let what = format!("there is no UNet among its packages: {}; {REMEDY}", found.join(", "));
            return Err(OpenError::Package { path: path.to_path_buf(), what });
        }
        Ok(Bundle { directory: path.to_path_buf(), packages })
    }

    /// The model.
    ///
    /// # Errors
    /// If the packages lack a part of it, or don't fit each other.
    pub fn model(&self) -> Result<DiffusionModel, OpenError> {
        let has = |kind: &str| self.packages.contains_key(kind);
        if !has("vae_decoder") {
            return Err(self.lacks("package of the vae_decoder"));
        }
        if !TEXT_ENCODERS.iter().any(|(name, _)| has(name)) {
            return Err(self.lacks("package of a text encoder"));
        }
        match self.is_configured() {
            true => DiffusionModel::from_files(self).map_err(|source| self.unusable(source)),
            false => foreign::model(self),
        }
    }

    /// What [`model`](Self::model) takes for granted because the packages don't say it.
    ///
    /// # Errors
    /// If the packages lack a part of a model.
    pub fn assumptions(&self) -> Result<Vec<Assumption>, OpenError> {
        match self.is_configured() {
            true => Ok(Vec::new()),
            false => foreign::assumptions(self),
        }
    }

    /// The model's name in the packages' metadata, where the converter wrote one.
    pub(crate) fn model_version(&self) -> Option<&str> {
        let versions = self.packages.values().map(|package| package.metadata.version.as_str());
        versions.into_iter().find(|version| version.chars().any(char::is_alphabetic))
    }

    /// True if the packages carry their configurations: mixbit's do.
    fn is_configured(&self) -> bool {
        self.packages.values().all(|package| package.metadata.user_defined.contains_key(keys::CONFIG))
    }

    fn unusable(&self, source: impl Into<ModelError>) -> OpenError {
        OpenError::Model { model: self.directory.display().to_string(), source: Box::new(source.into()) }
    }

    fn lacks(&self, what: &str) -> OpenError {
        OpenError::Package { path: self.directory.clone(), what: format!("it has no {what}; {REMEDY}") }
    }

    /// The first package of a component.
    fn of_component(&self, component: &str) -> Option<&Packaged> {
        self.packages.values().find(|package| package.says(keys::COMPONENT) == Some(component))
    }

    /// The text of a file beside the packages, if it is there.
    fn file(&self, name: &str) -> Result<Option<String>, OpenError> {
        let path = self.directory.join(name);
        match path.is_file() {
            true => Ok(Some(read_model_text(&path)?)),
            false => Ok(None),
        }
    }
}

/// The paths in a directory, in no order, without the AppleDouble files (`._NAME`) that a Mac leaves beside
/// others on disks and in archives.
///
/// # Errors
/// [`OpenError::Read`].
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let unreadable = |cause| OpenError::Read { path: directory.to_path_buf(), cause };
    let entries = fs::read_dir(directory).map_err(unreadable)?.filter_map(Result::ok);
    let entries = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"._"));
    Ok(entries.map(|entry| entry.path()).collect())
}

fn absent(component: &str) -> FileError {
    format!("the bundle has no package of `{component}`").into()
}

impl Packaged {
    /// A package by its kind; two chunks win over the whole, as in Apple's tools.
    fn find(stems: &BTreeMap<String, PathBuf>, kind: &PackageKind) -> Result<Option<Self>, OpenError> {
        let named = |ends| stems.iter().find(|(stem, _)| kind.has_stem(stem, ends)).map(|(_, path)| path);
        if let (Some(first), Some(second)) = (named(CHUNKS[0]), named(CHUNKS[1])) {
            let (first, second) = (Self::read(first)?, Self::read(second)?);
            let function = join(&first.function, &second.function).map_err(|error| OpenError::Package {
                path: second.path.clone(),
                what: format!("it does not follow {}: {error}", first.path.display()),
            })?;
            return Ok(Some(Packaged { function, ..first }));
        }
        if let Some(whole) = named(WHOLE) {
            return Self::read(whole).map(Some);
        }
        match (named(CHUNKS[0]), named(CHUNKS[1])) {
            (Some(half), None) | (None, Some(half)) => Err(OpenError::Package {
                path: half.clone(),
                what: format!("it is half of a {}, and the other half is not there; {REMEDY}", kind.name),
            }),
            _ => Ok(None),
        }
    }

    fn read(path: &Path) -> Result<Self, OpenError> {
        let model = coreml::read(path)?;
        let function = model.program.main().cloned().ok_or_else(|| OpenError::Package {
            path: path.to_path_buf(),
            what: "it has no function `main`".to_string(),
        })?;
        Ok(Packaged { path: path.to_path_buf(), function, metadata: model.metadata })
    }

    fn defect(&self, what: String) -> OpenError {
        OpenError::Package { path: self.path.clone(), what }
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
        let packages =
            self.packages.values().filter(|package| package.says(keys::COMPONENT) == Some(component));
        let mut all = BTreeMap::new();
        for package in packages {
            // Compressed constants stay compressed, under the names of the decoded weights.
            let function = constexpr::decoded(&package.function)
                .map_err(|error| format!("{}: {error}", package.path.display()))?;
            all.extend(constants(&function));
        }
        Ok(Arc::new(PackagedWeights { constants: all }))
    }

    fn full_precision(&self, component: &str) -> BTreeSet<String> {
        let package = self.of_component(component);
        let text = package.and_then(|package| package.says(keys::FULL_PRECISION)).unwrap_or_default();
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
