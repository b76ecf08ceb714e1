//! Models converted to Core ML packages and run from there.

use std::path::Path;
use std::process::Command;

use diffusion::model::DiffusionModel;
use diffusion::pipeline::{Pipeline, Precision, Request, Start, Text};
use diffusion::random::random_source;
use engine::Cpu;
use mixbit::model::load;
use testkit::{ErrorStats, Failures, Scratch, fixture_root};

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
    let cpu = Cpu::new(None)?;
    let mut request = Request { steps: 4, ..Request::new(model, Text::new(PROMPT)) };
    change(&mut request);
    let mut pipeline = Pipeline::new(model, &cpu, request)?;
    let mut noise = random_source("torch")?.seeded(93)?;
    let mut run = pipeline.begin(Start::Noise, &mut *noise)?;
    while pipeline.step(&mut run, &mut *noise)? {}
    Ok(pipeline.decode(run.latents())?.planes)
}

#[test]
fn a_converted_demo_model_draws_the_same_picture() -> Result<(), Error> {
    let (demo, _) = load(None, None)?;
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
            convert(scratch.path(), options)?;
            let (model, _) = load(Some(scratch.path()), None)?;
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
        convert(scratch.path(), &["--bundle-resources-for-swift-cli", "--chunk-unet"])?;
        let (model, _) = load(Some(&scratch.path().join("Resources")), None)?;
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
            let expected = draw(&load(Some(&directory), None)?.0, small)?;
            let found = draw(&load(Some(scratch.path()), None)?.0, small)?;
            ErrorStats::compare(&found, &expected).within(1e-4)?;
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}
