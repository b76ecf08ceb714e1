//! The shared part of the multistep and singlestep DPM-Solver: Lu et al., "DPM-Solver" (arXiv 2206.00927) and
//! "DPM-Solver++" (arXiv 2211.01095), with the SDE variants of the latter.
//!
//! Both step from a base point to a target in log-SNR. They differ in the choice of base and in the finite
//! differences of model outputs. The weights of those differences are the same and are computed here.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{Field, Kind, field, flag, solver_order};
use super::float::{exp, zip_map};
use super::prediction::{Limit, Mix};
use super::words::Prediction;
use super::words::words;
use super::{SchedulerEntry, StepInput};
use crate::random::NoiseSource;

/// The solver fields of both classes; each class gives its own `algorithms` and default of
/// `lower_order_final`.
pub(super) const fn solver(algorithms: &'static [&'static str], lower_order_final: bool) -> [Field; 6] {
    [
        solver_order(3),
        algorithm_type(algorithms),
        SOLVER_TYPE,
        flag("lower_order_final", lower_order_final),
        field("lambda_min_clipped", Kind::Number(f64::NEG_INFINITY)),
        field("variance_type", Kind::Off),
    ]
}

/// The field of the equation to solve, with the choices of a class.
pub(super) const fn algorithm_type(options: &'static [&'static str]) -> Field {
    let aliases = &[("deis", "dpmsolver++")];
    field("algorithm_type", Kind::Choice { default: "dpmsolver++", options, aliases })
}

/// The field of the rule for second-order steps.
pub(super) const SOLVER_TYPE: Field = field(
    "solver_type",
    Kind::Choice {
        default: "midpoint",
        options: &["midpoint", "heun"],
        aliases: &[("logrho", "midpoint"), ("bh1", "midpoint"), ("bh2", "midpoint")],
    },
);

words! {
    /// The equation to solve, and its unknown.
    pub(super) enum Algorithm {
        /// The ODE, for the noise.
        DpmSolver = "dpmsolver",
        /// The ODE, for the clean sample.
        DpmSolverPlusPlus = "dpmsolver++",
        /// The SDE, for the noise.
        SdeDpmSolver = "sde-dpmsolver",
        /// The SDE, for the clean sample.
        SdeDpmSolverPlusPlus = "sde-dpmsolver++",
    }
}

impl Algorithm {
    /// True if the solver works on predicted clean samples instead of predicted noise.
    pub(super) fn predicts_original(self) -> bool {
        matches!(self, Algorithm::DpmSolverPlusPlus | Algorithm::SdeDpmSolverPlusPlus)
    }

    /// True if every step adds noise.
    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Algorithm::SdeDpmSolver | Algorithm::SdeDpmSolverPlusPlus)
    }
}

/// The solver of a configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Solver {
    pub algorithm: Algorithm,
    /// Uses Heun's rule for second-order steps instead of the midpoint rule.
    pub heun: bool,
    pub order: usize,
    prediction: Prediction,
    pub limit: Limit,
}

impl Solver {
    /// Reads the solver fields.
    ///
    /// # Errors
    ///
    /// A final sigma of zero with a noise-prediction solver, whose unknown is infinite there.
    pub(super) fn of(config: &SchedulerConfig) -> Result<Solver, SchedulerError> {
        let algorithm: Algorithm = config.word("algorithm_type")?;
        if !algorithm.predicts_original() && !config.ends_at_sigma_min() {
            return Err(config.bad_value("algorithm_type", "needs `final_sigmas_type` = sigma_min"));
        }
        let order = config.integer("solver_order");
        if algorithm == Algorithm::SdeDpmSolver && order == 3 {
            return Err(config.bad_value("algorithm_type", "has no third order"));
        }
        Ok(Solver {
            algorithm,
            heun: config.choice("solver_type") == "heun",
            order,
            prediction: config.prediction()?,
            limit: Limit::of(config)?,
        })
    }

