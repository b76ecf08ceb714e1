//! The command line as its users meet it: what it draws, prints and refuses.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use mixbit_testkit::{Failures, Scratch, copy_tree, fixture_root};
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const PROMPT: &str = "a red circle";

fn mixbit(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.current_dir(directory).args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed, and gives what it printed.
fn run(directory: &Path, arguments: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let output = mixbit(directory, arguments).output()?;
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).into()),
    }
}

fn draw(directory: &Path, more: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let mut arguments = vec!["generate", PROMPT];
    for default in [["--steps", "2"], ["--seed", "7"]] {
        if !more.contains(&default[0]) {
            arguments.extend(default);
        }
    }
    run(directory, &[&arguments, more].concat())
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn networks_that_are_loaded_anew_draw_the_same() -> Outcome {
    let scratch = Scratch::new();
    let (kept, reduced) = (scratch.path().join("kept"), scratch.path().join("reduced"));
    let same = ["--images", "2", "--preview-every", "1", "--output"];
    draw(scratch.path(), &[&same[..], &["kept"]].concat())?;
    draw(scratch.path(), &[&same[..], &["reduced", "--reduce-memory"]].concat())?;
    assert_eq!(names(&kept).len(), 4);
    assert_eq!(names(&kept), names(&reduced));
    for name in names(&kept) {
        assert!(std::fs::read(kept.join(&name))? == std::fs::read(reduced.join(&name))?, "{name}");
    }
    Ok(())
}

#[test]
fn images_go_where_they_are_asked_to() {
    let mut failures = Failures::new("outputs");
    let cases: [(&[&str], &[&str]); 6] = [
        (&[], &["a_red_circle.7.png"]),
        (&["--output", "x.png"], &["x.png"]),
        (&["--output", "x.PNG", "--images", "2"], &["x.7.PNG", "x.8.PNG"]),
        (
            &["--output", "new/er", "--images", "2"],
            &["new/er/a_red_circle.7.png", "new/er/a_red_circle.8.png"],
        ),
        (&["--preview-every", "1"], &["a_red_circle.7.png", "a_red_circle.7.step-001.png"]),
        (&["--quiet", "--size", "136x72"], &["a_red_circle.7.png"]),
    ];
    for (arguments, files) in cases {
        failures.case(&format!("{arguments:?}"), || -> Outcome {
            let scratch = Scratch::new();
            let printed = draw(scratch.path(), arguments)?;
            for file in files {
                let start = std::fs::read(scratch.path().join(file)).map_err(|_| format!("no {file}"))?;
                assert!(start.starts_with(b"\x89PNG"), "{file}");
            }
            let images = files.iter().filter(|file| !file.contains("step"));
            assert_eq!(printed.lines().collect::<Vec<_>>(), images.copied().collect::<Vec<_>>());
            Ok(())
        });
    }
    failures.case("a name that is taken", || -> Outcome {
        let scratch = Scratch::new();
        draw(scratch.path(), &[])?;
        draw(scratch.path(), &[])?;
        assert_eq!(names(scratch.path()), ["a_red_circle.7-2.png", "a_red_circle.7.png"]);
        Ok(())
    });
    failures.finish();
}

#[test]
fn the_same_seed_gives_the_same_bytes() -> Outcome {
    let scratch = Scratch::new();
    let bytes = |name: &str| std::fs::read(scratch.path().join(name));
    for threads in ["1", "2", "3"] {
        draw(scratch.path(), &["--threads", threads, "--output", &format!("{threads}.png")])?;
    }
    assert!(bytes("1.png")? == bytes("2.png")? && bytes("1.png")? == bytes("3.png")?);
    draw(scratch.path(), &["--images", "2", "--output", "both.png"])?;
    draw(scratch.path(), &["--seed", "8", "--output", "next.png"])?;
    assert!(bytes("both.7.png")? == bytes("1.png")?, "the first of two images");
    assert!(bytes("both.8.png")? == bytes("next.png")?, "the second of two images");
    draw(scratch.path(), &["--negative-prompt", "", "--output", "empty.png"])?;
    assert!(bytes("empty.png")? != bytes("1.png")?, "an empty negative prompt is not an absent one");
    Ok(())
}

#[test]
fn parameters_come_back_from_the_image() -> Outcome {
    let scratch = Scratch::new();
    let arguments = ["--negative-prompt", "猫: blurry", "--scheduler", "dpmpp-2m-karras", "--rng", "nvidia"];
    // The default depends on the CPU, and what is not f32 is said.
    let arguments = [&arguments[..], &["--precision", "f32"]].concat();
    draw(scratch.path(), &[&arguments[..], &["-o", "x.png"]].concat())?;
    let printed: Value = serde_json::from_str(&run(scratch.path(), &["metadata", "--json", "x.png"])?)?;
    let settings = json!({
        "Steps": "2", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "3", "Seed": "7",
        "Size": "128x128", "Model": "mixbit demo", "RNG": "NV", "Version": "mixbit 0.1.0",
    });
    assert_eq!(printed, json!({"prompt": PROMPT, "negative_prompt": "猫: blurry", "settings": settings}));
    Ok(())
}

#[test]
fn json_is_one_object_and_nothing_else() -> Outcome {
    let scratch = Scratch::new();
    let long = "red circle ".repeat(60);
    let arguments = ["generate", &long, "--steps", "2", "--seed", "7", "--json", "-o", "x.png"];
    let output = mixbit(scratch.path(), &arguments).output()?;
    let printed: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(printed["images"], json!([{"path": "x.png", "seed": 7}]));
    assert_eq!(printed["steps"], 2);
    let documented = include_str!("../../../docs/command-line.md");
    for field in printed.as_object().ok_or("no object")?.keys() {
        assert!(documented.contains(&format!("| `{field}` |")), "docs/command-line.md lacks `{field}`");
    }
    assert!(printed["seconds_per_step"].as_f64().ok_or("no time")? > 0.0);
    let dropped = printed["dropped_words"].as_array().ok_or("no dropped words")?;
    assert!(dropped.iter().all(|dropped| dropped["words"].as_str().is_some_and(|w| w.contains("circle"))));
    assert_eq!(dropped.len(), 2, "both text encoders cut the prompt");
    assert!(text(&output.stderr).contains("warning: the prompt is too long"));
    Ok(())
}

#[test]
fn every_scheduler_and_random_source_draws() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("schedulers and sources");
    for entry in mixbit_diffusion::scheduler::SCHEDULERS {
        failures.case(entry.name, || {
            draw(scratch.path(), &["--scheduler", entry.name, "--steps", "4", "-o", "x.png"]).map(drop)
        });
    }
    for entry in mixbit_diffusion::random::RANDOM_SOURCES {
        failures.case(entry.name, || draw(scratch.path(), &["--rng", entry.name, "-o", "x.png"]).map(drop));
    }
    for precision in ["f32", "f16"] {
        failures
            .case(precision, || draw(scratch.path(), &["--precision", precision, "-o", "x.png"]).map(drop));
    }
    failures.finish();
}

