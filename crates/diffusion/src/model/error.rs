//! Why a model can't be used.

use thiserror::Error;

use super::FileError;
use crate::arch::ArchError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// Why a model can't be used.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file is absent or malformed.
    #[error(transparent)]
    File(FileError),
    /// The model as a whole is of a kind that is not supported.
    #[error("a model of class `{class}` can't be run: {what}")]
    Pipeline {
        /// The pipeline's class, as `model_index.json` has it.
        class: String,
        /// What it has or lacks.
        what: String,
    },
    /// A network can't be built.
    #[error("{component}: {source}")]
    Network {
        /// The component's folder.
        component: String,
        /// What does not fit.
        source: ArchError,
    },
    /// Two components don't fit each other.
    #[error("{component}: {what}")]
    Mismatch {
        /// The component's folder.
        component: String,
        /// What does not fit.
        what: String,
    },
    /// A tokenizer's files can't be used.
    #[error("{component}: {source}")]
    Tokenizer {
        /// The component's folder.
        component: String,
        /// Which file, and why.
        source: TokenizerError,
    },
    /// The scheduler's configuration can't be used.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}
