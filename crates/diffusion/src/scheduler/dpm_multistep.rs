//! The multistep DPM-Solver: Algorithm 2 of "DPM-Solver++" (arXiv 2211.01095), known as DPM++ 2M.

use super::config::SchedulerConfig;
use super::dpm_solver::{self, History, Solver};
use super::error::SchedulerError;
use super::field::{self, flag};
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

struct Multistep {
    grid: SigmaGrid,
    solver: Solver,
    history: History,
}

impl Multistep {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Multistep, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let rules = SolverRules { clips_log_snr: true, rounds: rounds(config)?, end: End::of(config, false) };
        let grid = solver_grid(config, &schedule, rules, steps)?;
        let solver = Solver::of(config)?;
        Ok(Multistep { history: History::new(config, solver, grid.timesteps.len()), grid, solver })
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
        let mix = |index: usize| Mix::of_level(sigmas[index]);
        let previous = self.history.step((index, converted), sample, mix, noise);
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        Mix::of_level(self.grid.sigmas[index]).add_noise(original, noise)
    }
}
