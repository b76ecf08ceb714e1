//! The reader of `model.mlmodel`, the specification of a model.

use std::collections::HashMap;

use mixbit_mil::{DType, Function, Program, ValueId};

use super::description::{Description, describes};
use super::wire::Message;
use super::{CoreMlError, Feature, FeatureKind, Form, Model, PipelineModel, WeightFiles, program, schema};
use crate::shown::shown;

/// The supported specification versions.
const VERSIONS: std::ops::RangeInclusive<u64> = 6..=10;

/// The most models of a pipeline.
const MODELS_LIMIT: usize = 16;

/// Reads a specification. `class` names the model.
pub(super) fn read(bytes: &[u8], class: String, weights: &mut WeightFiles) -> Result<Model, CoreMlError> {
    let root = Message::new(bytes);
    let parts = Parts::read(root)?;
    match parts.pipeline {
        None => parts.model(root, class, weights),
        Some(pipeline) => parts.pipeline(root, pipeline, class, weights),
    }
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

    /// A single model.
    fn model(
        &self,
        message: Message,
        class: String,
        weights: &mut WeightFiles,
    ) -> Result<Model, CoreMlError> {
        let program = self.program.ok_or_else(|| message.malformed("there is no ML program"))?;
        let description = self.description(message)?;
        let (program, open) = program::read(program, &|name| description.input_types(name), weights)?;
        let form = Form { open, ..Form::default() };
        finish(self.version as u32, class, description, program, form)
    }

    /// A pipeline, whose models are also given as one program.
    fn pipeline(
        &self,
        message: Message,
        pipeline: Message,
        class: String,
        weights: &mut WeightFiles,
    ) -> Result<Model, CoreMlError> {
        let (mut models, mut names) = (Vec::new(), Vec::new());
        for field in pipeline.fields() {
            let field = field?;
            match field.number {
                schema::pipeline::MODELS if models.len() == MODELS_LIMIT => {
                    return Err(CoreMlError::unsupported(format!(
                        "a pipeline of more than {MODELS_LIMIT} models"
                    )));
                }
                schema::pipeline::MODELS => {
                    let model = field.message()?;
                    models.push(Parts::read(model)?.model(model, String::new(), weights)?);
                }
                schema::pipeline::NAMES if names.len() < MODELS_LIMIT => {
                    names.push(field.text()?.to_string())
                }
                _ => {}
            }
        }
        if models.is_empty() {
            return Err(pipeline.malformed("the pipeline is empty"));
        }
        names.resize(models.len(), String::new());
        let models = names.into_iter().zip(models).map(|(name, model)| PipelineModel { name, model });
        let models: Vec<PipelineModel> = models.collect();
        let whole = joined(&models)?;
        let version = (self.version as u32).max(6 + whole.opset as u32);
        let form = Form { models, ..Form::default() };
        finish(version, class, self.description(message)?, Program::new(whole), form)
    }
}

/// The models of a pipeline as one function.
pub(super) fn joined(models: &[PipelineModel]) -> Result<Function, CoreMlError> {
    let mut whole: Option<Function> = None;
    for PipelineModel { model, .. } in models {
        let part = model.program.main();
        let part = part.ok_or_else(|| CoreMlError::unsupported("a model without a main function"))?;
        whole = Some(match whole {
            None => part.clone(),
            Some(before) => mixbit_mil::join(&before, part)?,
        });
    }
    whole.ok_or_else(|| CoreMlError::inconsistent("the pipeline is empty"))
}

/// Refuses unsupported versions.
pub(super) fn check_version(version: u64) -> Result<(), CoreMlError> {
    match VERSIONS.contains(&version) {
        true => Ok(()),
        false => Err(CoreMlError::unsupported(format!("specification version {version}"))),
    }
}

/// A model of a description and a program that agree.
pub(super) fn finish(
    specification_version: u32,
    class: String,
    description: Description,
    program: Program,
    form: Form,
) -> Result<Model, CoreMlError> {
    let Description { inputs, outputs, metadata, functions, default_function } = description;
    let program = Program { default_function, ..program };
    let form = Form { functions, ..form };
    let mut model = Model { specification_version, class, program, inputs, outputs, metadata, form };
    set_image_types(&mut model);
    check(&model)?;
    Ok(model)
}

/// Gives images the element type that the program takes them in: a description does not say it.
fn set_image_types(model: &mut Model) {
    let Some(main) = model.program.main() else { return };
    for feature in model.inputs.iter_mut().chain(&mut model.outputs) {
        let ids = main.inputs().iter().chain(main.outputs());
        let value = ids.map(|&id| main.value(id)).find(|value| value.name == feature.name);
        if let (FeatureKind::Image(_), Some(value)) = (&feature.kind, value)
            && matches!(value.ty.dtype, DType::F16 | DType::F32)
        {
            feature.ty.dtype = value.ty.dtype;
        }
    }
}

/// Checks that a model's description and version fit its program.
pub(super) fn check(model: &Model) -> Result<(), CoreMlError> {
    check_version(model.specification_version.into())?;
    for part in &model.form.models {
        check(&part.model)?;
    }
    let program = &model.program;
    if let Some(default) = &program.default_function
        && program.function(default).is_none()
    {
        let default = shown(default);
        return Err(CoreMlError::inconsistent(format!(
            "the program has no function `{default}`, its default"
        )));
    }
    let main = program.main();
    let main = main.ok_or_else(|| CoreMlError::unsupported("a program without a main function"))?;
    for function in &program.functions {
        let needed = 6 + function.opset as u32;
        if model.specification_version < needed {
            return Err(CoreMlError::inconsistent(format!(
                "function `{}` of opset {} needs specification version {needed}, the model has {}",
                function.name, function.opset, model.specification_version
            )));
        }
    }
    check_described(main, &model.inputs, &model.outputs)?;
    for described in &model.form.functions {
        let function = program.function(&described.name).ok_or_else(|| {
            let name = shown(&described.name);
            CoreMlError::inconsistent(format!("the program has no function `{name}`, which is described"))
        })?;
        check_described(function, &described.inputs, &described.outputs)?;
    }
    Ok(())
}

/// Checks that features fit a function.
fn check_described(function: &Function, inputs: &[Feature], outputs: &[Feature]) -> Result<(), CoreMlError> {
    for feature in inputs.iter().chain(outputs) {
        if !describes(feature.ty.dtype) {
            let (name, dtype) = (shown(&feature.name), feature.ty.dtype);
            return Err(CoreMlError::unsupported(format!("feature `{name}` of type {dtype}")));
        }
    }
    check_features(function, inputs, function.inputs(), "input")?;
    check_features(function, outputs, function.outputs(), "output")
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
        // A description of an image says nothing of its elements.
        let is_image = matches!(feature.kind, FeatureKind::Image(_));
        if (feature.ty.dtype != value.ty.dtype && !is_image)
            || (feature.ty.shape != value.ty.shape && !no_shape)
        {
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
