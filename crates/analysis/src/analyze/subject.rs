//! The network under analysis.

use std::collections::BTreeMap;

use mixbit_compress::{Layer, Scheme};

use super::distortion::{Distortion, psnrs};
use super::encoder::CalibratedEncoder;
use super::error::AnalyzeError;
use super::evaluator::Evaluator;
use super::network::{Change, Replaced};
use super::outcome::Verified;

/// A network, the layers that can be compressed, and the encoder of their weights.
pub(super) struct Subject<'b> {
    pub(super) evaluator: Evaluator<'b>,
    pub(super) encoder: CalibratedEncoder,
    pub(super) layers: Vec<Layer>,
}

impl Subject<'_> {
    /// The number of weights of the layers.
    pub(super) fn count(&self) -> usize {
        self.layers.iter().map(Layer::count).sum()
    }

    /// The bytes of the network's other weights, which are never compressed.
    pub(super) fn fixed_bytes(&self) -> u64 {
        self.evaluator.network.bytes() - 2 * self.count() as u64
    }

    /// Runs the network with layers compressed on every sample.
    ///
    /// # Errors
    /// If a layer's weights can't be compressed, or the network can't be run.
    pub(super) fn verify(
        &mut self,
        name: String,
        schemes: BTreeMap<String, Scheme>,
        predicted: Option<f64>,
    ) -> Result<Verified, AnalyzeError> {
        let distortion = self.distortion(&schemes)?;
        Ok(self.verified(name, schemes, predicted, &distortion))
    }

    /// The errors of the network with layers compressed, sample by sample.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify).
    pub(super) fn distortion(
        &mut self,
        schemes: &BTreeMap<String, Scheme>,
    ) -> Result<Vec<Distortion>, AnalyzeError> {
        let mut replaced = Replaced::new();
        for layer in &self.layers {
            if let Some(scheme) = schemes.get(&layer.name) {
                replaced.insert(&layer.name, self.encoder.encode(layer, *scheme)?);
            }
        }
        self.evaluator.distortion(&Change::Weights(&replaced))
    }

    /// A network with layers compressed, of which the errors are known.
    pub(super) fn verified(
        &self,
        name: String,
        schemes: BTreeMap<String, Scheme>,
        predicted: Option<f64>,
        distortion: &[Distortion],
    ) -> Verified {
        let mut bytes = 2 * self.count() as u64;
        for layer in &self.layers {
            let Some(scheme) = schemes.get(&layer.name) else { continue };
            bytes = bytes - 2 * layer.count() as u64 + scheme.stored_len(layer.ty()) as u64;
        }
        Verified {
            name,
            layers: schemes,
            bytes: self.fixed_bytes() + bytes,
            bits: 8.0 * bytes as f64 / self.count() as f64,
            predicted,
            measured: psnrs(distortion),
        }
    }
}

/// The layers of more than `min_size` weights.
///
/// # Errors
/// If there are none, or one is compressed.
pub(super) fn candidates<'l>(
    layers: impl Iterator<Item = &'l Layer>,
    min_size: usize,
) -> Result<Vec<Layer>, AnalyzeError> {
    let layers: Vec<Layer> = layers.filter(|layer| layer.count() > min_size).cloned().collect();
    if let Some(layer) = layers.iter().find(|layer| layer.weight.encoding().is_some()) {
        return Err(AnalyzeError::Compressed { layer: layer.name.clone() });
    }
    if layers.is_empty() {
        return Err(AnalyzeError::NoLayers { min_size });
    }
    Ok(layers)
}
