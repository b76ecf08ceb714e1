//! The multistep DPM-Solver: Algorithm 2 of "DPM-Solver++" (arXiv 2211.01095), known as DPM++ 2M.

use super::config::SchedulerConfig;
use super::dpm_solver::{self, Solver, difference, lambda};
use super::error::SchedulerError;
use super::field::{self, flag};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::Mix;
use super::sigmas::{End, SigmaGrid, SolverRules, solver_grid};
use super::words::{BetaSchedule, SigmaSchedule};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpmpp-2m",
    label: "DPM++ 2M",
    aliases: &["dpmpp", "dpmsolver++"],
    class: "DPMSolverMultistepScheduler",
    about: "DPM++ 2M: deterministic, second order; good at 20 steps",
    training: Training::Diffusion,
    presets: &[("algorithm_type", "dpmsolver++")],
    fields: &[
        &field::BETAS,
        &dpm_solver::solver(&["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"], true),
        &field::PREDICTION,
        &field::THRESHOLDING,
        &[flag("euler_at_final", false), flag("use_lu_lambdas", false)],
        &field::SIGMAS,
        &field::FLOW,
        &field::FINAL_SIGMA,
        &field::spacing("linspace"),
        &field::RESCALE_BETAS,
    ],
    build: |config, steps| Ok(Box::new(Multistep::new(config, steps)?)),
};

pub(super) const SDE_ENTRY: SchedulerEntry = dpm_solver::sde(
    &ENTRY,
    ["dpmpp-2m-sde", "DPM++ 2M SDE"],
    &["dpmpp-2m-sde-gpu"],
    "DPM++ 2M SDE: second order with fresh noise at every step",
);

/// Runs shorter than this end with lower orders.
const SHORT_RUN: usize = 15;

struct Multistep {
    grid: SigmaGrid,
    solver: Solver,
    lower_order_final: bool,
    /// Forces a first-order last step in runs of any length.
    first_order_last: bool,
    /// Converted model outputs, newest first.
    outputs: Vec<Vec<f32>>,
}

impl Multistep {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Multistep, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let rules = SolverRules { clips_log_snr: true, rounds: rounds(config)?, end: End::of(config, false) };
        Ok(Multistep {
            grid: solver_grid(config, &schedule, rules, steps)?,
            solver: Solver::of(config)?,
            lower_order_final: config.bool("lower_order_final"),
            first_order_last: config.bool("euler_at_final") || !config.ends_at_sigma_min(),
            outputs: Vec::new(),
        })
    }

    /// The order of a step, limited by the outputs available.
    fn order(&self, index: usize) -> usize {
        let steps = self.grid.timesteps.len();
        let shortened = self.lower_order_final && steps < SHORT_RUN;
        let allowed = match steps - index {
            1 if shortened || self.first_order_last => 1,
            2 if shortened => 2,
            _ => 3,
        };
        self.solver.order.min(self.outputs.len()).min(allowed)
    }
}

/// True if the timesteps of a sigma schedule are rounded, as in diffusers' class.
fn rounds(config: &SchedulerConfig) -> Result<bool, SchedulerError> {
    let is_cosine = config.word::<BetaSchedule>("beta_schedule")? == BetaSchedule::SquaredCosine;
    Ok(matches!(config.sigmas()?, SigmaSchedule::Karras | SigmaSchedule::Lu) && !is_cosine)
}

impl Scheduler for Multistep {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let sigmas = &self.grid.sigmas;
        let (original, converted) = self.solver.convert(input, sigmas[index]);
        self.outputs.insert(0, converted);
        self.outputs.truncate(self.solver.order);
        let noise = self.solver.draw(noise, sample.len());

        let order = self.order(index);
        let level = |back: usize| lambda(sigmas[index - back]);
        let h = lambda(sigmas[index + 1]) - level(0);
        let weights = self.solver.weights(sigmas[index], sigmas[index + 1], order);
        let combine = |outputs: &[&[f32]]| weights.combine(sample, outputs, noise.as_deref());
        let previous = match (order, &self.outputs[..]) {
            (2, [m0, m1, ..]) => {
                let r0 = (level(0) - level(1)) / h;
                combine(&[m0, &difference(1.0 / r0, m0, m1)])
            }
            (3, [m0, m1, m2, ..]) => {
                let (r0, r1) = ((level(0) - level(1)) / h, (level(1) - level(2)) / h);
                let (d1_0, d1_1) = (difference(1.0 / r0, m0, m1), difference(1.0 / r1, m1, m2));
                let ratio = r0 / (r0 + r1);
                let d1 = zip_map(&d1_0, &d1_1, |a, b| a + ratio * (a - b));
                combine(&[m0, &d1, &difference(1.0 / (r0 + r1), &d1_0, &d1_1)])
            }
            (_, outputs) => combine(&[&outputs[0]]),
        };
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        Mix::of_level(self.grid.sigmas[index]).add_noise(original, noise)
    }
}
