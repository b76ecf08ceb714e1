//! The command line as people type it: other tools' names, warnings, last lines, and Ctrl-C.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mixbit_testkit::{Failures, Scratch, copy_tree, fixture_root};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

fn mixbit(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.current_dir(directory).args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Result<Output, Error> {
    Ok(mixbit(directory, arguments).output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must succeed, and gives both streams.
fn success(directory: &Path, arguments: &[&str]) -> Result<[String; 2], Error> {
    let output = run(directory, arguments)?;
    match output.status.success() {
        true => Ok([String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?]),
        false => Err(format!("{arguments:?}: {}", stderr(&output)).into()),
    }
}

fn pipeline(name: &str) -> String {
    fixture_root().join("pipelines").join(name).to_string_lossy().into_owned()
}

#[test]
fn names_of_other_tools_draw_the_same_picture() -> Result<(), Error> {
    let scratch = Scratch::new();
    let ours = "generate|a red circle|--steps|2|--seed|7|--scheduler|euler|--guidance-scale|3|--size|64x128|-o|a.png";
    let theirs = "generate|--num-inference-steps|2|--seed=7|--sampler|euler|--cfg_scale=3|-W|64|--height|128|--prompt|\
                  a red circle|--output-path|b.png|--compute-unit|CPU_AND_NE";
    success(scratch.path(), &ours.split('|').collect::<Vec<_>>())?;
    let [_, notes] = success(scratch.path(), &theirs.split('|').collect::<Vec<_>>())?;
    assert!(fs::read(scratch.path().join("a.png"))? == fs::read(scratch.path().join("b.png"))?);
    assert!(
        notes.contains("note: --compute-unit CPU_AND_NE is not needed") && notes.contains("no Neural Engine")
    );
    Ok(())
}

#[test]
fn a_random_seed_is_told() -> Result<(), Error> {
    let scratch = Scratch::new();
    let [path, told] =
        success(scratch.path(), &["generate", "a red circle", "--seed", "-1", "--steps", "1"])?;
    let seed = path.trim().strip_prefix("a_red_circle.").and_then(|rest| rest.strip_suffix(".png"));
    let seed = seed.ok_or("the name has no seed")?;
    assert!(told.contains(&format!("seed {seed}, ")) && told.contains("1 step\n"), "{told}");
    Ok(())
}

#[test]
fn what_is_not_there_is_answered_on_one_line() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("answers");
    for (arguments, says) in [
        (&["generate", "x", "--lora", "a.safetensors"][..], "fuse_lora"),
        (&["generate", "x", "--sede", "7"], "there is --seed"),
        (&["generate", "a", "red", "circle"], "quotation marks"),
        (&["generate", "x", "--seed", "many"], "whole number"),
        (&["generate", "x", "--threads", "0"], "1 to 1024"),
        (&["convert", "--merge-chunks-in-pipeline-model"], "leave"),
        (&["a lighthouse"], "mixbit generate \"a lighthouse\""),
        (&["txt2img", "x"], "mixbit generate"),
        (&["palettize", "a", "b", "--nbits", "6", "-o", "c"], "one model"),
        (&["palettize", "a"], "--output <PATH>"),
        (&["generate", "x", "--seed"], "a value is required for '--seed"),
        (&["generate", "x", "--rng", "dice"], "[one of torch, numpy, nvidia]"),
        (&["generate", "x", "--cfg-scale", "7", "--cfg", "8"], "--cfg-scale and --cfg are the same option"),
        (&["generate", "x", "--scheduler", "karras"], "as in dpmpp-2m-karras"),
        (&["convert", "a", "--size", "8", "--latent-h", "1", "--latent-w", "1"], "cannot be used with"),
    ] {
        failures.case(&format!("{arguments:?}"), || -> Result<(), Error> {
            let output = run(scratch.path(), arguments)?;
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
            assert!(
                error.contains(says)
                    && !error.contains("For more")
                    && !error.contains("-- --")
                    && !error.contains("..="),
                "{error}"
            );
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn words_fit_what_is_said() -> Result<(), Error> {
    let scratch = Scratch::new();
    let convert = ["convert", "--demo", "--convert-vae-decoder", "-o", "out"];
    let [_, said] = success(scratch.path(), &convert)?;
    assert!(said.contains("1 package, 1.3 MB"), "{said}");
    let [_, said] = success(scratch.path(), &convert)?;
    assert!(said.contains("1 package, there already"), "{said}");
    let file = scratch.file("file", b"");
    let output = run(scratch.path(), &["convert", "--demo", "-o", "file"])?;
    assert!(stderr(&output).contains("file: a file has that name"), "{}", stderr(&output));
    assert!(file.is_file());
    for help in [&["help", "--help"][..], &["help", "convert", "--help"]] {
        assert!(success(scratch.path(), help)?[0].contains("Usage: mixbit"));
    }
    Ok(())
}

#[test]
fn what_is_empty_is_not_there() -> Result<(), Error> {
    let scratch = Scratch::new();
    let empty = mixbit(scratch.path(), &["convert"]).env("MIXBIT_MODEL", "").output()?;
    assert!(stderr(&empty).contains("say which model"), "{}", stderr(&empty));
    let draw = ["generate", "a red circle", "--steps", "1", "-o", "a.png"];
    let drawn = mixbit(scratch.path(), &draw).env("MIXBIT_MODEL", "").output()?;
    assert!(drawn.status.success(), "{}", stderr(&drawn));
    for (arguments, says) in [
        (&["generate", "-"][..], "standard input has no prompt"),
        (&["generate", "--prompts-file", "-"], "standard input has no line with text"),
    ] {
        let output = mixbit(scratch.path(), arguments).stdin(Stdio::null()).output()?;
        assert!(output.status.code() == Some(1) && stderr(&output).contains(says), "{}", stderr(&output));
    }
    Ok(())
}

#[test]
fn options_that_a_model_has_no_use_for_are_refused_or_warned_about() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (sd15, demo) = (pipeline("sd15"), ["generate", "a red circle", "--steps", "1", "--seed", "1"]);
    for option in ["--prompt-2", "--negative-prompt-2"] {
        let output = run(scratch.path(), &["generate", "x", "--model", &sd15, "--steps", "1", option, "y"])?;
        let error = stderr(&output);
        assert!(output.status.code() == Some(1) && error.contains(option) && error.contains("XL"), "{error}");
    }
    let warned = |more: &[&str]| success(scratch.path(), &[&demo[..], more].concat()).map(|[_, said]| said);
    assert!(!warned(&[])?.contains("warning"));
    assert!(!warned(&["--prompt-2", "a blue square"])?.contains("warning"));
    let unguided = warned(&["--guidance-scale", "1", "--negative-prompt", "x"])?;
    assert!(unguided.contains("the negative prompt has no effect"), "{unguided}");
    Ok(())
}

#[test]
fn the_demo_model_says_what_it_can_not_draw() -> Result<(), Error> {
    let scratch = Scratch::new();
    let said = |prompt: &str, more: &[&str]| {
        let arguments = [&["generate", prompt, "--steps", "1", "--seed", "1"], more].concat();
        success(scratch.path(), &arguments).map(|[_, said]| said)
    };
    let words = said("a lighthouse at night", &[])?;
    assert!(words.contains("`lighthouse`, `night`") && words.contains("--model DIR"), "{words}");
    let size = said("a red circle", &["--size", "64x64"])?;
    assert!(size.contains("128x128, not 64x64") && size.contains("--model DIR"), "{size}");
    let syntax = said("a (red:1.2) circle <lora:x:1> BREAK", &[])?;
    for shown in ["`<lora:x:1>`", "`(red:1.2)`", "`BREAK`"] {
        assert!(syntax.contains(shown), "{syntax}");
    }
    assert_eq!(said("a lighthouse", &["--quiet"])?, "");
    Ok(())
}

#[test]
fn a_model_may_stand_by_itself_and_a_size_is_in_pixels() -> Result<(), Error> {
    let scratch = Scratch::new();
    let sd15 = pipeline("sd15");
    let convert = ["convert", &sd15, "--convert-unet", "--size", "96x64", "-o", "out", "--force"];
    let [package, said] = success(scratch.path(), &convert)?;
    assert!(!said.contains("mixbit generate"), "a UNet alone draws nothing: {said}");
    let [shown, _] = success(scratch.path(), &["inspect", package.trim()])?;
    assert!(shown.starts_with("summary\n") && shown.contains("image     96x64"), "{shown}");
    assert!(shown.contains("attention SPLIT_EINSUM") && shown.contains("16.00 bits a weight"), "{shown}");
    let output = run(scratch.path(), &["convert", &sd15, "--size", "100x64", "-o", "out"])?;
    assert!(stderr(&output).contains("try 96"), "{}", stderr(&output));
    let [all, said] = success(scratch.path(), &["convert", &sd15, "-o", "a model"])?;
    assert!(all.lines().count() > 2, "{all}");
    assert!(said.contains("draw with it: mixbit generate \"a red circle\" --model 'a model'"), "{said}");
    Ok(())
}

/// A recipe file of the demo model with two recipes.
fn recipes(scratch: &Scratch) -> PathBuf {
    let layers = r#"{"conv_in": 8, "conv_out": 16}"#;
    let text = format!(
        r#"{{"model_version": "demo", "baselines": {{"recipe_3.00_bit_mixedpalette": 35.2}},
            "recipes": {{"recipe_3.00_bit_mixedpalette": {layers}, "recipe_4.53_bit_mixedpalette": {layers}}}}}"#
    );
    scratch.file("recipe.json", text.as_bytes())
}

#[test]
fn recipes_are_shown_and_chosen_by_bits() -> Result<(), Error> {
    let scratch = Scratch::new();
    let recipe = recipes(&scratch).to_string_lossy().into_owned();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../app/demo");
    let [table, _] = success(scratch.path(), &["inspect", &recipe])?;
    assert!(table.contains("recipe_4.53_bit_mixedpalette") && table.contains("35.2"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let [json, _] = success(scratch.path(), &["inspect", "--json", &recipe])?;
    assert_eq!(serde_json::from_str::<Value>(&json)?["recipes"][1]["bits_per_weight"], 4.53);
    let palettize = ["palettize", demo, "--part", "unet", "--recipe", &recipe, "-o", "out"];
    let output = run(scratch.path(), &palettize)?;
    let error = stderr(&output);
    assert!(error.contains("3.00 (recipe_3.00_bit_mixedpalette, 35.2 dB), 4.53 ("), "{error}");
    assert!(!scratch.path().join("out").exists());
    let [_, said] = success(scratch.path(), &[&palettize[..], &["--select", "4.4"]].concat())?;
    assert!(said.contains("recipe recipe_4.53_bit_mixedpalette"), "{said}");
    assert!(!said.contains("other layers"), "{said}");
    Ok(())
}

#[test]
fn a_recipe_for_another_architecture_writes_nothing() -> Result<(), Error> {
    let scratch = Scratch::new();
    let text = r#"{"model_version": "m", "recipes": {"r": {"no.such.layer": 4, "conv_in": 8}}}"#;
    let recipe = scratch.file("other.json", text.as_bytes()).to_string_lossy().into_owned();
    let output = run(scratch.path(), &["palettize", &pipeline("sd15"), "--recipe", &recipe, "-o", "out"])?;
    let error = stderr(&output);
    assert!(!output.status.success() && error.contains("no.such.layer"), "{error}");
    assert!(!scratch.path().join("out").exists(), "something was written");
    Ok(())
}

#[test]
fn a_recipe_is_verified_on_the_model_at_hand() -> Result<(), Error> {
    let scratch = Scratch::new();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../app/demo");
    let [printed, _] = success(
        scratch.path(),
        &["palettize", demo, "--nbits", "8", "--part", "unet", "--verify", "-o", "out"],
    )?;
    let line = printed.lines().last().unwrap_or_default();
    let psnr = line.split(' ').rev().nth(4).and_then(|word| word.parse::<f64>().ok());
    assert!(line.starts_with("verified on demo: ") && psnr.is_some_and(|psnr| psnr > 30.0), "{printed}");
    Ok(())
}

#[test]
fn pictures_name_the_model_and_not_its_place() -> Result<(), Error> {
    let scratch = Scratch::new();
    let place =
        scratch.path().join("models--org--small-1-5/snapshots/39593d5650112b4cc580433f6b0435385882d819");
    fs::create_dir_all(place.parent().ok_or("no parent")?)?;
    copy_tree(Path::new(&pipeline("sd15")), &place)?;
    let place = place.to_string_lossy().into_owned();
    let draw = |model: &str, name: &str| -> Result<Value, Error> {
        success(
            scratch.path(),
            &["generate", "x", "--model", model, "--steps", "1", "--size", "64x64", "-o", name],
        )?;
        let [json, _] = success(scratch.path(), &["metadata", "--json", name])?;
        Ok(serde_json::from_str::<Value>(&json)?["settings"]["Model"].clone())
    };
    assert_eq!(draw(&place, "a.png")?, "org/small-1-5");
    let [printed, _] =
        success(scratch.path(), &["convert", &place, "--bundle-resources-for-swift-cli", "-o", "out"])?;
    assert!(printed.contains("Stable_Diffusion_version_org_small-1-5_unet.mlpackage"), "{printed}");
    assert_eq!(draw("out/Resources", "b.png")?, "org/small-1-5");
    let [both, _] = success(scratch.path(), &["metadata", "a.png", "b.png"])?;
    assert!(both.starts_with("a.png\n") && both.contains("\n\nb.png\n"), "{both}");
    let [both, _] = success(scratch.path(), &["metadata", "--json", "a.png", "b.png"])?;
    assert_eq!(serde_json::from_str::<Value>(&both)?["b.png"]["prompt"], "x");
    Ok(())
}

#[test]
fn compare_checks_every_model_before_it_draws() -> Result<(), Error> {
    let scratch = Scratch::new();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../app/demo");
    let models = format!("{demo},{}", scratch.path().join("absent").display());
    let output = run(scratch.path(), &["compare", "--models", &models, "--steps", "1", "a red circle"])?;
    let error = stderr(&output);
    assert!(
        !output.status.success() && error.contains("absent") && !error.contains("evaluations"),
        "{error}"
    );
    let output = run(scratch.path(), &["compare", "-o", "grid.jpg", "a red circle"])?;
    assert!(stderr(&output).contains(".png"), "{}", stderr(&output));
    let compare = ["compare", "--schemes", "palette-2", "--steps", "1", "-o", "grid.png", "a red circle"];
    let [table, said] = success(scratch.path(), &compare)?;
    assert!(said.contains("2 images take about") && said.contains("seed 93"), "{said}");
    assert!(table.lines().all(|line| line.chars().count() <= 80) && table.contains("MB"), "{table}");
    let [text, _] = success(scratch.path(), &["metadata", "grid.png"])?;
    assert!(
        text.starts_with("a red circle\n") && text.contains("palette-2") && text.contains("Seed: 93"),
        "{text}"
    );
    Ok(())
}

#[test]
fn doctor_tells_of_the_machine_and_empties_the_cache() -> Result<(), Error> {
    let scratch = Scratch::new();
    let doctor = |more: &[&str]| -> Result<String, Error> {
        let output =
            mixbit(scratch.path(), &[&["doctor"], more].concat()).env("TMPDIR", scratch.path()).output()?;
        assert!(output.status.success(), "{}", stderr(&output));
        Ok(String::from_utf8(output.stdout)?)
    };
    let cache = scratch.path().join("mixbit-bench");
    fs::create_dir_all(cache.join("sd15"))?;
    fs::write(cache.join("sd15/weights"), vec![0; 2_000_000])?;
    let shown = doctor(&[])?;
    for part in ["version", "threads", "bf16", "free", "mixbit-bench", "2.0 MB"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json: Value = serde_json::from_str(&doctor(&["--json"])?)?;
    assert_eq!(json["caches"][0]["bytes"], 2_000_000);
    assert!(doctor(&["--clean"])?.contains("2.0 MB removed") && !cache.exists());
    Ok(())
}

#[test]
fn manual_pages_and_completions_say_where_they_go() -> Result<(), Error> {
    let scratch = Scratch::new();
    let [page, said] = success(scratch.path(), &["man", "man1"])?;
    assert_eq!(page.trim(), "man1/mixbit.1");
    assert!(
        said.contains("man man1/mixbit.1") && scratch.path().join("man1/mixbit-generate.1").exists(),
        "{said}"
    );
    #[cfg(unix)]
    {
        let victim = scratch.file("victim", b"precious");
        fs::create_dir(scratch.path().join("linked"))?;
        std::os::unix::fs::symlink(&victim, scratch.path().join("linked/mixbit.1"))?;
        success(scratch.path(), &["man", "linked"])?;
        assert_eq!(fs::read(&victim)?, b"precious");
        assert_eq!(
            fs::read(scratch.path().join("linked/mixbit.1"))?,
            fs::read(scratch.path().join("man1/mixbit.1"))?
        );
    }
    let [help, _] = success(scratch.path(), &["completions", "--help"])?;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(help.contains(&format!("  {shell}: mixbit completions {shell}")), "{help}");
        let [script, _] = success(scratch.path(), &["completions", shell])?;
        let has_values = !["powershell", "elvish"].contains(&shell);
        assert!(script.contains("generate") && script.contains("dpmpp-2m") == has_values, "{shell}");
    }
    Ok(())
}

/// Ctrl-C is heeded within a second: work says that it stops, and leaves nothing but what it goes on from.
#[cfg(unix)]
#[test]
fn every_command_stops_within_a_second() -> Result<(), Error> {
    use std::time::{Duration, Instant};
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../app/demo");
    let mut failures = Failures::new("Ctrl-C");
    for (arguments, goes_on) in [
        (&["generate", "a red circle", "--steps", "900", "--model", demo][..], false),
        (&["compare", "--models", demo, "--steps", "900", "a red circle"], false),
        (&["palettize", demo, "--nbits", "6", "--output", "out"], true),
        (&["analyze", demo, "--output", "out"], true),
        (&["convert", demo, "--check-output-correctness", "--output", "out"], true),
        (&["bench", demo, "--runs", "10000"], false),
    ] {
        failures.case(&format!("{arguments:?}"), || -> Result<(), Error> {
            let scratch = Scratch::new();
            let mut child =
                mixbit(scratch.path(), arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            std::thread::sleep(Duration::from_millis(500));
            let begin = Instant::now();
            Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
            let status = child.wait()?;
            let seconds = begin.elapsed().as_secs_f64();
            let mut error = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().ok_or("no stream")?, &mut error)?;
            if status.success() {
                return Ok(());
            }
            // A second, and as much for a machine that is busy with other tests.
            assert!(seconds < 2.0, "{seconds} s: {error}");
            assert!(status.code() == Some(1) && error.contains("stopping"), "{status}: {error}");
            assert_eq!(error.contains("run it again to go on"), goes_on, "{error}");
            assert!(error.lines().last().is_some_and(|line| line.starts_with("error: stopped")), "{error}");
            assert!(
                !files(scratch.path()).iter().any(|name| name.contains("partial")),
                "{:?}",
                files(scratch.path())
            );
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}

/// The names of all files below a directory.
#[cfg(unix)]
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let below = |entry: fs::DirEntry| {
        let mut names = vec![entry.file_name().to_string_lossy().into_owned()];
        if entry.path().is_dir() {
            names.extend(files(&entry.path()));
        }
        names
    };
    entries.flat_map(below).collect()
}
