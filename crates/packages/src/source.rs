//! Models on disk: the formats that are read, and the search for the one of a path.

mod choices;
mod diffusers;
mod embeddings;
mod loras;
pub(crate) mod single_file;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use mixbit_diffusion::adapter::Merged;
use mixbit_diffusion::model::{DiffusionModel, ModelError, ModelFiles};

pub use diffusers::{Component, DiffusersModel};
pub use embeddings::{AddedEmbedding, EmbeddingFile, EmbeddingOptions};
pub use loras::{AppliedLora, Lora};
pub use single_file::controlnet;

use crate::assumption::Assumption;
use crate::bundle::{Bundle, entries};
use crate::error::OpenError;
use crate::package::is_package;

/// A format of models.
pub struct Source {
    /// The format's name, for messages.
    pub name: &'static str,
    /// True if its weights are a checkpoint's: these can be converted.
    pub is_checkpoint: bool,
    /// Opens a path of this format; without a path, the model that is built in. Declines others.
    ///
    /// # Errors
    /// If the path is of this format and can't be opened.
    pub probe: fn(Option<&Path>, &OpenOptions) -> Result<Probe, OpenError>,
}

/// The answer of a [`Source`].
pub enum Probe {
    /// The path is of this format.
    Found(OpenedModel),
    /// It is not, for this reason.
    Declined(String),
    /// The source is not for requests of this kind: with a path, or without.
    Skipped,
}

/// Choices among the files of a model.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The variant of the weights, as in diffusers: `fp16` takes `diffusion_pytorch_model.fp16.safetensors`.
    pub variant: Option<String>,
    /// The prediction type, by its name in
    /// [`PREDICTION_TYPES`](mixbit_diffusion::scheduler::PREDICTION_TYPES); the model's own if absent.
    pub prediction_type: Option<String>,
    /// True if the UNet was trained to noise alone at the last timestep (zero terminal SNR).
    pub rescale_zero_snr: bool,
    /// A directory in the diffusers layout whose configurations a single file has.
    pub config: Option<PathBuf>,
    /// A model from which networks come that a single file lacks.
    pub base: Option<PathBuf>,
    /// True if the running averages of a single file's UNet are meant.
    pub use_ema: bool,
    /// Another autoencoder: a file, a component's directory or a model.
    pub vae: Option<PathBuf>,
    /// Adapters that are added to the weights, in order.
    pub loras: Vec<Lora>,
    /// Textual inversions to add to the tokenizers and text encoders.
    pub embeddings: EmbeddingOptions,
}

impl OpenOptions {
    /// The options that only single files have, by their names on command lines.
    pub(crate) fn of_single_files(&self) -> Option<&'static str> {
        let given = [
            (self.config.is_some(), "--config"),
            (self.base.is_some(), "--base"),
            (self.use_ema, "--use-ema"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }

    /// Checks that no option is given that packages can't follow.
    ///
    /// # Errors
    /// [`OpenError::Package`] with the first such option.
    pub fn check_for_packages(&self, path: &Path) -> Result<(), OpenError> {
        let given = [
            (self.vae.is_some(), "--vae"),
            (self.rescale_zero_snr, "--rescale-zero-snr"),
            (!self.embeddings.files.is_empty(), "--embedding"),
            (!self.embeddings.folders.is_empty(), "--embedding-dir"),
        ];
        let refused = given.into_iter().find(|(is_given, _)| *is_given);
        refused.map_or(Ok(()), |(_, option)| {
            Err(OpenError::Package {
                path: path.to_path_buf(),
                what: format!(
                    "{option} is for checkpoints, and these are packages: convert the checkpoint with it"
                ),
            })
        })
    }

    /// True if some of a model's files are replaced.
    fn replace_files(&self) -> bool {
        self.prediction_type.is_some() || self.rescale_zero_snr || self.vae.is_some()
    }
}

/// The sources that need neither downloads nor data of the program, in the order in which they are tried.
pub static SOURCES: [&Source; 3] = [&CORE_ML, &SINGLE_FILE, &DIFFUSERS];

/// Directories of Core ML packages.
pub static CORE_ML: Source = Source { name: "Core ML packages", is_checkpoint: false, probe: probe_core_ml };

/// Files in the original layouts.
pub static SINGLE_FILE: Source =
    Source { name: "a single file", is_checkpoint: true, probe: single_file::probe };

/// Directories in the diffusers layout, and the Hugging Face client's.
pub static DIFFUSERS: Source =
    Source { name: "the diffusers layout", is_checkpoint: true, probe: probe_diffusers };

/// A model that was found. Its configurations and weights are not read yet.
pub struct OpenedModel {
    name: String,
    content: Content,
    opening: Opening,
    prediction_type: Option<String>,
    /// True if its files are packages.
    is_packaged: bool,
}

/// The findings and additions of opening a model, for people.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// The kind of model, where its tensors tell: its family, and the prediction of its UNet.
    pub kind: Option<String>,
    /// The adapters that were added, and how they fit.
    pub loras: Vec<AppliedLora>,
    /// The textual inversions that were added.
    pub embeddings: Vec<AddedEmbedding>,
    /// The files of options that were passed over, and why.
    pub warnings: Vec<String>,
}

