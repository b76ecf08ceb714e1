//! What a change of weights does to denoised latents.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use mixbit_compress::{Layer, Scheme};
use mixbit_engine::Tensor;
use mixbit_mil::WeightRef;

use super::calibration::Sample;
use super::network::{Change, Network, Values};
use mixbit_packages::psnr::{apple_psnr, mean_square, peak};
use mixbit_packages::recipe::Importance;

/// The UNet's output.
const OUTPUT: &str = "noise_pred";

/// The error of one sample's denoised latents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Distortion {
    /// The mean squared error.
    pub(super) square: f64,
    /// The largest magnitude of the original and of the changed latents.
    pub(super) peaks: [f64; 2],
}

impl Distortion {
    /// The PSNR in dB as Apple's tools have it, with the changed latents' peak.
    pub(super) fn psnr(&self) -> f64 {
        apple_psnr(self.peaks[1], self.square)
    }

    /// The mean squared error relative to the square of the original's peak.
    pub(super) fn relative(&self) -> f64 {
        self.square / (self.peaks[0] + 1e-5).powi(2)
    }
}

/// Layers' weights in other forms, each fitted once.
#[derive(Default)]
pub(super) struct Encoder {
    /// The mean square of each input channel by layer.
    pub(super) importance: BTreeMap<String, Vec<f32>>,
    encoded: Mutex<HashMap<(String, String), WeightRef>>,
}

impl Encoder {
    /// Palettes that are fitted to what matters.
    pub(super) fn weighing(importance: BTreeMap<String, Vec<f32>>) -> Self {
        Encoder { importance, ..Encoder::default() }
    }

    /// How much an error in each input channel of a layer matters, if it is known.
    pub(super) fn importance(&self, layer: &str) -> Option<&[f32]> {
        self.importance.get(layer).map(Vec::as_slice)
    }

    /// A layer's weight in another form.
    pub(super) fn encoded(&self, layer: &Layer, scheme: Scheme) -> anyhow::Result<WeightRef> {
        let key = (layer.name.clone(), scheme.to_string());
        let lock = || self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = lock().get(&key) {
            return Ok(weight.clone());
        }
        let weight = scheme
            .encode(&layer.weight, self.importance(&layer.name))
            .with_context(|| format!("layer `{}`", layer.name))?;
        lock().insert(key, weight.clone());
        Ok(weight)
    }
}

/// A network and samples whose original results are at hand.
pub(super) struct Bench<'b> {
    pub(super) network: Network<'b>,
    samples: Vec<Sample>,
    /// What crosses between segments, by sample and by run.
    base: Vec<Vec<Values>>,
    original: Vec<Vec<f32>>,
}

impl<'b> Bench<'b> {
    /// Runs the network on every sample.
    pub(super) fn new(mut network: Network<'b>, samples: Vec<Sample>) -> anyhow::Result<Self> {
        let (mut base, mut original) = (Vec::new(), Vec::new());
        for sample in &samples {
            let mut runs = Vec::new();
            let mut predictions = Vec::new();
            for inputs in &sample.inputs {
                let values = network.run(inputs)?;
                predictions.extend_from_slice(output(&values)?.as_f32().unwrap_or_default());
                runs.push(values);
            }
            base.push(runs);
            original.push(sample.denoised(&predictions));
        }
        Ok(Bench { network, samples, base, original })
    }

    /// The original results, to tell a model and samples from others.
    pub(super) fn fingerprint(&self) -> Vec<u32> {
        self.original.iter().flatten().map(|value| value.to_bits()).collect()
    }

    /// The mean square over all samples of every input channel by layer.
    pub(super) fn importance(&self) -> anyhow::Result<BTreeMap<String, Vec<f32>>> {
        let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let runs = self.base.iter().flatten();
        let count = runs.clone().count().max(1) as f32;
        for values in runs {
            for (layer, moments) in self.network.moments(values)? {
                let sum = sums.entry(layer).or_insert_with(|| vec![0.0; moments.len()]);
                sum.iter_mut().zip(moments).for_each(|(sum, value)| *sum += value / count);
            }
        }
        // As recipe files hold them, so that who applies a recipe makes the same palettes.
        let stored =
            |(layer, moments): (String, Vec<f32>)| Some((layer, Importance::new(&moments)?.values()));
        Ok(sums.into_iter().filter_map(stored).collect())
    }

    /// The error that a change causes, for each sample.
    pub(super) fn distortion(&mut self, change: &Change<'_>) -> anyhow::Result<Vec<Distortion>> {
        let mut variant = self.network.variant(change)?;
        let mut found = Vec::new();
        for (index, runs) in self.base.iter().enumerate() {
            let mut predictions = Vec::new();
            for base in runs {
                let changed = self.network.run_variant(&mut variant, base)?;
                let result = output(&changed).or_else(|_| output(base))?;
                predictions.extend_from_slice(result.as_f32().unwrap_or_default());
            }
            found.push(distortion(&self.original[index], &self.samples[index].denoised(&predictions)));
        }
        Ok(found)
    }
}

fn output(values: &Values) -> anyhow::Result<&Tensor> {
    values
        .get(OUTPUT)
        .map(|tensor| &**tensor)
        .with_context(|| format!("the network has no output `{OUTPUT}`"))
}

fn distortion(original: &[f32], changed: &[f32]) -> Distortion {
    let [original, changed] = [original, changed].map(|values| values.iter().map(|&value| f64::from(value)));
    let peaks = [peak(original.clone()), peak(changed.clone())];
    Distortion { square: mean_square(original.zip(changed)), peaks }
}
