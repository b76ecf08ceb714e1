use half::f16;
use thiserror::Error;

use crate::calibration::Needs;

/// The reason why weights can't be compressed.
#[derive(Debug, Error)]
pub enum Error {
    /// A weight is NaN or infinite.
    #[error("weight {index} is {value}: only finite weights can be compressed")]
    NotFinite {
        /// Position in the tensor.
        index: usize,
        /// The value found there.
        value: f16,
    },
    /// An importance is negative, NaN or infinite.
    #[error("the importance of weight {index} is {value}: it must be finite and not negative")]
    Importance {
        /// Position in the tensor.
        index: usize,
        /// The importance found there.
        value: f64,
    },
    /// There are no weights, or all have zero importance.
    #[error("no weight has an importance above zero")]
    Empty,
    /// The calibration is of another number of input channels than the weight has.
    #[error("the calibration has {found} input channels, which does not fit a weight of shape {shape:?}")]
    Channels {
        /// The number of input channels.
        found: usize,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// The system refuses the threads that layers are fitted on.
    #[error("can't start threads to fit palettes on: {cause}; the limit of processes may be too low")]
    Threads {
        /// The system's reason.
        cause: String,
    },
    /// An unknown scheme.
    #[error("there is no scheme `{asked}`; known are {known}")]
    UnknownScheme {
        /// The unknown name.
        asked: String,
        /// The names of all schemes.
        known: String,
    },
    /// The calibration lacks what the method needs.
    #[error("{scheme} needs {needs}, which was not measured: take a recipe of `mixbit analyze`")]
    Uncalibrated {
        /// The scheme's name.
        scheme: String,
        /// The method's needs.
        needs: Needs,
    },
    /// Palettes or indices that don't fit the weight.
    #[error("{what} for a weight of shape {shape:?}")]
    Palettes {
        /// The misfit.
        what: String,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// A layer that can't be compressed.
    #[error("layer `{layer}`: {source}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// The reason.
        #[source]
        source: Box<Error>,
    },
    /// The progress receiver stopped the work.
    #[error(transparent)]
    Stopped(#[from] mixbit_mil::Stopped),
    /// A weight that can't be read, or an encoding that is not valid.
    #[error(transparent)]
    Mil(#[from] mixbit_mil::Error),
}

impl From<mixbit_mil::WeightError> for Error {
    fn from(error: mixbit_mil::WeightError) -> Self {
        Error::Mil(error.into())
    }
}
