//! Core ML models: `.mlpackage` directories and compiled `.mlmodelc` ones, read and written.
//!
//! [`read`] returns a [`Model`]: a [`mixbit_mil::Program`], whose weights stay in the memory-mapped weight
//! file, and the model's metadata. [`write_package`] and [`write_compiled`] write one.
//!
//! Specification versions 6 to 10 (iOS 15 to 18, and 26) are read. The models of a pipeline are also given
//! as one program. The graph of a program with flexible shapes has the default ones. Packages are written
//! with the functions, models, shapes and images that were read. Refused by name are models other than ML
//! programs, compiled pipelines, state, control flow, sequences as features, and tensors of unknown rank.
//!
//! ```
//! use mixbit_formats::coreml::{self, Feature, Form, Metadata, Model};
//! use mixbit_mil::{Builder, DType, Opset, Program, TensorType};
//!
//! let ty = TensorType::new(DType::F32, [1, 4]);
//! let mut b = Builder::new("main", Opset::Ios16);
//! let x = b.input("x", ty.clone())?;
//! let y = b.op("mul").arg("x", x).arg("y", 2.0).named("y").add()?;
//! let model = Model {
//!     specification_version: 7,
//!     class: "Double".to_string(),
//!     program: Program::new(b.finish(&[y])?),
//!     inputs: vec![Feature::array("x", "", ty.clone())],
//!     outputs: vec![Feature::array("y", "", ty)],
//!     metadata: Metadata::default(),
//!     form: Form::default(),
//! };
//! # let folder = std::env::temp_dir().join(format!("mixbit-doc-{}", std::process::id()));
//! let path = folder.join("Double.mlpackage");
//! coreml::write_package(&path, &model, &())?;
//! assert_eq!(coreml::read(&path)?.outputs, model.outputs);
//! # std::fs::remove_dir_all(folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blob;
mod compiled;
mod description;
mod directory;
mod encode;
mod error;
#[cfg(test)]
mod hostile_tests;
mod manifest;
mod metadata;
mod names;
mod placement;
mod program;
mod schema;
mod specification;
#[cfg(test)]
mod tests;
mod value;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use mixbit_mil::{Bytes, Program, Progress, TensorType};

pub use error::{CoreMlError, NotFinite};

use directory::NewDirectory;
use placement::Placement;

use crate::claim::directory_of;
use crate::files::{Files, is_plain};
use crate::{Claim, Error, make_directory};

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
    /// The metadata.
    pub metadata: Metadata,
    /// Several functions, the models of a pipeline, flexible shapes.
    pub form: Form,
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
    /// True if an input may be left out.
    pub optional: bool,
    /// The kind, and the other shapes that it may have.
    pub kind: FeatureKind,
}

/// The kind of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// A tensor.
    Array(ShapeFlexibility),
    /// An image, (1, channels, height, width) in the program.
    Image(ColorSpace),
}

/// The shapes that a feature may have besides its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeFlexibility {
    /// No other.
    Fixed,
    /// Each of these.
    Enumerated(Vec<Vec<usize>>),
    /// Every shape whose extents are in the ranges of their axes.
    Ranges(Vec<ExtentRange>),
}

/// The extents that an axis may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRange {
    /// The least.
    pub least: u64,
    /// The most, if there is a bound.
    pub most: Option<u64>,
}

/// The color space of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorSpace {
    /// One channel of bytes.
    Grayscale,
    /// Red, green and blue bytes.
    Rgb,
    /// Blue, green and red bytes.
    Bgr,
    /// One channel of half-precision floats.
    GrayscaleF16,
}

/// The described features of one function of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionFeatures {
    /// The function's name.
    pub name: String,
    /// The inputs, in the order of the description.
    pub inputs: Vec<Feature>,
    /// The outputs, in the order of the description.
    pub outputs: Vec<Feature>,
}

/// The axes of values that are open in their declared types, by function and value. The graph has the
/// default extents there.
pub(crate) type OpenAxes = BTreeMap<String, BTreeMap<String, Vec<bool>>>;

/// A package's form beyond one function of fixed shapes. The default is no more than that.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// The features of each function, if the package describes several.
    pub functions: Vec<FunctionFeatures>,
    /// The models of a pipeline, in the order in which they run. [`Model::program`] is all of them as one.
    pub models: Vec<PipelineModel>,
    pub(crate) open: OpenAxes,
}

/// A model of a pipeline.
#[derive(Clone, Debug)]
pub struct PipelineModel {
    /// The name in the pipeline; may be empty.
    pub name: String,
    /// The model.
    pub model: Model,
}

