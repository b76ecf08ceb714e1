//! LoRAs on the command line: pictures, packages, names in prompts, and files that do not fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use mixbit_app::source::open;
use mixbit_diffusion::adapter::Strength;
use mixbit_diffusion::arch::GraphOptions;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Placement, Request, Session, Text};
use mixbit_engine::Backend;
use mixbit_engine_cpu::Cpu;
use mixbit_mil::{Constant, Def, Value};
use mixbit_packages::source::{Lora, OpenOptions};
use mixbit_testkit::{Failures, Scratch, fixture_root};

type Error = Box<dyn std::error::Error>;

fn pipeline(name: &str) -> String {
    fixture_root().join("pipelines").join(name).to_string_lossy().into_owned()
}

fn adapter(name: &str) -> String {
    adapters().join(format!("{name}.safetensors")).to_string_lossy().into_owned()
}

fn adapters() -> PathBuf {
    fixture_root().join("adapters")
}

fn mixbit(directory: &Path, arguments: &[&str]) -> Result<Output, Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.current_dir(directory).args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    Ok(command.output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The pixels of a picture, its parameters, and what was said.
fn drawn(scratch: &Scratch, prompt: &str, more: &[&str]) -> Result<(Vec<u8>, String, String), Error> {
    let model = pipeline("sd15");
    let common = ["generate", prompt, "--steps", "2", "--seed", "5", "-o", "-", "--model", &model];
    let output = mixbit(scratch.path(), &[&common[..], more].concat())?;
    let said = stderr(&output);
    if !output.status.success() {
        return Err(said.into());
    }
    let mut reader = png::Decoder::new(std::io::Cursor::new(output.stdout)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("no size")?];
    reader.next_frame(&mut pixels)?;
    let texts = &reader.info().uncompressed_latin1_text;
    let utf8 = &reader.info().utf8_text;
    let mut parameters: Vec<String> = texts.iter().map(|text| text.text.clone()).collect();
    for text in utf8 {
        parameters.push(text.get_text()?);
    }
    Ok((pixels, parameters.join("\n"), said))
}

#[test]
fn a_lora_changes_the_picture_by_its_weight() -> Result<(), Error> {
    let scratch = Scratch::new();
    let draw = |prompt: &str, more: &[&str]| drawn(&scratch, prompt, more);
    let directory = adapters().to_string_lossy().into_owned();
    let (base, _, _) = draw("a red circle", &[])?;
    let (with, parameters, said) = draw("a red circle", &["--lora", &adapter("kohya-sd15")])?;
    assert!(with != base && said.contains("lora kohya-sd15: 13 of 13 layers, weight 1"), "{said}");
    assert!(parameters.contains("Lora hashes: \"kohya-sd15: "), "{parameters}");
    let (none, _, said) = draw("a red circle", &["--lora", &format!("{}=0", adapter("kohya-sd15"))])?;
    assert!(none == base && said.contains("weight 0\n"), "{said}");
    let named = ["--lora-dir", &directory];
    let (tagged, parameters, _) = draw("a red <lora:kohya-sd15:1> circle", &named)?;
    assert!(tagged == with && parameters.contains("<lora:kohya-sd15:1>"), "{parameters}");
    let (by_name, _, _) = draw("a red circle", &[&named[..], &["--lora", "kohya-sd15"]].concat())?;
    assert!(by_name == with);
    let (half, _, said) = draw("a red <lora:kohya-sd15:0:0.5> circle", &named)?;
    assert!(half != with && half != base && said.contains("weight 0.5 (text encoders 0)"), "{said}");
    Ok(())
}

#[test]
fn packages_have_the_merged_weights() -> Result<(), Error> {
    let scratch = Scratch::new();
    let lora = format!("{}=0.8", adapter("locon-tucker"));
    let model = pipeline("sd15");
    let convert = ["convert", "--model", &model, "--convert-unet", "-o", "plain"];
    let other = ["convert", "--model", &model, "--convert-unet", "-o", "merged", "--lora", &lora];
    for arguments in [&convert[..], &other] {
        let output = mixbit(scratch.path(), arguments)?;
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let output = mixbit(scratch.path(), &["diff", "plain", "merged"])?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("conv_in.weight") && !shown.contains("conv_out.weight"), "{shown}");
    // The packages that are there were made without the LoRA.
    let again = ["convert", "--model", &model, "--convert-unet", "-o", "plain", "--lora", &lora];
    assert!(!mixbit(scratch.path(), &again)?.status.success());
    let merged = scratch.path().join("merged").to_string_lossy().into_owned();
    let palettize = ["palettize", "--nbits", "4", "-o", "small", "--model", &merged, "--lora", &lora];
    let output = mixbit(scratch.path(), &palettize)?;
    assert!(stderr(&output).contains("--lora is for checkpoints"), "{}", stderr(&output));
    Ok(())
}

/// The latents after a few steps.
fn latents(model: DiffusionModel) -> Result<Vec<f32>, Error> {
    let model = Arc::new(model);
    let request = Request::new(&model, Text::new("a red circle"))?;
    let request = Request { steps: 2, ..request };
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(None)?);
    let mut session = Session::new(model, Placement::new(backend));
    let mut noise = random_source("torch")?.seeded(5)?;
    let mut run = session.begin(&request, &mut *noise, &Cancel::default(), &mut |_| {})?;
    while session.step(&mut run, &mut *noise, &mut |_| {})? {}
    Ok(run.latents().to_vec())
}

