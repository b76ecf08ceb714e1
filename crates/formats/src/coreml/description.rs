//! The description of a model in a specification: features and metadata.

use std::collections::BTreeMap;

use mixbit_mil::{DType, TensorType};

use super::schema::{self, FEATURE_CODES};
use super::wire::{Message, Writer};
use super::{CoreMlError, Feature, Metadata};
use crate::shown::shown;

/// A model's description. Of several functions, the features are those of the default one.
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
                schema::description::INPUT => out.inputs.push(feature(field.message()?)?),
                schema::description::OUTPUT => out.outputs.push(feature(field.message()?)?),
                schema::description::STATE => return Err(CoreMlError::unsupported("a model with state")),
                schema::description::FUNCTIONS => functions.push(field.message()?),
                schema::description::DEFAULT_FUNCTION => {
                    out.default_function = Some(field.text()?.to_string())
                }
                schema::description::METADATA => out.metadata = metadata(field.message()?)?,
                _ => {}
            }
        }
        for message in functions {
            out.read_function(message)?;
        }
        Ok(out)
    }

    /// Reads the features of one function of several, if it is the default one.
    fn read_function(&mut self, message: Message) -> Result<(), CoreMlError> {
        let (mut name, mut inputs, mut outputs) = ("", Vec::new(), Vec::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                schema::function_description::NAME => name = field.text()?,
                schema::function_description::INPUT => inputs.push(feature(field.message()?)?),
                schema::function_description::OUTPUT => outputs.push(feature(field.message()?)?),
                schema::function_description::STATE => {
                    return Err(CoreMlError::unsupported("a function with state"));
                }
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
        for feature in &self.inputs {
            writer.message(schema::description::INPUT, &write_feature(feature));
        }
        for feature in &self.outputs {
            writer.message(schema::description::OUTPUT, &write_feature(feature));
        }
        writer.message(schema::description::METADATA, &write_metadata(&self.metadata));
        writer
    }
}

fn feature(message: Message) -> Result<Feature, CoreMlError> {
    let (mut name, mut description, mut ty) = ("", "", None);
    let mut optional = false;
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::feature::NAME => name = field.text()?,
            schema::feature::SHORT_DESCRIPTION => description = field.text()?,
            schema::feature::TYPE => ty = Some(field.message()?),
            _ => {}
        }
    }
    let mut array = None;
    for field in ty.iter().flat_map(|ty| ty.fields()) {
        let field = field?;
        match field.number {
            schema::feature_type::ARRAY => array = Some(field.message()?),
            schema::feature_type::IS_OPTIONAL => optional = field.number()? != 0,
            1..=schema::feature_type::LAST_KIND => {
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
            schema::array::SHAPE => {
                field.numbers(|extent| shape.push(usize::try_from(extent).unwrap_or(usize::MAX)))?
            }
            schema::array::DATA_TYPE => code = field.number()?,
            _ => {}
        }
    }
    let dtype = FEATURE_CODES.dtype(code).ok_or_else(|| {
        CoreMlError::unsupported(format!("feature `{}` of element type number {code}", shown(name)))
    })?;
    Ok(TensorType::new(dtype, shape))
}

/// True if a feature can have elements of a type.
pub(super) fn describes(dtype: DType) -> bool {
    FEATURE_CODES.of(dtype).is_some()
}

fn write_feature(feature: &Feature) -> Writer {
    let mut array = Writer::new();
    array.numbers(schema::array::SHAPE, feature.ty.shape.iter().map(|&extent| extent as u64));
    array.number(schema::array::DATA_TYPE, FEATURE_CODES.of(feature.ty.dtype).unwrap_or(0));
    let mut ty = Writer::new();
    ty.message(schema::feature_type::ARRAY, &array);
    ty.number(schema::feature_type::IS_OPTIONAL, feature.optional.into());
    let mut writer = Writer::new();
    writer.text(schema::feature::NAME, &feature.name);
    writer.text(schema::feature::SHORT_DESCRIPTION, &feature.description);
    writer.message(schema::feature::TYPE, &ty);
    writer
}

fn metadata(message: Message) -> Result<Metadata, CoreMlError> {
    let mut out = Metadata::default();
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::metadata::SHORT_DESCRIPTION => out.short_description = field.text()?.to_string(),
            schema::metadata::VERSION => out.version = field.text()?.to_string(),
            schema::metadata::AUTHOR => out.author = field.text()?.to_string(),
            schema::metadata::LICENSE => out.license = field.text()?.to_string(),
            schema::metadata::USER_DEFINED => {
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
    writer.text(schema::metadata::SHORT_DESCRIPTION, &metadata.short_description);
    writer.text(schema::metadata::VERSION, &metadata.version);
    writer.text(schema::metadata::AUTHOR, &metadata.author);
    writer.text(schema::metadata::LICENSE, &metadata.license);
    for (key, value) in &metadata.user_defined {
        writer.text_entry(schema::metadata::USER_DEFINED, key, value);
    }
    writer
}
