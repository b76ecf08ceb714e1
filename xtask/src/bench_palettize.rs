//! The time of a palettization by a mixed-bit recipe, beside that of coremltools' palettes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use mixbit_mil::Weights;
use mixbit_packages::recipe::RecipeFile;
use serde_json::{Map, json};

use crate::bench_convert::{build, peak_memory};

/// The longest time of the palettization, in seconds.
const MAX_SECONDS: f64 = 60.0;
/// The largest peak memory of the palettization, in bytes.
const MAX_MEMORY: f64 = 1e9;
/// Layers of at most this many weights stay unchanged, as in Apple's analysis.
const MIN_SIZE: usize = 100_000;
/// The share of layers with each width, in percent: 4.5 bits on average with the unchanged layers.
const SHARES: [(u32, u64); 4] = [(2, 30), (4, 42), (6, 16), (8, 12)];
/// The number of layers that coremltools is timed on too.
const COREMLTOOLS_LAYERS: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint, such as `cargo xtask synth sdxl-base DIR` writes
    model: PathBuf,
    /// A temporary folder for the package
    #[arg(long, default_value = "target/bench-palettize")]
    scratch: PathBuf,
    /// A Python that has coremltools, to time its palettes of some of the same layers
    #[arg(long)]
    python: Option<PathBuf>,
}

/// Palettizes the UNet of a checkpoint by a seeded recipe, and prints time and memory.
///
/// # Errors
/// If it takes more than 60 s or more than 1 GB.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binary = build()?;
    fs::create_dir_all(&arguments.scratch)?;
    let recipe = arguments.scratch.join("recipe.json");
    let layers = write_recipe(&arguments.model, &recipe)?;
    let target = arguments.scratch.join("package");
    let begin = Instant::now();
    let output = Command::new(&binary)
        .args(["palettize", "--part", "unet", "--select", "seeded", "--model"])
        .args([&arguments.model, Path::new("--recipe"), &recipe, Path::new("--output"), &target])
        .output()
        .context("mixbit can't be run")?;
    let seconds = begin.elapsed().as_secs_f64();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{messages}");
    }
    let memory = peak_memory(&messages)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    println!(
        "{} layers in {seconds:.1} s (at most {MAX_SECONDS:.0}), peak memory {:.0} MB (at most {:.0})",
        layers.len(),
        memory / 1e6,
        MAX_MEMORY / 1e6
    );
    if let Some(python) = &arguments.python {
        time_coremltools(python, &arguments.model, &layers)?;
    }
    fs::remove_dir_all(&arguments.scratch)?;
    if seconds > MAX_SECONDS || memory > MAX_MEMORY {
        bail!("the palettization is too slow or takes too much memory");
    }
    Ok(())
}

/// Writes a recipe of seeded random bits and returns its layers.
fn write_recipe(model: &Path, path: &Path) -> anyhow::Result<Vec<(String, u32)>> {
    let weights = mixbit_formats::Diffusers::open(model)?.weights("unet", None)?;
    let mut state = 93u64;
    let mut layers = Vec::new();
    for name in weights.names() {
        let Some(layer) = name.strip_suffix(".weight") else { continue };
        let Some(weight) = weights.get(name) else { continue };
        if weight.ty().rank() < 2 || weight.ty().count() <= MIN_SIZE {
            continue;
        }
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut place = (state >> 33) % 100;
        let bits = SHARES.iter().find(|(_, share)| {
            let is_here = place < *share;
            place = place.saturating_sub(*share);
            is_here
        });
        layers.push((layer.to_string(), bits.map_or(8, |(bits, _)| *bits)));
    }
    let recipe: Map<_, _> = layers.iter().map(|(layer, bits)| (layer.clone(), json!(bits))).collect();
    let file = json!({"model_version": "synthetic", "recipes": {"seeded": recipe}}).to_string();
    RecipeFile::parse(&file)?.write(path)?;
    Ok(layers)
}

/// Times coremltools' palettes of the first layers, in one process, one layer after the other.
fn time_coremltools(python: &Path, model: &Path, layers: &[(String, u32)]) -> anyhow::Result<()> {
    let requested: Map<_, _> = layers
        .iter()
        .take(COREMLTOOLS_LAYERS)
        .map(|(layer, bits)| (format!("{layer}.weight"), json!(bits)))
        .collect();
    let status = Command::new(python)
        .arg(crate::repository().join("xtask/python/palettize_beside.py"))
        .args([&model.join("unet"), Path::new(&json!(requested).to_string())])
        .status()
        .context("Python can't be run")?;
    if status.success() { Ok(()) } else { bail!("coremltools' palettes failed") }
}