impl Feature {
    /// A tensor of a fixed shape.
    pub fn array(name: impl Into<String>, description: impl Into<String>, ty: TensorType) -> Self {
        Feature {
            name: name.into(),
            description: description.into(),
            ty,
            optional: false,
            kind: FeatureKind::Array(ShapeFlexibility::Fixed),
        }
    }

    /// True if it may have other shapes than its own.
    pub fn is_flexible(&self) -> bool {
        !matches!(self.kind, FeatureKind::Image(_) | FeatureKind::Array(ShapeFlexibility::Fixed))
    }
}

impl ColorSpace {
    /// The channels of a pixel.
    pub fn channels(self) -> usize {
        match self {
            ColorSpace::Grayscale | ColorSpace::GrayscaleF16 => 1,
            ColorSpace::Rgb | ColorSpace::Bgr => 3,
        }
    }
}

impl fmt::Display for ColorSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColorSpace::Grayscale => "gray",
            ColorSpace::Rgb => "RGB",
            ColorSpace::Bgr => "BGR",
            ColorSpace::GrayscaleF16 => "gray in fp16",
        })
    }
}

/// The kind in words, after the feature's type; empty for a tensor of a fixed shape.
impl fmt::Display for FeatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureKind::Image(color) => write!(f, "an image, {color}"),
            FeatureKind::Array(ShapeFlexibility::Fixed) => Ok(()),
            FeatureKind::Array(ShapeFlexibility::Enumerated(shapes)) => {
                let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
                write!(f, "or {}", shapes.join(", "))
            }
            FeatureKind::Array(ShapeFlexibility::Ranges(ranges)) => {
                let range = |range: &ExtentRange| match range.most {
                    Some(most) if most == range.least => most.to_string(),
                    Some(most) => format!("{}..{most}", range.least),
                    None => format!("{}..", range.least),
                };
                write!(f, "or [{}]", ranges.iter().map(range).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// The values that weights may have when a model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// All.
    Any,
    /// Finite ones: [`Error::NotFinite`] refuses others, and values that overflow the element type.
    Finite,
}

/// A model's metadata. Unknown texts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The model's purpose.
    pub short_description: String,
    /// The model's own version.
    pub version: String,
    /// The author.
    pub author: String,
    /// The terms of use.
    pub license: String,
    /// Anything else, by key.
    pub user_defined: BTreeMap<String, String>,
}

/// Reads a `.mlpackage` directory, a compiled `.mlmodelc` one, or an `.mlmodel` file with its weights beside
/// it.
///
/// # Errors
/// [`Error::CoreMl`] if the model can't be used, [`Error::Read`] if a file can't be opened,
/// [`Error::NotFound`] if `path` is no model.
pub fn read(path: &Path) -> Result<Model, Error> {
    let class = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let (Some(folder), Some(name), true) = (path.parent(), path.file_name(), path.is_file()) else {
        return read_files(&Files::Directory(path.to_path_buf()), class);
    };
    read_specification(&Files::Directory(folder.to_path_buf()), &name.to_string_lossy(), class)
}

/// Reads a model whose files are in memory, by their path in its directory. `label` names it in messages.
///
/// # Errors
/// Those of [`read`].
pub fn from_files(label: &str, files: impl IntoIterator<Item = (String, Bytes)>) -> Result<Model, Error> {
    let files = Files::Memory { label: label.into(), files: files.into_iter().collect() };
    read_files(&files, label.to_string())
}

/// Writes a `.mlpackage` directory, whole or not at all. An existing one is replaced, in one step where the
/// file system can exchange two names. A link of that name is replaced too. Weights are read, cast and
/// written one after the other; `progress` counts their bytes. If another process writes the same path, this
/// one waits for it.
///
/// The same model always gives the same bytes, and so does a model that was read from what was written.
///
/// # Errors
/// [`Error::CoreMl`] if the model contradicts itself or holds what a package can't, [`Error::Write`] with the
/// system's reason, [`Error::Stopped`] if `progress` stops it.
pub fn write_package(path: &Path, model: &Model, progress: &dyn Progress) -> Result<(), Error> {
    write_package_as(&claimed(path)?, model, Values::Any, progress)
}

/// Writes a compiled `.mlmodelc` directory as Apple's compiler does, in the way of [`write_package`].
///
/// # Errors
/// Those of [`write_package`]; pipelines, several functions and flexible shapes are refused.
pub fn write_compiled(path: &Path, model: &Model, progress: &dyn Progress) -> Result<(), Error> {
    compiled::write(&claimed(path)?, model, Values::Any, progress)
}

