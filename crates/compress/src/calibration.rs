//! Statistics of a layer's inputs, which a method may weigh errors by.

use std::fmt;

/// Statistics of the inputs of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The mean square of each input channel (axis 1 of the weight). Errors count in proportion to it.
    pub mean_square: Vec<f32>,
    /// The Gram matrix, for methods that compensate errors.
    pub gram: Option<Gram>,
}

impl Calibration {
    /// A calibration of mean squares alone.
    pub fn of_mean_square(mean_square: Vec<f32>) -> Self {
        Calibration { mean_square, gram: None }
    }
}

/// The Gram matrix of a layer's inputs: mean products of pairs of input channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    channels: usize,
    values: Vec<f32>,
}

impl Gram {
    /// A matrix of (`channels`, `channels`), row-major. `None` if there are more or fewer values.
    pub fn new(channels: usize, values: Vec<f32>) -> Option<Self> {
        let is_square = channels.checked_mul(channels) == Some(values.len());
        is_square.then_some(Gram { channels, values })
    }

    /// The number of input channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The elements, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// The least calibration that a method works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None. Mean squares are used if they are there.
    Nothing,
    /// The mean square of each input channel.
    MeanSquare,
    /// The Gram matrix.
    Gram,
}

impl Needs {
    /// True if a calibration has all that is needed.
    pub fn are_met_by(self, calibration: Option<&Calibration>) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::MeanSquare => calibration.is_some(),
            Needs::Gram => calibration.is_some_and(|calibration| calibration.gram.is_some()),
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Needs::Nothing => "nothing",
            Needs::MeanSquare => "the mean square of each input channel",
            Needs::Gram => "the Gram matrix of the input channels",
        })
    }
}
