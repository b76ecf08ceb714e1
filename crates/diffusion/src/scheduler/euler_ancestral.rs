//! Ancestral sampling with Euler steps, as in k-diffusion's `sample_euler_ancestral`. Each step goes below
//! the next noise level and then adds noise to reach it.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, choice};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::original_at_level;
use super::sigmas::{self, SigmaGrid, continuous_grid};
use super::words::Prediction;
use super::words::TimestepSpacing;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "euler-ancestral",
    label: "Euler a",
    aliases: &["euler-a"],
    class: "EulerAncestralDiscreteScheduler",
    about: "Euler with fresh noise at every step",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::BETAS,
        // diffusers lists `sample` too, but raises an error on use.
        &[choice("prediction_type", "epsilon", &["epsilon", "v_prediction"])],
        &field::spacing("linspace"),
        &field::RESCALE_BETAS,
    ],
    build: |config, steps| Ok(Box::new(EulerAncestral::new(config, steps)?)),
};

struct EulerAncestral {
    grid: SigmaGrid,
    spacing: TimestepSpacing,
    prediction: Prediction,
}

impl EulerAncestral {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<EulerAncestral, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        Ok(EulerAncestral {
            grid: continuous_grid(config, &schedule, steps)?,
            spacing: config.timestep_spacing()?,
            prediction: config.prediction()?,
        })
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma(self.spacing)
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        sigmas::scale_input(sample, self.grid.sigmas[index])
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let (from, to) = (self.grid.sigmas[index], self.grid.sigmas[index + 1]);
        let (from_square, to_square) = (from * from, to * to);
        let up = (to_square * (from_square - to_square) / from_square).sqrt();
        let down = (to_square - up * up).sqrt();

        let original = original_at_level(self.prediction, model_output, sample, from);
        let mut previous = sigmas::euler_step(sample, &original, from, down);
        let mut added = vec![0.0; sample.len()];
        noise.fill(&mut added);
        previous = zip_map(&previous, &added, |x, n| x + n * up);
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }
}
