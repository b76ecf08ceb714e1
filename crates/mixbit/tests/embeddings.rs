//! Textual inversion from the command line: pictures, packages with the enlarged token table, folders,
//! refusals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mixbit_app::source::load;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_packages::source::{EmbeddingFile, EmbeddingOptions, OpenOptions};
use mixbit_testkit::{Failures, Scratch, fixture_root};

type Error = Box<dyn std::error::Error>;

fn model(name: &str) -> PathBuf {
    fixture_root().join("pipelines").join(name)
}

fn file(name: &str) -> PathBuf {
    fixture_root().join("embeddings").join(name)
}

/// The exit code and everything that a command says.
fn mixbit(arguments: &[&str]) -> Result<(Option<i32>, String), Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    let output = command.args(arguments).env_remove("MIXBIT_MODEL").output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn ids(model: &DiffusionModel, prompt: &str) -> Result<Vec<Vec<u32>>, Error> {
    let encoders = model.text_encoders.iter();
    encoders.map(|encoder| Ok(encoder.tokenizer.encode(prompt)?.ids)).collect()
}

#[test]
fn packages_have_the_words_and_the_same_pictures() -> Result<(), Error> {
    let cases: [(&str, &[&str], &str); 2] = [
        ("sd15", &["bad-hands 5.pt", "learned_embeds.bin"], "a red circle, Bad-Hands 5, <cat-toy>"),
        ("sdxl", &["xl-style.safetensors"], "a red circle in xl-style"),
    ];
    for (name, embeddings, prompt) in cases {
        let scratch = Scratch::new();
        let packages = scratch.path().join("packages");
        let checkpoint = model(name);
        let files: Vec<PathBuf> = embeddings.iter().map(|name| file(name)).collect();
        let mut arguments = vec!["convert", "--model", text(&checkpoint), "--output", text(&packages)];
        files.iter().for_each(|path| arguments.extend(["--embedding", text(path)]));
        let (code, said) = mixbit(&arguments)?;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("vectors\n") && said.contains("Swift tokenizer"), "{said}");

        let files = files.into_iter().map(|path| EmbeddingFile { path, name: None }).collect();
        let embeddings = EmbeddingOptions { files, ..EmbeddingOptions::default() };
        let options = OpenOptions { embeddings, ..OpenOptions::default() };
        let expected = load(Some(&checkpoint), &options)?.model;
        let converted = load(Some(&packages), &OpenOptions::default())?.model;
        assert_eq!(ids(&converted, prompt)?, ids(&expected, prompt)?);
        assert!(ids(&converted, prompt)?.iter().all(|ids| ids.iter().any(|&id| id >= 604)));

        let pictures = ["checkpoint.png", "packages.png"].map(|name| scratch.path().join(name));
        let drawn = |model: &Path, picture: &Path, more: &[&str]| -> Result<String, Error> {
            let usual = ["--seed", "3", "--steps", "2", "--precision", "f32", "--size", "32x32", "--output"];
            let begin = ["generate", prompt, "--negative-prompt", prompt, "--model", text(model)];
            let (code, said) = mixbit(&[&begin[..], &usual, &[text(picture)], more].concat())?;
            assert_eq!(code, Some(0), "{said}");
            Ok(said)
        };
        let folder = fixture_root().join("embeddings");
        let more = ["--embedding-dir", text(&folder)];
        let said = drawn(&checkpoint, &pictures[0], &more)?;
        assert!(said.contains("embedding ") && !said.contains("embedding trainer"), "{said}");
        assert!(!said.contains("no embedding of that name"), "{said}");
        let parameters = String::from_utf8_lossy(&fs::read(&pictures[0])?).into_owned();
        assert!(parameters.contains("TI hashes: "), "{parameters}");
        drawn(&packages, &pictures[1], &[])?;
    }
    Ok(())
}

/// A package is not kept where its words would be others, or stand for other vectors of the same number.
#[test]
fn packages_of_other_words_are_not_kept() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (checkpoint, packages) = (model("sd15"), scratch.path().join("packages"));
    let toys = text(&file("toys.safetensors")).to_string();
    // Another value in a vector, as after more training.
    let mut bytes = fs::read(&toys)?;
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    let other = text(&scratch.file("other.safetensors", &bytes)).to_string();
    let converted = |embedding: &str| {
        let model = ["convert", "--model", text(&checkpoint), "--output", text(&packages)];
        mixbit(&[&model[..], &["--convert-text-encoder", "--embedding", embedding]].concat())
    };
    let (code, said) = converted(&format!("{toys}=one"))?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(converted(&format!("{toys}=one"))?.0, Some(0));
    for (embedding, what) in [(format!("{toys}=two"), "another name"), (format!("{other}=one"), "vectors")] {
        let (code, said) = converted(&embedding)?;
        assert!(code == Some(1) && said.contains("--embedding was one ("), "{what}: {code:?} {said}");
    }
    Ok(())
}

