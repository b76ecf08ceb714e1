//! Why an image can't be made.

use thiserror::Error;

use crate::model::ModelError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// Why an image can't be made.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The model can't be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The scheduler can't run so many steps.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// A part of the request does not fit the model.
    #[error("the {option} {what}")]
    Option {
        /// The part.
        option: &'static str,
        /// What does not fit, and what would.
        what: String,
    },
    /// A prompt can't be expressed in the model's vocabulary.
    #[error(transparent)]
    Prompt(TokenizerError),
    /// Two parts of the model don't fit each other.
    #[error("{network}: {what}")]
    Mismatch {
        /// The network.
        network: String,
        /// What does not fit.
        what: String,
    },
    /// A network can't be run.
    #[error("{network}: {source}")]
    Engine {
        /// The network.
        network: String,
        /// Why.
        source: mixbit_engine::Error,
    },
    /// A tensor that does not have as many values as its shape.
    #[error(transparent)]
    Tensor(mixbit_engine::Error),
    /// A network lacks an output.
    #[error("{network}: it has no output `{output}` of floats")]
    Output {
        /// The network.
        network: String,
        /// The output.
        output: &'static str,
    },
    /// The work was stopped by the request's flag.
    #[error("stopped")]
    Stopped,
    /// A network's result is not finite.
    #[error("{network}: its result is not a finite number: {}", not_finite(.weight.as_deref()))]
    NotFinite {
        /// The network.
        network: String,
        /// A weight that is not, if one is to blame.
        weight: Option<String>,
    },
}

fn not_finite(weight: Option<&str>) -> String {
    match weight {
        Some(name) => format!("the weight `{name}` holds NaN or infinity; the file is damaged, get it again"),
        None => "the weights are, so the numbers grew out of range; try another precision, guidance scale or scheduler"
            .to_string(),
    }
}
