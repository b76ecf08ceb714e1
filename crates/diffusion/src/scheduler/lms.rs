//! Linear multistep on the probability flow ODE, as in k-diffusion's `sample_lms`: the Adams-Bashforth method
//! over uneven noise levels, of order 4.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::original_at_level;
use super::sigmas::{self, SigmaGrid, continuous_grid};
use super::words::Prediction;
use super::words::TimestepSpacing;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "lms",
    label: "LMS",
    aliases: &[],
    class: "LMSDiscreteScheduler",
    about: "LMS: deterministic, linear multistep of order 4",
    training: Training::Diffusion,
    presets: &[],
    fields: &[&field::BETAS, &field::SIGMAS, &field::PREDICTION, &field::spacing("linspace")],
    build: |config, steps| Ok(Box::new(Lms::new(config, steps)?)),
};

const ORDER: usize = 4;

struct Lms {
    grid: SigmaGrid,
    spacing: TimestepSpacing,
    prediction: Prediction,
    /// The last derivatives, newest first.
    derivatives: Vec<Vec<f32>>,
}

impl Lms {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Lms, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        Ok(Lms {
            grid: continuous_grid(config, &schedule, steps)?,
            spacing: config.timestep_spacing()?,
            prediction: config.prediction()?,
            derivatives: Vec::new(),
        })
    }
}

impl Scheduler for Lms {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma(self.spacing)
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        sigmas::scale_input(sample, self.grid.sigmas[index])
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let sigma = self.grid.sigmas[index];
        let original = original_at_level(self.prediction, model_output, sample, sigma);
        self.derivatives.insert(0, zip_map(sample, &original, |x, x0| (x - x0) / sigma));
        self.derivatives.truncate(ORDER);

        let order = ORDER.min(index + 1);
        let levels: Vec<f32> = (0..order).map(|back| self.grid.sigmas[index - back]).collect();
        let mut increment = vec![0.0; sample.len()];
        for (current, derivative) in self.derivatives.iter().take(order).enumerate() {
            let coefficient = multistep_coefficient(&levels, current, self.grid.sigmas[index + 1]) as f32;
            increment = zip_map(&increment, derivative, |sum, d| sum + coefficient * d);
        }
        let previous = zip_map(sample, &increment, |x, sum| x + sum);
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }
}

/// The integral from `levels[0]` to `next` of a Lagrange polynomial. The polynomial is 1 at `levels[current]`
/// and 0 at the other levels.
///
/// Uses the 21-point Kronrod rule with the integrand in f32, as SciPy's `quad` does for diffusers. Two Gauss
/// points would be exact. The f32 differences of levels show in the trajectory, and they are reproduced here.
fn multistep_coefficient(levels: &[f32], current: usize, next: f32) -> f64 {
    let lagrange = |tau: f64| -> f64 {
        let others = levels.iter().enumerate().filter(|(k, _)| *k != current);
        let factor = |level: f32| (tau as f32 - level) / (levels[current] - level);
        f64::from(others.fold(1.0, |product, (_, &level)| product * factor(level)))
    };
    let (start, end) = (f64::from(levels[0]), f64::from(next));
    let (middle, half) = ((start + end) / 2.0, (end - start) / 2.0);
    let pairs = KRONROD
        .iter()
        .map(|(x, weight)| weight * (lagrange(middle - half * x) + lagrange(middle + half * x)));
    half * (KRONROD_MIDDLE * lagrange(middle) + pairs.sum::<f64>())
}

/// The positive nodes of the 21-point Kronrod rule, and their weights (QUADPACK's `qk21`).
const KRONROD: [(f64, f64); 10] = [
    (0.995_657_163_025_808_1, 0.011_694_638_867_371_874),
    (0.973_906_528_517_171_7, 0.032_558_162_307_964_725),
    (0.930_157_491_355_708_2, 0.054_755_896_574_351_995),
    (0.865_063_366_688_984_5, 0.075_039_674_810_919_96),
    (0.780_817_726_586_416_9, 0.093_125_454_583_697_6),
    (0.679_409_568_299_024_4, 0.109_387_158_802_297_64),
    (0.562_757_134_668_604_7, 0.123_491_976_262_065_84),
    (0.433_395_394_129_247_2, 0.134_709_217_311_473_34),
    (0.294_392_862_701_460_2, 0.142_775_938_577_060_09),
    (0.148_874_338_981_631_22, 0.147_739_104_901_338_49),
];
const KRONROD_MIDDLE: f64 = 0.149_445_554_002_916_9;

#[cfg(test)]
mod tests {
    use super::*;

    /// Even levels give the classic Adams-Bashforth weights.
    #[test]
    fn even_levels_give_adams_bashforth() {
        let levels = [3.0, 4.0, 5.0, 6.0];
        for (current, weight) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            let coefficient = multistep_coefficient(&levels, current, 2.0);
            assert!((coefficient + weight / 24.0).abs() < 1e-6, "{current}: {coefficient}");
        }
    }
}
