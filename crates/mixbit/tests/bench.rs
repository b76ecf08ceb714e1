//! `mixbit bench`.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;
#[cfg(unix)]
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Component, Request, Session, Text, Tiling};
use mixbit_engine_cpu::Cpu;
use mixbit_testkit::{Scratch, fixture_root};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

fn bench(arguments: &[&str]) -> Result<Output, Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.env_remove("MIXBIT_MODEL").args(["bench", "--quiet", "--threads", "1"]).args(arguments);
    if !arguments.contains(&"--size") {
        command.args(["--size", "64x64"]);
    }
    Ok(command.output()?)
}

/// The JSON object that a run prints.
fn measured(arguments: &[&str]) -> Result<Value, Error> {
    let output = bench(&[arguments, &["--json"]].concat())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("{field} is {}", value[field]))
}

#[test]
fn every_part_is_measured_against_the_peak() -> Result<(), Error> {
    let report = measured(&["--runs", "3", "--precision", "f32"])?;
    let parts = report["parts"].as_array().ok_or("no parts")?;
    let roles: Vec<_> = parts.iter().map(|part| part["role"].as_str().unwrap_or_default()).collect();
    assert_eq!(roles, ["text", "text", "unet", "vae"]);
    let peak = number(&report["peak_operations_per_second"], "f32");
    for part in parts {
        let runs = part["seconds"].as_array().ok_or("no times")?;
        assert_eq!(runs.len(), 3);
        let [least, median, most] =
            ["min_seconds", "median_seconds", "max_seconds"].map(|field| number(part, field));
        assert!(0.0 < least && least <= median && median <= most, "{part}");
        let rate = number(part, "operations") / median;
        assert!((number(part, "operations_per_second") / rate - 1.0).abs() < 1e-6);
        assert!((number(part, "of_peak") / (rate / peak) - 1.0).abs() < 1e-6);
        let profile = part["profile"].as_array().ok_or("no profile")?;
        let shares: f64 = profile.iter().map(|row| number(row, "share")).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{shares}");
        // What each op does in a run adds up to what the part does.
        let operations: f64 = profile
            .iter()
            .map(|row| row["operations_per_second"].as_f64().unwrap_or(0.0) * number(row, "seconds"))
            .sum();
        assert!((operations / number(part, "operations") - 1.0).abs() < 1e-6, "{part}");
    }
    assert_eq!(report["end_to_end_is_computed"], true);
    let steps = number(&report, "evaluations") - 1.0;
    assert!(number(&report, "end_to_end_seconds") > steps * number(&report, "seconds_per_step"));
    assert!(number(&report, "first_step_after_seconds") > number(&report, "load_seconds"));
    Ok(())
}

