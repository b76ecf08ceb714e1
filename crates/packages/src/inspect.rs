//! What the commands that look at files see: networks and weight files, with their tensors.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_formats::{SafeTensors, coreml};
use mixbit_mil::{Arg, Bytes, Constant, Def, Encoding, Function, ValueId, WeightRef, Weights, constexpr};

use crate::package::{DEPLOYMENT_TARGETS, DeploymentTarget, Options, Source, plan};
use crate::source::DiffusersModel;

/// Literals of so many elements are tensors: in a package they are in the weight file.
const LEAST_TABLE: usize = 10;

/// A network, or a weight file.
pub struct Part {
    /// The file's name; of a checkpoint's networks the one that their packages have in a `Resources` directory.
    pub name: String,
    /// The graph as it is stored; a weight file has none.
    pub function: Option<Function>,
    pub metadata: BTreeMap<String, String>,
    /// The specification's version, of packages.
    pub specification: Option<u32>,
    /// In the order of the graph, compressed ones decoded when they are read.
    pub tensors: Vec<Tensor>,
}

/// A constant tensor of a network.
pub struct Tensor {
    pub weight: WeightRef,
    /// What the constant is called in its program.
    pub constant: String,
    /// Whether it is a table that the architecture asks for, not a weight of the checkpoint. Only graphs that are not in
    /// a package yet show which of the two a constant is.
    pub is_table: bool,
}

/// What a checkpoint leaves open about its graphs.
#[derive(Clone, Copy)]
pub struct Form {
    pub attention: AttentionImplementation,
    pub target: &'static DeploymentTarget,
    /// Height and width of the latents; the model's own if absent.
    pub latent: Option<[usize; 2]>,
    pub batch_one: bool,
    pub chunk_unet: bool,
    pub control_unet: bool,
}

impl Default for Form {
    fn default() -> Self {
        Form {
            attention: AttentionImplementation::Original,
            target: &DEPLOYMENT_TARGETS[0],
            latent: None,
            batch_one: false,
            chunk_unet: false,
            control_unet: false,
        }
    }
}

/// Whether a path leads to one network or weight file, not to the networks of a model.
pub fn is_one(path: &Path) -> bool {
    is_package(path) || is_weight_file(path)
}

/// What is at a path: a package, those of a directory, a weight file, or the networks of a checkpoint, whose graphs are
/// built in the given form.
///
/// # Errors
/// If it is none of these, or can't be read.
pub fn open(path: &Path, form: &Form) -> anyhow::Result<Vec<Part>> {
    if is_weight_file(path) {
        return Ok(vec![weight_file(path)?]);
    }
    if is_package(path) {
        return Ok(vec![packaged(path)?]);
    }
    if path.is_file() {
        bail!("{} is neither a safetensors file nor a Core ML package", path.display());
    }
    if path.is_dir() && !is_checkpoint(path) {
        let packages = packages(path)?;
        if !packages.is_empty() {
            return packages.iter().map(|path| packaged(path)).collect();
        }
    }
    checkpoint(path, form)
}

/// Whether a directory is a model in the diffusers layout, or one that the Hugging Face client downloaded.
pub fn is_checkpoint(path: &Path) -> bool {
    path.join("model_index.json").is_file() || path.join("snapshots").is_dir()
}

fn is_weight_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// Whether a path is named as a Core ML model.
pub fn is_package(path: &Path) -> bool {
    let is_one_of = |extension| ["mlpackage", "mlmodelc", "mlmodel"].iter().any(|known| extension == *known);
    path.extension().is_some_and(is_one_of)
}

fn packages(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} can't be listed", directory.display()))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut packages: Vec<PathBuf> = paths.filter(|path| is_package(path)).collect();
    packages.sort();
    Ok(packages)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn packaged(path: &Path) -> anyhow::Result<Part> {
    let model = coreml::read(path)?;
    let function = model.program.main().cloned();
    let function = function.with_context(|| format!("{} has no function `main`", path.display()))?;
    let metadata = model.metadata;
    let mut all = metadata.user_defined;
    for (key, value) in [
        ("description", metadata.short_description),
        ("version", metadata.version),
        ("author", metadata.author),
        ("license", metadata.license),
    ] {
        if !value.is_empty() {
            all.insert(key.to_string(), value);
        }
    }
    Ok(Part {
        name: file_name(path),
        tensors: packaged_tensors(&function).with_context(|| path.display().to_string())?,
        function: Some(function),
        metadata: all,
        specification: Some(model.specification_version),
    })
}

