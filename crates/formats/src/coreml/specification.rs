//! The reader of `model.mlmodel`, the specification of a model.

use std::collections::HashMap;

use mixbit_mil::{Function, Program, ValueId};

use super::description::{Description, describes};
use super::wire::Message;
use super::{CoreMlError, Feature, Model, WeightFiles, program, schema};
use crate::shown::shown;

/// The supported specification versions.
const VERSIONS: std::ops::RangeInclusive<u64> = 6..=9;

/// The most models of a pipeline.
const MODELS_LIMIT: usize = 16;

/// Reads a specification. `class` names the model.
pub(super) fn read(bytes: &[u8], class: String, weights: &mut WeightFiles) -> Result<Model, CoreMlError> {
    let root = Message::new(bytes);
    let parts = Parts::read(root)?;
    let (version, description, program) = match parts.pipeline {
        None => parts.program(root, weights)?,
        Some(pipeline) => parts.pipeline(root, pipeline, weights)?,
    };
    finish(version, class, description, program)
}

/// The parts of a model.
#[derive(Default)]
struct Parts<'a> {
    version: u64,
    description: Option<Message<'a>>,
    program: Option<Message<'a>>,
    pipeline: Option<Message<'a>>,
}

impl<'a> Parts<'a> {
    fn read(message: Message<'a>) -> Result<Self, CoreMlError> {
        let mut parts = Parts::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                schema::model::SPECIFICATION_VERSION => parts.version = field.number()?,
                schema::model::DESCRIPTION => parts.description = Some(field.message()?),
                schema::model::IS_UPDATABLE if field.number()? != 0 => {
                    return Err(CoreMlError::unsupported("a model that is updated on the device"));
                }
                schema::model::ML_PROGRAM => parts.program = Some(field.message()?),
                schema::model::PIPELINE => parts.pipeline = Some(field.message()?),
                number @ schema::model::FIRST_KIND.. => {
                    let what = format!("a model of kind {number}, not an ML program,");
                    return Err(CoreMlError::unsupported(what));
                }
                _ => {}
            }
        }
        check_version(parts.version)?;
        Ok(parts)
    }

    fn description(&self, message: Message) -> Result<Description, CoreMlError> {
        Description::read(self.description.ok_or_else(|| message.malformed("there is no description"))?)
    }

    /// The version, description and program of a single model.
    fn program(
        &self,
        message: Message,
        weights: &mut WeightFiles,
    ) -> Result<(u32, Description, Program), CoreMlError> {
        let program = self.program.ok_or_else(|| message.malformed("there is no ML program"))?;
        let description = self.description(message)?;
        let program = program::read(program, &description.input_types(), weights)?;
        Ok((self.version as u32, description, program))
    }

    /// The version, description and program of a pipeline, whose models become one program.
    fn pipeline(
        &self,
        message: Message,
        pipeline: Message,
        weights: &mut WeightFiles,
    ) -> Result<(u32, Description, Program), CoreMlError> {
        let mut whole: Option<Function> = None;
        for (count, field) in pipeline.fields().enumerate() {
            let field = field?;
            if field.number != schema::pipeline::MODELS {
                continue;
            }
            if count == MODELS_LIMIT {
                return Err(CoreMlError::unsupported(format!(
                    "a pipeline of more than {MODELS_LIMIT} models"
                )));
            }
            let model = field.message()?;
            let (version, description, program) = Parts::read(model)?.program(model, weights)?;
            let part = finish(version, String::new(), description, program)?.program;
            let part = part.main().ok_or_else(|| model.malformed("there is no main function"))?;
            whole = Some(match whole {
                None => part.clone(),
                Some(before) => mixbit_mil::join(&before, part)?,
            });
        }
        let whole = whole.ok_or_else(|| pipeline.malformed("the pipeline is empty"))?;
        let version = (self.version as u32).max(6 + whole.opset as u32);
        Ok((version, self.description(message)?, Program::new(whole)))
    }
}

/// Refuses unsupported versions.
pub(super) fn check_version(version: u64) -> Result<(), CoreMlError> {
    match VERSIONS.contains(&version) {
        true => Ok(()),
        false => Err(CoreMlError::unsupported(format!("specification version {version}"))),
    }
}

/// Checks that the description and the program agree.
pub(super) fn finish(
    specification_version: u32,
    class: String,
    description: Description,
    program: Program,
) -> Result<Model, CoreMlError> {
    let main = program.main().map(|main| main.name.as_str());
    if let Some(default) = description.default_function.filter(|name| Some(name.as_str()) != main) {
        let default = shown(&default);
        return Err(CoreMlError::unsupported(format!("a program whose default function is `{default}`")));
    }
    let (inputs, outputs, metadata) = (description.inputs, description.outputs, description.metadata);
    let model = Model { specification_version, class, program, inputs, outputs, metadata };
    check(&model)?;
    Ok(model)
}

/// Checks that a model's description and version fit its program.
pub(super) fn check(model: &Model) -> Result<(), CoreMlError> {
    check_version(model.specification_version.into())?;
    let main = model.program.main();
    let main = main.ok_or_else(|| CoreMlError::unsupported("a program without a main function"))?;
    for function in &model.program.functions {
        let needed = 6 + function.opset as u32;
        if model.specification_version < needed {
            return Err(CoreMlError::inconsistent(format!(
                "function `{}` of opset {} needs specification version {needed}, the model has {}",
                function.name, function.opset, model.specification_version
            )));
        }
    }
    for feature in model.inputs.iter().chain(&model.outputs) {
        if !describes(feature.ty.dtype) {
            let (name, dtype) = (shown(&feature.name), feature.ty.dtype);
            return Err(CoreMlError::unsupported(format!("feature `{name}` of type {dtype}")));
        }
    }
    check_features(main, &model.inputs, main.inputs(), "input")?;
    check_features(main, &model.outputs, main.outputs(), "output")
}

fn check_features(
    function: &Function,
    features: &[Feature],
    values: &[ValueId],
    kind: &str,
) -> Result<(), CoreMlError> {
    let mut described: HashMap<&str, &Feature> =
        features.iter().map(|feature| (feature.name.as_str(), feature)).collect();
    for &id in values {
        let value = function.value(id);
        let Some(feature) = described.remove(value.name.as_str()) else {
            return Err(CoreMlError::inconsistent(format!("{kind} `{}` is not described", value.name)));
        };
        let no_shape = feature.ty.shape.is_empty();
        if feature.ty.dtype != value.ty.dtype || (feature.ty.shape != value.ty.shape && !no_shape) {
            return Err(CoreMlError::inconsistent(format!(
                "{kind} `{}` is described as {}, but it is {}",
                value.name, feature.ty, value.ty
            )));
        }
    }
    match features.iter().find(|feature| described.contains_key(feature.name.as_str())) {
        None => Ok(()),
        Some(feature) => Err(CoreMlError::inconsistent(format!(
            "the program has no {kind} `{}`, which is described",
            shown(&feature.name)
        ))),
    }
}