#[test]
fn tables_are_for_people() -> Result<(), Error> {
    let output = bench(&["--runs", "1", "--profile", "--steps", "2"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    for words in [
        "64x64",
        "iterations/s",
        "ORIGINAL",
        "text_encoder_2   the prompts",
        "unet             a step",
        "vae              an image",
        "in 2 steps, measured",
        "measured peak of the CPU",
        "\n  conv ",
        "GFLOP/s",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "wider than 80 columns: {wide:?}");
    Ok(())
}

#[test]
fn only_what_is_asked_for_is_measured() -> Result<(), Error> {
    let report = measured(&["--runs", "1", "--only", "vae,text"])?;
    let parts = report["parts"].as_array().ok_or("no parts")?;
    let components: Vec<_> = parts.iter().map(|part| part["component"].as_str()).collect();
    assert_eq!(components, [Some("text_encoder"), Some("text_encoder_2"), Some("vae")]);
    for absent in ["seconds_per_step", "iterations_per_second", "end_to_end_seconds", "attention"] {
        assert!(report[absent].is_null(), "{absent}");
    }
    assert!(number(&report, "text_seconds") > 0.0 && number(&report, "decode_seconds") > 0.0);
    Ok(())
}

#[test]
fn a_trace_has_an_event_for_each_step() -> Result<(), Error> {
    let scratch = Scratch::new();
    let file = scratch.path().join("trace.json");
    let file = file.to_str().ok_or("the path is not UTF-8")?;
    let report = measured(&["--runs", "2", "--only", "unet,vae", "--trace", file])?;
    let trace: Value = serde_json::from_slice(&fs::read(file)?)?;
    let events = trace.as_array().ok_or("the trace is not an array")?;
    let steps: f64 = report["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|part| part["profile"].as_array().cloned().unwrap_or_default())
        .map(|row| number(&row, "steps"))
        .sum();
    assert_eq!(events.len(), steps as usize);
    let mut end = 0.0;
    for event in events {
        assert_eq!(event["ph"], "X");
        let name = event["name"].as_str().ok_or("an event has no name")?;
        let family = event["cat"].as_str().ok_or("an event has no category")?;
        assert!(!family.is_empty() && name.starts_with(family), "{event}");
        // Steps are one after another, the decoder's after the UNet's.
        assert!(number(event, "ts") > end - 1e-6, "{event}");
        end = number(event, "ts") + number(event, "dur");
    }
    Ok(())
}

/// Models with one and with two text encoders, and with the second alone.
#[test]
fn other_models_are_measured() -> Result<(), Error> {
    let pipelines = fixture_root().join("pipelines");
    for (model, parts) in [("sd15", 3), ("sd21", 3), ("sdxl", 4), ("refiner", 3)] {
        let path = pipelines.join(model);
        let path = path.to_str().ok_or("the path is not UTF-8")?;
        let report = measured(&["--model", path, "--runs", "1"])?;
        assert_eq!(report["parts"].as_array().map(Vec::len), Some(parts), "{model}");
        assert!(number(&report, "end_to_end_seconds") > 0.0, "{model}");
    }
    Ok(())
}

/// A decoder in tiles is two stages: the whole plane up to the cut, and tiles.
#[test]
fn a_decoder_in_tiles_is_measured_whole() -> Result<(), Error> {
    let model = Arc::new(mixbit_app::source::load(None, &Default::default())?.model);
    let mut session = Session::new(model.clone(), Arc::new(Cpu::new(Some(2))?));
    let mut noise = random_source("torch")?.seeded(0)?;
    let mut counts = Vec::new();
    for tiling in [Tiling::Never, Tiling::Always] {
        let request = Request { size: [520, 512], tiling, ..Request::new(&model, Text::new("a")).unwrap() };
        let stages = session.stages(&request, &[Component::Decoder], 2, &mut *noise)?;
        let stage = &stages[0];
        for _ in 0..2 {
            stage.run(&mut session, &Cancel::default())?;
        }
        let multiply_adds: u64 = stage.profile(&session).iter().map(|timing| timing.multiply_adds).sum();
        counts.push((stage.trace(&session).len(), multiply_adds));
        session.unload();
        // What was measured stays.
        assert_eq!(
            stage.profile(&session).iter().map(|timing| timing.multiply_adds).sum::<u64>(),
            multiply_adds
        );
        assert_eq!(stage.trace(&session).len(), counts[counts.len() - 1].0);
        assert!(stage.trace(&session).iter().all(|steps| !steps.is_empty()));
    }
    let [(whole_stages, whole), (tiled_stages, tiled)] = counts[..] else { return Err("not two".into()) };
    assert_eq!((whole_stages, tiled_stages), (1, 2));
    // Two tiles share a margin, and nothing is counted twice beside it.
    assert!(whole < tiled && tiled < 2 * whole, "{whole} {tiled}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn an_interruption_ends_it() -> Result<(), Error> {
    let arguments = ["bench", "--runs", "10000", "--only", "unet", "--threads", "1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    let mut child = command
        .args(arguments)
        .env_remove("MIXBIT_MODEL")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().ok_or("no standard error")?);
    let mut text = String::new();
    stderr.read_line(&mut text)?;
    assert!(text.starts_with("measuring takes about "), "{text}");
    stderr.read_line(&mut text)?;
    assert!(text.contains("\nunet: 1/10001 runs"), "{text}");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    stderr.read_to_string(&mut text)?;
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: stopped") && output.stdout.is_empty(), "{text}");
    Ok(())
}

#[test]
fn what_can_t_be_measured_is_refused() -> Result<(), Error> {
    for (arguments, code, message) in [
        (&["--model", "/no/such/model"][..], 1, "/no/such/model"),
        (&["--synthetic", "sd9"], 2, "sdxl-base"),
        (&["--only", "decoder"], 2, "vae"),
        (&["--nbits", "4"], 2, "--synthetic"),
        (&["--only", "unet", "--steps", "2"], 2, "--steps"),
        (&["--size", "65x64"], 1, "width"),
        (&["--runs", "1", "--only", "vae", "--trace", "/no/such/folder/trace.json"], 1, "/no/such/folder"),
    ] {
        let output = bench(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && error.contains(message), "{arguments:?}: {error}");
    }
    Ok(())
}
