//! Trial encodings of layers.

use std::collections::BTreeMap;

use mixbit_compress::{Calibration, Layer, LayerPlan, Scheme};
use mixbit_mil::WeightRef;

use super::error::AnalyzeError;

/// Weights of layers under several schemes, each encoded once.
#[derive(Default)]
pub(super) struct Encoder {
    /// The mean square of each input channel by layer.
    pub(super) importance: BTreeMap<String, Vec<f32>>,
    encoder: mixbit_compress::Encoder,
}

impl Encoder {
    /// An encoder whose palettes weigh errors by the mean square of each input channel.
    pub(super) fn weighing(importance: BTreeMap<String, Vec<f32>>) -> Self {
        Encoder { importance, ..Encoder::default() }
    }

    /// The mean square of each input channel of a layer, if known.
    pub(super) fn importance(&self, layer: &str) -> Option<&[f32]> {
        self.importance.get(layer).map(Vec::as_slice)
    }

    /// A layer's weight under a scheme.
    pub(super) fn encoded(&self, layer: &Layer, scheme: Scheme) -> Result<WeightRef, AnalyzeError> {
        let calibration = self.importance.get(&layer.name).cloned().map(Calibration::of_mean_square);
        Ok(self.encoder.encode(layer, &LayerPlan { scheme, calibration })?)
    }
}
