//! `mixbit diff` on checkpoints, packages and weight files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mixbit_testkit::{Failures, Scratch, copy_tree, fixture_root};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

/// What was printed, and the exit code.
fn run(arguments: &[&str], paths: &[&Path]) -> Result<(String, String, i32), Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    let output = command.args(arguments).args(paths).env_remove("MIXBIT_MODEL").output()?;
    let code = output.status.code().ok_or("it was killed")?;
    Ok((String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?, code))
}

fn diff(a: &Path, b: &Path) -> Result<(String, i32), Error> {
    let (text, error, code) = run(&["diff"], &[a, b])?;
    if code == 2 { Err(error.into()) } else { Ok((text, code)) }
}

fn json(a: &Path, b: &Path) -> Result<(Value, i32), Error> {
    let (text, error, code) = run(&["diff", "--json"], &[a, b])?;
    if code == 2 { Err(error.into()) } else { Ok((serde_json::from_str(&text)?, code)) }
}

fn convert(model: &Path, output: &Path, options: &[&str]) -> Result<(), Error> {
    let arguments = [&["convert", "--quiet"], options, &["--output"]].concat();
    let (_, error, code) = run(&[&arguments[..], &[path(output)?, "--model"]].concat(), &[model])?;
    if code == 0 { Ok(()) } else { Err(error.into()) }
}

fn path(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "the path is not UTF-8".into())
}

/// Copies a package with other bytes at the end of its weight file: the last elements of its last weight.
fn with_other_weight(package: &Path, to: &Path, bytes: &[u8]) -> Result<(), Error> {
    copy_tree(package, to)?;
    let file = to.join("Data/com.apple.CoreML/weights/weight.bin");
    let mut weights = fs::read(&file)?;
    let at = weights.len() - bytes.len();
    weights[at..].copy_from_slice(bytes);
    Ok(fs::write(file, weights)?)
}

fn coreml(name: &str) -> PathBuf {
    fixture_root().join("coreml").join(name)
}

