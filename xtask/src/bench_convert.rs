//! The time of a conversion, beside that of a copy of the same file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::repository;
use crate::statistics::median;

/// The largest ratio of the conversion's time to the copy's.
const MAX_RATIO: f64 = 1.5;
/// The largest peak memory of the conversion, in bytes.
const MAX_MEMORY: f64 = 500e6;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint, such as `cargo xtask synth sdxl-base DIR` writes
    model: PathBuf,
    /// A temporary folder for copies and packages
    #[arg(long, default_value = "target/bench-convert")]
    scratch: PathBuf,
    /// Pairs of a copy and a conversion, compared by their medians
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Converts the UNet of a checkpoint and copies its weights in turn, and prints times, their ratio and the
/// memory.
///
/// # Errors
/// If the conversion takes more than 1.5 times as long as the copy, or more than 500 MB.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = build()?;
    let weights = weights(&arguments.model.join("unet"))?;
    let bytes: u64 = weights.iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum();
    fs::create_dir_all(&arguments.scratch)?;
    let (mut copies, mut conversions, mut memory) = (Vec::new(), Vec::new(), 0.0f64);
    for run in 0..arguments.runs.max(1) {
        let copied = copy(&weights, &arguments.scratch)?;
        let (converted, peak) = convert(&binary, &arguments.model, &arguments.scratch)?;
        println!(
            "run {}: copy {:.2} s, conversion {:.2} s",
            run + 1,
            copied.as_secs_f64(),
            converted.as_secs_f64()
        );
        copies.push(copied.as_secs_f64());
        conversions.push(converted.as_secs_f64());
        memory = memory.max(peak);
    }
    fs::remove_dir_all(&arguments.scratch)?;
    let (copy, conversion) = (median(&copies), median(&conversions));
    let ratio = conversion / copy;
    println!(
        "{:.2} GB: copy and sync {copy:.2} s, conversion {conversion:.2} s, ratio {ratio:.2} (at most {MAX_RATIO}), \
         peak memory {:.0} MB (at most {:.0})",
        bytes as f64 / 1e9,
        memory / 1e6,
        MAX_MEMORY / 1e6
    );
    if ratio > MAX_RATIO || memory > MAX_MEMORY {
        bail!("the conversion is too slow or takes too much memory");
    }
    Ok(())
}

/// The release binary.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["build", "--release", "-p", "mixbit", "--message-format=json-render-diagnostics"])
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be run")?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.filter(|_| output.status.success()).context("the binary was not built")
}

fn weights(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} can't be listed", folder.display()))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect();
    if found.is_empty() {
        bail!("{} has no weights: write some with `cargo xtask synth sdxl-base DIR`", folder.display());
    }
    Ok(found)
}

/// Copies files and waits until they are on the disk.
fn copy(files: &[PathBuf], to: &Path) -> anyhow::Result<Duration> {
    let target = to.join("copy.bin");
    let begin = Instant::now();
    let mut out = File::create(&target)?;
    for file in files {
        io::copy(&mut File::open(file)?, &mut out)?;
    }
    out.sync_all()?;
    let time = begin.elapsed();
    drop(out);
    fs::remove_file(&target)?;
    Ok(time)
}

/// Converts the UNet; the time, and the peak memory in bytes.
fn convert(binary: &Path, model: &Path, to: &Path) -> anyhow::Result<(Duration, f64)> {
    let target = to.join("packages");
    let begin = Instant::now();
    let output = Command::new(binary)
        .args(["convert", "--convert-unet", "--model"])
        .arg(model)
        .arg("--output")
        .arg(&target)
        .output()
        .context("mixbit can't be run")?;
    let time = begin.elapsed();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{messages}");
    }
    fs::remove_dir_all(&target)?;
    Ok((time, peak_memory(&messages)?))
}

/// The peak memory in bytes in a command's messages.
pub(crate) fn peak_memory(messages: &str) -> anyhow::Result<f64> {
    let megabytes = messages.rsplit_once("peak memory ").and_then(|(_, rest)| rest.split(' ').next());
    let megabytes: f64 = megabytes
        .and_then(|text| text.trim().parse().ok())
        .context("mixbit did not print its peak memory")?;
    Ok(megabytes * 1e6)
}
