//! Errors of files.

use std::io;
use std::path::{Path, PathBuf};

use mixbit_mil::Stopped;
use thiserror::Error;

use crate::coreml::{CoreMlError, NotFinite};
use crate::gguf::GgufError;
use crate::npy::NpyError;
use crate::safetensors::SafeTensorsError;
use crate::scales::ScaleError;
use crate::torch::TorchError;

/// An error of a file or directory. Every message is one line and names the path.
#[derive(Debug, Error)]
pub enum Error {
    /// The operating system refused to read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The operating system refused to write, or the producer of the content failed.
    #[error("can't write {}: {cause}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// A weight that is NaN or infinite where only finite ones are written.
    #[error("can't write {}: {cause}", path.display())]
    NotFinite {
        /// The file that was to hold it, which is unchanged.
        path: PathBuf,
        /// The weight.
        cause: NotFinite,
    },
    /// The operating system refused to make a directory.
    #[error("can't make the directory {}: {cause}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// The progress receiver stopped the writing.
    #[error("stopped while writing {}, which is unchanged", path.display())]
    Stopped {
        /// The file or directory.
        path: PathBuf,
    },
    /// A missing file or directory, with advice.
    #[error("{} is not there: {hint}", path.display())]
    NotFound {
        /// The missing file or directory.
        path: PathBuf,
        /// The advice, and what was found instead.
        hint: String,
    },
    /// The placeholder that Git leaves where a large file was not downloaded.
    #[error(
        "{} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file above the size limit of its kind.
    #[error("{} has {len} bytes, more than the limit of {limit} for files of its kind", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A malformed or unsupported safetensors file.
    #[error("{}: {problem}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: SafeTensorsError,
    },
    /// A malformed, unsupported or hostile PyTorch file.
    #[error("{}: {problem}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: TorchError,
    },
    /// A malformed or unsupported GGUF file.
    #[error("{}: {problem}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: GgufError,
    },
    /// Weights that are quantized in a way that is not supported.
    #[error("{}: {problem}", path.display())]
    Scales {
        /// The file, or the index of its shards.
        path: PathBuf,
        /// The fault.
        problem: ScaleError,
    },
    /// A file of no known format of tensors.
    #[error("{} is {what}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The kind of file that it looks like, and the remedy.
        what: String,
    },
    /// A malformed or unsupported `.npy` or `.npz` file.
    #[error("{}: {problem}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: NpyError,
    },
    /// A malformed or unsupported Core ML model.
    #[error("{}: {problem}", path.display())]
    CoreMl {
        /// The file in the model's directory.
        path: PathBuf,
        /// The fault.
        problem: CoreMlError,
    },
    /// Text that is not valid UTF-8 or JSON.
    #[error("{}: {what}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The fault and its place.
        what: String,
    },
    /// A shard index and its shards that contradict each other.
    #[error("{}: {what}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The contradiction, with the shard and the tensor.
        what: String,
    },
    /// A model directory whose parts can't be used.
    #[error("{}: {what}", path.display())]
    Layout {
        /// The file or directory.
        path: PathBuf,
        /// The fault and the remedy.
        what: String,
    },
}

impl Error {
    /// The error of a file that could not be written.
    pub(crate) fn of_write(path: &Path, cause: io::Error) -> Self {
        let path = path.to_path_buf();
        let not_finite = cause.get_ref().and_then(|cause| cause.downcast_ref::<NotFinite>()).cloned();
        match (not_finite, cause.get_ref().is_some_and(|cause| cause.is::<Stopped>())) {
            (Some(cause), _) => Error::NotFinite { path, cause },
            (None, true) => Error::Stopped { path },
            (None, false) => Error::Write { path, cause },
        }
    }
}
