//! Files of textual inversion, and folders of them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use mixbit_diffusion::embedding::{EmbeddedFiles, Embedding, EmbeddingError, VectorChannels};
use mixbit_diffusion::model::{ModelFiles, TEXT_ENCODERS, read_tokenizer};
use mixbit_diffusion::tokenizer::Tokenizer;
use mixbit_formats::{Sha256, TensorFile, map_file};

use crate::bundle::entries;
use crate::error::OpenError;

/// Extensions of the files that a folder of embeddings is searched for.
const EXTENSIONS: [&str; 4] = ["pt", "safetensors", "bin", "sft"];

/// The most bytes of a file in a folder that is taken for an embedding.
const LARGEST: u64 = 64 << 20;

/// The depth of the folders that are searched.
const DEEPEST: usize = 4;

/// The most files that are passed over by name.
const LISTED: usize = 6;

/// The textual inversions to add to a model.
#[derive(Clone, Debug, Default)]
pub struct EmbeddingOptions {
    /// Files. Each must fit the model.
    pub files: Vec<EmbeddingFile>,
    /// Folders of files. Those that do not fit the model are passed over.
    pub folders: Vec<PathBuf>,
    /// The prompts that will be drawn: of folders, only the words in them are added. All are without it.
    pub prompts: Option<Vec<String>>,
}

/// A file of textual inversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingFile {
    /// The file.
    pub path: PathBuf,
    /// Its word; the file's own if absent.
    pub name: Option<String>,
}

/// A textual inversion that was added to a model.
#[derive(Clone, Debug)]
pub struct AddedEmbedding {
    /// Its word.
    pub name: String,
    /// The number of its vectors.
    pub vectors: usize,
    /// The folders of the text encoders that have it, if not all have.
    pub only: Option<Vec<&'static str>>,
    /// The file.
    pub path: PathBuf,
}

/// A model with textual inversions.
pub(super) struct Added {
    pub(super) files: Box<dyn ModelFiles>,
    pub(super) embeddings: Vec<AddedEmbedding>,
    pub(super) warnings: Vec<String>,
}

impl EmbeddingOptions {
    /// True if nothing is to be added.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty()
    }
}

impl AddedEmbedding {
    /// The SHA-256 of the file.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn sha256(&self) -> Result<[u8; 32], OpenError> {
        let mut sum = Sha256::new();
        sum.update(&map_file(&self.path)?);
        Ok(sum.finish())
    }
}

impl fmt::Display for AddedEmbedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AddedEmbedding { name, vectors, only, .. } = self;
        let noun = if *vectors == 1 { "vector" } else { "vectors" };
        write!(f, "embedding {name}: {vectors} {noun}")?;
        match only {
            Some(folders) => write!(f, " for {} alone; elsewhere the word is left out", folders.join(", ")),
            None => Ok(()),
        }
    }
}

/// An embedding and its file.
struct Read {
    embedding: Embedding,
    path: PathBuf,
}

/// A model with the textual inversions of files and folders.
///
/// # Errors
/// If a file that is named can't be read or does not fit the model, or a folder can't be read.
pub(super) fn add(base: Box<dyn ModelFiles>, options: &EmbeddingOptions) -> Result<Added, OpenError> {
    let of_model = |source| OpenError::Model { model: base.class().to_string(), source: Box::new(source) };
    let channels = VectorChannels::of(&*base).map_err(of_model)?;
    let mut all = Vec::new();
    for EmbeddingFile { path, name } in &options.files {
        let embedding = read(path)?;
        let embedding = name.iter().fold(embedding, |embedding, name| embedding.named(name));
        embedding.check(&channels).map_err(unusable(path))?;
        all.push(Read { embedding, path: path.clone() });
    }
    let mut warnings = Vec::new();
    for folder in &options.folders {
        let Folder { found, passed } = of_one_folder(folder, &*base, &channels, options, &all)?;
        all.extend(found);
        warnings.extend(passed_over(folder, &passed));
    }
    let mut embeddings = Vec::new();
    for Read { embedding, path } in &all {
        embeddings.push(AddedEmbedding {
            name: embedding.name().to_string(),
            vectors: embedding.vector_count(),
            only: embedding.check(&channels).map_err(unusable(path))?,
            path: path.clone(),
        });
    }
    let last = all.last().map(|read| read.path.clone()).unwrap_or_default();
    let all: Vec<Embedding> = all.into_iter().map(|read| read.embedding).collect();
    let files = EmbeddedFiles::new(base, &all).map_err(unusable(&last))?;
    Ok(Added { files: Box::new(files), embeddings, warnings })
}

