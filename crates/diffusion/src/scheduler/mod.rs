//! Noise schedulers: the timesteps of a denoising run, and the step between them.
//!
//! [`SCHEDULERS`] lists them. [`SchedulerConfig`] holds a model's `scheduler_config.json`. It can switch to
//! another scheduler, like diffusers' `from_config`, and builds a [`Scheduler`] for a number of steps.
//! Trajectories equal those of diffusers 0.42 within 1e-5.
//!
//! ```
//! use mixbit_diffusion::random::{NoiseSource, random_source};
//! use mixbit_diffusion::scheduler::{SchedulerConfig, StepInput};
//!
//! let file = serde_json::json!({
//!     "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
//!     "beta_schedule": "scaled_linear", "skip_prk_steps": true, "steps_offset": 1,
//! });
//! let config = SchedulerConfig::from_json(&file)?.with_scheduler("dpmpp-2m-karras")?;
//! let mut scheduler = config.build(20)?;
//! let mut noise = random_source("torch")?.seeded(93)?;
//!
//! let mut latents = vec![0.0; 4 * 8 * 8];
//! noise.fill(&mut latents);
//! latents.iter_mut().for_each(|x| *x *= scheduler.init_noise_sigma());
//! for index in 0..scheduler.timesteps().len() {
//!     let input = scheduler.scale_model_input(&latents, index);
//!     let model_output = input; // here the UNet would run, at `scheduler.timesteps()[index]`
//!     let step = StepInput { index, model_output: &model_output, sample: &latents, images: 1 };
//!     latents = scheduler.step(step, noise.as_mut()).previous;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Limits: learned variances, custom lists of timesteps or sigmas, and flow matching other than Euler's are
//! refused by name. So are the few combinations of fields for which diffusers ends at NaN.
//!
//! Four differences from diffusers are intentional. Trailing spacing gives exactly the requested number of
//! timesteps; for 62 of the counts up to 1000, a rounding in diffusers adds one at -1. UniPC's `bh1` ends
//! finite; diffusers ends at NaN. A run starts at its first timestep even if the second is equal; diffusers
//! without a begin index skips one. DPM++ SDE draws its Brownian path from the run's noise, not from a
//! generator of its own.

mod beta_quantile;
mod config;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_multistep;
mod dpm_singlestep;
mod dpm_solver;
mod dpmpp_sde;
mod edm;
mod error;
mod euler;
mod euler_ancestral;
mod field;
mod float;
mod flow_euler;
mod heun;
mod ipndm;
mod lcm;
mod lms;
mod names;
mod noise_schedule;
mod pndm;
mod prediction;
mod sa_solver;
mod sigmas;
mod spacing;
mod tcd;
mod unipc;
mod words;

#[cfg(test)]
mod tests;

pub use config::SchedulerConfig;
pub use error::SchedulerError;
pub use field::{Field, Kind};
pub(crate) use names::names_where;
pub use names::{NamedScheduler, SchedulerVariant, VARIANTS, scheduler_of_name};
pub use words::{SigmaSchedule, TimestepSpacing};

use crate::random::{NoiseSource, TorchSource};

/// One run of a scheduler, with the history that multistep methods need.
pub trait Scheduler: Send {
    /// The timesteps of the model evaluations, in order; fractional for some schedulers.
    ///
    /// The count may exceed the number of steps: methods of order 2 evaluate most steps twice, PNDM some.
    fn timesteps(&self) -> &[f64];

    /// The factor that turns unit Gaussian noise into the first sample.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Scales a sample into the model's input for evaluation `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not less than the number of timesteps.
    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        assert!(index < self.timesteps().len(), "evaluation {index} is past the last");
        sample.to_vec()
    }

    /// Steps from one timestep to the next. Evaluations come in order and may start at any index.
    ///
    /// # Panics
    ///
    /// If the index is not less than the number of timesteps, or output and sample differ in length.
    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput;

    /// Adds noise to a clean sample so that denoising can start at evaluation `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not less than the number of timesteps.
    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32>;

    /// Model evaluations per step: 2 for Heun, DPM2 and DPM++ SDE, 1 for the others.
    fn order(&self) -> usize {
        1
    }
}

/// The input of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// The evaluation, an index into [`Scheduler::timesteps`].
    pub index: usize,
    /// The model output, after guidance.
    pub model_output: &'a [f32],
    /// The current sample, before [`Scheduler::scale_model_input`].
    pub sample: &'a [f32],
    /// The batch size, at least 1, for per-image limits.
    pub images: usize,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutput {
    /// The sample at the next timestep, `x_{t-1}`.
    pub previous: Vec<f32>,
    /// The predicted clean sample `x_0`, for previews.
    pub original: Vec<f32>,
}

