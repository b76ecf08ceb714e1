//! Euler's method on the probability flow ODE: Algorithm 2 of Karras et al. (arXiv 2206.00364) without churn,
//! as in k-diffusion's `sample_euler`.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Kind, choice, field};
use super::float::ln;
use super::noise_schedule::NoiseSchedule;
use super::prediction::original_at_level;
use super::sigmas::{self, SigmaGrid, continuous_grid};
use super::words::Prediction;
use super::words::TimestepSpacing;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "euler",
    label: "Euler",
    aliases: &[],
    class: "EulerDiscreteScheduler",
    about: "Euler: deterministic, first order; XL's default",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::BETAS,
        &[
            field(
                "prediction_type",
                Kind::Choice {
                    default: "epsilon",
                    options: &["epsilon", "v_prediction", "sample"],
                    aliases: &[("original_sample", "sample")],
                },
            ),
            choice("interpolation_type", "linear", &["linear", "log_linear"]),
            field("sigma_min", Kind::OptionalNumber),
            field("sigma_max", Kind::OptionalNumber),
            choice("timestep_type", "discrete", &["discrete", "continuous"]),
        ],
        &field::SIGMAS,
        &field::spacing("linspace"),
        &field::RESCALE_BETAS,
        &field::FINAL_SIGMA,
    ],
    build: |config, steps| Ok(Box::new(Euler::new(config, steps)?)),
};

struct Euler {
    grid: SigmaGrid,
    spacing: TimestepSpacing,
    prediction: Prediction,
}

impl Euler {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Euler, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let mut grid = continuous_grid(config, &schedule, steps)?;
        let prediction = config.prediction()?;
        if config.choice("timestep_type") == "continuous" && prediction == Prediction::Velocity {
            // The EDM models are conditioned on a quarter of the logarithm of the noise level.
            let levels = &grid.sigmas[..grid.sigmas.len() - 1];
            grid.timesteps = levels.iter().take(steps).map(|&sigma| f64::from(0.25 * ln(sigma))).collect();
        }
        Ok(Euler { grid, spacing: config.timestep_spacing()?, prediction })
    }
}

impl Scheduler for Euler {
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
        let (sigma, next) = (self.grid.sigmas[index], self.grid.sigmas[index + 1]);
        let original = original_at_level(self.prediction, model_output, sample, sigma);
        let previous = sigmas::euler_step(sample, &original, sigma, next);
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }
}