#[test]
fn what_is_converted_is_the_same_as_its_checkpoint() -> Result<(), Error> {
    let model = fixture_root().join("pipelines/sd15");
    let forms: [(&str, &[&str]); 3] = [
        ("default", &[]),
        ("original", &["--attention-implementation", "ORIGINAL", "--unet-batch-one"]),
        ("newer", &["--min-deployment-target", "macOS15", "--latent-h", "16", "--latent-w", "24"]),
    ];
    let mut failures = Failures::new("forms of conversion");
    for (name, options) in forms {
        failures.case(name, || {
            let scratch = Scratch::new();
            convert(&model, scratch.path(), options)?;
            let (text, code) = diff(&model, scratch.path())?;
            if code != 0 || !text.contains("\nthe same\n") {
                return Err(Error::from(text));
            }
            let (found, code) = json(scratch.path(), scratch.path())?;
            assert_eq!((code, &found["same"]), (0, &Value::Bool(true)));
            let layers = found["parts"][2]["layers"].as_array().ok_or("no layers")?;
            assert!(layers.len() > 100 && layers.iter().all(|layer| layer["equal"] == true));
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn compiled_and_chunked_models_are_compared_with_their_like() -> Result<(), Error> {
    let (whole, cut) = (Scratch::new(), Scratch::new());
    let model = fixture_root().join("../crates/app/demo");
    convert(&model, whole.path(), &["--bundle-resources-for-swift-cli"])?;
    convert(&model, cut.path(), &["--convert-unet", "--chunk-unet"])?;
    // What compiled models say about themselves is the same, too.
    assert_eq!(diff(whole.path(), &whole.path().join("Resources"))?.1, 0);
    let (text, code) = diff(&model, cut.path())?;
    assert!(
        code == 1 && text.contains("only in A: TextEncoder, TextEncoder2, VAEDecoder, VAEEncoder"),
        "{text}"
    );
    assert!(text.contains("\nUnetChunk2 -> ") && !text.contains("differ from"), "{text}");
    // The halves are joined: only what is cast where they meet differs.
    let (found, _) = json(whole.path(), cut.path())?;
    assert_eq!(found["only"][0].as_array().map(Vec::len), Some(4));
    let unet = &found["parts"][0];
    let changed: Vec<&Value> =
        unet["operations"].as_array().into_iter().flatten().map(|op| &op["name"]).collect();
    assert_eq!(changed, ["cast"]);
    let layers = unet["layers"].as_array().ok_or("no layers")?;
    assert!(layers.iter().all(|layer| layer["equal"] == true), "{layers:?}");
    assert_eq!(unet["only"], serde_json::json!([[], []]));
    // A single network is compared with its like.
    let unet = whole.path().join("Resources/Unet.mlmodelc");
    assert_eq!(diff(&unet, &model)?.1, 0);
    let weights = model.join("unet/diffusion_pytorch_model.safetensors");
    assert_eq!(diff(&weights, whole.path())?.1, 0);
    Ok(())
}

#[test]
fn a_weight_that_differs_is_named() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = fixture_root().join("pipelines/sd15");
    convert(&model, scratch.path(), &["--convert-unet"])?;
    let name = fs::read_dir(scratch.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "mlpackage"))
        .ok_or("no package")?;
    let last = {
        let (found, _) = json(&name, &name)?;
        let layers = found["parts"][0]["layers"].as_array().ok_or("no layers")?.clone();
        layers.last().ok_or("no layer")?.clone()
    };
    assert_eq!(last["name"], "conv_out.bias");
    for (bytes, psnr) in [([0x00, 0x3c], true), ([0x00, 0x7e], false)] {
        let other = scratch.path().join(format!("other-{psnr}.mlpackage"));
        with_other_weight(&name, &other, &bytes)?;
        let (text, code) = diff(&name, &other)?;
        let row = text.lines().find(|line| line.contains("conv_out.bias")).ok_or(text.clone())?;
        assert!(code == 1 && row.contains(if psnr { " dB " } else { "NaN " }), "{text}");
        assert!(text.contains(" the same, 1 differ, "), "{text}");
        let (found, _) = json(&name, &other)?;
        let layers = found["parts"][0]["layers"].as_array().ok_or("no layers")?.clone();
        let different: Vec<&Value> = layers.iter().filter(|layer| layer["equal"] == false).collect();
        assert_eq!(different.len(), 1);
        assert_eq!((&different[0]["name"], different[0]["psnr"].is_f64()), (&last["name"], psnr));
    }
    Ok(())
}

#[test]
fn compressed_packages_are_compared_by_what_they_decode_to() -> Result<(), Error> {
    let (plain, palettized) =
        (coreml("sd15_text_encoder.mlpackage"), coreml("sd15_text_encoder__pal6.mlpackage"));
    let (text, code) = diff(&plain, &palettized)?;
    assert!(code == 1 && text.contains("fp16 -> 6-bit palette") && text.contains(": --all"), "{text}");
    let (found, _) = json(&plain, &palettized)?;
    let part = &found["parts"][0];
    // The graphs are the same but for the ops that decode.
    for field in ["inputs", "outputs", "operations"] {
        assert_eq!(part[field], serde_json::json!([]), "{field}");
    }
    assert_eq!((&part["first_difference"], &part["only"]), (&Value::Null, &serde_json::json!([[], []])));
    let layers = part["layers"].as_array().ok_or("no layers")?;
    let palettes: Vec<&Value> =
        layers.iter().filter(|layer| layer["encodings"][1] == "6-bit palette").collect();
    assert!(palettes.len() > 10);
    // A palette that has all values of a tensor loses nothing.
    for layer in palettes.iter().filter(|layer| layer["equal"] == false) {
        let psnr = layer["psnr"].as_f64().ok_or("no PSNR")?;
        assert!((35.0..60.0).contains(&psnr), "{layer}");
    }
    let (all, _, _) = run(&["diff", "--all"], &[&plain, &palettized])?;
    let rows = all.lines().filter(|line| line.contains("fp16 -> 6-bit palette")).count();
    assert_eq!(rows, layers.iter().filter(|layer| layer["equal"] == false).count());
    // The worst come first.
    let psnrs: Vec<f64> =
        all.lines().filter_map(|line| line.trim().split_once(" dB ")?.0.parse().ok()).collect();
    assert!(psnrs.len() == rows && psnrs.is_sorted(), "{psnrs:?}");
    Ok(())
}

#[test]
fn other_graphs_and_other_models_differ() -> Result<(), Error> {
    let (text, code) = diff(&coreml("vae_decoder_fp16.mlpackage"), &coreml("vae_encoder_fp16.mlpackage"))?;
    assert!(code == 1 && text.contains("only in A") && text.contains("ops  "), "{text}");
    let file = |name: &str| {
        fixture_root().join("pipelines").join(name).join("unet/diffusion_pytorch_model.safetensors")
    };
    let (text, code) = diff(&file("sd15"), &file("sdxl"))?;
    assert!(code == 1 && text.contains("of another shape"), "{text}");
    assert_eq!(diff(&file("sd15"), &file("sd15"))?.1, 0);
    Ok(())
}

#[test]
fn what_can_not_be_compared_is_an_error_of_its_own() -> Result<(), Error> {
    let scratch = Scratch::new();
    let good = coreml("vae_decoder_fp16.mlpackage");
    let mut failures = Failures::new("paths");
    for (name, bad) in [
        ("absent", scratch.path().join("absent")),
        ("empty directory", scratch.path().to_path_buf()),
        ("text", scratch.file("text", b"text")),
        ("garbage", scratch.file("garbage.safetensors", &[0xff; 64])),
        ("empty package", scratch.file("x.mlpackage/Manifest.json", b"{}").with_file_name("")),
        ("unlike", fixture_root().join("coreml/encodings/ios16_palette4.mlpackage")),
    ] {
        failures.case(name, || {
            let model = fixture_root().join("pipelines/sd15");
            let good = if name == "unlike" { &model } else { &good };
            for paths in [[good.as_path(), &bad], [&bad, good.as_path()]] {
                let (text, error, code) = run(&["diff"], &paths)?;
                if code != 2
                    || !text.is_empty()
                    || !error.starts_with("error: ")
                    || error.lines().count() != 1
                {
                    return Err(Error::from(format!("{code}: {text}{error}")));
                }
            }
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}