/// The relation of noise and sample that a model is trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Training {
    /// `alpha x0 + sigma noise` with `alpha^2 + sigma^2 = 1`, on discrete timesteps: Stable Diffusion.
    Diffusion,
    /// Noise levels and preconditioning of Karras et al. (arXiv 2206.00364): Playground 2.5.
    Edm,
    /// Straight lines from noise to sample: flow matching (arXiv 2210.02747).
    Flow,
    /// A continuous angle from noise to sample: Dance Diffusion.
    Angle,
}

impl Training {
    /// The name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Training::Diffusion => "discrete timesteps",
            Training::Edm => "EDM preconditioning",
            Training::Flow => "flow matching",
            Training::Angle => "continuous angles",
        }
    }
}

/// Builds a scheduler run from a configuration and a number of steps.
type Build = fn(&SchedulerConfig, usize) -> Result<Box<dyn Scheduler>, SchedulerError>;

/// The prediction types by diffusers' names.
pub static PREDICTION_TYPES: &[&str] = <words::Prediction as words::Word>::WORDS;

/// A scheduler: a row of [`SCHEDULERS`].
#[derive(Debug)]
pub struct SchedulerEntry {
    /// The name on the command line.
    pub name: &'static str,
    /// The common name, as in AUTOMATIC1111's generation parameters if it has the scheduler.
    pub label: &'static str,
    /// Aliases.
    pub aliases: &'static [&'static str],
    /// The class in diffusers' `scheduler_config.json`.
    pub class: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The training that it fits.
    pub training: Training,
    /// Preset fields, for names that share a class.
    presets: &'static [(&'static str, &'static str)],
    fields: &'static [&'static [Field]],
    build: Build,
}

impl SchedulerEntry {
    /// The fields of the class.
    pub fn fields(&self) -> impl Iterator<Item = Field> {
        self.fields.iter().copied().flatten().copied()
    }
}

/// Every scheduler. If rows share a class, a file's `_class_name` selects the first.
pub static SCHEDULERS: &[SchedulerEntry] = &[
    ddim::ENTRY,
    ddim::PARALLEL_ENTRY,
    ddpm::ENTRY,
    ddpm::PARALLEL_ENTRY,
    pndm::ENTRY,
    lms::ENTRY,
    euler::ENTRY,
    euler_ancestral::ENTRY,
    heun::ENTRY,
    dpm2::ENTRY,
    dpm2::ANCESTRAL_ENTRY,
    dpm_multistep::ENTRY,
    dpm_multistep::SDE_ENTRY,
    dpm_singlestep::ENTRY,
    dpm_singlestep::SDE_ENTRY,
    dpmpp_sde::ENTRY,
    unipc::ENTRY,
    deis::ENTRY,
    sa_solver::ENTRY,
    lcm::ENTRY,
    tcd::ENTRY,
    flow_euler::ENTRY,
    edm::EULER_ENTRY,
    edm::MULTISTEP_ENTRY,
    ipndm::ENTRY,
];

impl SchedulerConfig {
    /// The scheduler for a number of inference steps.
    ///
    /// # Errors
    ///
    /// A number of steps, or a combination of fields, that the class cannot run. A trial on two numbers finds
    /// the cases that no rule names.
    pub fn build(&self, steps: usize) -> Result<Box<dyn Scheduler>, SchedulerError> {
        self.validate()?;
        let train = self.training_steps();
        if steps == 0 || steps > train {
            return Err(self.bad_steps(steps, format!("it must be from 1 to {train}, the steps of training")));
        }
        if !stays_finite((self.entry().build)(self, steps)?) {
            return Err(self.bad_steps(steps, "this noise schedule leads to numbers that are not finite"));
        }
        (self.entry().build)(self, steps)
    }
}

/// Runs a scheduler on two numbers to detect infinite coefficients before the model runs for minutes.
fn stays_finite(mut scheduler: Box<dyn Scheduler>) -> bool {
    let mut noise = TorchSource::new(0);
    let mut sample = [1.0, -0.5].map(|x| x * scheduler.init_noise_sigma()).to_vec();
    (0..scheduler.timesteps().len()).all(|index| {
        let scaled = scheduler.scale_model_input(&sample, index);
        let model_output: Vec<f32> = scaled.iter().map(|x| 0.5 * x + 0.125).collect();
        let input = StepInput { index, model_output: &model_output, sample: &sample, images: 1 };
        sample = scheduler.step(input, &mut noise).previous;
        scaled.iter().chain(&sample).all(|x| x.is_finite())
    })
}
