//! DDPM: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), equations 6 and
//! 7.

use super::config::SchedulerConfig;
use super::ddim::whole_timesteps;
use super::error::SchedulerError;
use super::field::{self, choice};
use super::float::{exp, ln, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::words::Prediction;
use super::words::{Word, words};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddpm",
    label: "DDPM",
    aliases: &[],
    class: "DDPMScheduler",
    about: "DDPM: the original ancestral sampler, needs many steps",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::betas(
            0.0001,
            0.02,
            "linear",
            &["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"],
        ),
        // Learned variances need a model with twice the channels. `fixed_large_log` takes the square root of
        // a negative logarithm, which is NaN in diffusers too.
        &[choice("variance_type", "fixed_small", Variance::WORDS)],
        &field::clip(true),
        &field::PREDICTION,
        &field::THRESHOLDING,
        &field::spacing("leading"),
        &field::RESCALE_BETAS,
    ],
    build: |config, steps| Ok(Box::new(Ddpm::new(config, steps)?)),
};

/// The class whose pipelines evaluate many timesteps at once; its step is DDPM's.
pub(super) const PARALLEL_ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddpm-parallel",
    label: "DDPM parallel",
    class: "DDPMParallelScheduler",
    about: "DDPM under the name of its parallel class in diffusers",
    ..ENTRY
};

words! {
    /// The variance of the noise that a step adds.
    enum Variance {
        /// The posterior variance.
        Small = "fixed_small",
        /// The posterior variance, computed through its logarithm.
        SmallLog = "fixed_small_log",
        /// The variance of the forward process.
        Large = "fixed_large",
    }
}

struct Ddpm {
    schedule: NoiseSchedule,
    timesteps: Vec<f64>,
    variance: Variance,
    prediction: Prediction,
    limit: Limit,
}

impl Ddpm {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Ddpm, SchedulerError> {
        Ok(Ddpm {
            schedule: NoiseSchedule::of(config)?,
            timesteps: whole_timesteps(config, steps)?,
            variance: config.word("variance_type")?,
            prediction: config.prediction()?,
            limit: Limit::of(config)?,
        })
    }
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let timestep = self.timesteps[index] as usize;
        let alpha_bar = self.schedule.alpha(timestep);
        let alpha_bar_next =
            self.timesteps.get(index + 1).map_or(1.0, |&next| self.schedule.alpha(next as usize));
        let (beta_bar, beta_bar_next) = (1.0 - alpha_bar, 1.0 - alpha_bar_next);
        let alpha = alpha_bar / alpha_bar_next;
        let beta = 1.0 - alpha;

        let mut original = Mix::of_alpha_bar(alpha_bar).original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);

        let original_scale = (alpha_bar_next.sqrt() * beta) / beta_bar;
        let sample_scale = alpha.sqrt() * beta_bar_next / beta_bar;
        let mut previous = zip_map(&original, sample, |x0, x| original_scale * x0 + sample_scale * x);
        if timestep > 0 {
            let mut added = vec![0.0; sample.len()];
            noise.fill(&mut added);
            let small = (beta_bar_next / beta_bar * beta).max(1e-20);
            let deviation = match self.variance {
                Variance::Small => small.sqrt(),
                Variance::SmallLog => exp(0.5 * ln(small)),
                Variance::Large => beta.sqrt(),
            };
            previous = zip_map(&previous, &added, |x, n| x + deviation * n);
        }
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.timesteps[index] as usize)
    }
}
