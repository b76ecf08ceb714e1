//! Networks and weight files, opened to be looked at: their graphs, metadata and tensors.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use mixbit_diffusion::original::{Original, OriginalError};
use mixbit_formats::coreml;
use mixbit_mil::{
    Arg, BlockEncoding, Bytes, Constant, Def, Encoding, Function, ValueId, WeightRef, Weights, constexpr,
};
use thiserror::Error;

use crate::bundle::entries;
use crate::error::OpenError;
use crate::package::{ConversionOptions, ConversionSource, Package, PackageError, is_package, plan};
use crate::source::{
    DiffusersModel, OpenOptions, OpenedModel, SINGLE_FILE, SOURCES, is_zip, open as open_model, single_file,
};

/// The fewest elements of a literal that is a tensor: in a package it is in the weight file.
const LEAST_TABLE: usize = 10;

/// A network or weight file that can't be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    /// A path that can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file of another kind.
    #[error("{} is neither a safetensors file nor a Core ML package", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A zip archive.
    #[error("{} is a zip archive: unpack it and give what was inside", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint whose networks can't be built.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A tensor that can't be used.
    #[error("{name}: {source}")]
    Tensor {
        /// The network.
        name: String,
        /// The defect.
        source: mixbit_mil::Error,
    },
}

/// A network or a weight file.
pub struct InspectedNetwork {
    /// What kind of model it belongs to, or what kind of file it is, where its tensors tell.
    pub kind: Option<String>,
    /// The file's name; of a checkpoint's network, the name of its package in a `Resources` directory.
    pub name: String,
    /// The graph as it is stored; a weight file has none.
    pub function: Option<Function>,
    /// The metadata of a package or weight file.
    pub metadata: BTreeMap<String, String>,
    /// The specification's version, of packages.
    pub specification: Option<u32>,
    /// The function's name, if the package runs another unless it is asked for this one.
    pub other_function: Option<String>,
    /// The kinds of the inputs and outputs that are not tensors of one shape, in words, by name.
    pub feature_kinds: BTreeMap<String, String>,
    /// The names of a pipeline's models, or their numbers.
    pub pipeline: Vec<String>,
    /// The constant tensors in the order of the graph; compressed ones decode when they are read.
    pub tensors: Vec<StoredTensor>,
}

/// A constant tensor of a network.
pub struct StoredTensor {
    /// The tensor.
    pub weight: WeightRef,
    /// The constant's name in its program.
    pub constant: String,
    /// True if the architecture made it, not the checkpoint. Only graphs that are not in a package yet tell.
    pub is_table: bool,
}

/// True if a path that is no checkpoint leads to one network or weight file, not to the networks of a model.
pub fn is_single(path: &Path) -> bool {
    is_package(path) || is_weight_file(path)
}

