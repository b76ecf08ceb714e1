//! Packages of other tools: what their metadata lacks, and the forms in which converters write their inputs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Request, Session, Text};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::coreml::{self, Feature, Model};
use mixbit_formats::safetensors::{self, SafeTensors, TensorSpec};
use mixbit_mil::{
    Arg, Assembler, Constant, DType, Declared, Def, Function, Literal, Program, TensorType, ValueId, Weights,
};
use mixbit_packages::package::{ConversionOptions, ConversionSource, keys, plan, vocabulary};
use mixbit_packages::source::{DiffusersModel, OpenOptions, SOURCES, open};
use mixbit_packages::{Assumption, OpenError};
use mixbit_testkit::{ErrorStats, Failures, Scratch, copy_tree, fixture_root};
use serde_json::json;

type Error = Box<dyn std::error::Error>;

/// Converts a fixture, and takes from its packages what other tools don't write.
fn foreign(
    family: &str,
    directory: &Path,
    change: impl Fn(&str, Function) -> Result<Function, mixbit_mil::Error>,
) -> Result<DiffusersModel, Error> {
    let files = DiffusersModel::open(&fixture_root().join("pipelines").join(family), None)?;
    for (name, text) in vocabulary(&files)? {
        fs::write(directory.join(name), text)?;
    }
    let options = ConversionOptions { model_version: "m".to_string(), ..ConversionOptions::default() };
    for package in plan(&ConversionSource::of(&files), &options)? {
        let mut model = package.model()?;
        model.metadata.user_defined.retain(|key, _| key == keys::APPLE_VERSION);
        let function = model.program.main().ok_or("there is no function")?.clone();
        let model = described(model, change(package.kind.name, function)?);
        coreml::write_package(&package.path(directory), &model, &())?;
    }
    Ok(files)
}

/// A model of another function, with the description of its inputs.
fn described(model: Model, function: Function) -> Model {
    let inputs = function.inputs().iter().map(|&id| function.value(id));
    let inputs = inputs.map(|value| Feature::array(value.name.as_str(), "", value.ty.clone())).collect();
    Model { inputs, program: Program::new(function), ..model }
}

/// The same ops with an input of another type; `adapt` makes what the ops take of it.
fn with_input(
    function: &Function,
    input: &str,
    ty: TensorType,
    adapt: impl Fn(&mut Assembler, ValueId, &TensorType) -> Result<ValueId, mixbit_mil::Error>,
) -> Result<Function, mixbit_mil::Error> {
    let mut out = Assembler::new(&function.name, function.opset);
    let mut places: HashMap<ValueId, ValueId> = HashMap::new();
    for &id in function.inputs() {
        let value = function.value(id);
        let is_changed = value.name == input;
        let own = if is_changed { ty.clone() } else { value.ty.clone() };
        places.insert(id, out.input(&value.name, own)?);
    }
    for &id in function.inputs().iter().filter(|&&id| function.value(id).name == input) {
        let adapted = adapt(&mut out, places[&id], &function.value(id).ty)?;
        places.insert(id, adapted);
    }
    copied(out, function, places)
}

/// The ops of a function behind what `out` has. `places` are the function's inputs in `out`.
fn copied(
    mut out: Assembler,
    function: &Function,
    mut places: HashMap<ValueId, ValueId>,
) -> Result<Function, mixbit_mil::Error> {
    for op in function.ops() {
        for &id in op.args.iter().flat_map(Arg::values) {
            if let Def::Const(constant) = &function.value(id).def
                && !places.contains_key(&id)
            {
                places.insert(id, out.constant(&function.value(id).name, constant.clone())?);
            }
        }
        let args = op.def.params.iter().zip(&op.args).map(|(param, arg)| {
            let arg = match arg {
                Arg::Absent => Arg::Absent,
                Arg::One(id) => Arg::One(places[id]),
                Arg::Many(ids) => Arg::Many(ids.iter().map(|id| places[id]).collect()),
            };
            (param.name, arg)
        });
        let args: Vec<_> = args.collect();
        let value = |id: &ValueId| function.value(*id);
        let outputs: Vec<(&str, Declared)> =
            op.outputs.iter().map(|id| (value(id).name.as_str(), value(id).ty.clone().into())).collect();
        out.op(op.def.name, &args, &outputs)?;
        for id in &op.outputs {
            let place = out.value(&value(id).name);
            places.extend(place.map(|place| (*id, place)));
        }
    }
    let outputs: Vec<&str> = function.outputs().iter().map(|&id| function.value(id).name.as_str()).collect();
    out.finish(&outputs)
}