/// Two packages that are halves of a network, as one; `None` if the second does not take what the first makes.
pub fn joined(name: String, first: &Part, second: &Part) -> Option<Part> {
    let function = mixbit_mil::join(first.function.as_ref()?, second.function.as_ref()?).ok()?;
    Some(Part {
        name,
        tensors: packaged_tensors(&function).ok()?,
        function: Some(function),
        metadata: first.metadata.clone(),
        specification: first.specification,
    })
}

/// What of a package's constants was a table is not known any more.
fn packaged_tensors(function: &Function) -> Result<Vec<Tensor>, mixbit_mil::Error> {
    Ok(tensors(function)?.into_iter().map(|tensor| Tensor { is_table: false, ..tensor }).collect())
}

/// The networks of a checkpoint.
fn checkpoint(path: &Path, form: &Form) -> anyhow::Result<Vec<Part>> {
    let model = DiffusersModel::open(path, None)?;
    let source = Source { model: &model, refiner: None, vae: None, controlnets: Vec::new() };
    let options = Options {
        parts: Vec::new(),
        model_version: model.name().to_string(),
        latent: form.latent,
        batch_one: form.batch_one,
        attention: form.attention,
        chunk_unet: form.chunk_unet,
        control_unet: form.control_unet,
        target: form.target,
    };
    let packages = plan(&source, &options)?;
    let part = |package: &crate::package::Package| {
        let function = package.function()?;
        Ok(Part {
            name: package.compiled.clone(),
            tensors: tensors(&function)?,
            function: Some(function),
            metadata: BTreeMap::new(),
            specification: None,
        })
    };
    packages.iter().map(part).collect()
}

fn weight_file(path: &Path) -> anyhow::Result<Part> {
    let file = SafeTensors::open(path)?;
    let tensor = |name: &str| {
        let weight = file.get(name)?;
        Some(Tensor { weight, constant: name.to_string(), is_table: false })
    };
    Ok(Part {
        name: file_name(path),
        function: None,
        metadata: file.metadata().clone(),
        specification: None,
        tensors: file.names().into_iter().filter_map(tensor).collect(),
    })
}

/// The constant tensors that a function uses, in the order of their first use.
fn tensors(function: &Function) -> Result<Vec<Tensor>, mixbit_mil::Error> {
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
        tensors.push(Tensor { weight, constant: value.name.clone(), is_table });
    }
    Ok(tensors)
}

impl Tensor {
    pub fn count(&self) -> usize {
        self.weight.ty().count()
    }

    pub fn bytes(&self) -> usize {
        self.weight.stored_len()
    }

    pub fn bits(&self) -> f64 {
        bits(self.count(), self.bytes())
    }

    /// How the tensor is stored, with the number of its palettes or scales if there are several.
    pub fn encoding(&self) -> String {
        let encoding = encoding(&self.weight);
        match groups(&self.weight) {
            1 => encoding,
            groups => format!("{encoding}, {groups} groups"),
        }
    }

    /// How the tensor is stored.
    pub fn kind(&self) -> String {
        encoding(&self.weight)
    }

    /// The number of palettes or scales.
    pub fn groups(&self) -> usize {
        groups(&self.weight)
    }
}

/// How a tensor is stored: the element type in the file, or the way of compression.
fn encoding(weight: &WeightRef) -> String {
    match weight.encoding() {
        None => weight.stored_dtype().name().to_string(),
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
    }
}

fn groups(weight: &WeightRef) -> usize {
    match weight.encoding() {
        None => 1,
        Some(Encoding::Lut { shape, lut, .. }) => lut.ty().shape.iter().take(shape.len()).product(),
        Some(Encoding::ShiftScale { data, scale, .. }) => groups(data).max(scale.ty().count()),
        Some(Encoding::Sparse { values, .. }) => groups(values),
    }
}

/// Bytes for people.
pub fn size(bytes: usize) -> String {
    match bytes as f64 {
        bytes if bytes < 1e5 => format!("{:.1} kB", bytes / 1e3),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}

/// Bits that each of `count` elements takes.
pub fn bits(count: usize, bytes: usize) -> f64 {
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
            let tensor = Tensor { weight, constant: String::new(), is_table: false };
            assert_eq!((tensor.encoding().as_str(), tensor.bytes()), (named, bytes));
        }
    }
}
