//! Running one network of a package on given tensors.

use std::path::{Path, PathBuf};

use mixbit_engine::{Backend, Cancel, Data, Options, Tensor, Timing};
use mixbit_formats::coreml::{self, Feature};
use mixbit_formats::npy::NamedArray;
use mixbit_mil::{Constant, DType, Function, TensorType, WeightRef, Weights};
use thiserror::Error;

use half::f16;

/// A package that can't be run on the given tensors.
#[derive(Debug, Error)]
pub enum PredictError {
    /// A package that can't be read.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
    /// A function that the package does not have.
    #[error("{} has no function `{name}`; it has {known}", path.display())]
    NoFunction {
        /// The package.
        path: PathBuf,
        /// The function's name.
        name: String,
        /// The names of its functions.
        known: String,
    },
    /// A tensor that the function takes and that is not given.
    #[error("the input `{name}` is not given; the package takes {takes}")]
    Missing {
        /// The input.
        name: String,
        /// All inputs with their types.
        takes: String,
    },
    /// A tensor that the function does not take.
    #[error("`{name}` is no input; the package takes {takes}")]
    Unknown {
        /// The tensor's name.
        name: String,
        /// All inputs with their types.
        takes: String,
    },
    /// A tensor of another shape or kind of elements.
    #[error("the input `{name}` is given as {found}; the package takes {takes}{hint}")]
    Type {
        /// The input.
        name: String,
        /// Its type as it is given.
        found: TensorType,
        /// All inputs with their types.
        takes: String,
        /// Advice, after a colon.
        hint: String,
    },
    /// A number that the input's element type does not have.
    #[error("the input `{name}` has a number that {dtype} does not hold")]
    Range {
        /// The input.
        name: String,
        /// The element type.
        dtype: DType,
    },
    /// The backend can't run the function.
    #[error(transparent)]
    Engine(#[from] mixbit_engine::Error),
}

/// One function of a package, ready to be compiled.
pub struct Predictor {
    function: Function,
    inputs: Vec<Feature>,
}

/// The results of a run.
pub struct Prediction {
    /// The outputs, in the types that the package declares.
    pub outputs: Vec<NamedArray>,
    /// The time by kind of op.
    pub timings: Vec<Timing>,
}

impl Predictor {
    /// Reads a package or compiled model. `function` is one of several; the default one if absent. No weight
    /// is read.
    ///
    /// # Errors
    /// [`PredictError::Format`], [`PredictError::NoFunction`].
    pub fn open(path: &Path, function: Option<&str>) -> Result<Self, PredictError> {
        let model = coreml::read(path)?;
        let program = &model.program;
        let found = function.map_or(program.main(), |name| program.function(name));
        let found = found.ok_or_else(|| {
            let known: Vec<&str> = program.functions.iter().map(|function| function.name.as_str()).collect();
            let name = function.unwrap_or("main").to_string();
            PredictError::NoFunction { path: path.to_path_buf(), name, known: known.join(", ") }
        })?;
        let described = model.form.functions.iter().find(|described| described.name == found.name);
        let inputs = described.map_or(&model.inputs, |described| &described.inputs).clone();
        Ok(Predictor { function: found.clone(), inputs })
    }

    /// Runs the function once on named tensors.
    ///
    /// # Errors
    /// [`PredictError`] for tensors that are not the function's inputs, or a failure of the backend.
    pub fn run(
        &self,
        given: &dyn Weights,
        backend: &dyn Backend,
        options: &Options,
        cancel: &Cancel,
    ) -> Result<Prediction, PredictError> {
        let inputs = self.bound(given)?;
        let bound: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let mut model = backend.compile(&self.function, options)?;
        let results = model.run_until(&bound, cancel)?;
        let named = model.outputs().iter().zip(&results);
        let outputs = named.map(|(output, value)| NamedArray {
            name: output.name.clone(),
            ty: output.ty.clone(),
            bytes: bytes(value, output.ty.dtype),
        });
        Ok(Prediction { outputs: outputs.collect(), timings: model.profile() })
    }

    /// The inputs of the function among the given tensors, checked.
    fn bound(&self, given: &dyn Weights) -> Result<Vec<(String, Tensor)>, PredictError> {
        let types = self.function.inputs().iter().map(|&id| self.function.value(id));
        let types: Vec<(&str, &TensorType)> = types.map(|value| (value.name.as_str(), &value.ty)).collect();
        if let Some(name) = given.names().into_iter().find(|name| types.iter().all(|(own, _)| own != name)) {
            return Err(PredictError::Unknown { name: name.to_string(), takes: self.takes() });
        }
        let one = |(name, ty): &(&str, &TensorType)| {
            let missing = || PredictError::Missing { name: name.to_string(), takes: self.takes() };
            Ok((name.to_string(), self.tensor(name, ty, &given.get(name).ok_or_else(missing)?)?))
        };
        types.iter().map(one).collect()
    }

    /// A given tensor as an input of type `ty`.
    fn tensor(&self, name: &str, ty: &TensorType, given: &WeightRef) -> Result<Tensor, PredictError> {
        let found = given.ty();
        let misfit = |hint: String| PredictError::Type {
            name: name.to_string(),
            found: found.clone(),
            takes: self.takes(),
            hint,
        };
        if kind(found.dtype) != kind(ty.dtype) {
            return Err(misfit(format!(": convert it to {}", kind(ty.dtype))));
        }
        if found.shape != ty.shape {
            let feature = self.inputs.iter().find(|feature| feature.name == name);
            let is_flexible = feature.is_some_and(Feature::is_flexible);
            let hint = if is_flexible { ": mixbit runs the default shape of a flexible one" } else { "" };
            return Err(misfit(hint.to_string()));
        }
        let given = if ty.dtype.is_float() { given.cast(DType::F32) } else { given.clone() };
        let value = Tensor::of_constant(&Constant::Weight(given))?;
        let (least, most) = range(ty.dtype);
        let fits = |&value: &i32| (least..=most).contains(&i64::from(value));
        match value.as_i32().is_none_or(|values| values.iter().all(fits)) {
            true => Ok(value),
            false => Err(PredictError::Range { name: name.to_string(), dtype: ty.dtype }),
        }
    }

    /// The inputs with their types, for messages.
    fn takes(&self) -> String {
        let values = self.function.inputs().iter().map(|&id| self.function.value(id));
        values.map(|value| format!("{}: {}", value.name, value.ty)).collect::<Vec<_>>().join(", ")
    }
}

/// The kind of elements that a type has.
fn kind(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "truth values",
        dtype if dtype.is_float() => "floats",
        _ => "integers",
    }
}

/// The least and the greatest number of an integer type that a tensor can hold.
fn range(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::Bool => (0, 1),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::U32 | DType::U64 => (0, i32::MAX.into()),
        _ => (i32::MIN.into(), i32::MAX.into()),
    }
}

/// The elements of a result in the declared type, little-endian.
fn bytes(value: &Tensor, dtype: DType) -> Vec<u8> {
    match (value.data(), dtype) {
        (Data::Float(values), DType::F16) => {
            values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
        }
        (Data::Float(values), DType::F64) => {
            values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect()
        }
        (Data::Float(values), _) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        (Data::Int(values), dtype) => {
            let width = dtype.bits().div_ceil(8);
            values.iter().flat_map(|&value| i64::from(value).to_le_bytes().into_iter().take(width)).collect()
        }
    }
}