#[test]
fn help_and_completions_are_there() -> Outcome {
    let scratch = Scratch::new();
    let help = run(scratch.path(), &["generate", "--help"])?;
    for entry in mixbit_diffusion::scheduler::SCHEDULERS {
        assert!(help.contains(entry.name), "{} is not in the help", entry.name);
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(run(scratch.path(), &["completions", shell])?.contains("mixbit"), "{shell}");
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn streams_that_can_not_be_written_to_are_no_panic() -> Outcome {
    use std::fs::{File, OpenOptions};
    let scratch = Scratch::new();
    run(scratch.path(), &["generate", PROMPT, "--steps", "1", "--seed", "7", "-o", "x.png"])?;
    let commands: [&[&str]; 4] = [
        &["generate", PROMPT, "--steps", "1", "-o", "y.png"],
        &["generate", PROMPT, "--steps", "1", "-o", "y.png", "--json"],
        &["metadata", "x.png"],
        &["completions", "bash"],
    ];
    let full = || OpenOptions::new().write(true).open("/dev/full");
    // A pipe that nobody reads any more.
    let gone = || -> std::io::Result<File> {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        Ok(std::os::fd::OwnedFd::from(writer).into())
    };
    let mut failures = Failures::new("streams");
    for arguments in commands {
        failures.case(&format!("{arguments:?}"), || -> Outcome {
            let output = mixbit(scratch.path(), arguments).stdout(full()?).output()?;
            check_refusal(&output, 1, &["standard output"])?;
            let output = mixbit(scratch.path(), arguments).stdout(gone()?).output()?;
            assert!(output.status.success(), "nobody reads: {}", text(&output.stderr));
            for stderr in [full()?, gone()?] {
                let output = mixbit(scratch.path(), arguments).stderr(stderr).output()?;
                assert!(output.status.success() && !output.stdout.is_empty(), "no place for progress");
            }
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}

/// What must be in the one line that an error is.
struct Refusal<'a> {
    arguments: &'a [&'a str],
    code: i32,
    says: &'a [&'a str],
}

impl Refusal<'_> {
    fn check(&self, directory: &Path) -> Outcome {
        let before = names(directory);
        let output = mixbit(directory, self.arguments).output()?;
        check_refusal(&output, self.code, self.says)?;
        match names(directory) == before {
            true => Ok(()),
            false => Err(format!("files are left: {:?}", names(directory)).into()),
        }
    }
}

fn check_refusal(output: &Output, code: i32, says: &[&str]) -> Outcome {
    let error = text(&output.stderr);
    let is_progress =
        |line: &str| ["drawing", "warning: ", "stopping"].iter().any(|begin| line.starts_with(begin));
    let lines: Vec<&str> = error.lines().filter(|line| !line.is_empty() && !is_progress(line)).collect();
    if output.status.code() != Some(code) {
        return Err(format!("exit {:?}: {error}", output.status.code()).into());
    }
    if !lines.last().is_some_and(|line| code == 2 || line.starts_with("error: "))
        || (code == 1 && lines.len() != 1)
    {
        return Err(format!("not one line of error: {error}").into());
    }
    let parts: Vec<&str> = error.trim().split(": ").collect();
    let is_twice = |count| parts.ends_with(&parts[parts.len() - 2 * count..parts.len() - count]);
    if (1..=parts.len() / 2).any(is_twice) {
        return Err(format!("says things twice: {error}").into());
    }
    match says.iter().find(|part| !error.contains(*part)) {
        Some(part) => Err(format!("does not say `{part}`: {error}").into()),
        None => Ok(()),
    }
}

#[test]
fn requests_that_can_not_be_met_are_refused() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("file"), b"text").unwrap();
    let generate = |more: &'static [&'static str]| [&["generate", PROMPT, "--steps", "1"], more].concat();
    let cases: [(&'static [&'static str], i32, &[&str]); 21] = [
        (&["--size", "60x64"], 1, &["width", "multiple of 8", "60"]),
        (&["--size", "64x8200"], 1, &["height", "8192", "8200"]),
        (&["--size", "0x64"], 2, &["--size", "512x768"]),
        (&["--steps", "0"], 1, &["0 steps"]),
        (&["--steps", "1001"], 1, &["1001", "1000"]),
        (&["--scheduler", "eular"], 2, &["eular", "euler"]),
        (&["--rng", "dice"], 2, &["dice", "torch"]),
        (&["--rng", "numpy", "--seed", "4294967296"], 1, &["4294967295", "numpy"]),
        (&["--guidance-scale", "nan"], 1, &["guidance scale", "finite"]),
        (&["--guidance-rescale", "2"], 1, &["guidance rescale", "0 to 1"]),
        (&["--threads", "0"], 2, &["--threads"]),
        (&["--images", "0"], 2, &["--images"]),
        (&["--output", "x.jpg"], 1, &["x.jpg", "PNG"]),
        (&["--output", "file/below"], 1, &["file/below"]),
        (&["--output", "file"], 1, &["file is a file", ".png"]),
        (&["--images", "4294967295", "--size", "60x64"], 1, &["width"]),
        (&["--output", "/proc/x.png"], 1, &["/proc"]),
        (&["--model", "absent"], 1, &["absent"]),
        (&["--model", "file"], 1, &["file", "directory"]),
        (&["--model", "."], 1, &["model_index.json"]),
        (&["--scheduler", "lcm-karras"], 1, &["karras"]),
    ];
    let mut failures = Failures::new("requests");
    for (more, code, says) in cases {
        let mut arguments = generate(more);
        if more[0] == "--steps" {
            arguments.drain(2..4);
        }
        failures.case(&format!("{more:?}"), || {
            Refusal { arguments: &arguments, code, says }.check(scratch.path())
        });
    }
    let files: [(&[&str], &[&str]); 3] = [
        (&["metadata", "absent.png"], &["absent.png"]),
        (&["metadata", "file"], &["file", "PNG"]),
        (&["metadata", "."], &["."]),
    ];
    for (arguments, says) in files {
        let refusal = Refusal { arguments, code: 1, says };
        failures.case(&format!("{arguments:?}"), || refusal.check(scratch.path()));
    }
    failures.finish();
}

