//! What is taken for granted of packages that say too little.

use std::fmt;

use mixbit_diffusion::scheduler::PREDICTION_TYPES;

/// A property of a model that its files don't say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// The prediction type, taken from the family of models that the UNet resembles.
    PredictionType {
        /// The type.
        assumed: String,
        /// The family.
        family: &'static str,
    },
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Assumption::PredictionType { assumed, family } => {
                let types = PREDICTION_TYPES.join(", ");
                write!(
                    f,
                    "the packages do not say what the UNet predicts: taken as {assumed}, as for {family}; if the image \
                     is wrong, say it with --prediction-type ({types})"
                )
            }
        }
    }
}
