//! Euler's method for flow matching: Lipman et al. (arXiv 2210.02747), with the shift of timesteps of Esser
//! et al. (arXiv 2403.03206, section 5.3.2), as for fine-tunes of Stable Diffusion XL that are trained so.
//!
//! A sample at level `sigma` is `(1 - sigma) x0 + sigma noise`, and the model predicts the velocity
//! `noise - x0`.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Kind, field, flag};
use super::float::{numpy_linspace, zip_map};
use super::sigmas::levels_between;
use super::words::SigmaSchedule;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "flow-euler",
    label: "Flow Euler",
    aliases: &["flow-match-euler", "discrete-flow"],
    class: "FlowMatchEulerDiscreteScheduler",
    about: "Euler for models trained with flow matching",
    training: Training::Flow,
    presets: &[],
    fields: &[
        &[
            field("num_train_timesteps", Kind::Integer { default: 1000, min: 1, max: 100_000 }),
            field("shift", Kind::Number(1.0)),
            field("use_dynamic_shifting", Kind::Off),
            field("base_shift", Kind::Inert),
            field("max_shift", Kind::Inert),
            field("base_image_seq_len", Kind::Inert),
            field("max_image_seq_len", Kind::Inert),
            field("time_shift_type", Kind::Inert),
            field("invert_sigmas", Kind::Off),
            field("shift_terminal", Kind::OptionalNumber),
            flag("stochastic_sampling", false),
        ],
        &field::SIGMAS,
    ],
    build: |config, steps| Ok(Box::new(FlowEuler::new(config, steps)?)),
};

struct FlowEuler {
    timesteps: Vec<f64>,
    /// The noise levels in descending order, and 0.
    sigmas: Vec<f32>,
    stochastic: bool,
}

impl FlowEuler {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<FlowEuler, SchedulerError> {
        let train = config.training_steps() as f64;
        let shift = config.number("shift");
        if shift <= 0.0 {
            return Err(config.bad_value("shift", "is not positive"));
        }
        let shifted = |sigma: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
        // diffusers shifts the smallest level when it is made, in f32, and again with the others.
        let smallest = {
            let (shift, sigma) = (shift as f32, 1.0 / train as f32);
            f64::from(shift * sigma / (1.0 + (shift - 1.0) * sigma))
        };
        let spaced = numpy_linspace(train, smallest * train, steps);
        let mut sigmas: Vec<f64> = spaced.into_iter().map(|timestep| shifted(timestep / train)).collect();
        if let Some(terminal) = config.optional_number("shift_terminal").filter(|&level| level != 0.0) {
            stretch(&mut sigmas, terminal);
        }
        let schedule = config.sigmas()?;
        if schedule != SigmaSchedule::Trained {
            let (max, min) = (sigmas[0], sigmas[steps - 1]);
            sigmas = levels_between(schedule, min, max, steps).unwrap_or(sigmas);
        }
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        Ok(FlowEuler {
            timesteps: sigmas.iter().map(|sigma| f64::from(sigma * train as f32)).collect(),
            sigmas: [&sigmas[..], &[0.0]].concat(),
            stochastic: config.bool("stochastic_sampling"),
        })
    }
}

/// Stretches descending levels so that the last becomes `terminal`.
fn stretch(sigmas: &mut [f64], terminal: f64) {
    let scale = (1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal);
    sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
}

impl Scheduler for FlowEuler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let (from, to) = (self.sigmas[index], self.sigmas[index + 1]);
        let original = zip_map(sample, model_output, |x, v| x - from * v);
        let previous = if self.stochastic {
            let mut added = vec![0.0; sample.len()];
            noise.fill(&mut added);
            zip_map(&original, &added, |x, n| (1.0 - to) * x + to * n)
        } else {
            let dt = to - from;
            zip_map(sample, model_output, |x, v| x + dt * v)
        };
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        let sigma = self.sigmas[index];
        zip_map(original, noise, |x, n| sigma * n + (1.0 - sigma) * x)
    }
}
