//! The singlestep DPM-Solver: Algorithm 1 of "DPM-Solver++" (arXiv 2211.01095), known as DPM++ 2S.
//!
//! Steps come in groups of one, two or three evaluations. All steps of a group start from the group's first
//! sample.

use super::config::SchedulerConfig;
use super::dpm_solver::{self, Solver, difference, lambda};
use super::error::SchedulerError;
use super::field::{self};
use super::float::zip_map;
use super::noise_schedule::NoiseSchedule;
use super::prediction::Mix;
use super::sigmas::{End, SigmaGrid, SolverRules, solver_grid};
use super::words::SigmaSchedule;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpmpp-2s",
    label: "DPM++ 2S",
    aliases: &[],
    class: "DPMSolverSinglestepScheduler",
    about: "DPM++ 2S: deterministic, second order, single steps",
    training: Training::Diffusion,
    presets: &[("algorithm_type", "dpmsolver++")],
    fields: &[
        &field::BETAS,
        &dpm_solver::solver(&["dpmsolver", "dpmsolver++", "sde-dpmsolver++"], false),
        &field::PREDICTION,
        &field::THRESHOLDING,
        &field::SIGMAS,
        &field::FLOW,
        &field::FINAL_SIGMA,
    ],
    build: |config, steps| Ok(Box::new(Singlestep::new(config, steps)?)),
};

pub(super) const SDE_ENTRY: SchedulerEntry = dpm_solver::sde(
    &ENTRY,
    ["dpmpp-2s-sde", "DPM++ 2S SDE"],
    &[],
    "DPM++ 2S SDE: single steps with fresh noise",
);

struct Singlestep {
    grid: SigmaGrid,
    solver: Solver,
    /// The order of each step.
    orders: Vec<usize>,
    /// Converted model outputs, newest first.
    outputs: Vec<Vec<f32>>,
    /// The first sample of the current group.
    start: Vec<f32>,
}

impl Singlestep {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Singlestep, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let solver = Solver::of(config)?;
        let ends_at_zero = !config.ends_at_sigma_min();
        // diffusers' class rounds the timesteps of this sigma schedule alone.
        let rounds = config.sigmas()? == SigmaSchedule::Karras;
        let rules = SolverRules { clips_log_snr: true, rounds, end: End::of(config, false) };
        Ok(Singlestep {
            grid: solver_grid(config, &schedule, rules, steps)?,
            orders: orders(steps, solver.order, config.bool("lower_order_final"), ends_at_zero),
            solver,
            outputs: Vec::new(),
            start: Vec::new(),
        })
    }
}

/// The order of each step: groups that count up to `order`.
///
/// With `lower_order_final`, a run of whole groups ends with a separate step. A run that ends at noise level
/// zero always ends with a first-order step.
fn orders(steps: usize, order: usize, lower_order_final: bool, ends_at_zero: bool) -> Vec<usize> {
    let mut orders: Vec<usize> = (0..steps).map(|step| step % order + 1).collect();
    if ends_at_zero || (lower_order_final && steps.is_multiple_of(order)) {
        orders[steps - 1] = 1;
    }
    orders
}

impl Scheduler for Singlestep {
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

        let order = self.orders[index].min(self.outputs.len());
        if order == 1 {
            self.start = sample.to_vec();
        }
        let base = index + 1 - order;
        let level = |index: usize| lambda(sigmas[index]) - lambda(sigmas[base]);
        let h = level(index + 1);
        let weights = self.solver.weights(sigmas[base], sigmas[index + 1], order);
        let combine = |outputs: &[&[f32]]| weights.combine(&self.start, outputs, noise.as_deref());
        let previous = match (order, &self.outputs[..]) {
            (2, [m0, m1, ..]) => {
                let r0 = level(index) / h;
                combine(&[m1, &difference(1.0 / r0, m0, m1)])
            }
            (3, [m0, m1, m2, ..]) => {
                let (r0, r1) = (level(index) / h, level(index - 1) / h);
                let (d1_0, d1_1) = (difference(1.0 / r1, m1, m2), difference(1.0 / r0, m0, m2));
                if self.solver.heun {
                    let d1 = zip_map(&d1_0, &d1_1, |a, b| (r0 * a - r1 * b) / (r0 - r1));
                    let d2 = zip_map(&d1_0, &d1_1, |a, b| 2.0 * (b - a) / (r0 - r1));
                    combine(&[m2, &d1, &d2])
                } else {
                    combine(&[m2, &d1_1])
                }
            }
            (_, outputs) => combine(&[&outputs[0]]),
        };
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        Mix::of_level(self.grid.sigmas[index]).add_noise(original, noise)
    }
}

#[cfg(test)]
mod tests {
    use super::orders;

    #[test]
    fn groups_count_up_and_end_low() {
        assert_eq!(orders(6, 3, false, false), [1, 2, 3, 1, 2, 3]);
        assert_eq!(orders(6, 3, true, false), [1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(7, 3, true, false), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(orders(8, 3, true, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(orders(8, 3, true, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(orders(4, 2, true, false), [1, 2, 1, 1]);
        assert_eq!(orders(5, 2, true, false), [1, 2, 1, 2, 1]);
        assert_eq!(orders(3, 1, true, false), [1, 1, 1]);
    }
}