/// Adds an op of two inputs.
fn op(
    out: &mut Assembler,
    kind: &str,
    x: ValueId,
    (input, value): (&str, Literal),
    ty: TensorType,
) -> Result<ValueId, mixbit_mil::Error> {
    let name = format!("adapted_{kind}");
    let value = out.constant(&format!("{name}_{input}"), Constant::Literal(value))?;
    let args = [("x", Arg::One(x)), (input, Arg::One(value))];
    out.op(kind, &args, &[(&name, Declared::from(ty))])?;
    Ok(out.value(&name).unwrap_or(x))
}

/// Text states as (batch, tokens, channels), which the newer converters for ComfyUI write.
fn tokens_first(function: Function) -> Result<Function, mixbit_mil::Error> {
    let input = "encoder_hidden_states";
    let apples = function.inputs().iter().map(|&id| function.value(id)).find(|value| value.name == input);
    let Some(&[batch, channels, 1, tokens]) = apples.map(|value| &value.ty.shape[..]) else {
        return Ok(function);
    };
    let ty = TensorType::new(DType::F16, [batch, tokens, channels]);
    with_input(&function, input, ty, |out, x, apples| {
        let turned = TensorType::new(DType::F16, [batch, channels, tokens]);
        let x = op(out, "transpose", x, ("perm", Literal::ints(&[0, 2, 1])), turned)?;
        op(out, "expand_dims", x, ("axes", Literal::ints(&[2])), apples.clone())
    })
}

/// Token ids as integers.
fn integer_ids(function: Function) -> Result<Function, mixbit_mil::Error> {
    let ids = function.inputs().iter().map(|&id| function.value(id)).find(|value| value.name == "input_ids");
    let Some(ty) = ids.map(|value| value.ty.with_dtype(DType::I32)) else { return Ok(function) };
    with_input(&function, "input_ids", ty, |out, x, floats| {
        let dtype = Literal::string(floats.dtype.name());
        op(out, "cast", x, ("dtype", dtype), floats.clone())
    })
}

fn draw(model: DiffusionModel, like: &DiffusionModel) -> Result<Vec<f32>, Error> {
    let model = DiffusionModel { scheduler: like.scheduler.clone(), ..model };
    let mut request = Request::new(&model, Text::new("a small red circle above a large blue square"))?;
    request.steps = 3;
    let mut session = Session::new(Arc::new(model), Arc::new(Cpu::new(None)?));
    let mut noise = random_source("torch")?.seeded(93)?;
    Ok(session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?.planes)
}

fn opened(path: &Path, options: &OpenOptions) -> Result<(DiffusionModel, Vec<Assumption>), OpenError> {
    let opened = open(Some(path), options, SOURCES)?;
    Ok((opened.model()?, opened.assumptions()?))
}

#[test]
fn every_form_of_inputs_draws_what_the_checkpoint_draws() {
    type Change = fn(Function) -> Result<Function, mixbit_mil::Error>;
    let mut failures = Failures::new("packages of other tools");
    let forms: [(&str, Change); 3] =
        [("Apple's", Ok), ("tokens first", tokens_first), ("integer ids", integer_ids)];
    for (name, change) in forms {
        failures.case(name, || {
            let scratch = Scratch::new();
            let files = foreign("sd15", scratch.path(), |_, function| change(function))?;
            let checkpoint = DiffusionModel::from_files(&files)?;
            let (model, _) = opened(scratch.path(), &OpenOptions::default())?;
            let size = model.defaults.size;
            let mut like = checkpoint.clone();
            like.defaults.size = size;
            let expected = draw(like.clone(), &checkpoint)?;
            let psnr = ErrorStats::compare(&draw(model, &checkpoint)?, &expected).psnr;
            if psnr > 60.0 { Ok::<(), Error>(()) } else { Err(format!("{psnr:.1} dB").into()) }
        });
    }
    failures.finish();
}