enum Content {
    Files(Box<dyn ModelFiles>),
    /// Files with adapters added to their weights.
    Merged(Box<Merged>),
    Packages(Bundle),
}

impl OpenedModel {
    /// A model of files, with its name for people.
    pub fn new(name: impl Into<String>, files: impl ModelFiles + 'static) -> Self {
        OpenedModel::of(name, Content::Files(Box::new(files)))
    }

    fn of(name: impl Into<String>, content: Content) -> Self {
        OpenedModel {
            name: name.into(),
            content,
            opening: Opening::default(),
            prediction_type: None,
            is_packaged: false,
        }
    }

    /// The same model with its kind, in words.
    pub(crate) fn with_kind(mut self, kind: String) -> Self {
        self.opening.kind = Some(kind);
        self
    }

    /// The findings and additions of opening it.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Bytes of compressed weights that adapters make the model hold uncompressed.
    ///
    /// # Errors
    /// [`OpenError`] if weights can't be read.
    pub fn unpacked_bytes(&self) -> Result<usize, OpenError> {
        let Content::Merged(files) = &self.content else { return Ok(0) };
        let path = self.opening.loras.first().map(|lora| lora.path.clone()).unwrap_or_default();
        files.unpacked_bytes().map_err(|source| OpenError::Adapter { path, source: Box::new(source) })
    }

    /// The model's files, to build another model of.
    ///
    /// # Errors
    /// If they are packages.
    pub(crate) fn into_files(self) -> Result<Box<dyn ModelFiles>, OpenError> {
        match self.content {
            Content::Files(files) => Ok(files),
            Content::Merged(files) => Ok(files),
            Content::Packages(_) => Err(OpenError::Package {
                path: PathBuf::from(self.name),
                what: "it holds packages, and a checkpoint is needed".to_string(),
            }),
        }
    }

    /// The model with what the options choose.
    fn chosen(mut self, options: &OpenOptions) -> Result<Self, OpenError> {
        if let Content::Packages(bundle) = &self.content {
            self.is_packaged = true;
            let path = || PathBuf::from(&self.name);
            options.check_for_packages(&path())?;
            if !options.loras.is_empty() && !bundle.is_configured() {
                let what = "--lora is for checkpoints and for packages that mixbit made, which carry the names \
                            of the layers";
                return Err(OpenError::Package { path: path(), what: what.to_string() });
            }
        }
        if let Content::Files(mut files) = self.content {
            if options.replace_files() {
                files = Box::new(choices::Chosen::new(files, options)?);
            }
            if !options.embeddings.is_empty() {
                let added = embeddings::add(files, &options.embeddings)?;
                (self.opening.embeddings, self.opening.warnings) = (added.embeddings, added.warnings);
                files = added.files;
            }
            self.content = Content::Files(files);
        }
        if !options.loras.is_empty() {
            let files: Box<dyn ModelFiles> = match self.content {
                Content::Files(files) => files,
                Content::Merged(files) => files,
                Content::Packages(bundle) => Box::new(bundle),
            };
            let (merged, loras) = loras::added(files, &options.loras)?;
            self.content = Content::Merged(Box::new(merged));
            self.opening.loras = loras;
        }
        Ok(OpenedModel { prediction_type: options.prediction_type.clone(), ..self })
    }

