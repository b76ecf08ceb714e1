//! Latent consistency models: Luo et al. (arXiv 2310.04378), with the multistep sampling of Song et al.,
//! "Consistency Models" (arXiv 2303.01469), Algorithm 1.
//!
//! Timesteps come from the schedule used for distillation, so `timestep_spacing` and `steps_offset` have no
//! effect, as in diffusers.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Kind, field, flag};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::words::Prediction;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "lcm",
    label: "LCM",
    aliases: &[],
    class: "LCMScheduler",
    about: "LCM: a few steps, for latent consistency models",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::betas(0.00085, 0.012, "scaled_linear", field::BETA_SCHEDULES),
        &[
            field("original_inference_steps", Kind::Integer { default: 50, min: 1, max: 100_000 }),
            flag("set_alpha_to_one", true),
            field("timestep_scaling", Kind::Number(10.0)),
        ],
        &field::clip(false),
        &field::spacing("leading"),
        &field::PREDICTION,
        &field::THRESHOLDING,
        &field::RESCALE_BETAS,
    ],
    build: |config, steps| Ok(Box::new(Lcm::new(config, steps)?)),
};

struct Lcm {
    schedule: NoiseSchedule,
    timesteps: Vec<f64>,
    timestep_scaling: f32,
    prediction: Prediction,
    limit: Limit,
}

impl Lcm {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Lcm, SchedulerError> {
        let schedule = NoiseSchedule::of(config)?;
        let timesteps = distilled_timesteps(config, steps)?;
        Ok(Lcm {
            schedule,
            timesteps,
            timestep_scaling: config.number("timestep_scaling") as f32,
            prediction: config.prediction()?,
            limit: Limit::of(config)?,
        })
    }
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        /// The standard deviation of the data, squared.
        const VARIANCE: f32 = 0.25;
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let mix = Mix::of_alpha_bar(self.schedule.alpha(self.timesteps[index] as usize));
        let mut original = mix.original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);

        let scaled = self.timesteps[index] as f32 * self.timestep_scaling;
        let total = scaled * scaled + VARIANCE;
        let (skip, out) = (1.0 / total * VARIANCE, scaled / total.sqrt());
        let denoised = zip_map(&original, sample, |x0, x| out * x0 + skip * x);
        let Some(&next) = self.timesteps.get(index + 1) else {
            return StepOutput { previous: denoised.clone(), original: denoised };
        };
        let mut added = vec![0.0; sample.len()];
        noise.fill(&mut added);
        let previous = Mix::of_alpha_bar(self.schedule.alpha(next as usize)).add_noise(&denoised, &added);
        StepOutput { previous, original: denoised }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.timesteps[index] as usize)
    }
}

/// The timesteps of `steps` steps among those of distillation, which both LCM and TCD take.
///
/// # Errors
///
/// If distillation had fewer steps, or more than training.
pub(super) fn distilled_timesteps(
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<f64>, SchedulerError> {
    let (train, distilled) = (config.training_steps(), config.integer("original_inference_steps"));
    if distilled > train {
        let reason = format!("is more than the {train} timesteps of training");
        return Err(config.bad_value("original_inference_steps", reason));
    }
    if steps > distilled {
        return Err(config.bad_steps(steps, format!("`original_inference_steps` is {distilled}")));
    }
    let ratio = train / distilled;
    let spread = distilled as f64 / steps as f64;
    let timestep = |index: usize| {
        let skipped = (index as f64 * spread).floor() as usize;
        ((distilled - skipped) * ratio - 1) as f64
    };
    Ok((0..steps).map(timestep).collect())
}