#[test]
fn the_prediction_type_is_asked_for_or_assumed_aloud() -> Result<(), Error> {
    let scratch = Scratch::new();
    let files = foreign("sd21", scratch.path(), |_, function| Ok(function))?;
    let checkpoint = DiffusionModel::from_files(&files)?;
    assert_eq!(checkpoint.scheduler.config()?.prediction_type(), "v_prediction");
    let (model, assumptions) = opened(scratch.path(), &OpenOptions::default())?;
    let config = model.scheduler.config()?;
    let assumed = config.prediction_type();
    assert!(
        matches!(&assumptions[..], [Assumption::PredictionType { assumed: said, .. }] if said == assumed)
    );
    assert!(assumptions[0].to_string().contains("--prediction-type"), "{}", assumptions[0]);
    for name in ["epsilon", "v_prediction", "sample"] {
        let options = OpenOptions { prediction_type: Some(name.to_string()), ..OpenOptions::default() };
        let (model, assumptions) = opened(scratch.path(), &options)?;
        // PNDM, which the family has, can't take a predicted sample.
        let ddim = model.scheduler.with_scheduler("ddim")?;
        assert_eq!((ddim.prediction_type(), assumptions), (name, vec![]));
    }
    // A package that says its scheduler needs no assumption.
    let path = scratch.path().join("Stable_Diffusion_version_m_unet.mlpackage");
    let mut unet = coreml::read(&path)?;
    let scheduler = json!({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"});
    unet.metadata.user_defined.insert(keys::SCHEDULER.to_string(), scheduler.to_string());
    coreml::write_package(&path, &unet, &())?;
    let (model, assumptions) = opened(scratch.path(), &OpenOptions::default())?;
    assert_eq!((model.scheduler.config()?.prediction_type(), assumptions), ("v_prediction", vec![]));
    Ok(())
}

#[test]
fn a_distilled_unet_takes_the_guidance_scale() -> Result<(), Error> {
    let scratch = Scratch::new();
    foreign("sd15", scratch.path(), |part, function| {
        if part != "unet" {
            return Ok(function);
        }
        // The network makes nothing of it; what is tested is that the input is given.
        let (mut out, mut places) = (Assembler::new(&function.name, function.opset), HashMap::new());
        out.input("timestep_cond", TensorType::new(DType::F16, [2, 16]))?;
        for &id in function.inputs() {
            places.insert(id, out.input(&function.value(id).name, function.value(id).ty.clone())?);
        }
        copied(out, &function, places)
    })?;
    let (model, _) = opened(scratch.path(), &OpenOptions::default())?;
    assert!(model.unet.takes_guidance);
    assert_eq!((model.scheduler.config()?.entry().name, model.defaults.steps), ("lcm", 4));
    let like = model.clone();
    let planes = draw(model, &like)?;
    assert!(planes.iter().all(|value| value.is_finite()));
    Ok(())
}

#[test]
fn paths_that_lead_beside_a_model_are_explained() -> Result<(), Error> {
    let scratch = Scratch::new();
    let repository = scratch.path().join("repo");
    let packages = repository.join("original/packages");
    fs::create_dir_all(&packages)?;
    fs::create_dir_all(repository.join("split_einsum/compiled/Unet.mlmodelc"))?;
    foreign("sd15", &packages, |_, function| Ok(function))?;
    // What a Mac leaves beside the files of a disk or archive.
    scratch.file("repo/original/packages/._Stable_Diffusion_version_m_unet.mlpackage", b"\x00\x05\x16\x07");
    opened(&packages, &OpenOptions::default())?;
    let zip = scratch.file("Unet.mlpackage.zip", b"PK\x03\x04rest");
    let package = packages.join("Stable_Diffusion_version_m_unet.mlpackage");
    let mut failures = Failures::new("paths");
    for (path, texts) in [
        (&repository, &["original/packages", "split_einsum/compiled"][..]),
        (&zip, &["is a zip archive: unpack it"]),
        (&package, &["one package is not a model: give the directory"]),
    ] {
        failures.case(&path.display().to_string(), || match opened(path, &OpenOptions::default()) {
            Ok(_) => Err("it was opened".to_string()),
            Err(error) => {
                let error = error.to_string();
                if texts.iter().all(|text| error.contains(text)) { Ok(()) } else { Err(error) }
            }
        });
    }
    failures.finish();
    Ok(())
}

/// Extends a model as textual inversion does: by two tokens and their embeddings.
fn with_two_more_tokens(model: &Path, tokens: [&str; 2]) -> Result<(), Error> {
    let config = model.join("text_encoder/config.json");
    let mut values: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    let rows = values["vocab_size"].as_u64().ok_or("there is no vocab_size")?;
    values["vocab_size"] = json!(rows + 2);
    fs::write(&config, values.to_string())?;
    let added = json!({tokens[0]: rows, tokens[1]: rows + 1});
    fs::write(model.join("tokenizer/added_tokens.json"), added.to_string())?;
    let path = model.join("text_encoder/model.safetensors");
    let weights = SafeTensors::open(&path)?;
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for name in weights.names() {
        let weight = weights.get(name).ok_or("a weight is missing")?;
        let (mut ty, mut bytes) = (weight.ty().clone(), weight.read()?.into_owned());
        if name.ends_with("token_embedding.weight") {
            let row = bytes.len() / ty.shape[0];
            bytes.extend_from_within(row..3 * row);
            ty.shape[0] += 2;
        }
        tensors.push((TensorSpec { name: name.to_string(), ty }, bytes));
    }
    let mut file = Vec::new();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::write_to(&mut file, &metadata, &specs, |index, writer| writer.write_all(&tensors[index].1))?;
    Ok(fs::write(&path, file)?)
}

#[test]
fn added_tokens_and_pickled_safety_checkers_are_no_loss() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = scratch.path().join("model");
    copy_tree(&fixture_root().join("pipelines/sd15"), &model)?;
    with_two_more_tokens(&model, ["<cat-toy>", "<cat-toy>_1"])?;
    // A safety checker that is there as a pickle only.
    fs::create_dir_all(model.join("safety_checker"))?;
    fs::copy(
        fixture_root().join("models/safety-checker/config.json"),
        model.join("safety_checker/config.json"),
    )?;
    fs::write(model.join("safety_checker/pytorch_model.bin"), b"PK")?;
    let index = model.join("model_index.json");
    let mut values: serde_json::Value = serde_json::from_slice(&fs::read(&index)?)?;
    values["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    fs::write(&index, values.to_string())?;

    let output = scratch.path().join("packages");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.arg("convert").arg("--model").arg(&model).arg("--output").arg(&output);
    let result = command.env_remove("MIXBIT_MODEL").output()?;
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    assert!(result.status.success(), "{said}");
    assert!(said.contains("the safety checker is left out") && said.contains("pytorch_model.bin"), "{said}");
    assert!(said.contains("Swift tokenizer") && said.contains("<cat-toy>"), "{said}");
    assert!(output.join("added_tokens.json").is_file());
    let (checkpoint, _) = opened(&model, &OpenOptions::default())?;
    let (packages, _) = opened(&output, &OpenOptions::default())?;
    for prompt in ["a <cat-toy> on a mat", "a cat", "<cat-toy>_1"] {
        let ids = |model: &DiffusionModel| model.text_encoders[0].tokenizer.encode(prompt).map(|it| it.ids);
        assert_eq!(ids(&packages)?, ids(&checkpoint)?, "{prompt}");
    }
    // As in diffusers, the first vector calls for the second.
    let ids = packages.text_encoders[0].tokenizer.encode("a <cat-toy> on a mat")?.ids;
    assert!(ids.windows(2).any(|pair| pair == [604, 605]), "{ids:?}");
    Ok(())
}