/// Writes a claimed path: a compiled model if it ends in `.mlmodelc`, else a package.
///
/// # Errors
/// Those of [`write_package`], and [`Error::NotFinite`].
pub fn write_claimed(
    claim: &Claim,
    model: &Model,
    values: Values,
    progress: &dyn Progress,
) -> Result<(), Error> {
    match claim.path().extension().is_some_and(|extension| extension == "mlmodelc") {
        true => compiled::write(claim, model, values, progress),
        false => write_package_as(claim, model, values, progress),
    }
}

fn claimed(path: &Path) -> Result<Claim, Error> {
    make_directory(directory_of(path))?;
    Claim::new(path, &mut || Ok(()))
}

fn write_package_as(
    claim: &Claim,
    model: &Model,
    values: Values,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let stored = stored(model);
    let specification = specification::check(model).and_then(|()| encode::package(model, &stored));
    let specification =
        specification.map_err(|problem| Error::CoreMl { path: claim.path().to_path_buf(), problem })?;
    let mut directory = NewDirectory::create(claim)?;
    let has_weights = stored.iter().any(|stored| !stored.placement.is_empty());
    directory.bytes("Manifest.json", manifest::write(&specification, has_weights).as_bytes())?;
    directory.bytes("Data/com.apple.CoreML/model.mlmodel", &specification)?;
    for stored in stored.iter().filter(|stored| !stored.placement.is_empty()) {
        let file = format!("Data/com.apple.CoreML/{}", stored.file);
        directory.file(&file, |writer| stored.placement.write(writer, values, progress))?;
    }
    directory.finish()
}

/// A single model of a package, and its weight file.
pub(crate) struct StoredModel<'m> {
    model: &'m Model,
    placement: Placement<'m>,
    /// The weight file's path from the specification's folder.
    file: String,
}

/// The models whose programs are in a package: the model itself, or those of its pipeline. The weight files
/// of a pipeline are numbered, as coremltools does it.
fn stored(model: &Model) -> Vec<StoredModel<'_>> {
    let one = |model, file: String| StoredModel { model, placement: Placement::plan(model), file };
    let models = model.form.models.iter().enumerate();
    let parts: Vec<_> =
        models.map(|(index, part)| one(&part.model, format!("weights/{index}-weight.bin"))).collect();
    if parts.is_empty() { vec![one(model, schema::WEIGHT_FILE.to_string())] } else { parts }
}

/// The build information of a program: the version of this crate and the names of weights.
fn build_info(names: Option<&str>) -> Vec<(&'static str, &str)> {
    let names = names.map(|names| (names::KEY, names));
    [("mixbit-version", env!("CARGO_PKG_VERSION"))].into_iter().chain(names).collect()
}

fn read_files(files: &Files, class: String) -> Result<Model, Error> {
    if files.contains("Manifest.json") {
        let manifest = files.text("Manifest.json")?;
        let path = manifest::model_path(&manifest)
            .map_err(|problem| Error::CoreMl { path: files.path("Manifest.json"), problem })?;
        return read_specification(files, &format!("Data/{path}"), class);
    }
    if files.contains("coremldata.bin") {
        return compiled::read(files, class);
    }
    let hint = "a model is a directory with a Manifest.json (.mlpackage) or a coremldata.bin (.mlmodelc)";
    Err(Error::NotFound { path: files.path("Manifest.json"), hint: hint.to_string() })
}

fn read_specification(files: &Files, path: &str, class: String) -> Result<Model, Error> {
    let specification = files.map(path)?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut weights = WeightFiles::new(files.clone(), folder);
    specification::read(&specification, class, &mut weights)
        .map_err(|problem| Error::CoreMl { path: files.path(path), problem })
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
        let inside = name.strip_prefix(schema::MODEL_PATH).filter(|rest| rest.split('/').all(is_plain));
        let inside = inside.ok_or("the name does not lead to a file of the model")?;
        let path =
            if self.folder.is_empty() { inside.to_string() } else { format!("{}/{inside}", self.folder) };
        let bytes = self.files.map(&path).map_err(|error| match &error {
            Error::Read { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                "the file is not there, so the package is incomplete: copy or download it again".to_string()
            }
            error => error.to_string(),
        })?;
        self.mapped.insert(name.to_string(), bytes.clone());
        Ok(bytes)
    }
}
