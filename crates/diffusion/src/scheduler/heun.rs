//! Heun's method on the probability flow ODE: Algorithm 1 of Karras et al. (arXiv 2206.00364).
//!
//! Every step but the last evaluates the model twice: at its start and at the end of Euler's step.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, original_at_level};
use super::sigmas::{self, SigmaGrid, continuous_grid};
use super::words::Prediction;
use super::words::TimestepSpacing;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "heun",
    label: "Heun",
    aliases: &[],
    class: "HeunDiscreteScheduler",
    about: "Heun: deterministic, second order, two evaluations a step",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::betas(0.00085, 0.012, "linear", &["linear", "scaled_linear", "squaredcos_cap_v2", "exp"]),
        &field::PREDICTION,
        &field::SIGMAS,
        &field::clip(false),
        &field::spacing("linspace"),
    ],
    build: |config, steps| Ok(Box::new(Heun::new(config, steps)?)),
};

struct Heun {
    /// The sigma grid. Every level but the first and the final one appears twice.
    grid: SigmaGrid,
    spacing: TimestepSpacing,
    prediction: Prediction,
    limit: Limit,
    /// The state of a step between its two evaluations.
    half: Option<HalfStep>,
}

struct HalfStep {
    start: Vec<f32>,
    derivative: Vec<f32>,
    dt: f32,
}

impl Heun {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Heun, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let single = continuous_grid(config, &schedule, steps)?;
        let grid = SigmaGrid {
            timesteps: twice_but_first(&single.timesteps),
            sigmas: [&twice_but_first(&single.sigmas[..steps])[..], &single.sigmas[steps..]].concat(),
        };
        let (spacing, prediction) = (config.timestep_spacing()?, config.prediction()?);
        Ok(Heun { grid, spacing, prediction, limit: Limit::of(config)?, half: None })
    }
}

impl Scheduler for Heun {
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
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let sigma = self.grid.sigmas[index];
        let mut original = original_at_level(self.prediction, model_output, sample, sigma);
        self.limit.apply(&mut original, images);
        let mut derivative = zip_map(sample, &original, |x, x0| (x - x0) / sigma);
        let previous = match self.half.take() {
            None => {
                let dt = self.grid.sigmas[index + 1] - sigma;
                let previous = zip_map(sample, &derivative, |x, d| x + d * dt);
                self.half = Some(HalfStep { start: sample.to_vec(), derivative, dt });
                previous
            }
            Some(HalfStep { start, derivative: first, dt }) => {
                derivative = zip_map(&first, &derivative, |first, second| (first + second) / 2.0);
                zip_map(&start, &derivative, |x, d| x + d * dt)
            }
        };
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }

    fn order(&self) -> usize {
        2
    }
}

fn twice_but_first<T: Copy>(values: &[T]) -> Vec<T> {
    values.iter().flat_map(|&value| [value, value]).skip(1).collect()
}