    /// The name for people: the directory's, or the model's own where that is one of a layout, such as
    /// `Resources`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's files.
    pub fn files(&self) -> &dyn ModelFiles {
        match &self.content {
            Content::Files(files) => &**files,
            Content::Merged(files) => &**files,
            Content::Packages(bundle) => bundle,
        }
    }

    /// The model, ready to run. Weights are referred to, not read.
    ///
    /// # Errors
    /// [`OpenError`] with the model's name or path.
    pub fn model(&self) -> Result<DiffusionModel, OpenError> {
        let unusable =
            |source: ModelError| OpenError::Model { model: self.name.clone(), source: Box::new(source) };
        let mut model = match &self.content {
            Content::Files(files) => DiffusionModel::from_files(&**files).map_err(unusable)?,
            Content::Merged(files) => files.model().map_err(unusable)?,
            Content::Packages(bundle) => bundle.model()?,
        };
        if let (true, Some(name)) = (self.is_packaged, &self.prediction_type) {
            model.scheduler.set_prediction_type(name);
        }
        Ok(model)
    }

    /// What [`model`](Self::model) takes for granted because the files don't say it.
    ///
    /// # Errors
    /// Those of [`model`](Self::model) for packages.
    pub fn assumptions(&self) -> Result<Vec<Assumption>, OpenError> {
        match &self.content {
            Content::Packages(bundle) if self.prediction_type.is_none() => bundle.assumptions(),
            _ => Ok(Vec::new()),
        }
    }
}

/// Opens a path, or the built-in model without one, by the first of the sources that does not decline.
///
/// # Errors
/// [`OpenError::Unknown`] with the reason of each source, if all decline; else the error of the source.
pub fn open<'s>(
    path: Option<&Path>,
    options: &OpenOptions,
    sources: impl IntoIterator<Item = &'s Source>,
) -> Result<OpenedModel, OpenError> {
    path.map_or(Ok(()), check_path)?;
    let mut reasons = Vec::new();
    for source in sources {
        let is_single_file = std::ptr::eq(source, &SINGLE_FILE);
        match (source.probe)(path, options)? {
            Probe::Found(model) => {
                if let (Some(option), false) = (options.of_single_files(), is_single_file) {
                    let path = path.unwrap_or(Path::new(model.name())).to_path_buf();
                    return Err(OpenError::Package {
                        path,
                        what: format!("{option} is for models in a single file, and this is none"),
                    });
                }
                return model.chosen(options);
            }
            Probe::Skipped => {}
            Probe::Declined(reason) => reasons.push(format!("not {}, since {reason}", source.name)),
        }
    }
    match path {
        Some(path) => {
            Err(elsewhere(path).unwrap_or(OpenError::Unknown { path: path.to_path_buf(), reasons }))
        }
        None => Err(OpenError::NotGiven),
    }
}

/// Refuses a path that can't be read, and files that no source reads though people give them.
fn check_path(path: &Path) -> Result<(), OpenError> {
    let unreadable = |cause| OpenError::Read { path: path.to_path_buf(), cause };
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(OpenError::NotFound { path: path.to_path_buf() }),
        Err(cause) => return Err(unreadable(cause)),
    }
    let refused = |what: &str| Err(OpenError::Package { path: path.to_path_buf(), what: what.to_string() });
    if is_package(path) {
        return refused("one package is not a model: give the directory of all the model's packages");
    }
    if is_zip(path) {
        return refused("it is a zip archive: unpack it and give the directory that was inside");
    }
    if path.is_dir() {
        fs::read_dir(path).map_err(unreadable)?;
    }
    Ok(())
}

/// True if a file is a zip archive of files. PyTorch's checkpoints, which are such archives too, are not
/// meant.
pub(crate) fn is_zip(path: &Path) -> bool {
    if single_file::is_named(path) || !path.is_file() {
        return false;
    }
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"PK\x03\x04"
}

