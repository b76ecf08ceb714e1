//! Trial encodings of layers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use mixbit_compress::{Layer, Scheme};
use mixbit_mil::WeightRef;

use super::error::AnalyzeError;

/// Weights of layers under several schemes, each encoded once.
#[derive(Default)]
pub(super) struct Encoder {
    /// The mean square of each input channel by layer.
    pub(super) importance: BTreeMap<String, Vec<f32>>,
    encoded: Mutex<HashMap<(String, String), WeightRef>>,
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
        let key = (layer.name.clone(), scheme.to_string());
        let lock = || self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = lock().get(&key) {
            return Ok(weight.clone());
        }
        let weight = scheme
            .encode(&layer.weight, self.importance(&layer.name))
            .map_err(|source| AnalyzeError::Compress { layer: layer.name.clone(), source })?;
        lock().insert(key, weight.clone());
        Ok(weight)
    }
}
