//! PNDM: Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv
//! 2202.09778), equations 9, 12 and 13.
//!
//! With `skip_prk_steps`, Stable Diffusion's setting, the linear multistep method (PLMS) runs from the start
//! and evaluates the second timestep twice. Otherwise three pseudo Runge-Kutta steps of four evaluations each
//! come first.

use super::config::SchedulerConfig;
use super::ddim::whole_timesteps;
use super::error::SchedulerError;
use super::field::{self, choice, flag};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::Mix;
use super::words::Prediction;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "pndm",
    label: "PLMS",
    aliases: &["plms"],
    class: "PNDMScheduler",
    about: "PNDM (PLMS): deterministic, linear multistep of order 4",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::BETAS,
        &[
            flag("skip_prk_steps", false),
            flag("set_alpha_to_one", false),
            choice("prediction_type", "epsilon", &["epsilon", "v_prediction"]),
        ],
        &field::spacing("leading"),
    ],
    build: |config, steps| Ok(Box::new(Pndm::new(config, steps)?)),
};

struct Pndm {
    schedule: NoiseSchedule,
    timesteps: Vec<f64>,
    /// The number of leading timesteps that are Runge-Kutta evaluations.
    runge_kutta: usize,
    /// Training timesteps from one step to the next.
    stride: usize,
    final_alpha: f32,
    prediction: Prediction,
    evaluations: usize,
    /// The last model outputs, oldest first, at most four.
    outputs: Vec<Vec<f32>>,
    /// The starting sample of the current Runge-Kutta step, or of the first multistep step.
    start: Vec<f32>,
    /// The weighted sum of outputs in the current Runge-Kutta step.
    sum: Vec<f32>,
}

impl Pndm {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Pndm, SchedulerError> {
        let schedule = NoiseSchedule::of(config)?;
        let stride = schedule.len() / steps;
        let descending = whole_timesteps(config, steps)?;
        let (timesteps, runge_kutta) = if config.bool("skip_prk_steps") {
            let mut timesteps = descending;
            if let Some(&second) = timesteps.get(1) {
                timesteps.insert(1, second);
            }
            (timesteps, 0)
        } else {
            with_runge_kutta(&descending, (stride / 2) as f64)
                .ok_or_else(|| config.bad_steps(steps, "Runge-Kutta steps need at least 4"))?
        };
        Ok(Pndm {
            timesteps,
            runge_kutta,
            stride,
            final_alpha: if config.bool("set_alpha_to_one") { 1.0 } else { schedule.alpha(0) },
            schedule,
            prediction: config.prediction()?,
            evaluations: 0,
            outputs: Vec::new(),
            start: Vec::new(),
            sum: Vec::new(),
        })
    }

    /// One evaluation of a Runge-Kutta step: the pseudo derivative to apply to `start`, and the timesteps
    /// from and to.
    fn runge_kutta_step(&mut self, input: StepInput<'_>) -> (Vec<f32>, i64, i64) {
        let StepInput { index, model_output, sample, .. } = input;
        let half = if self.evaluations.is_multiple_of(2) { self.stride / 2 } else { 0 };
        let next = self.timesteps[index] as i64 - half as i64;
        let from = self.timesteps[self.evaluations / 4 * 4] as i64;
        let (sixth, third) = (1.0 / 6.0_f64, 1.0 / 3.0_f64);
        let weigh = |sum: &[f32], weight: f64| zip_map(sum, model_output, |s, m| s + weight as f32 * m);
        let derivative = match self.evaluations % 4 {
            0 => {
                self.sum = weigh(&vec![0.0; sample.len()], sixth);
                self.outputs.push(model_output.to_vec());
                self.start = sample.to_vec();
                model_output.to_vec()
            }
            1 | 2 => {
                self.sum = weigh(&self.sum, third);
                model_output.to_vec()
            }
            _ => weigh(&self.sum, sixth),
        };
        (derivative, from, next)
    }

    /// One multistep evaluation. The second one repeats the first step with the mean of both outputs.
    fn multistep(&mut self, input: StepInput<'_>) -> (Vec<f32>, i64, i64) {
        let StepInput { index, model_output, sample, .. } = input;
        let (timestep, stride) = (self.timesteps[index] as i64, self.stride as i64);
        if self.evaluations == 1 {
            let mean = zip_map(model_output, &self.outputs[0], |m, e| (m + e) / 2.0);
            return (mean, timestep + stride, timestep);
        }
        let keep = self.outputs.len().saturating_sub(3);
        self.outputs.drain(..keep);
        self.outputs.push(model_output.to_vec());
        self.start = sample.to_vec();
        let derivative = match &self.outputs[..] {
            [a, b] => zip_map(b, a, |b, a| (3.0 * b - a) / 2.0),
            [a, b, c] => {
                let later = zip_map(c, b, |c, b| 23.0 * c - 16.0 * b);
                zip_map(&later, a, |later, a| (later + 5.0 * a) / 12.0)
            }
            [a, b, c, d] => {
                let later = zip_map(d, c, |d, c| 55.0 * d - 59.0 * c);
                let later = zip_map(&later, b, |later, b| later + 37.0 * b);
                zip_map(&later, a, |later, a| (1.0 / 24.0) * (later - 9.0 * a))
            }
            _ => model_output.to_vec(),
        };
        (derivative, timestep, timestep - stride)
    }

    /// The cumulative alpha at a timestep; the final one below timestep 0.
    fn alpha(&self, timestep: i64) -> f32 {
        match usize::try_from(timestep) {
            Ok(timestep) => self.schedule.alpha(timestep),
            Err(_) => self.final_alpha,
        }
    }

    /// Equation 9: the transfer along a derivative from one timestep to another.
    fn transfer(&self, sample: &[f32], derivative: &[f32], from: i64, to: i64) -> Vec<f32> {
        let (alpha, alpha_next) = (self.alpha(from), self.alpha(to));
        let (beta, beta_next) = (1.0 - alpha, 1.0 - alpha_next);
        let epsilon = Mix::of_alpha_bar(alpha).epsilon(self.prediction, derivative, sample);
        let sample_scale = (alpha_next / alpha).sqrt();
        let denominator = alpha * beta_next.sqrt() + (alpha * beta * alpha_next).sqrt();
        let difference = alpha_next - alpha;
        zip_map(sample, &epsilon, |x, e| sample_scale * x - difference * e / denominator)
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        assert_eq!(input.model_output.len(), input.sample.len(), "the lengths of output and sample differ");
        let alpha = self.schedule.alpha(self.timesteps[input.index] as usize);
        let original = Mix::of_alpha_bar(alpha).original(self.prediction, input.model_output, input.sample);
        let (derivative, from, to) = if self.evaluations < self.runge_kutta {
            self.runge_kutta_step(input)
        } else {
            self.multistep(input)
        };
        let previous = self.transfer(&self.start, &derivative, from, to);
        self.evaluations += 1;
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.timesteps[index] as usize)
    }
}

/// Replaces the first three steps by Runge-Kutta evaluations: one at the start, two in the middle and one at
/// the end of each. `half` is half a step. Returns the timesteps and the number of these evaluations.
fn with_runge_kutta(descending: &[f64], half: f64) -> Option<(Vec<f64>, usize)> {
    let &[first, second, third, fourth, ..] = descending else { return None };
    let mut timesteps = Vec::with_capacity(descending.len() + 9);
    for (start, end) in [(first, second), (second, third), (third, fourth)] {
        timesteps.extend([start, end + half, end + half, end]);
    }
    let runge_kutta = timesteps.len();
    timesteps.extend(&descending[3..]);
    Some((timesteps, runge_kutta))
}
