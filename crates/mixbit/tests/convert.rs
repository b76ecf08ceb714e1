//! Models converted to Core ML packages and run from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mixbit_app::source::load;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Precision, Request, Session, Text};
use mixbit_engine::{Backend, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::coreml;
use mixbit_testkit::{ErrorStats, Failures, Fixture, Scratch, copy_tree, fixture_root};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

const PROMPT: &str = "a small red circle above a large blue square on a white background";

fn convert(output: &Path, options: &[&str]) -> Result<(), Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.args(["convert", "--quiet", "--output"]).arg(output).args(options);
    let result = command.env_remove("MIXBIT_MODEL").output()?;
    match result.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&result.stderr).into_owned().into()),
    }
}

fn draw(model: &DiffusionModel, change: impl FnOnce(&mut Request)) -> Result<Vec<f32>, Error> {
    let mut request = Request { steps: 4, ..Request::new(model, Text::new(PROMPT)).unwrap() };
    change(&mut request);
    let mut session = Session::new(Arc::new(model.clone()), Arc::new(Cpu::new(None)?));
    let mut noise = random_source("torch")?.seeded(93)?;
    Ok(session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?.planes)
}

#[test]
fn a_converted_demo_model_draws_the_same_picture() -> Result<(), Error> {
    let demo = load(None, &Default::default())?.model;
    let expected = draw(&demo, |_| {})?;
    let wide = draw(&demo, |request| request.size = [160, 72])?;
    let cases: [(&str, &[&str]); 4] = [
        ("whole", &["--check-output-correctness"]),
        ("original", &["--attention-implementation", "ORIGINAL", "--min-deployment-target", "macOS15"]),
        ("chunked", &["--chunk-unet", "--check-output-correctness"]),
        ("batch one", &["--unet-batch-one", "--attention-implementation", "split_einsum_v2"]),
    ];
    let mut failures = Failures::new("conversions");
    for (name, options) in cases {
        failures.case(name, || {
            let scratch = Scratch::new();
            convert(scratch.path(), &[&["--demo"], options].concat())?;
            let model = load(Some(scratch.path()), &Default::default())?.model;
            ErrorStats::compare(&draw(&model, |_| {})?, &expected).within(1e-4)?;
            let resized = draw(&model, |request| request.size = [160, 72])?;
            ErrorStats::compare(&resized, &wide).within(1e-4)?;
            let half = draw(&model, |request| request.precision = Precision::F16)?;
            let psnr = ErrorStats::compare(&half, &expected).psnr;
            if psnr < 40.0 { Err(format!("{psnr:.1} dB in fp16").into()) } else { Ok::<(), Error>(()) }
        });
    }
    failures.case("compiled", || {
        let scratch = Scratch::new();
        convert(scratch.path(), &["--demo", "--bundle-resources-for-swift-cli", "--chunk-unet"])?;
        let model = load(Some(&scratch.path().join("Resources")), &Default::default())?.model;
        ErrorStats::compare(&draw(&model, |_| {})?, &expected).within(1e-4)?;
        Ok::<(), Error>(())
    });
    failures.finish();
    Ok(())
}

