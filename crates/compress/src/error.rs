use half::f16;
use thiserror::Error;

use crate::calibration::Needs;

/// Why weights can't be compressed.
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
    /// There are no weights, or all have importance zero.
    #[error("no weight has an importance above zero")]
    Empty,
    /// The tensor has another number of input channels than there are importances.
    #[error("there are importances of {found} input channels for a weight of shape {shape:?}")]
    Channels {
        /// The number of importances.
        found: usize,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// A scheme that no method knows.
    #[error("no encoding is called `{asked}`; there are {known}")]
    UnknownScheme {
        /// The name that was asked for.
        asked: String,
        /// The names of all schemes.
        known: String,
    },
    /// A method that can't work with the calibration that is there.
    #[error("{scheme} needs {needs}, which was not measured: take a recipe of `mixbit analyze`")]
    Uncalibrated {
        /// The scheme's name.
        scheme: String,
        /// What it needs.
        needs: Needs,
    },
    /// A Gram matrix that is not square.
    #[error("a Gram matrix of {channels} channels has {found} elements")]
    Gram {
        /// The number of channels.
        channels: usize,
        /// The number of elements.
        found: usize,
    },
    /// Palettes or indices that don't fit the weight.
    #[error("{what} for a weight of shape {shape:?}")]
    Palettes {
        /// What does not fit.
        what: String,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// A tensor that can't be compressed, by name.
    #[error("layer `{layer}`: {source}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// The progress receiver stopped the work.
    #[error(transparent)]
    Stopped(#[from] mixbit_mil::Stopped),
    /// A constant that can't be made.
    #[error(transparent)]
    Mil(#[from] mixbit_mil::Error),
}

impl From<mixbit_mil::WeightError> for Error {
    fn from(error: mixbit_mil::WeightError) -> Self {
        Error::Mil(error.into())
    }
}
