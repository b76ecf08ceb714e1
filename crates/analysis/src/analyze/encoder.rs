//! Trial encodings of layers.

use std::collections::BTreeMap;

use mixbit_compress::{Calibration, Encoder, Error, Layer, LayerPlan, Scheme};
use mixbit_mil::WeightRef;

/// An encoder of layers that weighs their errors by calibrations.
#[derive(Default)]
pub(super) struct CalibratedEncoder {
    encoder: Encoder,
    calibrations: BTreeMap<String, Calibration>,
}

impl CalibratedEncoder {
    /// An encoder for the mean square of each input channel, by layer.
    pub(super) fn new(mean_squares: &BTreeMap<String, Vec<f32>>) -> Self {
        let mut encoder = CalibratedEncoder::default();
        encoder.calibrate(mean_squares);
        encoder
    }

    /// Replaces the calibrations.
    pub(super) fn calibrate(&mut self, mean_squares: &BTreeMap<String, Vec<f32>>) {
        let calibration = |(layer, squares): (&String, &Vec<f32>)| {
            (layer.clone(), Calibration::of_mean_square(squares.clone()))
        };
        self.calibrations = mean_squares.iter().map(calibration).collect();
    }

    /// The mean square of each input channel of a layer, if known.
    pub(super) fn mean_square(&self, layer: &str) -> Option<&[f32]> {
        self.calibrations.get(layer).map(|calibration| calibration.mean_square.as_slice())
    }

    /// The mean square of each input channel by layer.
    pub(super) fn into_mean_squares(self) -> BTreeMap<String, Vec<f32>> {
        let mean_square = |(layer, calibration): (String, Calibration)| (layer, calibration.mean_square);
        self.calibrations.into_iter().map(mean_square).collect()
    }

    /// A layer's weight under a scheme.
    ///
    /// # Errors
    /// If the weight can't be compressed.
    pub(super) fn encode(&self, layer: &Layer, scheme: Scheme) -> Result<WeightRef, Error> {
        let calibration = self.calibrations.get(&layer.name).cloned();
        self.encoder.encode(layer, &LayerPlan { scheme, calibration })
    }
}
