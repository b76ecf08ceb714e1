//! DEIS: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv 2204.13902),
//! the multistep method over `rho = sigma / alpha` with polynomials in `ln rho` (`log-rho`, section 3.3).

use super::config::SchedulerConfig;
use super::dpm_solver::lambda;
use super::error::SchedulerError;
use super::field::{self, Field, Kind, field, flag, solver_order};
use super::float::{exp, numpy_ln, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::sigmas::{End, SigmaGrid, SolverRules, solver_grid};
use super::words::{Prediction, SigmaSchedule};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "deis",
    label: "DEIS",
    aliases: &[],
    class: "DEISMultistepScheduler",
    about: "DEIS: deterministic exponential integrator, good at 10 steps",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::BETAS,
        &SOLVER,
        &field::PREDICTION,
        &field::THRESHOLDING,
        &field::SIGMAS,
        &field::FLOW,
        &field::spacing("linspace"),
    ],
    build: |config, steps| Ok(Box::new(Deis::new(config, steps)?)),
};

const SOLVER: [Field; 4] = [
    solver_order(3),
    field(
        "algorithm_type",
        Kind::Choice {
            default: "deis",
            options: &["deis"],
            aliases: &[
                ("dpmsolver", "deis"),
                ("dpmsolver++", "deis"),
                ("sde-dpmsolver", "deis"),
                ("sde-dpmsolver++", "deis"),
            ],
        },
    ),
    field(
        "solver_type",
        Kind::Choice {
            default: "logrho",
            options: &["logrho"],
            aliases: &[("midpoint", "logrho"), ("heun", "logrho"), ("bh1", "logrho"), ("bh2", "logrho")],
        },
    ),
    flag("lower_order_final", true),
];

/// Runs shorter than this end with lower orders.
const SHORT_RUN: usize = 15;

struct Deis {
    grid: SigmaGrid,
    order: usize,
    lower_order_final: bool,
    prediction: Prediction,
    limit: Limit,
    /// The last predictions of the noise, newest first.
    outputs: Vec<Vec<f32>>,
}

impl Deis {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<Deis, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let rounds = config.sigmas()? == SigmaSchedule::Karras;
        let rules = SolverRules { clips_log_snr: false, rounds, end: End::Repeated };
        Ok(Deis {
            grid: solver_grid(config, &schedule, rules, steps)?,
            order: config.integer("solver_order"),
            lower_order_final: config.bool("lower_order_final"),
            prediction: config.prediction()?,
            limit: Limit::of(config)?,
            outputs: Vec::new(),
        })
    }

    /// The order of a step, limited by the outputs available.
    fn order(&self, index: usize) -> usize {
        let steps = self.grid.timesteps.len();
        let allowed = match steps - index {
            last @ (1 | 2) if self.lower_order_final && steps < SHORT_RUN => last,
            _ => self.order,
        };
        self.order.min(self.outputs.len()).min(allowed)
    }
}

impl Scheduler for Deis {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let sigmas = &self.grid.sigmas;
        let from = Mix::of_level(sigmas[index]);
        let mut original = from.original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);
        self.outputs.insert(0, from.epsilon(Prediction::Original, &original, sample));
        self.outputs.truncate(self.order);

        let to = Mix::of_level(sigmas[index + 1]);
        let order = self.order(index);
        if order == 1 {
            let h = lambda(sigmas[index + 1]) - lambda(sigmas[index]);
            let (kept, added) = (to.alpha / from.alpha, to.sigma * (exp(h) - 1.0));
            let previous = zip_map(sample, &self.outputs[0], |x, m| kept * x - added * m);
            return StepOutput { previous, original };
        }
        let rho = |mix: Mix| mix.sigma / mix.alpha;
        let levels: Vec<f32> = (0..order).map(|back| rho(Mix::of_level(sigmas[index - back]))).collect();
        let mut sum: Vec<f32> = sample.iter().map(|x| x / from.alpha).collect();
        for (current, output) in self.outputs.iter().take(order).enumerate() {
            // The levels, from the current one on in a circle.
            let nodes: Vec<f32> = (0..order).map(|next| levels[(current + next) % order]).collect();
            let coefficient = antiderivative(rho(to), &nodes) - antiderivative(levels[0], &nodes);
            sum = zip_map(&sum, output, |sum, m| sum + coefficient * m);
        }
        StepOutput { previous: sum.into_iter().map(|x| to.alpha * x).collect(), original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        Mix::of_level(self.grid.sigmas[index]).add_noise(original, noise)
    }
}

/// The antiderivative at `t` of the Lagrange polynomial in `ln t` that is 1 at the first of two or three
/// nodes and 0 at the others.
fn antiderivative(t: f32, nodes: &[f32]) -> f32 {
    let log_t = numpy_ln(t);
    let logs: Vec<f32> = nodes.iter().map(|&node| numpy_ln(node)).collect();
    match logs[..] {
        [b, c] => t * (-c + log_t - 1.0) / (b - c),
        [b, c, d] => {
            let numerator = t * (c * (d - log_t + 1.0) - d * log_t + d + log_t * log_t - 2.0 * log_t + 2.0);
            numerator / ((b - c) * (b - d))
        }
        _ => unreachable!("the order is 2 or 3"),
    }
}
