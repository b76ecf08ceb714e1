//! Models with random weights, in a cache directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use mixbit_compress::{Scheme, Width};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_formats::coreml;
use mixbit_mil::{DType, Stopped, Unit};

use super::super::palettize::{Notes, is_for_all, palettized};
use super::super::progress::{Counter, Progress};
use mixbit_app::synthetic::PublishedModel;
use mixbit_packages::inspect::size;
use mixbit_packages::package::{DEPLOYMENT_TARGETS, Options, Source, plan, write_vocabulary};
use mixbit_packages::palettize::{MIN_SIZE, model_layers, uniform};
use mixbit_packages::source::DiffusersModel;

/// Other seeds give other weights, which take the same time.
const SEED: u64 = 0;

/// What is not needed to draw.
const NOT_DRAWN_WITH: &str = "safety_checker";

/// The parts of a model that draw, as they are asked for.
const DRAWN_WITH: [&str; 3] = ["text_encoder", "unet", "vae_decoder"];

/// A count that the user can stop.
struct Stoppable<'a> {
    counter: Counter,
    stop: &'a AtomicBool,
}

impl mixbit_mil::Progress for Stoppable<'_> {
    fn advance(&self, done: u64, total: u64, _: Unit) -> Result<(), Stopped> {
        self.counter.advance_bytes(done, total);
        if self.stop.load(Ordering::SeqCst) { Err(Stopped) } else { Ok(()) }
    }
}

/// A directory of models that were made for measuring.
pub(super) struct Cache<'a> {
    directory: PathBuf,
    stop: &'a Arc<AtomicBool>,
    progress: &'a Progress,
}

impl<'a> Cache<'a> {
    /// The cache in a directory, or in the system's temporary one.
    pub(super) fn new(directory: Option<&Path>, stop: &'a Arc<AtomicBool>, progress: &'a Progress) -> Self {
        let default = || std::env::temp_dir().join("mixbit-bench");
        Cache { directory: directory.map_or_else(default, Path::to_path_buf), stop, progress }
    }

    /// The directory of a model, which is written unless it is there.
    ///
    /// # Errors
    /// If it can't be written, or the user stops that.
    pub(super) fn model(&self, name: &str, nbits: Option<Width>) -> anyhow::Result<PathBuf> {
        let checkpoint = self.checkpoint(name)?;
        match nbits {
            Some(width) => self.packages(&checkpoint, name, width),
            None => Ok(checkpoint),
        }
    }

    fn checkpoint(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(name);
        if directory.join("model_index.json").is_file() {
            return Ok(directory);
        }
        let model = PublishedModel::of_name(name).context("the model is unknown")?;
        let skeleton = model.skeleton()?.without(NOT_DRAWN_WITH);
        let bytes = DType::F16.bits() / 8 * skeleton.parameters();
        self.progress.say(format_args!(
            "writing {} of random weights to {}",
            size(bytes),
            directory.display()
        ));
        let counter = Stoppable { counter: self.progress.bytes(name.to_string()), stop: self.stop };
        let written = skeleton.write(&directory, SEED, DType::F16, &counter);
        self.check_stop()?;
        written.with_context(|| {
            format!("{} can't be written; --cache names another directory", directory.display())
        })?;
        Ok(directory)
    }

    /// Packages with the layers of a checkpoint in palettes; those that are there stay.
    fn packages(&self, checkpoint: &Path, name: &str, width: Width) -> anyhow::Result<PathBuf> {
        let scheme = Scheme::palette(width);
        let directory = self.directory.join(format!("{name}-{}-bit", width.bits()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("the directory {} can't be made", directory.display()))?;
        let model = DiffusersModel::open(checkpoint, None)?;
        let target = DEPLOYMENT_TARGETS.iter().find(|target| target.opset >= scheme.since());
        let options = Options {
            parts: DRAWN_WITH.to_vec(),
            model_version: name.to_string(),
            latent: None,
            batch_one: false,
            attention: AttentionImplementation::default(),
            chunk_unet: false,
            control_unet: false,
            target: target.context("no system has palettes of so many bits")?,
        };
        let source = Source { model: &model, refiner: None, vae: None, controlnets: Vec::new() };
        write_vocabulary(&model, &directory)?;
        for package in plan(&source, &options)? {
            let path = package.path(&directory);
            if path.exists() {
                continue;
            }
            self.check_stop()?;
            let mut model = package.model()?;
            if is_for_all(package.asked_as) {
                let choices = uniform(&model_layers(&model)?, scheme, MIN_SIZE);
                let notes = Notes { how: scheme.to_string(), full_precision: Vec::new() };
                model = palettized(&model, &choices, &notes, false, self.progress, package.asked_as)?.model;
            }
            coreml::write_package(&path, &model, &self.progress.bytes(package.asked_as.to_string()))?;
        }
        Ok(directory)
    }

    fn check_stop(&self) -> anyhow::Result<()> {
        if self.stop.load(Ordering::SeqCst) {
            bail!("stopped; nothing is reported");
        }
        Ok(())
    }
}