#[test]
fn all_that_fits_of_a_folder_is_added_without_prompts() -> Result<(), Error> {
    let folder = fixture_root().join("embeddings");
    let embeddings = EmbeddingOptions {
        files: vec![EmbeddingFile { path: file("trainer.pt"), name: Some("my word".to_string()) }],
        folders: vec![folder],
        prompts: None,
    };
    let options = OpenOptions { embeddings, ..OpenOptions::default() };
    let loaded = load(Some(&model("sd15")), &options)?;
    let names: Vec<&str> =
        loaded.opening.embeddings.iter().map(|embedding| embedding.name.as_str()).collect();
    assert_eq!(names, ["my word", "Easy_Neg.v1", "bad-hands 5", "<cat-toy>", "params", "<toys>"]);
    let warnings = loaded.opening.warnings.join("\n");
    assert!(warnings.contains("wide.safetensors") && warnings.contains("Stable Diffusion 2.x"), "{warnings}");
    assert!(ids(&loaded.model, "a MY WORD")?[0].contains(&604));
    Ok(())
}

#[test]
fn what_can_not_be_added_is_refused_by_name() -> Result<(), Error> {
    let scratch = Scratch::new();
    let packages = scratch.path().join("packages");
    let checkpoint = model("sd15");
    let vae = ["--convert-vae-decoder", "--output", text(&packages)];
    let (code, said) = mixbit(&[&["convert", "--model", text(&checkpoint)], &vae[..]].concat())?;
    assert_eq!(code, Some(0), "{said}");
    let wide = file("wide.safetensors");
    let toys = file("toys.safetensors");
    let unet = checkpoint.join("unet/diffusion_pytorch_model.safetensors");
    let folder = fixture_root().join("embeddings");
    let mut failures = Failures::new("embeddings that can't be added");
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["generate", "x", "--model", text(&checkpoint), "--embedding", text(&wide)],
            &["wide.safetensors", "Stable Diffusion 2.x", "vectors of 16 channels"],
        ),
        (&["generate", "x", "--model", text(&toys)], &["textual inversion", "--embedding"]),
        (&["generate", "x", "--model", text(&checkpoint), "--embedding", text(&unet)], &["--model"]),
        (
            &["generate", "x", "--model", text(&checkpoint), "--embedding", text(&folder)],
            &["--embedding-dir"],
        ),
        (
            &["generate", "x", "--model", text(&checkpoint), "--embedding-dir", text(&toys)],
            &["with --embedding"],
        ),
        (&["inspect", text(&packages), "--embedding", text(&toys)], &["--embedding is for checkpoints"]),
        (
            &[
                "palettize",
                "--nbits",
                "4",
                "--model",
                text(&packages),
                "--output",
                "/nonexistent",
                "--embedding-dir",
                text(&folder),
            ],
            &["--embedding-dir is for checkpoints"],
        ),
        (&["generate", "x", "--model", text(&checkpoint), "--embedding", "absent.pt=x"], &["absent.pt"]),
    ];
    for (arguments, expected) in cases {
        failures.case(&arguments.join(" "), || {
            let (code, said) = mixbit(arguments)?;
            match code != Some(0) && expected.iter().all(|text| said.contains(text)) {
                true => Ok(()),
                false => Err(Error::from(format!("{code:?} {said}"))),
            }
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn unknown_words_are_warned_about() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (checkpoint, picture) = (model("sd15"), scratch.path().join("x.png"));
    let usual = ["--steps", "1", "--size", "32x32", "--model", text(&checkpoint), "-o", text(&picture)];
    let prompt = ["generate", "a <dog-toy>, embedding:easy_neg.V1"];
    let easy = file("Easy_Neg.v1.pt");
    let (code, said) = mixbit(&[&prompt[..], &usual, &["--embedding", text(&easy)]].concat())?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("`<dog-toy>`") && !said.contains("`embedding:"), "{said}");
    assert!(said.contains("embedding Easy_Neg.v1: 1 vector\n"), "{said}");
    let (_, said) = mixbit(&[&prompt[..], &usual].concat())?;
    assert!(said.contains("`embedding:easy_neg.V1`"), "{said}");
    Ok(())
}
