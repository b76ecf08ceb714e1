//! The reasons why an image can't be drawn.

use thiserror::Error;

use super::role::Role;
use crate::model::ModelError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// The reason why an image can't be drawn.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The session has no model in a role.
    #[error("there is no {role} model")]
    NoModel {
        /// The role.
        role: Role,
    },
    /// A network's graph can't be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The scheduler can't run this number of steps.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// An option of the request is out of range or does not fit the model.
    #[error("the {option} {what}")]
    Option {
        /// The option.
        option: &'static str,
        /// The mistake, and the values that would do.
        what: String,
    },
    /// A prompt can't be expressed in the model's vocabulary.
    #[error(transparent)]
    Prompt(TokenizerError),
    /// Two networks of the model don't fit each other.
    #[error("{network}: {what}")]
    Mismatch {
        /// The network.
        network: String,
        /// The difference.
        what: String,
    },
    /// A network can't be run.
    #[error("{network}: {source}")]
    Engine {
        /// The network.
        network: String,
        /// The backend's reason.
        source: mixbit_engine::Error,
    },
    /// A tensor's values are not as many as its shape asks for.
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
    /// The work was cancelled.
    #[error("stopped")]
    Cancelled,
    /// A network's result is not finite.
    #[error("{network}: its result is not a finite number: {}", not_finite(.weight.as_deref()))]
    NotFinite {
        /// The network.
        network: String,
        /// A weight that is not finite either, if there is one.
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
