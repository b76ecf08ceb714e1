//! SA-Solver: Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models" (arXiv
//! 2309.05019), a predictor and a corrector over the log-SNR.
//!
//! The stochasticity `tau` is 1 for timesteps from 200 to 800 and else 0, as in diffusers and the paper.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Field, Kind, field, flag};
use super::float::{exp, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::sigmas::{End, SigmaGrid, SolverRules, solver_grid};
use super::words::{Prediction, SigmaSchedule};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "sa-solver",
    label: "SA Solver",
    aliases: &[],
    class: "SASolverScheduler",
    about: "SA Solver: stochastic predictor-corrector of second order",
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
    build: |config, steps| Ok(Box::new(SaSolver::new(config, steps)?)),
};

const SOLVER: [Field; 7] = [
    field("predictor_order", Kind::Integer { default: 2, min: 1, max: 4 }),
    field("corrector_order", Kind::Integer { default: 2, min: 1, max: 4 }),
    field("tau_func", Kind::Off),
    field(
        "algorithm_type",
        Kind::Choice {
            default: "data_prediction",
            options: &["data_prediction", "noise_prediction"],
            aliases: &[
                ("dpmsolver++", "data_prediction"),
                ("sde-dpmsolver++", "data_prediction"),
                ("deis", "data_prediction"),
            ],
        },
    ),
    flag("lower_order_final", true),
    field("lambda_min_clipped", Kind::Number(f64::NEG_INFINITY)),
    field("variance_type", Kind::Off),
];

struct SaSolver {
    schedule: NoiseSchedule,
    grid: SigmaGrid,
    predictor_order: usize,
    corrector_order: usize,
    predict_original: bool,
    lower_order_final: bool,
    prediction: Prediction,
    limit: Limit,
    /// Converted model outputs, newest first.
    outputs: Vec<Vec<f32>>,
    /// The last step: its first sample and its noise.
    last: Option<(Vec<f32>, Vec<f32>)>,
    /// The order of the next correction.
    next_correction: usize,
}

/// A step over one interval of the grid.
struct Interval<'a> {
    /// The level that it starts from; it ends at the next.
    base: usize,
    /// The level of the newest output.
    newest: usize,
    order: usize,
    sample: &'a [f32],
    noise: &'a [f32],
    /// Converted model outputs, newest first.
    outputs: &'a [&'a [f32]],
}

impl SaSolver {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<SaSolver, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let rounds = config.sigmas()? == SigmaSchedule::Karras;
        let rules = SolverRules { clips_log_snr: true, rounds, end: End::Repeated };
        let predict_original = config.choice("algorithm_type") == "data_prediction";
        let limit = Limit::of(config)?;
        if !predict_original && limit != Limit::None {
            return Err(config.bad_value("thresholding", "needs `algorithm_type` = data_prediction"));
        }
        Ok(SaSolver {
            grid: solver_grid(config, &schedule, rules, steps)?,
            schedule,
            predictor_order: config.integer("predictor_order"),
            corrector_order: config.integer("corrector_order"),
            predict_original,
            lower_order_final: config.bool("lower_order_final"),
            prediction: config.prediction()?,
            limit,
            outputs: Vec::new(),
            last: None,
            next_correction: 0,
        })
    }

    /// The stochasticity of the step from a level, squared.
    fn tau_square(&self, index: usize) -> f32 {
        if (200.0..=800.0).contains(&self.grid.timesteps[index]) { 1.0 } else { 0.0 }
    }

    /// The sample at the end of an interval.
    fn update(&self, interval: &Interval<'_>) -> Vec<f32> {
        let Interval { base, sample, noise, .. } = *interval;
        let level = |index: usize| Mix::of_level(self.grid.sigmas[index]);
        let (from, to) = (level(base), level(base + 1));
        let h = to.lambda() - from.lambda();
        let tau = self.tau_square(base);
        let (sample_scale, output_scale, noise_scale) = if self.predict_original {
            (
                exp(-tau * h) * (to.sigma / from.sigma),
                (1.0 + tau) * to.sigma * exp(-tau * to.lambda()),
                to.sigma * (1.0 - exp(-2.0 * tau * h)).sqrt(),
            )
        } else {
            (to.alpha / from.alpha, -(1.0 + tau) * to.alpha, tau * to.sigma * (exp(2.0 * h) - 1.0).sqrt())
        };
        let mut gradient = vec![0.0; sample.len()];
        for (coefficient, output) in self.coefficients(interval).into_iter().zip(interval.outputs) {
            let weight = output_scale * coefficient;
            gradient = zip_map(&gradient, output, |sum, m| sum + weight * m);
        }
        let moved = zip_map(sample, &gradient, |x, g| sample_scale * x + g);
        zip_map(&moved, noise, |x, n| x + noise_scale * n)
    }

    /// The integral of each output's Lagrange polynomial over an interval, newest first.
    fn coefficients(&self, interval: &Interval<'_>) -> Vec<f32> {
        let Interval { base, newest, order, .. } = *interval;
        let lambda = |index: usize| Mix::of_level(self.grid.sigmas[index]).lambda();
        let (start, end) = (lambda(base), lambda(base + 1));
        let tau = self.tau_square(base);
        let nodes: Vec<f32> = (0..order).map(|back| lambda(newest - back)).collect();
        let moments: Vec<f32> = (0..order)
            .map(|power| match self.predict_original {
                true => growing_moment(power, start, end, 1.0 + tau),
                false => decaying_moment(power, start, end),
            })
            .collect();
        let integral = |polynomial: Vec<f32>| {
            polynomial.iter().enumerate().fold(0.0, |sum, (at, c)| sum + c * moments[order - 1 - at])
        };
        let mut coefficients: Vec<f32> = (0..order).map(|node| integral(lagrange(&nodes, node))).collect();
        if self.predict_original && order == 2 {
            let (c, h) = (1.0 + tau, end - start);
            let rest = h * c - 1.0 + exp(c * -h);
            let correction = if newest == base {
                exp(c * end) * (h * h / 2.0 - rest / (c * c)) / (start - lambda(base - 1))
            } else {
                exp(c * end) * (h / 2.0 - rest / (c * c * h))
            };
            coefficients[0] += correction;
            coefficients[1] -= correction;
        }
        coefficients
    }
}

