//! Models with random weights, in a cache directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mixbit_app::source::open_checkpoint;
use mixbit_app::synthetic::Skeleton;
use mixbit_compress::{Scheme, Width};
use mixbit_diffusion::family::Family;
use mixbit_engine::Cancel;
use mixbit_formats::make_subdirectory;
use mixbit_mil::DType;
use mixbit_packages::package::{ConversionOptions, DeploymentTarget};
use mixbit_packages::palettize::{Job, JobError, PlanSource, Targets};
use mixbit_packages::source::OpenOptions;

use super::super::palettize::{Shown, place};
use super::super::progress::Progress;
use super::super::table::byte_size;

/// The weight seed. Other seeds give other weights with the same run time.
const SEED: u64 = 0;

/// The component that image generation does not need.
const NOT_DRAWN_WITH: &str = "safety_checker";

/// The components that image generation needs.
const DRAWN_WITH: [&str; 3] = ["text_encoder", "unet", "vae_decoder"];

/// The cache's directory where none is named.
pub(in crate::cli) fn default_directory() -> PathBuf {
    std::env::temp_dir().join("mixbit-bench")
}

/// A directory of synthetic models for benchmarks.
pub(super) struct Cache<'a> {
    directory: PathBuf,
    /// True if the user did not name the directory: it must not lead elsewhere.
    is_default: bool,
    cancel: &'a Cancel,
    progress: &'a Progress,
}

impl<'a> Cache<'a> {
    /// The cache in a directory, by default in the system's temporary one.
    pub(super) fn new(directory: Option<&Path>, cancel: &'a Cancel, progress: &'a Progress) -> Self {
        let is_default = directory.is_none();
        let directory = directory.map_or_else(default_directory, Path::to_path_buf);
        Cache { directory, is_default, cancel, progress }
    }

    /// The directory of a model, written if absent.
    ///
    /// # Errors
    /// If it cannot be written, or the user stops the writing.
    pub(super) fn model(&self, name: &str, nbits: Option<Width>) -> anyhow::Result<PathBuf> {
        if self.is_default {
            make_subdirectory(&self.directory)?;
        }
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
        let family = Family::of_name(name).context("the model is unknown")?;
        let skeleton = Skeleton::of_family(family)?.without(NOT_DRAWN_WITH);
        let bytes = DType::F16.bits() / 8 * skeleton.parameters();
        self.progress.say(format_args!(
            "writing {} of random weights to {}",
            byte_size(bytes),
            directory.display()
        ));
        let counter = self.progress.bytes(name);
        let written = skeleton.write(&directory, SEED, DType::F16, &counter);
        self.check_cancelled()?;
        written.with_context(|| {
            format!("{} can't be written; --cache names another directory", directory.display())
        })?;
        Ok(directory)
    }

    /// Packages with the layers of a checkpoint in palettes; existing packages are kept.
    fn packages(&self, checkpoint: &Path, name: &str, width: Width) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(format!("{name}-{}-bit", width.bits()));
        let model = open_checkpoint(Some(checkpoint), &OpenOptions::default())?;
        let source = PlanSource::uniform(Scheme::palette(width));
        let options = ConversionOptions {
            parts: DRAWN_WITH.to_vec(),
            model_version: name.to_string(),
            target: source.target(<&DeploymentTarget>::default()),
            ..ConversionOptions::default()
        };
        let (job, _) = Job::new(Targets::of_checkpoint(name, model.files(), &options, &directory)?, &source)?;
        // The cache is mixbit's own: what another version left there is replaced.
        let is_other = match job.begin(false) {
            Err(JobError::Exists(_)) => true,
            begun => begun.map(|_| false)?,
        };
        if is_other {
            job.begin(true)?;
        }
        let shown = Shown { progress: self.progress, cancel: self.cancel };
        for (index, target) in job.targets().iter().enumerate() {
            let written = job.write(index, is_other, &|phase| {
                shown.phase(phase, target, &place(index, job.targets().len(), target))
            });
            self.check_cancelled()?;
            written?;
        }
        Ok(directory)
    }

    fn check_cancelled(&self) -> anyhow::Result<()> {
        if self.cancel.is_cancelled() {
            bail!("stopped; nothing is reported");
        }
        Ok(())
    }
}