/// Opens a path: a package, the packages of a directory, a weight file, or the networks of a checkpoint,
/// whose graphs are built in the form of the options.
///
/// # Errors
/// [`InspectError`].
pub fn open(
    path: &Path,
    options: &ConversionOptions,
    files: &OpenOptions,
) -> Result<Vec<InspectedNetwork>, InspectError> {
    if is_weight_file(path) {
        return match single_file(path, files)? {
            Some(model) => checkpoint(&model, options),
            None => Ok(vec![weight_file(path)?]),
        };
    }
    if is_package(path) {
        files.check_for_packages(path)?;
        return packaged(path);
    }
    if path.is_file() {
        let path = path.to_path_buf();
        return Err(if is_zip(&path) { InspectError::Zip { path } } else { InspectError::Kind { path } });
    }
    if path.is_dir() && !is_checkpoint(path, files) {
        let packages = packages(path)?;
        if !packages.is_empty() {
            files.check_for_packages(path)?;
            let networks = packages.iter().map(|path| packaged(path));
            return Ok(networks.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
        }
    }
    let checkpoints = SOURCES.into_iter().filter(|source| source.is_checkpoint);
    checkpoint(&open_model(Some(path), files, checkpoints)?, options)
}

/// True if a path is a checkpoint: a directory that is no place of packages, or a whole model in one file.
pub fn is_checkpoint(path: &Path, files: &OpenOptions) -> bool {
    DiffusersModel::is_at(path) || is_weight_file(path) && matches!(single_file(path, files), Ok(Some(_)))
}

fn is_weight_file(path: &Path) -> bool {
    path.is_file() && single_file::is_named(path)
}

/// The model in one file; `None` if it is no whole one.
///
/// # Errors
/// A file that can't be read, or is no file of tensors.
fn single_file(path: &Path, files: &OpenOptions) -> Result<Option<OpenedModel>, OpenError> {
    match open_model(Some(path), files, [&SINGLE_FILE]) {
        Ok(model) => Ok(Some(model)),
        Err(OpenError::Package { .. }) if files.of_single_files().is_none() => Ok(None),
        Err(OpenError::Original { source, .. })
            if matches!(
                *source,
                OriginalError::NoNetwork { .. }
                    | OriginalError::Incomplete { .. }
                    | OriginalError::Unusual { .. }
                    | OriginalError::OtherNetwork { .. }
            ) && files.of_single_files().is_none() =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn packages(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let mut packages: Vec<PathBuf> =
        entries(directory)?.into_iter().filter(|path| is_package(path)).collect();
    packages.sort();
    Ok(packages)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The functions of a package, the one that runs by default before the others.
fn packaged(path: &Path) -> Result<Vec<InspectedNetwork>, InspectError> {
    let model = coreml::read(path).map_err(OpenError::from)?;
    let default = model.program.main().ok_or_else(|| OpenError::Package {
        path: path.to_path_buf(),
        what: "it has no function `main`".to_string(),
    })?;
    let metadata = all_metadata(&model.metadata);
    let models = model.form.models.iter().enumerate();
    let pipeline: Vec<String> = models
        .map(|(index, part)| match part.name.as_str() {
            "" => (index + 1).to_string(),
            name => name.to_string(),
        })
        .collect();
    let network = |function: &Function| {
        let described = model.form.functions.iter().find(|described| described.name == function.name);
        let [inputs, outputs] = match described {
            Some(described) => [&described.inputs, &described.outputs],
            None => [&model.inputs, &model.outputs],
        };
        let kinds = inputs.iter().chain(outputs).map(|feature| (&feature.name, feature.kind.to_string()));
        let unusable = |source| InspectError::Tensor { name: path.display().to_string(), source };
        Ok(InspectedNetwork {
            kind: None,
            name: file_name(path),
            tensors: packaged_tensors(function).map_err(unusable)?,
            function: Some(function.clone()),
            metadata: metadata.clone(),
            specification: Some(model.specification_version),
            other_function: (function.name != default.name).then(|| function.name.clone()),
            feature_kinds: kinds
                .filter(|(_, kind)| !kind.is_empty())
                .map(|(name, kind)| (name.clone(), kind))
                .collect(),
            pipeline: pipeline.clone(),
        })
    };
    let others = model.program.functions.iter().filter(|function| function.name != default.name);
    std::iter::once(default).chain(others).map(network).collect()
}

/// User-defined metadata, and the fields of their own.
fn all_metadata(metadata: &coreml::Metadata) -> BTreeMap<String, String> {
    let mut all = metadata.user_defined.clone();
    for (key, value) in [
        ("description", &metadata.short_description),
        ("version", &metadata.version),
        ("author", &metadata.author),
        ("license", &metadata.license),
    ] {
        if !value.is_empty() {
            all.insert(key.to_string(), value.clone());
        }
    }
    all
}

/// Joins two packages that are halves of a network; `None` if the second does not take the outputs of the
/// first.
pub fn joined(name: String, first: &InspectedNetwork, second: &InspectedNetwork) -> Option<InspectedNetwork> {
    let function = mixbit_mil::join(first.function.as_ref()?, second.function.as_ref()?).ok()?;
    Some(InspectedNetwork {
        kind: first.kind.clone(),
        name,
        tensors: packaged_tensors(&function).ok()?,
        function: Some(function),
        metadata: first.metadata.clone(),
        specification: first.specification,
        other_function: None,
        feature_kinds: first.feature_kinds.clone().into_iter().chain(second.feature_kinds.clone()).collect(),
        pipeline: Vec::new(),
    })
}

/// The tensors of a package, which does not tell tables from weights.
fn packaged_tensors(function: &Function) -> Result<Vec<StoredTensor>, mixbit_mil::Error> {
    Ok(tensors(function)?.into_iter().map(|tensor| StoredTensor { is_table: false, ..tensor }).collect())
}

/// The networks of a checkpoint.
fn checkpoint(
    model: &OpenedModel,
    options: &ConversionOptions,
) -> Result<Vec<InspectedNetwork>, InspectError> {
    let options = ConversionOptions { model_version: model.name().to_string(), ..options.clone() };
    let packages = plan(&ConversionSource::of(model.files()), &options).map_err(PackageError::from)?;
    let network = |package: &Package| {
        let function = package.function().map_err(PackageError::from)?;
        let unusable = |source| InspectError::Tensor { name: package.compiled.clone(), source };
        Ok(InspectedNetwork {
            kind: model.opening().kind.clone(),
            name: package.compiled.clone(),
            tensors: tensors(&function).map_err(unusable)?,
            function: Some(function),
            metadata: BTreeMap::new(),
            specification: None,
            other_function: None,
            feature_kinds: BTreeMap::new(),
            pipeline: Vec::new(),
        })
    };
    packages.iter().map(network).collect()
}

fn weight_file(path: &Path) -> Result<InspectedNetwork, OpenError> {
    let (file, metadata) = single_file::read(path)?;
    let kind = match Original::find(file.clone(), &metadata, false) {
        Ok(original) => Some(format!("{} of {original}", original.networks().collect::<Vec<_>>().join(", "))),
        Err(_) => {
            single_file::other_kind(&*file).map(|what| what.split(',').next().unwrap_or(what).to_string())
        }
    };
    let tensor = |name: &str| {
        let weight = file.get(name)?;
        Some(StoredTensor { weight, constant: name.to_string(), is_table: false })
    };
    Ok(InspectedNetwork {
        kind,
        name: file_name(path),
        function: None,
        metadata,
        specification: None,
        other_function: None,
        feature_kinds: BTreeMap::new(),
        pipeline: Vec::new(),
        tensors: file.names().into_iter().filter_map(tensor).collect(),
    })
}

/// The constant tensors that a function uses, in the order of their first use.
fn tensors(function: &Function) -> Result<Vec<StoredTensor>, mixbit_mil::Error> {
    let function = constexpr::decoded(function)?;
    let mut seen: HashSet<ValueId> = HashSet::new();
    let of_ops = function.ops().iter().flat_map(|op| op.args.iter().flat_map(Arg::values));
    let used = of_ops.chain(function.outputs()).copied().filter(|&id| seen.insert(id));
    let mut tensors = Vec::new();
    for value in used.map(|id| function.value(id)) {
        let (weight, is_table) = match &value.def {
            Def::Const(Constant::Weight(weight)) => (weight.clone(), false),
            Def::Const(Constant::Literal(literal)) if literal.ty().count() >= LEAST_TABLE => {
                let Some(bytes) = literal.bytes() else { continue };
                let bytes = Bytes::new(bytes.to_vec());
                (WeightRef::new(value.name.as_str(), literal.ty().clone(), bytes)?, true)
            }
            _ => continue,
        };
        tensors.push(StoredTensor { weight, constant: value.name.clone(), is_table });
    }
    Ok(tensors)
}

impl InspectedNetwork {
    /// The file's name, and the function's if it is not the default one.
    pub fn title(&self) -> String {
        match &self.other_function {
            Some(function) => format!("{}, function {function}", self.name),
            None => self.name.clone(),
        }
    }

    /// The inputs or outputs (`ids`) of a graph. A weight file has none.
    pub fn features(&self, ids: fn(&Function) -> &[ValueId]) -> Vec<InspectedFeature> {
        let Some(function) = &self.function else { return Vec::new() };
        let feature = |&id: &ValueId| {
            let value = function.value(id);
            let kind = self.feature_kinds.get(&value.name).cloned();
            InspectedFeature { name: value.name.clone(), ty: value.ty.to_string(), kind }
        };
        ids(function).iter().map(feature).collect()
    }
}

/// An input or output in words.
pub struct InspectedFeature {
    /// The name.
    pub name: String,
    /// The type of the tensor.
    pub ty: String,
    /// The kind, if it is not a tensor of one shape: the other shapes, or the color space of an image.
    pub kind: Option<String>,
}

impl InspectedFeature {
    /// The type and the kind.
    pub fn type_and_kind(&self) -> String {
        let kind = self.kind.as_ref().map(|kind| format!(", {kind}"));
        format!("{}{}", self.ty, kind.unwrap_or_default())
    }
}

impl StoredTensor {
    /// The number of elements.
    pub fn count(&self) -> usize {
        self.weight.ty().count()
    }

    /// The bytes in the file, tables of a compressed tensor included.
    pub fn bytes(&self) -> usize {
        self.weight.stored_len()
    }

    /// The bits of an element, tables of a compressed tensor included.
    pub fn bits(&self) -> f64 {
        bits_per_element(self.count(), self.bytes())
    }

    /// The encoding, with the number of palettes or scales if there are several.
    pub fn encoding(&self) -> String {
        let encoding = encoding(&self.weight);
        match groups(&self.weight) {
            1 => encoding,
            groups => format!("{encoding}, {groups} groups"),
        }
    }

    /// The encoding: the element type in the file, or the method of compression.
    pub fn kind(&self) -> String {
        encoding(&self.weight)
    }

    /// The number of palettes or scales.
    pub fn groups(&self) -> usize {
        groups(&self.weight)
    }
}

fn encoding(weight: &WeightRef) -> String {
    match weight.encoding() {
        None => weight.stored_type_name().to_string(),
        Some(Encoding::Lut { bits, lut, .. }) => {
            let vector = match lut.ty().shape.last() {
                Some(&values) if values > 1 => format!(" of {values}-vectors"),
                _ => String::new(),
            };
            let table = match lut.encoding() {
                Some(Encoding::ShiftScale { data, .. }) if data.stored_dtype().is_int() => {
                    format!(" in {}", data.stored_dtype())
                }
                Some(_) => ", scaled".to_string(),
                None => String::new(),
            };
            format!("{bits}-bit palette{vector}{table}")
        }
        Some(Encoding::ShiftScale { data, .. }) => match data.encoding() {
            Some(_) => format!("{}, scaled", encoding(data)),
            None => format!("{}-bit linear", data.stored_dtype().bits()),
        },
        Some(Encoding::Sparse { values, .. }) => format!("sparse {}", encoding(values)),
        Some(Encoding::Nonzero { values, blocks, .. }) => match blocks {
            BlockEncoding::Lut(_) => format!("{}-bit palette", values.stored_dtype().bits()),
            BlockEncoding::ShiftScale { .. } => format!("{}-bit linear", values.stored_dtype().bits()),
        },
    }
}

fn groups(weight: &WeightRef) -> usize {
    match weight.encoding() {
        None => 1,
        Some(Encoding::Lut { shape, lut, .. }) => lut.ty().shape.iter().take(shape.len()).product(),
        Some(Encoding::ShiftScale { data, scale, .. }) => groups(data).max(scale.ty().count()),
        Some(Encoding::Sparse { values, .. }) => groups(values),
        Some(Encoding::Nonzero { mask, blocks, .. }) => match blocks {
            BlockEncoding::Lut(lut) => lut.ty().shape.iter().take(mask.ty().rank()).product(),
            BlockEncoding::ShiftScale { scale, .. } => scale.ty().count(),
        },
    }
}

/// The bits that each of `count` elements takes.
pub fn bits_per_element(count: usize, bytes: usize) -> f64 {
    if count == 0 { 0.0 } else { 8.0 * bytes as f64 / count as f64 }
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{DType, TensorType};

    use super::*;

    fn weight(dtype: DType, shape: &[usize]) -> WeightRef {
        let ty = TensorType::new(dtype, shape);
        let bytes = vec![0; ty.byte_len().unwrap()];
        WeightRef::new("w", ty, Bytes::new(bytes)).unwrap()
    }

    #[test]
    fn encodings_are_named_by_their_bits() {
        let palette = |dtype, lut: &[usize], table| {
            constexpr::lut_to_dense("w", weight(dtype, &[8, 4]), weight(table, lut)).unwrap()
        };
        let linear = |dtype, scale: &[usize]| {
            constexpr::blockwise_shift_scale("w", weight(dtype, &[8, 4]), weight(DType::F16, scale), None)
                .unwrap()
        };
        for (weight, named, bytes) in [
            (weight(DType::F32, &[8, 4]), "fp32", 128),
            (weight(DType::F32, &[8, 4]).cast(DType::F16), "fp32", 128),
            (palette(DType::U4, &[1, 1, 16, 1], DType::F16), "4-bit palette", 16 + 32),
            (palette(DType::U2, &[4, 1, 4, 1], DType::F16), "2-bit palette, 4 groups", 8 + 32),
            (linear(DType::I8, &[1, 1]), "8-bit linear", 32 + 2),
            (linear(DType::I4, &[8, 2]), "4-bit linear, 16 groups", 16 + 32),
        ] {
            let tensor = StoredTensor { weight, constant: String::new(), is_table: false };
            assert_eq!((tensor.encoding().as_str(), tensor.bytes()), (named, bytes));
        }
    }
}
