//! Trajectory consistency distillation: Zheng et al. (arXiv 2402.19159), Algorithm 4 (strategic stochastic
//! sampling).

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Field, Kind, field};
use super::lcm::distilled_timesteps;
use super::noise_schedule::NoiseSchedule;
use super::prediction::Mix;
use super::words::Prediction;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "tcd",
    label: "TCD",
    aliases: &[],
    class: "TCDScheduler",
    about: "TCD: a few steps, for trajectory consistency models",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::betas(0.00085, 0.012, "scaled_linear", field::BETA_SCHEDULES),
        &[field("original_inference_steps", Kind::Integer { default: 50, min: 1, max: 100_000 })],
        &field::PREDICTION,
        &field::RESCALE_BETAS,
        &ETA,
        &UNREAD,
    ],
    build: |config, steps| Ok(Box::new(Tcd::new(config, steps)?)),
};

/// diffusers takes `eta`, the paper's gamma, with each step. Its pipelines take 0, which is deterministic.
const ETA: [Field; 1] = [field("eta", Kind::Number(0.0))];

/// The fields that the class lists and does not read.
const UNREAD: [Field; 9] = [
    field("clip_sample", Kind::Inert),
    field("clip_sample_range", Kind::Inert),
    field("set_alpha_to_one", Kind::Inert),
    field("steps_offset", Kind::Inert),
    field("thresholding", Kind::Inert),
    field("dynamic_thresholding_ratio", Kind::Inert),
    field("sample_max_value", Kind::Inert),
    field("timestep_spacing", Kind::Inert),
    field("timestep_scaling", Kind::Inert),
];

struct Tcd {
    schedule: NoiseSchedule,
    timesteps: Vec<f64>,
    eta: f64,
    prediction: Prediction,
}

impl Tcd {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Tcd, SchedulerError> {
        Ok(Tcd {
            schedule: NoiseSchedule::of(config)?,
            timesteps: distilled_timesteps(config, steps)?,
            eta: config.fraction("eta")?,
            prediction: config.prediction()?,
        })
    }
}

impl Scheduler for Tcd {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let next = self.timesteps.get(index + 1).copied().unwrap_or(0.0);
        // The timestep that the deterministic part of the step goes to.
        let target = ((1.0 - self.eta) as f32 * next as f32).floor() as usize;
        let from = Mix::of_alpha_bar(self.schedule.alpha(self.timesteps[index] as usize));
        let original = from.original(self.prediction, model_output, sample);
        let epsilon = from.epsilon(self.prediction, model_output, sample);
        let alpha = self.schedule.alpha(target);
        let mut previous = Mix::of_alpha_bar(alpha).add_noise(&original, &epsilon);
        if self.eta > 0.0 && index + 1 < self.timesteps.len() {
            let kept = self.schedule.alpha(next as usize) / alpha;
            let mut added = vec![0.0; sample.len()];
            noise.fill(&mut added);
            previous = Mix::of_alpha_bar(kept).add_noise(&previous, &added);
        }
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.timesteps[index] as usize)
    }
}
