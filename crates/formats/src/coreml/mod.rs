//! Core ML models: `.mlpackage` directories and compiled `.mlmodelc` ones, read and written.
//!
//! [`read`] gives a [`Model`]: a [`mil::Program`] whose weights stay in the memory-mapped weight file, and what the model
//! says about itself. Specification versions 6 to 9 (iOS 15 to 18) are read. What mixbit has no use for is refused by
//! name: pipelines, other kinds of model than ML programs, state, control flow, images and sequences as features, tensors
//! of unknown rank. Flexible shapes are read as their default shape.

mod blob;
mod description;
mod error;
mod manifest;
mod program;
mod specification;
#[cfg(test)]
mod tests;
mod value;
mod wire;

use std::collections::BTreeMap;
use std::path::Path;

use mil::{Bytes, Program, TensorType};

pub use error::CoreMlError;

use crate::Error;
use crate::files::{Files, is_plain};

/// A Core ML model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The specification's version: 6 for iOS 15, 7 for iOS 16, 8 for iOS 17, 9 for iOS 18.
    pub specification_version: u32,
    /// The name that Xcode would give the model's class: the package's name without extension.
    pub class: String,
    /// The functions.
    pub program: Program,
    /// The described inputs, in the order of the description.
    pub inputs: Vec<Feature>,
    /// The described outputs, in the order of the description.
    pub outputs: Vec<Feature>,
    /// What the model says about itself.
    pub metadata: Metadata,
}

/// An input or output as a model describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The name, that of the function's input or output.
    pub name: String,
    /// A sentence for people; may be empty.
    pub description: String,
    /// The element type and the (default) shape. Outputs may leave the shape out, which reads as a scalar's.
    pub ty: TensorType,
    /// Whether an input may be left out.
    pub optional: bool,
}

/// What a model says about itself. Empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// What the model does.
    pub short_description: String,
    /// The model's own version.
    pub version: String,
    /// Who made it.
    pub author: String,
    /// Under which terms it may be used.
    pub license: String,
    /// Anything else, by key.
    pub user_defined: BTreeMap<String, String>,
}

/// Reads a `.mlpackage` directory.
///
/// # Errors
/// [`Error::CoreMl`] if the model can't be used, [`Error::Read`] if a file can't be opened.
pub fn read(path: &Path) -> Result<Model, Error> {
    let class = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    read_files(Files::Directory(path.to_path_buf()), class)
}

/// Reads a model whose files are in memory, by their path in its directory. `label` names it in messages.
///
/// # Errors
/// Those of [`read`].
pub fn from_files(label: &str, files: impl IntoIterator<Item = (String, Bytes)>) -> Result<Model, Error> {
    let files = Files::Memory { label: label.into(), files: files.into_iter().collect() };
    read_files(files, label.to_string())
}

fn read_files(files: Files, class: String) -> Result<Model, Error> {
    let in_model = |name: &str, problem| Error::CoreMl { path: files.path(name), problem };
    let manifest = files.text("Manifest.json")?;
    let path = manifest::model_path(&manifest).map_err(|problem| in_model("Manifest.json", problem))?;
    let path = format!("Data/{path}");
    let specification = files.map(&path)?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut weights = WeightFiles::new(files.clone(), folder);
    specification::read(&specification, class, &mut weights).map_err(|problem| in_model(&path, problem))
}

/// The weight files of a model, each mapped once.
#[derive(Debug)]
struct WeightFiles {
    files: Files,
    folder: String,
    mapped: BTreeMap<String, Bytes>,
}

impl WeightFiles {
    /// Those of the model whose specification is in `folder`.
    fn new(files: Files, folder: &str) -> Self {
        WeightFiles { files, folder: folder.to_string(), mapped: BTreeMap::new() }
    }

    /// A weight file by the name that the specification gives it: `@model_path/weights/weight.bin`.
    fn get(&mut self, name: &str) -> Result<Bytes, String> {
        if let Some(bytes) = self.mapped.get(name) {
            return Ok(bytes.clone());
        }
        let inside = name.strip_prefix("@model_path/").filter(|rest| rest.split('/').all(is_plain));
        let inside = inside.ok_or("the name does not lead to a file of the model")?;
        let path =
            if self.folder.is_empty() { inside.to_string() } else { format!("{}/{inside}", self.folder) };
        let bytes = self.files.map(&path).map_err(|error| error.to_string())?;
        self.mapped.insert(name.to_string(), bytes.clone());
        Ok(bytes)
    }
}