fn unusable(path: &Path) -> impl Fn(EmbeddingError) -> OpenError + '_ {
    |source| OpenError::Embedding { path: path.to_path_buf(), source: Box::new(source) }
}

fn read(path: &Path) -> Result<Embedding, OpenError> {
    if path.is_dir() {
        let what = "it is a folder: give it with --embedding-dir".to_string();
        return Err(unusable(path)(EmbeddingError::NotAnEmbedding { what }));
    }
    let file = TensorFile::open(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Embedding::read(&file, file.metadata(), &stem).map_err(unusable(path))
}

/// A folder's embeddings that are wanted and not yet there.
#[derive(Default)]
struct Folder {
    found: Vec<Read>,
    /// The files that are passed over, and the reasons.
    passed: Vec<(PathBuf, String)>,
}

/// Reads a folder.
fn of_one_folder(
    folder: &Path,
    base: &dyn ModelFiles,
    channels: &VectorChannels,
    options: &EmbeddingOptions,
    given: &[Read],
) -> Result<Folder, OpenError> {
    if !folder.is_dir() {
        return Err(match folder.is_file() {
            true => {
                let what = "--embedding-dir takes folders: give the file with --embedding".to_string();
                OpenError::Package { path: folder.to_path_buf(), what }
            }
            false => OpenError::NotFound { path: folder.to_path_buf() },
        });
    }
    let tokenizer = first_tokenizer(base)?;
    let normalized = |name: &str| {
        tokenizer.as_ref().map_or_else(|| name.to_lowercase(), |tokenizer| tokenizer.normalized(name))
    };
    let mut taken: BTreeSet<String> = given.iter().map(|read| normalized(read.embedding.name())).collect();
    let mut files = Vec::new();
    files_below(folder, DEEPEST, &mut files)?;
    let mut folder = Folder::default();
    for path in files {
        if given.iter().any(|read| is_same(&read.path, &path)) {
            continue;
        }
        let embedding = match read(&path) {
            Ok(embedding) => embedding,
            Err(error) if is_named(&path, options) => {
                folder.passed.push((path, reason(&error)));
                continue;
            }
            Err(_) => continue,
        };
        let is_used = match (&options.prompts, &tokenizer) {
            (Some(prompts), Some(tokenizer)) => embedding.is_in(prompts, tokenizer),
            _ => true,
        };
        if !is_used {
            continue;
        }
        match embedding.check(channels) {
            Err(error) => folder.passed.push((path, error.to_string())),
            Ok(_) if !taken.insert(normalized(embedding.name())) => {
                folder.passed.push((path, "another embedding has its name".to_string()));
            }
            Ok(_) => folder.found.push(Read { embedding, path }),
        }
    }
    Ok(folder)
}

/// True if a file's name is in one of the prompts that will be drawn, or these are not known.
fn is_named(path: &Path, options: &EmbeddingOptions) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_in = |prompts: &Vec<String>| prompts.iter().any(|prompt| prompt.to_lowercase().contains(&stem));
    options.prompts.as_ref().is_none_or(is_in)
}

/// The tokenizer of the first text encoder.
fn first_tokenizer(base: &dyn ModelFiles) -> Result<Option<Tokenizer>, OpenError> {
    let present = TEXT_ENCODERS.iter().find(|(encoder, _)| base.component(encoder).is_some());
    let unreadable = |source| OpenError::Model { model: base.class().to_string(), source: Box::new(source) };
    present.map(|(_, tokenizer)| read_tokenizer(base, tokenizer)).transpose().map_err(unreadable)
}

/// Adds the files of tensors in a folder and those below it, in the order of their names.
fn files_below(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), OpenError> {
    let mut paths = entries(folder)?;
    paths.sort();
    for path in paths {
        if path.is_dir() && depth > 1 {
            files_below(&path, depth - 1, files)?;
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let is_small = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LARGEST);
        if is_small && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(a, b)| a == b)
}

/// An error without the path before it.
fn reason(error: &OpenError) -> String {
    match error {
        OpenError::Embedding { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// A line about the files of a folder that are passed over.
fn passed_over(folder: &Path, passed: &[(PathBuf, String)]) -> Option<String> {
    if passed.is_empty() {
        return None;
    }
    let name = |path: &Path| path.strip_prefix(folder).unwrap_or(path).display().to_string();
    let mut reasons: Vec<String> =
        passed.iter().take(LISTED).map(|(path, reason)| format!("{} ({reason})", name(path))).collect();
    if let more @ 1.. = passed.len().saturating_sub(LISTED) {
        reasons.push(format!("{more} more"));
    }
    Some(format!("files of {} are passed over: {}", folder.display(), reasons.join(", ")))
}
