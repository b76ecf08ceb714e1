//! Compiled models, `.mlmodelc`: the program as text, the description in `coremldata.bin`, and
//! `metadata.json` for apps.
//!
//! ```text
//! coremldata.bin   u32 502 | u32 5 or 9 | zeros to 0x1c | u64 7 | "generic" | i32 specification version |
//!                  zeros to 0x4b | u64 length | description | for each function: u32 502, 12 zeros
//! analytics/       strings, each after its u64 length: a group, the number of pairs, keys and values
//! ```

use mixbit_mil::text::{Blob, Dialect, Style};
use mixbit_mil::{Function, Progress, ValueId, WeightRef};
use serde_json::Value;

use super::description::Description;
use super::directory::NewDirectory;
use super::encode;
use super::names::{self, Names, Site};
use super::placement::Placement;
use super::schema::model::ML_PROGRAM;
use super::schema::{IOS_18, MODEL_PATH, WEIGHT_FILE};
use super::wire::Message;
use super::{
    CoreMlError, FeatureKind, Form, Model, ShapeFlexibility, StoredModel, Values, WeightFiles, build_info,
    metadata, specification,
};
use crate::files::Files;
use crate::{Claim, Error, base64, sha256};

const DESCRIPTION: usize = 0x53;

/// Reads a compiled model. `class` names it if its metadata does not.
pub(super) fn read(files: &Files, class: String) -> Result<Model, Error> {
    let in_model = |name: &str, problem| Error::CoreMl { path: files.path(name), problem };
    let data = files.map("coremldata.bin")?;
    let description = read_data(&data).map_err(|problem| in_model("coremldata.bin", problem));
    let (version, description) = description?;
    let text = files.text("model.mil")?;
    let mut weights = WeightFiles::new(files.clone(), "");
    let in_text = |error| in_model("model.mil", CoreMlError::Text(error));
    let info = mixbit_mil::text::build_info(&text).map_err(in_text)?;
    let names = info.get(names::KEY).map(|text| Names::from_text(text)).transpose();
    let names = names.map_err(|problem| in_model("model.mil", problem))?.unwrap_or_default();
    let mut resolve = |blob: Blob| {
        let site = match blob.input {
            Some(input) => Site::inside(blob.name, input),
            None => Site::value(blob.name),
        };
        let name = names.get(blob.function, &site);
        let bytes = weights.blob(blob.path, blob.offset, name, blob.ty);
        let weight = bytes.map_err(|error| error.to_string())?;
        WeightRef::new(name, blob.ty.clone(), weight).map_err(|error| error.to_string())
    };
    let program = mixbit_mil::text::parse(&text, &mut resolve).map_err(in_text)?;
    let class = generated_class(files).unwrap_or(class);
    specification::finish(version, class, description, program, Form::default())
        .map_err(|problem| in_model("model.mil", problem))
}

/// The class that the compiler generates for the model, from the metadata.
fn generated_class(files: &Files) -> Option<String> {
    let metadata: Value = serde_json::from_str(&files.text("metadata.json").ok()?).ok()?;
    metadata.get(0)?.get("generatedClassName")?.as_str().map(str::to_string)
}

/// The specification version and the description.
fn read_data(data: &[u8]) -> Result<(u32, Description), CoreMlError> {
    let cut = || CoreMlError::inconsistent(format!("the file has only {} bytes", data.len()));
    let u32_at = |at: usize| data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| data.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let kind = u32_at(0).ok_or_else(cut)?;
    if kind != ML_PROGRAM {
        return Err(CoreMlError::unsupported(format!("a model of kind {kind}, not an ML program,")));
    }
    let version = u32_at(0x2b).ok_or_else(cut)?;
    specification::check_version(version.into())?;
    let len = u64_at(0x4b).and_then(|len| usize::try_from(len).ok()).ok_or_else(cut)?;
    let end = DESCRIPTION.checked_add(len).ok_or_else(cut)?;
    let description = Description::read(Message::new(data.get(DESCRIPTION..end).ok_or_else(cut)?))?;
    Ok((version, description))
}