/// The error for a directory that is no model itself, but has models in directories inside.
fn elsewhere(path: &Path) -> Option<OpenError> {
    const MOST: usize = 8;
    let found = models_below(path);
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(MOST);
    let mut names: Vec<String> = found.iter().take(MOST).map(|path| path.display().to_string()).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let what = match &names[..] {
        [one] => format!("the model is in a directory inside: give {one}"),
        names => format!("models are in directories inside: give one of {}", names.join(", ")),
    };
    Some(OpenError::Package { path: path.to_path_buf(), what })
}

/// True if a directory is a model: it holds packages, or has the diffusers layout.
pub fn is_model(directory: &Path) -> bool {
    Bundle::is_at(directory) || directory.join("model_index.json").is_file()
}

/// The directories of models below one, sorted, as deep as repositories, archives and copies of the Hugging
/// Face client have them.
pub fn models_below(directory: &Path) -> Vec<PathBuf> {
    const DEEPEST: usize = 4;
    fn add(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        for path in entries(directory).unwrap_or_default().into_iter().filter(|path| path.is_dir()) {
            match is_model(&path) {
                true => found.push(path),
                false if depth > 1 => add(&path, depth - 1, found),
                false => {}
            }
        }
    }
    let mut found = Vec::new();
    add(directory, DEEPEST, &mut found);
    found.sort();
    found
}

/// Names of directories in the layouts of packages, which say nothing of the model.
const LAYOUT: [&str; 7] =
    ["resources", "packages", "compiled", "original", "split_einsum", "split_einsum_v2", "snapshots"];

/// The name of the model in a directory, for people: the Hub's, in the Hugging Face client's cache; else the
/// directory's. Where that is only the place in a layout, `own` is the model's own name, and else that of the
/// directory above it.
fn model_name(path: &Path, own: impl FnOnce() -> Option<String>) -> String {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let names: Vec<String> = canonical.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if let Some(name) = names.iter().rev().find_map(|name| name.strip_prefix("models--")) {
        return name.replace("--", "/");
    }
    let is_place = |name: &&String| LAYOUT.contains(&name.to_ascii_lowercase().as_str());
    let plain = |name: &&String| !is_place(name);
    match names.last() {
        Some(last) if plain(&last) => last.clone(),
        _ => own().or_else(|| names.iter().rev().find(plain).cloned()).unwrap_or_default(),
    }
}

fn probe_core_ml(path: Option<&Path>, _: &OpenOptions) -> Result<Probe, OpenError> {
    let Some(path) = path else { return Ok(Probe::Skipped) };
    if !Bundle::is_at(path) {
        return Ok(Probe::Declined("it holds no .mlpackage and no .mlmodelc".to_string()));
    }
    let bundle = Bundle::open(path)?;
    let name = model_name(path, || bundle.model_version().map(str::to_string));
    Ok(Probe::Found(OpenedModel::of(name, Content::Packages(bundle))))
}

fn probe_diffusers(path: Option<&Path>, options: &OpenOptions) -> Result<Probe, OpenError> {
    let Some(path) = path else { return Ok(Probe::Skipped) };
    match DiffusersModel::open(path, options.variant.as_deref()) {
        Ok(model) => Ok(Probe::Found(OpenedModel::new(model_name(path, || None), model))),
        Err(error) if DiffusersModel::is_at(path) => Err(error.into()),
        Err(error) => Ok(Probe::Declined(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_models_not_those_of_a_layout() {
        let own = || Some("own/name".to_string());
        for (path, name) in [
            ("/x/sdxl-4.5-bit", "sdxl-4.5-bit"),
            ("/x/sdxl/Resources", "own/name"),
            ("/x/.cache/hub/models--org--name-1-5/snapshots/39593d56", "org/name-1-5"),
            ("/x/.cache/hub/models--org--name-1-5/snapshots/39593d56/original/packages", "org/name-1-5"),
        ] {
            assert_eq!(model_name(Path::new(path), own), name, "{path}");
        }
        assert_eq!(model_name(Path::new("/x/sdxl/original/compiled"), || None), "sdxl");
    }
}
