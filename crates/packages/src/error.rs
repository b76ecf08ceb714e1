//! Models and packages that can't be opened.

use std::io;
use std::path::PathBuf;

use mixbit_diffusion::model::ModelError;
use thiserror::Error;

/// A model, package or weight file that can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A path that leads to nothing.
    #[error("{} is not there", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// No model was asked for, and none is built in.
    #[error("this build has no model in it: give a model's directory with --model")]
    NotGiven,
    /// A path at which no source finds a model.
    #[error("{} is no model that mixbit reads: {}", path.display(), reasons.join("; "))]
    Unknown {
        /// The path.
        path: PathBuf,
        /// The reason of each source, with its name.
        reasons: Vec<String>,
    },
    /// A file or directory that the system does not let read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// A package, or a directory of them, without what a model needs.
    #[error("{}: {what}", path.display())]
    Package {
        /// The package or directory.
        path: PathBuf,
        /// The defect.
        what: String,
    },
    /// A model whose configuration, tokenizer or weights can't be used.
    #[error("{model}: {source}")]
    Model {
        /// The model's path or name.
        model: String,
        /// The defect.
        source: Box<ModelError>,
    },
    /// A malformed file.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}