/// The coefficients, highest power first, of the polynomial that is 1 at one node and 0 at the others.
fn lagrange(nodes: &[f32], node: usize) -> Vec<f32> {
    let others: Vec<f32> = nodes.iter().enumerate().filter(|(at, _)| *at != node).map(|(_, &x)| x).collect();
    let denominator: f32 = others.iter().map(|other| nodes[node] - other).product();
    let numerators = match others[..] {
        [] => vec![1.0],
        [a] => vec![1.0, -a],
        [a, b] => vec![1.0, -a - b, a * b],
        [a, b, c] => vec![1.0, -a - b - c, a * b + a * c + b * c, -a * b * c],
        _ => unreachable!("the order is at most 4"),
    };
    numerators.into_iter().map(|numerator| numerator / denominator).collect()
}

/// The integral of `c exp(c l) l^power`, over `c`, from `start` to `end`.
fn growing_moment(power: usize, start: f32, end: f32, c: f32) -> f32 {
    let (start, end) = (c * start, c * end);
    let decay = exp(-(end - start));
    let polynomial = |x: f32| match power {
        0 => 1.0,
        1 => x - 1.0,
        2 => x * x - 2.0 * x + 2.0,
        _ => x * x * x - 3.0 * (x * x) + 6.0 * x - 6.0,
    };
    let span = polynomial(end) - polynomial(start) * decay;
    exp(end) * span / c.powi(power as i32 + 1)
}

/// The integral of `exp(-l) l^power` from `start` to `end`.
fn decaying_moment(power: usize, start: f32, end: f32) -> f32 {
    let growth = exp(end - start);
    let polynomial = |x: f32| match power {
        0 => 1.0,
        1 => x + 1.0,
        2 => x * x + 2.0 * x + 2.0,
        _ => x * x * x + 3.0 * (x * x) + 6.0 * x + 6.0,
    };
    exp(-end) * (polynomial(start) * growth - polynomial(end))
}

impl Scheduler for SaSolver {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let mix = Mix::of_level(self.grid.sigmas[index]);
        let mut original = mix.original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);
        let converted = match self.predict_original {
            true => original.clone(),
            false => mix.epsilon(self.prediction, model_output, sample),
        };
        let outputs: Vec<&[f32]> =
            std::iter::once(&converted[..]).chain(self.outputs.iter().map(Vec::as_slice)).collect();
        let corrected = self.last.as_ref().map(|(start, noise)| {
            let order = self.next_correction;
            let base = index - 1;
            self.update(&Interval { base, newest: index, order, sample: start, noise, outputs: &outputs })
        });
        let sample = corrected.unwrap_or_else(|| sample.to_vec());

        let mut drawn = vec![0.0; sample.len()];
        noise.fill(&mut drawn);
        let remaining =
            if self.lower_order_final { self.grid.timesteps.len() - index } else { usize::MAX - 1 };
        let known = self.outputs.len();
        let order = self.predictor_order.min(remaining).min(known + 1);
        self.next_correction = self.corrector_order.min(remaining + 1).min(known + 2);
        let previous = self.update(&Interval {
            base: index,
            newest: index,
            order,
            sample: &sample,
            noise: &drawn,
            outputs: &outputs,
        });
        self.last = Some((sample, drawn));
        self.outputs.insert(0, converted);
        self.outputs.truncate(self.predictor_order.max(self.corrector_order - 1));
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        self.schedule.add_noise(original, noise, self.grid.timesteps[index] as usize)
    }
}
