//! DDIM: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equations 12 and 16.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Field, flag};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::spacing::{self, Range};
use super::words::Prediction;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddim",
    label: "DDIM",
    aliases: &[],
    class: "DDIMScheduler",
    about: "DDIM: deterministic, first order",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::BETAS,
        &field::clip(true),
        &[flag("set_alpha_to_one", true)],
        &field::spacing("leading"),
        &field::PREDICTION,
        &field::THRESHOLDING,
        &field::RESCALE_BETAS,
        &ETA,
    ],
    build: |config, steps| Ok(Box::new(Ddim::new(config, steps)?)),
};

/// The class whose pipelines evaluate many timesteps at once; its step is DDIM's.
pub(super) const PARALLEL_ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddim-parallel",
    label: "DDIM parallel",
    class: "DDIMParallelScheduler",
    about: "DDIM under the name of its parallel class in diffusers",
    ..ENTRY
};

/// diffusers takes `eta` with each step instead of in the file; 0 is deterministic, 1 is DDPM.
const ETA: [Field; 1] = [field::field("eta", field::Kind::Number(0.0))];

struct Ddim {
    schedule: NoiseSchedule,
    timesteps: Vec<f64>,
    /// Training timesteps from one step to the next.
    stride: usize,
    final_alpha: f32,
    prediction: Prediction,
    limit: Limit,
    eta: f32,
}

impl Ddim {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Ddim, SchedulerError> {
        let schedule = NoiseSchedule::of(config)?;
        Ok(Ddim {
            timesteps: whole_timesteps(config, steps)?,
            stride: schedule.len() / steps,
            final_alpha: if config.bool("set_alpha_to_one") { 1.0 } else { schedule.alpha(0) },
            schedule,
            prediction: config.prediction()?,
            limit: Limit::of(config)?,
            eta: config.fraction("eta")? as f32,
        })
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let timestep = self.timesteps[index] as usize;
        let alpha = self.schedule.alpha(timestep);
        let alpha_next =
            timestep.checked_sub(self.stride).map_or(self.final_alpha, |t| self.schedule.alpha(t));

        let mix = Mix::of_alpha_bar(alpha);
        let mut original = mix.original(self.prediction, model_output, sample);
        let epsilon = mix.epsilon(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);

        let variance = ((1.0 - alpha_next) / (1.0 - alpha)) * (1.0 - alpha / alpha_next);
        let deviation = self.eta * variance.sqrt();
        let (signal, direction) = (alpha_next.sqrt(), (1.0 - alpha_next - deviation * deviation).sqrt());
        let mut previous = zip_map(&original, &epsilon, |x, e| signal * x + direction * e);
        if self.eta > 0.0 {
            let mut added = vec![0.0; sample.len()];
            noise.fill(&mut added);
            previous = zip_map(&previous, &added, |x, n| x + deviation * n);
        }
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.timesteps[index] as usize)
    }
}

/// Integer timesteps within training, for schedulers that index training alphas.
///
/// # Errors
///
/// If an offset moves a timestep past the last one.
pub(super) fn whole_timesteps(config: &SchedulerConfig, steps: usize) -> Result<Vec<f64>, SchedulerError> {
    let range = Range::of(config);
    let mut timesteps = spacing::inclusive(config.timestep_spacing()?, range, steps);
    timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    if timesteps.first().is_some_and(|&first| first >= range.train as f64) {
        let reason = format!("`steps_offset` = {} moves a timestep past training", range.offset);
        return Err(config.bad_steps(steps, reason));
    }
    Ok(timesteps)
}