/// The number of compressed weights of a model's UNet.
fn compressed(model: &DiffusionModel) -> Result<usize, Error> {
    let graph = model.unet.network.graph(&GraphOptions::default())?;
    let is_compressed =
        |value: &&Value| matches!(&value.def, Def::Const(Constant::Weight(it)) if it.is_compressed());
    Ok(graph.values().iter().filter(is_compressed).count())
}

#[test]
fn palettes_stay_palettes_beside_a_low_rank_change() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = pipeline("sd15");
    let palettize = ["palettize", "--model", &model, "--nbits", "6", "--min-size", "1", "-o", "six"];
    let output = mixbit(scratch.path(), &palettize)?;
    assert!(output.status.success(), "{}", stderr(&output));
    let opened = |name: &str, weight: f32| {
        let lora = Lora { path: PathBuf::from(adapter(name)), strength: Strength::of(weight) };
        let loras = if name.is_empty() { Vec::new() } else { vec![lora.clone(), lora] };
        open(Some(&scratch.path().join("six")), &OpenOptions { loras, ..OpenOptions::default() })
    };
    let base = opened("", 0.0)?.model()?;
    let packed = compressed(&base)?;
    assert!(packed > 10, "{packed} palettized weights");
    let base = latents(base)?;
    for (name, is_low_rank) in [
        ("kohya-sd15", true),
        ("locon-tucker", true),
        ("lokr-both", false),
        ("dora-outputs", false),
        ("full", false),
    ] {
        let opened = opened(name, 0.4)?;
        let model = opened.model()?;
        assert_eq!(compressed(&model)? == packed, is_low_rank, "{name}");
        assert_eq!(opened.unpacked_bytes()? == 0, is_low_rank, "{name}");
        let merged = latents(DiffusionModel::from_files(opened.files())?)?;
        let found = latents(model)?;
        let signal: f32 = merged.iter().map(|value| value * value).sum();
        let noise: f32 = merged.iter().zip(&found).map(|(a, b)| (a - b) * (a - b)).sum();
        let decibels = 10.0 * (signal / noise).log10();
        assert!(decibels > 60.0 && base != found, "{name}: {decibels} dB");
    }
    Ok(())
}

#[test]
fn loras_that_do_not_fit_are_answered_on_one_line() {
    let scratch = Scratch::new();
    let directory = adapters().to_string_lossy().into_owned();
    let mut failures = Failures::new("answers");
    let (xl, absent) = (adapter("kohya-sdxl"), scratch.path().join("absent.safetensors"));
    let absent = absent.to_string_lossy().into_owned();
    for (prompt, more, says) in [
        ("x", &["--lora", &xl][..], "was made for"),
        ("x", &["--lora", &absent], "is not there"),
        ("x", &["--lora", "nothing", "--lora-dir", &directory], "has no LoRA `nothing`"),
        ("x <lora:nothing:1>", &["--lora-dir", &directory], "has no LoRA `nothing`"),
        ("x <lora:full:a>", &["--lora-dir", &directory], "a weight must be a number"),
    ] {
        failures.case(&format!("{prompt} {more:?}"), || match drawn(&scratch, prompt, more) {
            Ok(_) => Err("it is taken".to_string()),
            Err(error) => {
                let error = error.to_string();
                let is_line = error.trim_end().lines().count() == 1 && error.contains(says);
                if is_line { Ok(()) } else { Err(error) }
            }
        });
    }
    failures.finish();
}

#[test]
fn prompts_of_a_file_share_their_loras() -> Result<(), Error> {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("prompts.txt"), "a <lora:full:1>\nb\n")?;
    let (model, directory) = (pipeline("sd15"), adapters().to_string_lossy().into_owned());
    let arguments =
        ["generate", "--prompts-file", "prompts.txt", "--model", &model, "--lora-dir", &directory];
    let output = mixbit(scratch.path(), &arguments)?;
    assert!(stderr(&output).contains("prompt 2 names other LoRAs"), "{}", stderr(&output));
    Ok(())
}
