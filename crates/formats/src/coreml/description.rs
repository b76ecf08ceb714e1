//! What a specification says about a model from outside: features and metadata.

use std::collections::BTreeMap;

use mixbit_mil::{DType, TensorType};

use super::wire::{Message, Writer};
use super::{CoreMlError, Feature, Metadata};
use crate::error::shown;

/// The codes of features' element types.
const DTYPES: [(u64, DType); 5] = [
    (65568, DType::F32),
    (65552, DType::F16),
    (131_104, DType::I32),
    (65600, DType::F64),
    (131_080, DType::I8),
];

/// A model's description: its features, those of the default function where there are several.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    pub(super) inputs: Vec<Feature>,
    pub(super) outputs: Vec<Feature>,
    pub(super) metadata: Metadata,
    pub(super) default_function: Option<String>,
}

impl Description {
    /// The inputs' types by name.
    pub(super) fn input_types(&self) -> BTreeMap<String, TensorType> {
        self.inputs.iter().map(|input| (input.name.clone(), input.ty.clone())).collect()
    }

    pub(super) fn read(message: Message) -> Result<Self, CoreMlError> {
        let mut out = Description::default();
        let mut functions = Vec::new();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => out.inputs.push(feature(field.message()?)?),
                10 => out.outputs.push(feature(field.message()?)?),
                13 => return Err(CoreMlError::unsupported("a model with state")),
                20 => functions.push(field.message()?),
                21 => out.default_function = Some(field.text()?.to_string()),
                100 => out.metadata = metadata(field.message()?)?,
                _ => {}
            }
        }
        for message in functions {
            out.read_function(message)?;
        }
        Ok(out)
    }

    /// The features of one function of several, if it is the default one.
    fn read_function(&mut self, message: Message) -> Result<(), CoreMlError> {
        let (mut name, mut inputs, mut outputs) = ("", Vec::new(), Vec::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => name = field.text()?,
                2 => inputs.push(feature(field.message()?)?),
                3 => outputs.push(feature(field.message()?)?),
                6 => return Err(CoreMlError::unsupported("a function with state")),
                _ => {}
            }
        }
        if self.default_function.as_deref() == Some(name) {
            (self.inputs, self.outputs) = (inputs, outputs);
        }
        Ok(())
    }

    pub(super) fn write(&self) -> Writer {
        let mut writer = Writer::new();
        self.inputs.iter().for_each(|feature| writer.message(1, &write_feature(feature)));
        self.outputs.iter().for_each(|feature| writer.message(10, &write_feature(feature)));
        writer.message(100, &write_metadata(&self.metadata));
        writer
    }
}

fn feature(message: Message) -> Result<Feature, CoreMlError> {
    let (mut name, mut description, mut ty) = ("", "", None);
    let mut optional = false;
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            2 => description = field.text()?,
            3 => ty = Some(field.message()?),
            _ => {}
        }
    }
    let mut array = None;
    for field in ty.iter().flat_map(|ty| ty.fields()) {
        let field = field?;
        match field.number {
            5 => array = Some(field.message()?),
            1000 => optional = field.number()? != 0,
            1..=999 => {
                const KINDS: [&str; 8] = [
                    "an integer",
                    "a number",
                    "a string",
                    "an image",
                    "",
                    "a dictionary",
                    "a sequence",
                    "a state",
                ];
                let kind = KINDS.get(field.number as usize - 1).unwrap_or(&"of an unknown kind");
                return Err(CoreMlError::unsupported(format!("feature `{}`, which is {kind},", shown(name))));
            }
            _ => {}
        }
    }
    let array = array.ok_or_else(|| message.malformed(format!("feature `{}` has no type", shown(name))))?;
    let ty = array_type(name, array)?;
    Ok(Feature { name: name.to_string(), description: description.to_string(), ty, optional })
}

fn array_type(name: &str, message: Message) -> Result<TensorType, CoreMlError> {
    let (mut shape, mut code) = (Vec::new(), 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => field.numbers(|extent| shape.push(usize::try_from(extent).unwrap_or(usize::MAX)))?,
            2 => code = field.number()?,
            _ => {}
        }
    }
    let dtype = DTYPES.iter().find(|(known, _)| *known == code).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| {
        CoreMlError::unsupported(format!("feature `{}` of element type number {code}", shown(name)))
    })?;
    Ok(TensorType::new(dtype, shape))
}

/// Whether a feature can have elements of a type.
pub(super) fn describes(dtype: DType) -> bool {
    DTYPES.iter().any(|&(_, known)| known == dtype)
}

fn write_feature(feature: &Feature) -> Writer {
    let mut array = Writer::new();
    array.numbers(1, feature.ty.shape.iter().map(|&extent| extent as u64));
    array.number(2, DTYPES.iter().find(|(_, dtype)| *dtype == feature.ty.dtype).map_or(0, |(code, _)| *code));
    let mut ty = Writer::new();
    ty.message(5, &array);
    ty.number(1000, feature.optional.into());
    let mut writer = Writer::new();
    writer.text(1, &feature.name);
    writer.text(2, &feature.description);
    writer.message(3, &ty);
    writer
}

fn metadata(message: Message) -> Result<Metadata, CoreMlError> {
    let mut out = Metadata::default();
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => out.short_description = field.text()?.to_string(),
            2 => out.version = field.text()?.to_string(),
            3 => out.author = field.text()?.to_string(),
            4 => out.license = field.text()?.to_string(),
            100 => {
                let (key, value) = field.message()?.text_entry()?;
                out.user_defined.insert(key.to_string(), value.to_string());
            }
            _ => {}
        }
    }
    Ok(out)
}

fn write_metadata(metadata: &Metadata) -> Writer {
    let mut writer = Writer::new();
    writer.text(1, &metadata.short_description);
    writer.text(2, &metadata.version);
    writer.text(3, &metadata.author);
    writer.text(4, &metadata.license);
    metadata.user_defined.iter().for_each(|(key, value)| writer.text_entry(100, key, value));
    writer
}
