//! Errors of loading a model.

use thiserror::Error;

use super::FileError;
use crate::arch::ArchError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// An error of loading a model.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file is absent or malformed.
    #[error(transparent)]
    File(FileError),
    /// The kind of model is not supported.
    #[error("a model of class `{class}` can't be run: {what}")]
    Pipeline {
        /// The pipeline's class in `model_index.json`.
        class: String,
        /// The reason.
        what: String,
    },
    /// A network can't be built.
    #[error("{component}: {source}")]
    Network {
        /// The component's folder.
        component: String,
        /// The cause.
        source: ArchError,
    },
    /// Two components don't fit each other.
    #[error("{component}: {what}")]
    Mismatch {
        /// The component's folder.
        component: String,
        /// The mismatch.
        what: String,
    },
    /// A tokenizer's files can't be used.
    #[error("{component}: {source}")]
    Tokenizer {
        /// The component's folder.
        component: String,
        /// The file and the cause.
        source: TokenizerError,
    },
    /// The scheduler's configuration can't be used.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}