/// A way to damage a copy of a tiny model.
type Damage = fn(&Path) -> std::io::Result<()>;

fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> std::io::Result<()> {
    let mut value = serde_json::from_slice(&std::fs::read(path)?)?;
    change(&mut value);
    std::fs::write(path, value.to_string())
}

/// Rewrites the header of a safetensors file.
fn edit_header(path: &Path, change: impl FnOnce(&mut Value)) -> std::io::Result<()> {
    let bytes = std::fs::read(path)?;
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len])?;
    change(&mut header);
    let header = header.to_string().into_bytes();
    let parts = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + len..]];
    std::fs::write(path, parts.concat())
}

/// Makes the last weights of a safetensors file NaN.
fn end_in_nan(path: &Path) -> std::io::Result<()> {
    let mut bytes = std::fs::read(path)?;
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    std::fs::write(path, bytes)
}

fn unet(model: &Path) -> std::path::PathBuf {
    model.join("unet/diffusion_pytorch_model.safetensors")
}

#[test]
fn damaged_models_are_refused_by_name() {
    let cases: [(&str, Damage, &[&str]); 28] = [
        (
            "a component that is a number",
            |m| edit(&m.join("model_index.json"), |i| i["text_encoder"] = json!(3)),
            &["text_encoder", "class"],
        ),
        ("no index", |m| std::fs::remove_file(m.join("model_index.json")), &["model_index.json"]),
        (
            "index is garbage",
            |m| std::fs::write(m.join("model_index.json"), b"{]"),
            &["model_index.json", "JSON"],
        ),
        (
            "index is a list",
            |m| std::fs::write(m.join("model_index.json"), b"[]"),
            &["model_index.json", "object"],
        ),
        (
            "deep index",
            |m| std::fs::write(m.join("model_index.json"), "[".repeat(100_000)),
            &["model_index.json"],
        ),
        ("no unet", |m| std::fs::remove_dir_all(m.join("unet")), &["unet"]),
        ("no weights", |m| std::fs::remove_file(unet(m)), &["unet", "safetensors"]),
        ("no vocabulary", |m| std::fs::remove_dir_all(m.join("tokenizer")), &["tokenizer"]),
        (
            "cut weights",
            |m| std::fs::write(unet(m), &std::fs::read(unet(m))?[..5000]),
            &["diffusion_pytorch_model"],
        ),
        (
            "cut header",
            |m| std::fs::write(unet(m), &std::fs::read(unet(m))?[..20]),
            &["diffusion_pytorch_model"],
        ),
        ("empty weights", |m| std::fs::write(unet(m), b""), &["diffusion_pytorch_model"]),
        (
            "a header of ten gigabytes",
            |m| std::fs::write(unet(m), [&10_000_000_000u64.to_le_bytes()[..], b"{}"].concat()),
            &["diffusion_pytorch_model"],
        ),
        (
            "a tensor of ten gigabytes",
            |m| edit_header(&unet(m), |h| h["conv_in.bias"]["shape"] = json!([5_000_000_000u64])),
            &["conv_in.bias"],
        ),
        (
            "overlapping tensors",
            |m| {
                edit_header(&unet(m), |h| {
                    h["conv_in.bias"]["data_offsets"] = h["conv_out.bias"]["data_offsets"].clone()
                })
            },
            &["diffusion_pytorch_model"],
        ),
        (
            "a missing tensor",
            |m| {
                edit_header(&unet(m), |h| {
                    let map = h.as_object_mut().unwrap();
                    let moved = map.remove("conv_in.bias").unwrap();
                    map.insert("conv_in.other".to_string(), moved);
                })
            },
            &["unet", "conv_in.bias"],
        ),
        (
            "a wrong shape",
            |m| edit(&m.join("unet/config.json"), |c| c["cross_attention_dim"] = json!(64)),
            &["unet", "shape"],
        ),
        (
            "an unknown class",
            |m| edit(&m.join("model_index.json"), |i| i["unet"][1] = json!("Flux")),
            &["Flux", "UNet2DConditionModel"],
        ),
        (
            "an unknown scheduler",
            |m| edit(&m.join("model_index.json"), |i| i["scheduler"][1] = json!("MagicScheduler")),
            &["MagicScheduler", "--scheduler"],
        ),
        (
            "another architecture",
            |m| edit(&m.join("model_index.json"), |i| i["_class_name"] = json!("FluxPipeline")),
            &["FluxPipeline", "FLUX", "Draw Things"],
        ),
        (
            "zero heads",
            |m| edit(&m.join("unet/config.json"), |c| c["attention_head_dim"] = json!(0)),
            &["attention_head_dim"],
        ),
        (
            "odd groups",
            |m| edit(&m.join("unet/config.json"), |c| c["norm_num_groups"] = json!(7)),
            &["norm_num_groups"],
        ),
        (
            "huge channels",
            |m| edit(&m.join("unet/config.json"), |c| c["block_out_channels"] = json!([1u64 << 60, 8])),
            &["block_out_channels"],
        ),
        (
            "a text for a number",
            |m| edit(&m.join("vae/config.json"), |c| c["scaling_factor"] = json!("big")),
            &["vae", "scaling_factor"],
        ),
        (
            "inpainting",
            |m| edit(&m.join("unet/config.json"), |c| c["in_channels"] = json!(9)),
            &["9", "inpainting"],
        ),
        (
            "a tokenizer of another model",
            |m| edit(&m.join("text_encoder/config.json"), |c| c["vocab_size"] = json!(10)),
            &["text_encoder", "ids"],
        ),
        (
            "a vocabulary that is none",
            |m| std::fs::write(m.join("tokenizer/vocab.json"), b"[]"),
            &["tokenizer", "vocab.json"],
        ),
        ("weights that are not numbers", |m| end_in_nan(&unet(m)), &["unet: ", "NaN"]),
        (
            "text that is not numbers",
            |m| end_in_nan(&m.join("text_encoder/model.safetensors")),
            &["text_encoder: ", "NaN"],
        ),
    ];
    let mut failures = Failures::new("damaged models");
    for (name, damage, says) in cases {
        failures.case(name, || -> Outcome {
            let scratch = Scratch::new();
            copy_tree(&fixture_root().join("pipelines/sd15"), &scratch.path().join("model"))?;
            damage(&scratch.path().join("model"))?;
            let arguments = ["generate", PROMPT, "--steps", "1", "--model", "model", "--size", "64x64"];
            Refusal { arguments: &arguments, code: 1, says }.check(scratch.path())
        });
    }
    failures.finish();
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_far_it_got() -> Outcome {
    use std::io::{BufRead, BufReader, Read};
    use std::time::{Duration, Instant};
    let scratch = Scratch::new();
    let arguments = ["generate", PROMPT, "--steps", "1000", "--size", "512x512"];
    let mut child = mixbit(scratch.path(), &arguments).stderr(Stdio::piped()).spawn()?;
    let mut progress = BufReader::new(child.stderr.take().ok_or("no standard error")?);
    let mut stderr = Vec::new();
    progress.read_until(b'\n', &mut stderr)?;
    assert!(text(&stderr).starts_with("warning: the demo model was made for 128x128"), "{}", text(&stderr));
    progress.read_until(b'\n', &mut stderr)?;
    assert!(text(&stderr).contains("\ndrawing: 1/1000 steps"), "{}", text(&stderr));
    let begin = Instant::now();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    progress.read_to_end(&mut stderr)?;
    let output = Output { stderr, ..child.wait_with_output()? };
    assert!(begin.elapsed() < Duration::from_secs(10), "it went on for {:?}", begin.elapsed());
    check_refusal(&output, 1, &["stopped"])?;
    assert_eq!(names(scratch.path()), [""; 0]);
    Ok(())
}
