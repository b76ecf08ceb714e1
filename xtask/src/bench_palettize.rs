//! How long a palettization by a mixed-bit recipe takes, beside coremltools' own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use mixbit_mil::Weights;
use mixbit_packages::recipe::RecipeFile;
use serde_json::{Map, json};

use crate::bench_convert::{build, peak_memory};

/// The palettization may take so long, in seconds.
const MOST_SECONDS: f64 = 60.0;
/// The palettization may take so much memory, in bytes.
const MOST_MEMORY: f64 = 1e9;
/// Smaller layers stay as they are, as in Apple's analysis.
const LEAST_WEIGHTS: usize = 100_000;
/// Bits of the layers, in parts of a hundred; with what stays f16 4.5 on average.
const SHARES: [(u32, u64); 4] = [(2, 30), (4, 42), (6, 16), (8, 12)];
/// Layers that coremltools is timed on too.
const BESIDE: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint, such as `cargo xtask synth sdxl-base DIR` writes
    model: PathBuf,
    /// Where the package is written, and removed again
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
    let layers = seeded(&arguments.model, &recipe)?;
    let target = arguments.scratch.join("package");
    let begin = Instant::now();
    let output = Command::new(&binary)
        .args(["palettize", "--part", "unet", "--select", "seeded", "--model"])
        .args([&arguments.model, Path::new("--recipe"), &recipe, Path::new("--output"), &target])
        .output()
        .context("mixbit can't be run")?;
    let seconds = begin.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{said}");
    }
    let memory = peak_memory(&said)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    println!(
        "{} layers in {seconds:.1} s (at most {MOST_SECONDS:.0}), peak memory {:.0} MB (at most {:.0})",
        layers.len(),
        memory / 1e6,
        MOST_MEMORY / 1e6
    );
    if let Some(python) = &arguments.python {
        beside(python, &arguments.model, &layers)?;
    }
    fs::remove_dir_all(&arguments.scratch)?;
    if seconds > MOST_SECONDS || memory > MOST_MEMORY {
        bail!("the palettization is too slow or takes too much memory");
    }
    Ok(())
}

/// Writes a recipe of random bits, always the same, and gives its layers.
fn seeded(model: &Path, path: &Path) -> anyhow::Result<Vec<(String, u32)>> {
    let weights = mixbit_formats::Diffusers::open(model)?.weights("unet", None)?;
    let mut state = 93u64;
    let mut layers = Vec::new();
    for name in weights.names() {
        let Some(layer) = name.strip_suffix(".weight") else { continue };
        let Some(weight) = weights.get(name) else { continue };
        if weight.ty().rank() < 2 || weight.ty().count() <= LEAST_WEIGHTS {
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

/// Times coremltools' palettes of the first layers, one process, one layer after the other.
fn beside(python: &Path, model: &Path, layers: &[(String, u32)]) -> anyhow::Result<()> {
    let asked: Map<_, _> =
        layers.iter().take(BESIDE).map(|(layer, bits)| (format!("{layer}.weight"), json!(bits))).collect();
    let status = Command::new(python)
        .arg(crate::repository().join("xtask/python/palettize_beside.py"))
        .args([&model.join("unet"), Path::new(&json!(asked).to_string())])
        .status()
        .context("Python can't be run")?;
    if status.success() { Ok(()) } else { bail!("coremltools' palettes failed") }
}
