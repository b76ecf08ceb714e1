//! `mixbit analyze`: recipes that packages are made by, measurements that outlive a kill, and shards.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use mixbit_packages::recipe::RecipeFile;
use mixbit_testkit::{Scratch, fixture_root};

type Error = Box<dyn std::error::Error>;

#[test]
fn layers_that_integers_harm_stay_in_floats_in_the_package_too() -> Result<(), Error> {
    let scratch = Scratch::new();
    let recipe = scratch.path().join("mixbit-demo_palettization_recipe.json");
    let output = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    let analyzed =
        mixbit(&["analyze", "--demo", "--quiet", "--no-images", "--effort", "low", "--target-bits", "6"])
            .args(["--steps", "4", "--int8", "47", "--min-size", "100000", "--output", &output("")])
            .output()?;
    assert!(analyzed.status.success(), "{}", text(&analyzed));
    let file = RecipeFile::parse(&fs::read_to_string(&recipe)?)?;
    let int8 = file.details.and_then(|details| details.int8).ok_or("the recipe says nothing of integers")?;
    assert!(int8.measured_psnr >= 47.0, "{}", int8.measured_psnr);
    let (kept, all) = (int8.full_precision.len(), int8.single_layer.len());
    assert!((1..all).contains(&kept), "{kept} of {all} layers stay in floats");
    let palettized = mixbit(&["palettize", "--demo", "--quiet", "--part", "unet", "--select", "recipe"])
        .args(["--recipe", &recipe.to_string_lossy(), "--output", &output("small")])
        .output()?;
    assert!(palettized.status.success(), "{}", text(&palettized));
    let package = text(&palettized).trim().to_string();
    let metadata = mixbit_formats::coreml::read(Path::new(&package))?.metadata.user_defined;
    assert_eq!(metadata.get("mixbit.full_precision"), Some(&int8.full_precision.join(" ")));
    Ok(())
}

fn mixbit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_killed_command_goes_on_from_what_it_measured() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = fixture_root().join("pipelines/sd15");
    let directory = scratch.path().join("analysis");
    let arguments = [
        "analyze",
        "--model",
        model.to_str().unwrap(),
        "--output",
        directory.to_str().unwrap(),
        "--min-size",
        "2000",
        "--steps",
        "2",
        "--target-bits",
        "4",
        "--threads",
        "1",
    ];
    let journal = directory.join("1-of-1.measurements.jsonl");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let mut child = mixbit(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begin = Instant::now();
    while lines() < 4 && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    let kept = lines();
    assert!(kept >= 3, "nothing was measured in a minute");
    let output = mixbit(&arguments).output()?;
    assert!(output.status.success(), "{}", text(&output));
    let first: Vec<String> = std::fs::read_to_string(&journal)?.lines().map(str::to_string).collect();
    let again = mixbit(&arguments).output()?;
    assert!(again.status.success(), "{}", text(&again));
    let second: Vec<String> = std::fs::read_to_string(&journal)?.lines().map(str::to_string).collect();
    assert!(first == second && first.len() > kept, "measurements were made twice");
    let recipe = directory.join("sd15_palettization_recipe.json");
    assert!(RecipeFile::read(&recipe)?.recipes.len() == 1);
    Ok(())
}

#[test]
fn a_merge_says_what_is_missing() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = fixture_root().join("pipelines/sd15");
    let directory = scratch.path().join("analysis");
    let mut arguments = vec![
        "analyze",
        "--model",
        model.to_str().unwrap(),
        "--output",
        directory.to_str().unwrap(),
        "--min-size",
        "2000",
        "--steps",
        "2",
        "--target-bits",
        "4",
    ];
    let shard = mixbit(&[&arguments[..], &["--shard", "1/2"]].concat()).output()?;
    assert!(shard.status.success() && text(&shard).contains("analyze merge"), "{}", text(&shard));
    arguments.insert(1, "merge");
    let merge = mixbit(&arguments).output()?;
    assert!(!merge.status.success() && text(&merge).contains("measurements missing"), "{}", text(&merge));
    Ok(())
}