/// Writes a compiled model; see [`super::write_compiled`].
pub(super) fn write(
    claim: &Claim,
    model: &Model,
    values: Values,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let in_model = |problem| Error::CoreMl { path: claim.path().to_path_buf(), problem };
    check(model).map_err(in_model)?;
    let stored = StoredModel { model, placement: Placement::plan(model), file: WEIGHT_FILE.to_string() };
    let specification = specification::check(model).and_then(|()| encode::specification(&stored));
    let specification = specification.map_err(in_model)?.into_bytes();
    let placement = stored.placement;
    let names = placement.names(model).to_text();
    let text = text(model, &placement, &build_info(names.as_deref())).map_err(in_model)?;
    let main = model
        .program
        .functions
        .iter()
        .position(|function| model.program.main().is_some_and(|main| main.name == function.name));
    let stored = |id: ValueId| main.is_some_and(|main| placement.offset(main, id).is_some());

    let mut directory = NewDirectory::create(claim)?;
    directory.bytes("model.mil", text.as_bytes())?;
    directory.bytes("metadata.json", metadata::write(model, &stored).as_bytes())?;
    directory.bytes("coremldata.bin", &data(model))?;
    directory.bytes("analytics/coremldata.bin", &analytics(&specification))?;
    if !placement.is_empty() {
        directory.file("weights/weight.bin", |writer| placement.write(writer, values, progress))?;
    }
    directory.finish()
}

/// Refuses models whose compiled form is not known.
fn check(model: &Model) -> Result<(), CoreMlError> {
    let refused = |what: &str| {
        let what =
            format!("writing {what} as a compiled .mlmodelc (write an .mlpackage, which has all of it)");
        Err(CoreMlError::unsupported(what))
    };
    if !model.form.models.is_empty() {
        return refused("a pipeline of models");
    }
    if model.program.functions.len() > 1 {
        return refused("several functions");
    }
    match model.inputs.iter().chain(&model.outputs).find(|feature| feature.kind != FIXED) {
        Some(feature) if feature.is_flexible() => refused("flexible shapes"),
        Some(_) => refused("image inputs or outputs"),
        None => Ok(()),
    }
}

/// The kind of features that are tensors of one shape.
const FIXED: FeatureKind = FeatureKind::Array(ShapeFlexibility::Fixed);

fn text(model: &Model, placement: &Placement, build_info: &[(&str, &str)]) -> Result<String, CoreMlError> {
    let functions = &model.program.functions;
    let place = |function: &Function, id: ValueId| {
        let index = functions.iter().position(|other| other.name == function.name)?;
        Some((format!("{MODEL_PATH}{WEIGHT_FILE}"), placement.offset(index, id)?))
    };
    let dialect = if model.specification_version >= IOS_18 { Dialect::V1_3 } else { Dialect::V1_0 };
    let mut out = String::new();
    // A weight outside the weight file is printed in the text.
    let program = encode::with_literals(model)?;
    let style = Style { dialect, build_info, place: &place };
    mixbit_mil::text::print(&mut out, &program, &style)
        .map_err(|_| CoreMlError::inconsistent("a weight has no place in the weight file"))?;
    Ok(out)
}

fn data(model: &Model) -> Vec<u8> {
    let description = encode::description(model).write().into_bytes();
    let mut out = vec![0; DESCRIPTION];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &ML_PROGRAM.to_le_bytes());
    put(4, &if model.specification_version >= IOS_18 { 9u32 } else { 5 }.to_le_bytes());
    put(0x1c, &7u64.to_le_bytes());
    put(0x24, b"generic");
    put(0x2b, &model.specification_version.to_le_bytes());
    put(0x4b, &(description.len() as u64).to_le_bytes());
    out.extend(description);
    for _ in &model.program.functions {
        out.extend(ML_PROGRAM.to_le_bytes());
        out.extend([0; 12]);
    }
    out
}

fn analytics(specification: &[u8]) -> Vec<u8> {
    let hash = base64::encode(&sha256(specification));
    let groups = [
        ("NeuralNetworkModelDetails", [("containsCustomLayer", "0"), ("modelDimension", "0")]),
        ("SpecificationDetails", [("modelHash", &hash), ("modelName", "model")]),
    ];
    let mut out = Vec::new();
    let mut put = |text: &str, pairs: Option<usize>| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
        pairs.iter().for_each(|&pairs| out.extend((pairs as u64).to_le_bytes()));
    };
    for (group, pairs) in groups {
        put(group, Some(pairs.len()));
        pairs.iter().for_each(|(key, value)| {
            put(key, None);
            put(value, None);
        });
    }
    out
}