/// Tiny models of each family, with the tensor names of transformers 5 and every spelling of a tokenizer.
#[test]
fn converted_models_of_each_family_draw_what_their_checkpoints_draw() {
    let mut failures = Failures::new("families");
    for family in ["sd15", "sd21", "sdxl", "sdxl-no-zeros"] {
        failures.case(family, || {
            let scratch = Scratch::new();
            let directory = fixture_root().join("pipelines").join(family);
            let path = directory.to_str().ok_or("the path is not UTF-8")?;
            convert(scratch.path(), &["--model", path])?;
            let small = |request: &mut Request| request.size = [64, 48];
            let expected = draw(&load(Some(&directory), &Default::default())?.model, small)?;
            let found = draw(&load(Some(scratch.path()), &Default::default())?.model, small)?;
            ErrorStats::compare(&found, &expected).within(1e-4)?;
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

/// Makes a model in `scratch` that has a safety checker.
fn with_safety_checker(scratch: &Scratch) -> Result<PathBuf, Error> {
    let model = scratch.path().join("model");
    copy_tree(&fixture_root().join("pipelines/sd15"), &model)?;
    copy_tree(&fixture_root().join("models/safety-checker"), &model.join("safety_checker"))?;
    let index = model.join("model_index.json");
    let mut values: Value = serde_json::from_slice(&fs::read(&index)?)?;
    values["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    fs::write(&index, values.to_string())?;
    Ok(model)
}

/// The package judges images as diffusers does, on both executors.
#[test]
fn a_converted_safety_checker_judges_as_its_checkpoint_does() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = with_safety_checker(&scratch)?;
    let model = model.to_str().ok_or("the path is not UTF-8")?;
    let output = scratch.path().join("output");
    // Latents of 2 by 3: the fixture's images are no larger.
    let size = ["--latent-h", "2", "--latent-w", "3"];
    let arguments = ["--model", model, "--name", "m", "--bundle-resources-for-swift-cli"];
    convert(
        &output,
        &[&arguments[..], &size, &["--convert-safety-checker", "--check-output-correctness"]].concat(),
    )?;

    let fixture = Fixture::open("models");
    let arrays = fixture.arrays("safety-checker.safetensors");
    let cpu = Cpu::new(None)?;
    let backends: [&dyn Backend; 2] = [&Reference, &cpu];
    let mut failures = Failures::new("judgements");
    for path in ["Stable_Diffusion_version_m_safety_checker.mlpackage", "Resources/SafetyChecker.mlmodelc"] {
        let package = coreml::read(&output.join(path))?;
        let function = package.program.main().ok_or("the package has no function")?;
        let all = ["clear", "careful", "unwanted"].map(|case| backends.map(|backend| (case, backend)));
        for (case, backend) in all.into_iter().flatten() {
            failures.case(&format!("{case} by {path} on {}", backend.name()), || {
                let part = |name: &str| &arrays[&format!("{case}/{name}")];
                let image = [16, 24].iter().product::<usize>() * 3;
                let images = Tensor::from_f32(&[1, 16, 24, 3], vec![0.5; image])?;
                let given = part("inputs/clip_input");
                let given = Tensor::from_f32(&given.shape, given.f32s())?;
                let adjustment = Tensor::from_f32(&[1], vec![0.0])?;
                let mut model = backend.compile(function, &Options::default())?;
                let results =
                    model.run(&[("clip_input", &given), ("images", &images), ("adjustment", &adjustment)])?;
                let found = |name: &str| -> Result<&[f32], Error> {
                    let index = model.output_index(name).ok_or_else(|| format!("no output `{name}`"))?;
                    Ok(results[index].as_f32().ok_or("an output that is not of floats")?)
                };
                let scores = part("outputs/concept_scores").f32s();
                ErrorStats::compare(found("concept_scores")?, &scores).within(2e-3)?;
                let flagged = part("outputs/has_nsfw_concepts").f32s();
                assert_eq!(found("has_nsfw_concepts")?, flagged);
                let shown = if flagged[0] > 0.0 { 0.0 } else { 0.5 };
                assert_eq!(found("filtered_images")?, vec![shown; image]);
                Ok::<(), Error>(())
            });
        }
    }
    failures.finish();
    Ok(())
}

#[test]
fn a_safety_checker_is_converted_if_there_is_one() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = with_safety_checker(&scratch)?;
    let path = model.to_str().ok_or("the path is not UTF-8")?;
    let output = scratch.path().join("output");
    let package = output.join("Stable_Diffusion_version_model_safety_checker.mlpackage");
    convert(&output, &["--model", path])?;
    assert!(package.is_dir());
    // Pictures are drawn whatever lies there.
    fs::write(package.join("Manifest.json"), "{")?;
    load(Some(&output), &Default::default())?;

    // One that is of another class is no obstacle to other parts, and refused by name when it is asked for.
    let index = model.join("model_index.json");
    let whole = fs::read_to_string(&index)?;
    fs::write(&index, whole.replace("StableDiffusionSafetyChecker", "OtherChecker"))?;
    let other = scratch.path().join("other");
    convert(&other, &["--model", path, "--convert-vae-decoder"])?;
    let error = convert(&other, &["--model", path]).expect_err("it is of another class").to_string();
    assert!(error.contains("safety_checker") && error.contains("OtherChecker"), "{error}");

    // Copies of models often go without the folder.
    fs::remove_dir_all(model.join("safety_checker"))?;
    convert(&other, &["--model", path])?;
    let error = convert(&other, &["--model", path, "--convert-safety-checker"]).expect_err("there is none");
    assert!(error.to_string().contains("no safety_checker"), "{error}");
    Ok(())
}
