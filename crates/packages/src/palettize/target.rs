//! Packages that are to be palettized: read from files, or made of a checkpoint.

use std::path::{Path, PathBuf};

use mixbit_compress::Layer;
use mixbit_diffusion::model::{ModelError, ModelFiles};
use mixbit_formats::{coreml, map_file};
use thiserror::Error;

use super::owner::Owner;
use super::{PalettizeError, model_layers};
use crate::bundle::entries;
use crate::error::OpenError;
use crate::existing::SideFile;
use crate::package::{
    ConversionOptions, ConversionSource, PACKAGE_KINDS, Package, PackageError, PackageKind, PlanError,
    VocabularyError, is_package, plan, vocabulary,
};

/// The packages to be written, and the files beside them.
pub struct Targets {
    pub(super) packages: Vec<Target>,
    pub(super) files: Vec<SideFile>,
    /// The directories to be made: the output, which the user named, and those inside it.
    pub(super) output: PathBuf,
    pub(super) folders: Vec<PathBuf>,
    /// True if they are the packages of a model, not one by itself.
    pub(super) is_model: bool,
    /// The model, if it is known.
    pub(super) owner: Option<Owner>,
}

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
    /// True if it is made of a package, false if of a checkpoint.
    pub(super) is_of_package: bool,
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
    /// A model whose files can't be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model whose vocabulary can't be given.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A directory that can't be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file that can't be read.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

impl Targets {
    /// Reads a package that is written to `output`, or into it if it is a directory. No weight is read.
    ///
    /// # Errors
    /// [`TargetError`], if the package can't be read or is the output.
    pub fn of_package(path: &Path, output: &Path) -> Result<Self, TargetError> {
        let name = path.file_name().unwrap_or_default();
        let output = match is_package(output) {
            // The user's own path: a link is followed.
            true => output.canonicalize().unwrap_or_else(|_| output.to_path_buf()),
            false => output.join(name),
        };
        let directory = output.parent().unwrap_or(Path::new("")).to_path_buf();
        let packages = vec![Target::read(path, output)?];
        let kinds = PACKAGE_KINDS.iter().map(|kind| kind.name).collect();
        let owner = owner(&packages, kinds);
        let (files, folders) = (Vec::new(), Vec::new());
        Ok(Targets { packages, files, output: directory, folders, is_model: false, owner })
    }

    /// Reads the packages of a directory, of the asked parts or all. The other files are copied. No weight is
    /// read.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn of_bundle(directory: &Path, output: &Path, parts: &[&str]) -> Result<Self, TargetError> {
        let (mut packages, mut files, mut folders) = (Vec::new(), Vec::new(), Vec::new());
        let mut kinds = Vec::new();
        for folder in ["", "controlnet"] {
            let path = directory.join(folder);
            if !path.is_dir() {
                continue;
            }
            if !folder.is_empty() {
                folders.push(output.join(folder));
            }
            let mut paths = entries(&path)?;
            paths.sort();
            for path in paths.iter().filter(|path| !is_hidden(path)) {
                let output = output.join(folder).join(path.file_name().unwrap_or_default());
                kinds.extend(PackageKind::of_stem(&stem(path)).map(|kind| kind.name));
                if is_package(path) && is_asked(path, parts) {
                    packages.push(Target::read(path, output)?);
                } else if path.is_file() && !is_package(path) {
                    files.push(SideFile { path: output, content: map_file(path)?.to_vec() });
                }
            }
        }
        let owner = owner(&packages, kinds);
        Ok(Targets { packages, files, output: output.to_path_buf(), folders, is_model: true, owner })
    }

    /// Makes the packages of a checkpoint, and its vocabulary. Only samples of the weights are read.
    ///
    /// # Errors
    /// [`TargetError`], if the checkpoint can't be converted as asked.
    pub fn of_checkpoint(
        name: &str,
        files: &dyn ModelFiles,
        options: &ConversionOptions,
        output: &Path,
    ) -> Result<Self, TargetError> {
        let packages = plan(&ConversionSource::of(files), options)
            .map_err(|cause| TargetError::Plan { model: name.to_string(), cause: Box::new(cause) })?;
        Self::of_plan(&packages, files, &options.model_version, output)
    }

    /// The packages of a plan, and the vocabulary of its model, which is called `version`.
    /// Only samples of the weights are read.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn of_plan(
        packages: &[Package],
        files: &dyn ModelFiles,
        version: &str,
        output: &Path,
    ) -> Result<Self, TargetError> {
        let vocabulary = vocabulary(files)?
            .into_iter()
            .map(|(name, text)| SideFile { path: output.join(name), content: text.into_bytes() });
        let target = |package: &Package| Target::of(package.path(output), package.model()?, false);
        Ok(Targets {
            packages: packages.iter().map(target).collect::<Result<_, _>>()?,
            files: vocabulary.collect(),
            output: output.to_path_buf(),
            folders: Vec::new(),
            is_model: true,
            owner: Some(Owner::of_files(version, files).map_err(ModelError::File)?),
        })
    }
}

/// The model of packages that are read; `kinds` are those that it has.
fn owner(packages: &[Target], kinds: Vec<&'static str>) -> Option<Owner> {
    Owner::of_packages(packages.iter().map(|target| (target.kind, &target.model.metadata)), kinds)
}

impl Target {
    fn read(path: &Path, output: PathBuf) -> Result<Self, TargetError> {
        if let (Ok(source), Ok(target)) = (path.canonicalize(), output.canonicalize())
            && source == target
        {
            return Err(TargetError::Input { path: output });
        }
        Self::of(output, coreml::read(path)?, true)
    }

    fn of(path: PathBuf, model: coreml::Model, is_of_package: bool) -> Result<Self, TargetError> {
        let source = stem(&path);
        let layers = model_layers(&model)
            .map_err(|cause| TargetError::Layers { path: path.clone(), cause: Box::new(cause) })?;
        Ok(Target { kind: PackageKind::of_stem(&source), source, path, layers, model, is_of_package })
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
