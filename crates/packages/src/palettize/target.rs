//! Packages that are to be palettized: read from files, or made of a checkpoint.

use std::io::Write;
use std::path::{Path, PathBuf};

use mixbit_compress::Layer;
use mixbit_diffusion::model::ModelFiles;
use mixbit_formats::{coreml, make_directory, map_file, write_atomically};
use thiserror::Error;

use super::{PalettizeError, model_layers};
use crate::bundle::entries;
use crate::error::OpenError;
use crate::package::{
    ConversionOptions, ConversionSource, PackageError, PackageKind, PlanError, VocabularyError, is_package,
    plan, write_vocabulary,
};

/// One package to be written.
pub struct Target {
    /// The package's name before, without extension.
    pub source: String,
    /// The path to write to.
    pub path: PathBuf,
    /// The kind, whole or a chunk; unknown for a package under another name.
    pub kind: Option<&'static PackageKind>,
    pub(super) model: coreml::Model,
    pub(super) layers: Vec<Layer>,
}

/// A package that can't be read or made.
#[derive(Debug, Error)]
pub enum TargetError {
    /// An output that is the input.
    #[error("{} is what is read: choose another output", path.display())]
    Input {
        /// The path.
        path: PathBuf,
    },
    /// A package whose layers can't be found.
    #[error("{}: {cause}", path.display())]
    Layers {
        /// The package.
        path: PathBuf,
        /// The reason.
        cause: Box<PalettizeError>,
    },
    /// A checkpoint that can't be converted.
    #[error("{model}: {cause}")]
    Plan {
        /// The model's name.
        model: String,
        /// The reason.
        cause: Box<PlanError>,
    },
    /// A package of a checkpoint that can't be made.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A vocabulary that can't be written.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A directory that can't be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file that can't be read or written, or a directory that can't be made.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

impl Target {
    /// Reads a package that is written to `output`, or into it if it is a directory. No weight is read.
    ///
    /// # Errors
    /// [`TargetError`], if the package can't be read or is the output.
    pub fn of_package(path: &Path, output: &Path) -> Result<Self, TargetError> {
        let name = path.file_name().unwrap_or_default();
        let output = if is_package(output) { output.to_path_buf() } else { output.join(name) };
        make_directory(output.parent().unwrap_or(Path::new("")))?;
        Self::read(path, output)
    }

    /// Reads the packages of a directory, of the asked parts or all. The other files are copied. No weight is
    /// read.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn of_bundle(directory: &Path, output: &Path, parts: &[&str]) -> Result<Vec<Self>, TargetError> {
        make_directory(output)?;
        let mut targets = Vec::new();
        for folder in ["", "controlnet"] {
            let path = directory.join(folder);
            if !path.is_dir() {
                continue;
            }
            let mut paths = entries(&path)?;
            paths.sort();
            for path in paths.iter().filter(|path| !is_hidden(path)) {
                let output = output.join(folder).join(path.file_name().unwrap_or_default());
                if is_package(path) && is_asked(path, parts) {
                    make_directory(output.parent().unwrap_or(Path::new("")))?;
                    targets.push(Self::read(path, output)?);
                } else if path.is_file() && !is_package(path) {
                    let bytes = map_file(path)?;
                    write_atomically(&output, |file| file.write_all(&bytes))?;
                }
            }
        }
        Ok(targets)
    }

    /// Makes the packages of a checkpoint; its vocabulary is written. No weight is read.
    ///
    /// # Errors
    /// [`TargetError`], if the checkpoint can't be converted as asked.
    pub fn of_checkpoint(
        name: &str,
        files: &dyn ModelFiles,
        options: &ConversionOptions,
        output: &Path,
    ) -> Result<Vec<Self>, TargetError> {
        let packages = plan(&ConversionSource::of(files), options)
            .map_err(|cause| TargetError::Plan { model: name.to_string(), cause: Box::new(cause) })?;
        make_directory(output)?;
        write_vocabulary(files, output)?;
        packages.iter().map(|package| Self::of(package.path(output), package.model()?)).collect()
    }

    fn read(path: &Path, output: PathBuf) -> Result<Self, TargetError> {
        if let (Ok(source), Ok(target)) = (path.canonicalize(), output.canonicalize())
            && source == target
        {
            return Err(TargetError::Input { path: output });
        }
        Self::of(output, coreml::read(path)?)
    }

    fn of(path: PathBuf, model: coreml::Model) -> Result<Self, TargetError> {
        let source = stem(&path);
        let layers = model_layers(&model)
            .map_err(|cause| TargetError::Layers { path: path.clone(), cause: Box::new(cause) })?;
        Ok(Target { kind: PackageKind::of_stem(&source), source, path, layers, model })
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_asked(path: &Path, parts: &[&str]) -> bool {
    parts.is_empty() || PackageKind::of_stem(&stem(path)).is_some_and(|kind| parts.contains(&kind.asked_as))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
