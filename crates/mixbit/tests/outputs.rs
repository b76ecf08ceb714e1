//! What commands leave in a directory: several at once, after a kill, through links, and over other outputs.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mixbit_packages::recipe::RecipeFile;
use mixbit_testkit::{Failures, Scratch, copy_tree, fixture_root, read_tree};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const UNET: &str = "Stable_Diffusion_version_model_unet.mlpackage";

fn mixbit(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.current_dir(directory).args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = mixbit(directory, arguments).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Runs commands at the same time.
fn at_once(directory: &Path, commands: &[Vec<&str>]) -> Result<Vec<Output>, std::io::Error> {
    let start = |arguments: &Vec<&str>| {
        mixbit(directory, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let children = commands.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    children.into_iter().map(|child| child.wait_with_output()).collect()
}

/// A directory with a tiny model in `model`.
fn with_model() -> Result<Scratch, std::io::Error> {
    let scratch = Scratch::new();
    copy_tree(&fixture_root().join("pipelines/sd15"), &scratch.path().join("model"))?;
    Ok(scratch)
}

/// Names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn conversions_demand_a_model() -> Outcome {
    let scratch = with_model()?;
    let commands: [&[&str]; 3] =
        [&["convert"], &["palettize", "--nbits", "4", "-o", "p"], &["analyze", "-o", "a"]];
    for command in commands {
        let error = run(scratch.path(), command).unwrap_err();
        assert!(error.contains("--model DIR, or --demo"), "{error}");
        let both = run(scratch.path(), &[command, &["--model", "model", "--demo"]].concat());
        assert!(both.unwrap_err().contains("--demo is a model by itself"));
    }
    assert_eq!(scratch.names(), ["model"]);
    // Apple's name of the option, and the environment's model, which gives way to --demo.
    run(scratch.path(), &["convert", "--model-version", "model", "--convert-unet", "-o", "out"])?;
    assert!(scratch.path().join("out").join(UNET).is_dir());
    let demo = ["convert", "--demo", "--convert-vae-decoder", "-o", "demo"];
    let output = mixbit(scratch.path(), &demo).env("MIXBIT_MODEL", "model").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(names(&scratch.path().join("demo")).iter().any(|name| name.contains("mixbit_demo")));
    Ok(())
}

/// What a newcomer lost, or got in place of what was asked.
#[test]
fn nothing_is_written_over_a_model_or_taken_for_a_prompt() -> Outcome {
    let scratch = with_model()?;
    let weights = "model/unet/diffusion_pytorch_model.safetensors";
    run(scratch.path(), &["convert", "--model", "model", "--convert-unet", "--output", "packages", "-q"])?;
    let before = read_tree(scratch.path())?;
    let cases: [(&[&str], &str); 7] = [
        (
            &["compare", "--models", "model", "a", "--output", weights],
            "no PNG: give a name that ends in .png",
        ),
        (&["compare", "--models", "model", "model", "a"], "models go into --models"),
        (&["convert", "--model", "model", "--output", "model"], "is the model itself"),
        (&["palettize", "--model", "model/.", "--nbits", "4", "--output", "model"], "is the model itself"),
        (&["convert", "--model", "packages", "--output", "again"], "`mixbit palettize` makes smaller"),
        (&["bench", "--model", "model", "--synthetic", "sd15"], "leave out --model"),
        (&["generate", "a", "--model", "org/name", "--offline"], "org/name is not downloaded"),
    ];
    for (arguments, message) in cases {
        let error = run(scratch.path(), arguments).unwrap_err();
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
    assert!(before == read_tree(scratch.path())?, "{:?}", names(scratch.path()));
    Ok(())
}

#[test]
fn conversions_at_once_give_whole_packages() -> Outcome {
    let scratch = with_model()?;
    run(scratch.path(), &["convert", "--model", "model", "-o", "alone", "-q"])?;
    let expected = read_tree(&scratch.path().join("alone"))?;
    let command = vec!["convert", "--model", "model", "-o", "out", "-q"];
    for output in at_once(scratch.path(), &[command.clone(), command.clone(), command])? {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
    }
    assert!(read_tree(&scratch.path().join("out"))? == expected, "{:?}", names(&scratch.path().join("out")));

    let bits =
        |bits| vec!["palettize", "--model", "model", "--nbits", bits, "--min-size", "100", "-o", "both"];
    let outputs = at_once(scratch.path(), &[bits("2"), bits("4")])?;
    let failed: Vec<&Output> = outputs.iter().filter(|output| !output.status.success()).collect();
    let error = failed.first().map(|output| String::from_utf8_lossy(&output.stderr)).ok_or("both wrote")?;
    assert!(failed.len() == 1 && error.contains("would be palettized by"), "{error}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_request_to_end_leaves_nothing_and_is_no_crash() -> Outcome {
    let scratch = Scratch::new();
    for signal in ["-TERM", "-HUP", "-INT"] {
        let arguments = ["palettize", "--demo", "--nbits", "2", "-o", "out"];
        let child =
            mixbit(scratch.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let out = scratch.path().join("out");
        while !names(&out).iter().any(|name| name.ends_with("mixbit-lock")) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status()?;
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains("stopped"), "{signal}: {error}");
        assert!(!names(&out).iter().any(|name| name.starts_with('.')), "{signal}: {:?}", names(&out));
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_lead_nothing_out_of_the_output() -> Outcome {
    use std::os::unix::fs::symlink;
    let scratch = with_model()?;
    let model = scratch.path().join("model");
    let victims = ["vocab", "report", "recipe", "journal", "folder/file"];
    let victims = victims.map(|name| scratch.file(&format!("victims/{name}"), b"precious"));
    for folder in ["converted", "analysis", "linked", "bundled"] {
        fs::create_dir(model.join(folder))?;
    }
    symlink("../../victims/vocab", model.join("converted/vocab.json"))?;
    symlink("../../victims/report", model.join("analysis/report.html"))?;
    symlink("../../victims/recipe", model.join("analysis/model_palettization_recipe.json"))?;
    symlink("../../victims/folder", model.join("bundled/Resources"))?;
    symlink("../../victims/journal", model.join("linked/1-of-1.measurements.jsonl"))?;
    let convert = ["convert", "--model", ".", "--name", "model", "-q"];
    run(&model, &[&convert[..], &["-o", "converted"]].concat()).unwrap_err();
    run(&model, &[&convert[..], &["-o", "converted", "--force"]].concat())?;
    let bundle = ["-o", "bundled", "--bundle-resources-for-swift-cli", "--force"];
    let error = run(&model, &[&convert[..], &bundle].concat()).unwrap_err();
    assert!(error.contains("a link has that name"), "{error}");
    let analyze = ["analyze", "--model", ".", "--steps", "2", "--min-size", "4000", "--no-images", "-q"];
    let more = ["--effort", "low", "--target-bits", "4.5", "-o"];
    run(&model, &[&analyze[..], &more, &["analysis"]].concat()).unwrap_err();
    run(&model, &[&analyze[..], &more, &["linked"]].concat()).unwrap_err();
    fs::remove_file(model.join("analysis/model_palettization_recipe.json"))?;
    run(&model, &[&analyze[..], &more, &["analysis"]].concat())?;
    for victim in &victims {
        assert_eq!(fs::read(victim)?, b"precious", "{}", victim.display());
    }
    assert_eq!(names(&scratch.path().join("victims/folder")), ["file"]);
    assert!(model.join("converted/vocab.json").symlink_metadata()?.is_file());

    // A path that the user typed is followed.
    symlink("victims/vocab", scratch.path().join("typed.png"))?;
    run(scratch.path(), &["generate", "a cat", "--model", "model", "--steps", "1", "-o", "typed.png"])?;
    assert!(fs::read(&victims[0])?.starts_with(b"\x89PNG"));
    Ok(())
}

#[test]
fn what_is_there_is_kept_only_if_it_is_the_same() -> Outcome {
    let scratch = with_model()?;
    let convert = |more: &[&str]| {
        let arguments = ["convert", "--model", "model", "--convert-unet", "-o", "out"];
        run(scratch.path(), &[&arguments, more].concat())
    };
    convert(&[])?;
    let first = read_tree(&scratch.path().join("out"))?;
    let mut failures = Failures::new("differences");
    for (more, expected) in [
        (&["--attention-implementation", "ORIGINAL"][..], "--attention-implementation was SPLIT_EINSUM"),
        (&["--latent-h", "8", "--latent-w", "16"], "--latent-w was 8, and is 16"),
        (&["--unet-batch-one"], "--unet-batch-one was false, and is true"),
        (&["--min-deployment-target", "macOS15"], "--min-deployment-target was macOS13, and is macOS15"),
        (&["--quantize-nbits", "4"], "it is not palettized, and would be palettized by palette-4"),
    ] {
        failures.case(expected, || match convert(more) {
            Err(error) if error.contains(expected) && error.contains("--force") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    failures.finish();
    assert!(read_tree(&scratch.path().join("out"))? == first);

    let weights = scratch.path().join("model/unet/diffusion_pytorch_model.safetensors");
    let (before, mut bytes) = (fs::read(&weights)?, fs::read(&weights)?);
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    fs::write(&weights, &bytes)?;
    let error = convert(&[]).unwrap_err();
    assert!(error.contains("it was made of other weights"), "{error}");
    convert(&["--force"])?;
    assert!(read_tree(&scratch.path().join("out"))? != first);
    fs::write(&weights, before)?;

    // Empty and damaged packages are none.
    convert(&["--force"])?;
    let package = scratch.path().join("out").join(UNET);
    let file = package.join("Data/com.apple.CoreML/weights/weight.bin");
    let len = fs::metadata(&file)?.len();
    fs::File::options().write(true).open(&file)?.set_len(len / 2)?;
    convert(&[])?;
    assert!(read_tree(&scratch.path().join("out"))? == first, "a cut package was kept");
    fs::remove_dir_all(&package)?;
    fs::create_dir(&package)?;
    convert(&[])?;
    assert!(read_tree(&scratch.path().join("out"))? == first, "an empty package was kept");
    let kept = fs::metadata(&file)?.modified()?;
    convert(&[])?;
    assert_eq!(fs::metadata(&file)?.modified()?, kept, "the same package was written again");
    Ok(())
}

#[test]
fn a_bundle_is_of_the_packages_that_are_there() -> Outcome {
    let scratch = with_model()?;
    let palettize = ["palettize", "--model", "model", "--nbits", "4", "--min-size", "100", "-o", "out"];
    run(scratch.path(), &palettize)?;
    let convert = ["convert", "--model", "model", "-o", "out", "--bundle-resources-for-swift-cli"];
    let error = run(scratch.path(), &convert).unwrap_err();
    assert!(error.contains("would be not palettized") && error.contains("`mixbit palettize`"), "{error}");
    assert!(!scratch.path().join("out/Resources").exists());
    let bundle = "--bundle-resources-for-swift-cli";
    let printed = run(scratch.path(), &[&palettize[..], &["-q", bundle]].concat())?;
    assert_eq!(printed.lines().filter(|line| line.ends_with(".mlmodelc")).count(), 4);
    let out = scratch.path().join("out");
    let weights = |path: &str| fs::read(out.join(path));
    assert!(
        weights("Resources/Unet.mlmodelc/weights/weight.bin")?
            == weights(&format!("{UNET}/Data/com.apple.CoreML/weights/weight.bin"))?
    );
    assert!(out.join("Resources/vocab.json").is_file());
    // The bundle of other packages is refused, too.
    fs::remove_dir_all(out.join(UNET))?;
    let other = ["palettize", "--model", "model", "--nbits", "2", "--part", "unet", "-o", "out", bundle];
    let error = run(scratch.path(), &other).unwrap_err();
    assert!(error.contains("Unet.mlmodelc is there already, but"), "{error}");
    Ok(())
}

/// A model of another family or name, or the same network in another form, in the directory of an output.
#[test]
fn what_belongs_to_another_model_is_refused_or_removed() -> Outcome {
    let scratch = with_model()?;
    copy_tree(&fixture_root().join("pipelines/sdxl"), &scratch.path().join("xl"))?;
    let bundle = "--bundle-resources-for-swift-cli";
    let convert = |model: &str, output: &str, more: &[&str]| {
        let arguments = ["convert", "--model", model, "-q", "-o", output];
        run(scratch.path(), &[&arguments, more].concat())
    };
    let out = |path: &str| scratch.path().join(path);
    convert("xl", "out", &[bundle])?;
    let before = read_tree(&out("out"))?;
    let error = convert("model", "out", &[bundle]).unwrap_err();
    assert!(error.contains("Resources/TextEncoder.mlmodelc is there already, but"), "{error}");
    let error = convert("model", "out", &[]).unwrap_err();
    let expected = "it is of the model `xl`, not `model` (";
    assert!(error.contains(expected) && error.contains("remove them with --force"), "{error}");
    assert!(read_tree(&out("out"))? == before, "a refused command changed something");
    convert("model", "out", &[bundle, "--force"])?;
    convert("model", "alone", &[bundle])?;
    assert!(read_tree(&out("out"))? == read_tree(&out("alone"))?, "{:?}", names(&out("out")));

    // The names of both may be the same; parts may come one by one, if they are of one model.
    convert("xl", "named", &["--name", "m", "--convert-text-encoder"])?;
    let error = convert("model", "named", &["--name", "m", "--convert-unet"]).unwrap_err();
    assert!(error.contains("the model has no text_encoder_2") || error.contains("other weights"), "{error}");
    convert("xl", "named", &["--name", "m", "--convert-unet"])?;
    convert("xl", "named", &["--name", "m", "--convert-vae-decoder"])?;
    run(scratch.path(), &["palettize", "--model", "named", "--nbits", "4", "-o", "small", "-q"])?;
    let palettize = ["palettize", "--model", "alone", "--nbits", "4", "-o", "small", "-q"];
    let error = run(scratch.path(), &palettize).unwrap_err();
    assert!(error.contains("it is of the model `m`, not `model`"), "{error}");
    Ok(())
}

#[test]
fn whole_and_cut_networks_do_not_lie_side_by_side() -> Outcome {
    let scratch = with_model()?;
    let convert = |more: &[&str]| {
        let arguments = ["convert", "--model", "model", "--convert-unet", "-q", "-o", "out"];
        run(scratch.path(), &[&arguments, more].concat())
    };
    let bundle = "--bundle-resources-for-swift-cli";
    let unets = |folder: &str| {
        let mut names = names(&scratch.path().join(folder));
        names.retain(|name| name.ends_with(".mlmodelc") || name.ends_with(".mlpackage"));
        names
    };
    let compiled_chunks = ["UnetChunk1.mlmodelc", "UnetChunk2.mlmodelc"];
    for (first, second, compiled) in [
        (&[bundle][..], &[bundle, "--chunk-unet"][..], &compiled_chunks[..]),
        (&[bundle, "--chunk-unet"], &[bundle], &["Unet.mlmodelc"]),
    ] {
        convert(&[first, &["--force"]].concat())?;
        let error = convert(second).unwrap_err();
        assert!(error.contains("which is written"), "{error}");
        convert(&[second, &["--force"]].concat())?;
        assert_eq!(unets("out/Resources"), compiled);
        assert_eq!(unets("out").len(), compiled.len());
    }
    // One chunk after the other is no conflict.
    convert(&[bundle, "--chunk-unet", "--force"])?;
    for chunk in ["1", "2"] {
        let package = format!("out/Stable_Diffusion_version_model_unet_chunk{chunk}.mlpackage");
        run(scratch.path(), &["palettize", "--model", &package, "--nbits", "4", "-o", "chunks", "-q"])?;
    }
    assert_eq!(unets("chunks").len(), 2);
    Ok(())
}

/// Networks of other architectures, damaged weights, and options without effect.
#[test]
fn conversions_that_would_go_wrong_are_refused_by_name() -> Outcome {
    let scratch = with_model()?;
    for name in ["sdxl", "refiner"] {
        copy_tree(&fixture_root().join("pipelines").join(name), &scratch.path().join(name))?;
    }
    let model = |name: &str| scratch.path().join(name);
    copy_tree(&model("sdxl/vae"), &model("four/vae"))?;
    let four = model("four/vae/config.json");
    let text = fs::read_to_string(&four)?;
    fs::write(&four, text.replace("\"latent_channels\": 4", "\"latent_channels\": 16"))?;
    let net = fixture_root().join("models/controlnet-sdxl");
    let net = net.to_string_lossy();
    let mut failures = Failures::new("refusals");
    let cases: [(&[&str], &str); 9] = [
        (&["convert", "--model", "model", "--refiner-version", "refiner"], "no second text encoder"),
        (&["convert", "--model", "sdxl", "--refiner-version", "model"], "takes no sizes"),
        (&["convert", "--model", "sdxl", "--refiner-version", "sdxl"], "a base model is no refiner"),
        (&["convert", "--model", "model", "--custom-vae-version", "sdxl"], "scaled by 0.13025"),
        (&["convert", "--model", "sdxl", "--custom-vae-version", "four/vae"], "have 16 channels"),
        (&["convert", "--model", "model", "--convert-controlnet", &net], "is for a UNet with"),
        (&["palettize", "--model", "model", "--nbits", "4", "--like", "no"], "no effect without --recipe"),
        (&["palettize", "--model", "model", "--nbits", "4", "--select", "4"], "no effect without --recipe"),
        (&["palettize", "--model", "model", "--recipe", "no", "--like", "no"], "--like: no is not there"),
    ];
    for (arguments, expected) in cases {
        failures.case(expected, || match run(scratch.path(), &[arguments, &["-o", "out"]].concat()) {
            Err(error) if error.contains(expected) && !model("out").exists() => Ok(()),
            other => Err(format!("{arguments:?}: {other:?}")),
        });
    }
    failures.finish();
    run(scratch.path(), &["convert", "--model", "model", "-o", "packages"])?;
    for (option, value) in [("--name", "x"), ("--min-deployment-target", "macOS15")] {
        let palettize = ["palettize", "--model", "packages", "--nbits", "4", "-o", "out", option, value];
        let error = run(scratch.path(), &palettize).unwrap_err();
        assert!(error.contains(&format!("{option} is for checkpoints")), "{error}");
    }
    Ok(())
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() -> Outcome {
    let scratch = with_model()?;
    let path = scratch.path().join("model/unet/diffusion_pytorch_model.safetensors");
    let before = fs::read(&path)?;
    let convert = |more: &[&str]| {
        let arguments = ["convert", "--model", "model", "--convert-unet", "-q", "-o", "out"];
        run(scratch.path(), &[&arguments, more].concat())
    };
    // The tensors are in fp16.
    let last = before.len() - 2;
    for (value, expected) in [([0x01, 0x7e], "has nan at element"), ([0x00, 0xfc], "has -inf at element")] {
        let mut bytes = before.clone();
        bytes[last..].copy_from_slice(&value);
        fs::write(&path, bytes)?;
        let error = convert(&[]).unwrap_err();
        assert!(error.contains("tensor `") && error.contains(expected), "{error}");
        let packages = names(&scratch.path().join("out"));
        assert!(!packages.iter().any(|name| name.ends_with(".mlpackage")), "{packages:?}");
    }
    Ok(())
}

#[test]
fn nothing_is_written_before_everything_is_checked() -> Outcome {
    let scratch = with_model()?;
    let palettize = |model: &str, output: &str, more: &[&str]| {
        let bits = ["palettize", "--model", model, "--nbits", "4", "--min-size", "100", "-q", "-o", output];
        run(scratch.path(), &[&bits, more].concat())
    };
    palettize("model", "parts", &["--part", "unet"])?;
    run(scratch.path(), &["convert", "--model", "model", "--convert-text-encoder", "-q", "-o", "parts"])?;
    let error = palettize("parts", "out", &[]).unwrap_err();
    assert!(error.contains("are compressed already"), "{error}");
    assert!(!scratch.path().join("out").exists(), "the text encoder was written");
    palettize("parts", "out", &["--force"])?;
    Ok(())
}

#[test]
fn incomplete_models_say_what_is_missing() -> Outcome {
    let scratch = with_model()?;
    run(scratch.path(), &["convert", "--model", "model", "-q", "-o", "whole"])?;
    run(scratch.path(), &["convert", "--model", "model", "--chunk-unet", "-q", "-o", "cut"])?;
    let name = |part: &str| format!("Stable_Diffusion_version_model_{part}.mlpackage");
    let weights = "Data/com.apple.CoreML/weights/weight.bin";
    fs::create_dir_all(scratch.path().join("above/deep"))?;
    copy_tree(&scratch.path().join("model"), &scratch.path().join("above/deep/sd15"))?;
    let mut failures = Failures::new("incomplete models");
    type Break = fn(&Path, &dyn Fn(&str) -> String, &str) -> std::io::Result<()>;
    let cases: [(&str, &str, Break, &str); 7] = [
        ("whole", "a", |at, name, _| fs::remove_dir_all(at.join(name("unet"))), "no UNet among its packages"),
        (
            "whole",
            "b",
            |at, name, _| fs::remove_dir_all(at.join(name("vae_decoder"))),
            "no package of the vae_decoder; convert the missing part",
        ),
        (
            "whole",
            "c",
            |at, name, _| fs::remove_dir_all(at.join(name("text_encoder"))),
            "no package of a text encoder; convert the missing part",
        ),
        (
            "cut",
            "d",
            |at, name, _| fs::remove_dir_all(at.join(name("unet_chunk2"))),
            "half of a unet, and the other half is not there",
        ),
        (
            "whole",
            "e",
            |at, name, weights| fs::remove_file(at.join(name("unet")).join(weights)),
            "the package is incomplete: copy or download it again",
        ),
        (
            "whole",
            "f",
            |at, name, weights| {
                let file = fs::File::options().write(true).open(at.join(name("unet")).join(weights))?;
                file.set_len(1000)
            },
            "the file was cut off: copy or download it again",
        ),
        ("above", "g", |_, _, _| Ok(()), "the model is in a directory inside: give g/deep/sd15"),
    ];
    for (from, to, damage, expected) in cases {
        failures.case(expected, || -> Outcome {
            copy_tree(&scratch.path().join(from), &scratch.path().join(to))?;
            damage(&scratch.path().join(to), &name, weights)?;
            let draw = ["generate", "a", "--model", to, "--steps", "1", "-o", "x.png"];
            let error = run(scratch.path(), &draw).unwrap_err();
            assert!(error.contains(expected), "{error}");
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn an_analysis_with_other_targets_adds_its_recipes() -> Outcome {
    let scratch = with_model()?;
    let analyze = |target: &[&str]| {
        let arguments = ["analyze", "--model", "model", "--effort", "low", "--no-images", "-q", "-o", "a"];
        let usual = [("--steps", "2"), ("--min-size", "4000")];
        let usual = usual.into_iter().filter(|(option, _)| !target.contains(option));
        let usual: Vec<&str> = usual.flat_map(|(option, value)| [option, value]).collect();
        run(scratch.path(), &[&arguments[..], &usual, target].concat())
    };
    let path = scratch.path().join("a/model_palettization_recipe.json");
    let recipes = || RecipeFile::read(&path).map(|file| file.recipes);
    let lines = || fs::read_to_string(scratch.path().join("a/1-of-1.measurements.jsonl"));
    analyze(&["--target-bits", "4.5"])?;
    let first = recipes()?;
    assert_eq!(first.len(), 1);
    analyze(&["--target-bits", "3"])?;
    let both = recipes()?;
    assert!(both.len() == 2 && first.iter().all(|(name, recipe)| both.get(name) == Some(recipe)));
    let measured = lines()?;
    // A target out of reach, and those that are there: nothing is run, nothing is lost.
    let error = analyze(&["--target-psnr", "500"]).unwrap_err();
    assert!(error.contains("no recipe for 500 dB: the closest to the model is"), "{error}");
    analyze(&["--target-bits", "3,4.5"])?;
    let error = analyze(&["--target-bits", "4.5,0.2"]).unwrap_err();
    assert!(error.contains("no recipe for 0.2 bits per weight: the smallest is palette-1"), "{error}");
    assert!(recipes()? == both, "recipes were lost or made twice");
    assert_eq!(lines()?, measured, "recipes were run again");
    // Other measurements in the same directory: what differs is named.
    for (more, says) in [
        (&["--steps", "3"][..], "--steps was 2, and is 3"),
        (&["--seed", "94"], "--seed was 93, and is 94"),
        (&["--min-size", "1000"], "--min-size was 4000, and is 1000"),
        (&["--negative-prompt", "x"], "--negative-prompt was not given, and is x"),
        (&["--method", "exhaustive"], "--method was estimate, and is exhaustive"),
    ] {
        let error = analyze(&[&["--target-bits", "3"], more].concat()).unwrap_err();
        assert!(error.contains(says) && error.contains("--output") && !error.contains("states"), "{error}");
    }
    let weights = scratch.path().join("model/unet/diffusion_pytorch_model.safetensors");
    let (unchanged, mut bytes) = (fs::read(&weights)?, fs::read(&weights)?);
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0x30);
    fs::write(&weights, bytes)?;
    let error = analyze(&["--target-bits", "3"]).unwrap_err();
    assert!(error.contains("of another model"), "{error}");
    fs::write(&weights, unchanged)?;
    fs::write(&path, r#"{"model_version": "m", "recipes": {"apples": {}}}"#)?;
    let error = analyze(&["--target-bits", "3"]).unwrap_err();
    assert!(error.contains("was not made by mixbit"), "{error}");
    Ok(())
}

#[test]
fn images_of_runs_at_once_all_survive() -> Outcome {
    let scratch = with_model()?;
    let steps = ["1", "2", "3", "4"];
    let commands = steps.map(|steps| {
        vec!["generate", "a cat", "--model", "model", "--seed", "1", "--steps", steps, "-q", "-o", "images"]
    });
    for output in at_once(scratch.path(), &commands)? {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let images = names(&scratch.path().join("images"));
    assert_eq!(images, ["a_cat.1-2.png", "a_cat.1-3.png", "a_cat.1-4.png", "a_cat.1.png"]);
    let mut contents = images.iter().map(|name| fs::read(scratch.path().join("images").join(name)));
    let first = contents.next().ok_or("no image")??;
    assert!(contents.all(|other| other.is_ok_and(|other| other != first)));
    Ok(())
}

#[test]
fn streams_are_read_and_written() -> Outcome {
    let scratch = with_model()?;
    let draw = ["generate", "--model", "model", "--seed", "1", "--steps", "1"];
    let with_input = |more: &[&str], input: &str| -> Result<Output, std::io::Error> {
        let mut child = mixbit(scratch.path(), &[&draw[..], more].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    run(scratch.path(), &[&draw[..], &["a cat", "-o", "file.PNG"]].concat())?;
    let file = fs::read(scratch.path().join("file.PNG"))?;
    let output = with_input(&["-", "-o", "-"], "a cat\n")?;
    assert!(output.status.success() && output.stdout == file, "standard output has something else");
    let output = with_input(&["--prompts-file", "-", "-o", "many", "-q"], "a cat\n\n a dog \n")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(&scratch.path().join("many")), ["a_cat.1.png", "a_dog.1.png"]);
    for (more, expected) in [
        (&["a cat", "-o", "-", "--images", "2"][..], "takes one image"),
        (&["a cat", "-o", "-", "--json"], "leave out --json"),
        (&["a cat", "-o", "x.jpg"], "images are PNG"),
    ] {
        let error = run(scratch.path(), &[&draw[..], more].concat()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let compare = ["compare", "--models", "model", "a cat", "--steps", "1", "-o"];
    for (path, expected) in
        [("g.jpg", "images are PNG"), ("many", "is a directory"), ("no/g.png", "no directory")]
    {
        let error = run(scratch.path(), &[&compare[..], &[path]].concat()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_pipe_takes_the_image() -> Outcome {
    let scratch = with_model()?;
    let pipe = scratch.path().join("pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status()?.success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::read(pipe))
    };
    run(scratch.path(), &["generate", "a cat", "--model", "model", "--steps", "1", "-o", "pipe.png", "-q"])?;
    let image = reader.join().map_err(|_| "the reader failed")??;
    assert!(image.starts_with(b"\x89PNG"));
    Ok(())
}