    /// The limited prediction of the clean sample, and the quantity that the solver works on.
    pub(super) fn convert(&self, input: StepInput<'_>, level: f32) -> (Vec<f32>, Vec<f32>) {
        let StepInput { model_output, sample, images, .. } = input;
        let mix = Mix::of_level(level);
        let mut original = mix.original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);
        let converted = if self.algorithm.predicts_original() {
            original.clone()
        } else if self.limit == Limit::None {
            mix.epsilon(self.prediction, model_output, sample)
        } else {
            mix.epsilon(Prediction::Original, &original, sample)
        };
        (original, converted)
    }

    /// The weights of a step from the level of `base` to that of `target`, of order 1, 2 or 3.
    pub(super) fn weights(&self, base: f32, target: f32, order: usize) -> Weights {
        self.weights_between(Mix::of_level(base), Mix::of_level(target), order)
    }

    /// The weights of a step from one mix of signal and noise to another.
    pub(super) fn weights_between(&self, base: Mix, target: Mix, order: usize) -> Weights {
        let h = target.lambda() - base.lambda();
        let midpoint = order == 2 && !self.heun;
        match self.algorithm {
            Algorithm::DpmSolverPlusPlus => {
                let (alpha, phi) = (target.alpha, exp(-h) - 1.0);
                Weights {
                    sample: target.sigma / base.sigma,
                    outputs: [
                        -(alpha * phi),
                        if midpoint { -(0.5 * (alpha * phi)) } else { alpha * (phi / h + 1.0) },
                        -(alpha * ((phi + h) / (h * h) - 0.5)),
                    ],
                    noise: 0.0,
                }
            }
            Algorithm::DpmSolver => {
                let (sigma, phi) = (target.sigma, exp(h) - 1.0);
                Weights {
                    sample: target.alpha / base.alpha,
                    outputs: [
                        -(sigma * phi),
                        if midpoint { -(0.5 * (sigma * phi)) } else { -(sigma * (phi / h - 1.0)) },
                        -(sigma * ((phi - h) / (h * h) - 0.5)),
                    ],
                    noise: 0.0,
                }
            }
            Algorithm::SdeDpmSolverPlusPlus => {
                let (alpha, phi) = (target.alpha, 1.0 - exp(-2.0 * h));
                let double = 2.0 * h;
                Weights {
                    sample: target.sigma / base.sigma * exp(-h),
                    outputs: [
                        alpha * phi,
                        if midpoint { 0.5 * (alpha * phi) } else { alpha * (phi / -double + 1.0) },
                        alpha * ((phi - double) / (double * double) - 0.5),
                    ],
                    noise: target.sigma * phi.sqrt(),
                }
            }
            Algorithm::SdeDpmSolver => {
                let (sigma, phi) = (target.sigma, exp(h) - 1.0);
                Weights {
                    sample: target.alpha / base.alpha,
                    outputs: [
                        -(2.0 * (sigma * phi)),
                        if midpoint { -(sigma * phi) } else { -(2.0 * (sigma * (phi / h - 1.0))) },
                        0.0,
                    ],
                    noise: sigma * (exp(2.0 * h) - 1.0).sqrt(),
                }
            }
        }
    }

    /// The noise of a step; none for an ODE.
    pub(super) fn draw(&self, noise: &mut dyn NoiseSource, len: usize) -> Option<Vec<f32>> {
        self.algorithm.is_stochastic().then(|| {
            let mut values = vec![0.0; len];
            noise.fill(&mut values);
            values
        })
    }
}

/// Runs shorter than this end with lower orders.
const SHORT_RUN: usize = 15;

/// The earlier outputs of a multistep solver, from which a step is extrapolated.
pub(super) struct History {
    solver: Solver,
    /// The number of steps of the run.
    steps: usize,
    lower_order_final: bool,
    /// Forces a first-order last step in runs of any length.
    first_order_last: bool,
    /// Outputs in the solver's unknown, newest first.
    outputs: Vec<Vec<f32>>,
}

impl History {
    /// The empty history of a run.
    pub(super) fn new(config: &SchedulerConfig, solver: Solver, steps: usize) -> History {
        History {
            solver,
            steps,
            lower_order_final: config.bool("lower_order_final"),
            first_order_last: config.bool("euler_at_final") || !config.ends_at_sigma_min(),
            outputs: Vec::new(),
        }
    }

    /// The previous sample, from the `output` at a step and those before it. `mix` gives the mix of signal
    /// and noise at an index of the grid.
    pub(super) fn step(
        &mut self,
        (index, output): (usize, Vec<f32>),
        sample: &[f32],
        mix: impl Fn(usize) -> Mix,
        noise: &mut dyn NoiseSource,
    ) -> Vec<f32> {
        self.outputs.insert(0, output);
        self.outputs.truncate(self.solver.order);
        let noise = self.solver.draw(noise, sample.len());
        let order = self.order(index);
        let level = |back: usize| mix(index - back).lambda();
        let h = mix(index + 1).lambda() - level(0);
        let weights = self.solver.weights_between(mix(index), mix(index + 1), order);
        let combine = |outputs: &[&[f32]]| weights.combine(sample, outputs, noise.as_deref());
        match (order, &self.outputs[..]) {
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
        }
    }

    /// The order of a step, limited by the outputs available.
    fn order(&self, index: usize) -> usize {
        let shortened = self.lower_order_final && self.steps < SHORT_RUN;
        let allowed = match self.steps - index {
            1 if shortened || self.first_order_last => 1,
            2 if shortened => 2,
            _ => 3,
        };
        self.solver.order.min(self.outputs.len()).min(allowed)
    }
}

/// The weights of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    /// The weight of the base sample.
    sample: f32,
    /// The weights of the model output at the base and of its first and second differences.
    outputs: [f32; 3],
    /// The weight of unit noise.
    noise: f32,
}

impl Weights {
    /// The weighted sum.
    pub(super) fn combine(&self, sample: &[f32], outputs: &[&[f32]], noise: Option<&[f32]>) -> Vec<f32> {
        let mut sum: Vec<f32> = sample.iter().map(|x| self.sample * x).collect();
        for (values, weight) in outputs.iter().zip(self.outputs) {
            sum = zip_map(&sum, values, |sum, d| sum + weight * d);
        }
        match noise {
            Some(noise) => zip_map(&sum, noise, |sum, n| sum + self.noise * n),
            None => sum,
        }
    }
}

/// Half the log-SNR at a noise level.
pub(super) fn lambda(level: f32) -> f32 {
    Mix::of_level(level).lambda()
}

/// `scale (a - b)`.
pub(super) fn difference(scale: f32, a: &[f32], b: &[f32]) -> Vec<f32> {
    zip_map(a, b, |a, b| scale * (a - b))
}

/// A table row for a class with its SDE solver: name, label, aliases and help line.
pub(super) const fn sde(
    base: &SchedulerEntry,
    [name, label]: [&'static str; 2],
    aliases: &'static [&'static str],
    about: &'static str,
) -> SchedulerEntry {
    SchedulerEntry {
        name,
        label,
        aliases,
        class: base.class,
        about,
        training: base.training,
        presets: &[("algorithm_type", "sde-dpmsolver++")],
        fields: base.fields,
        build: base.build,
    }
}
