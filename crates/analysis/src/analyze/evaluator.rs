//! The effect of a changed network on denoised latents.

use std::collections::BTreeMap;

use mixbit_engine::Tensor;
use mixbit_packages::recipe::Importance;

use super::calibration::Sample;
use super::distortion::Distortion;
use super::error::AnalyzeError;
use super::network::{Change, SegmentedNetwork, Values};

/// The UNet's output.
const OUTPUT: &str = "noise_pred";

/// A network, and samples for which its own results are known.
pub(super) struct Evaluator<'b> {
    pub(super) network: SegmentedNetwork<'b>,
    samples: Vec<Sample>,
    /// The values that cross between segments, by sample and by evaluation.
    base: Vec<Vec<Values>>,
    /// The denoised latents of each sample.
    original: Vec<Vec<f32>>,
}

impl<'b> Evaluator<'b> {
    /// Runs the network on every sample.
    pub(super) fn new(network: SegmentedNetwork<'b>, samples: Vec<Sample>) -> Result<Self, AnalyzeError> {
        let mut evaluator =
            Evaluator { network, samples: Vec::new(), base: Vec::new(), original: Vec::new() };
        evaluator.set_samples(samples)?;
        Ok(evaluator)
    }

    /// Runs the network on other samples.
    pub(super) fn set_samples(&mut self, samples: Vec<Sample>) -> Result<(), AnalyzeError> {
        self.base.clear();
        self.original.clear();
        for sample in &samples {
            let mut runs = Vec::new();
            let mut predictions = Vec::new();
            for inputs in &sample.inputs {
                let values = self.network.run(inputs)?;
                predictions.extend_from_slice(output(&values)?.as_f32().unwrap_or_default());
                runs.push(values);
            }
            self.base.push(runs);
            self.original.push(sample.denoised(&predictions));
        }
        self.samples = samples;
        Ok(())
    }

    /// The bits of the original results, which identify the model and the samples.
    pub(super) fn fingerprint(&self) -> Vec<u32> {
        self.original.iter().flatten().map(|value| value.to_bits()).collect()
    }

    /// The mean square over all samples of every input channel by layer, rounded as recipe files hold it: a
    /// recipe applied from its file makes the same palettes.
    pub(super) fn mean_squares(&self) -> Result<BTreeMap<String, Vec<f32>>, AnalyzeError> {
        let mut means: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let runs = self.base.iter().flatten();
        let count = runs.clone().count().max(1) as f32;
        for values in runs {
            for (layer, squares) in self.network.mean_squares(values)? {
                let mean = means.entry(layer).or_insert_with(|| vec![0.0; squares.len()]);
                mean.iter_mut().zip(squares).for_each(|(mean, square)| *mean += square / count);
            }
        }
        let stored =
            |(layer, squares): (String, Vec<f32>)| Some((layer, Importance::new(&squares)?.values()));
        Ok(means.into_iter().filter_map(stored).collect())
    }

    /// The error of each sample that a change of the network causes.
    pub(super) fn distortion(&mut self, change: &Change<'_>) -> Result<Vec<Distortion>, AnalyzeError> {
        let mut variant = self.network.variant(change)?;
        let mut errors = Vec::new();
        for (index, runs) in self.base.iter().enumerate() {
            let mut predictions = Vec::new();
            for base in runs {
                let changed = self.network.run_variant(&mut variant, base)?;
                let result = output(&changed).or_else(|_| output(base))?;
                predictions.extend_from_slice(result.as_f32().unwrap_or_default());
            }
            let latents = self.samples[index].denoised(&predictions);
            errors.push(Distortion::between(&self.original[index], &latents));
        }
        Ok(errors)
    }
}

fn output(values: &Values) -> Result<&Tensor, AnalyzeError> {
    let tensor = values.get(OUTPUT).map(|tensor| &**tensor);
    tensor.ok_or_else(|| AnalyzeError::NoValue { name: OUTPUT.to_string() })
}
