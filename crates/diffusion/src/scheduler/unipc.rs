//! UniPC: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
//! (arXiv 2302.04867), Algorithms 1 to 4, in the B(h) form.
//!
//! The corrector uses the model output at the sample itself, so it costs no extra evaluation. Each step first
//! corrects the result of the last one, then predicts the next.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Field, Kind, field, flag, solver_order};
use super::float::{exp_m1, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::{Limit, Mix};
use super::sigmas::{End, SigmaGrid, SolverRules, solver_grid};
use super::words::Prediction;
use super::words::SigmaSchedule;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "unipc",
    label: "UniPC",
    aliases: &["uni-pc-bh2"],
    class: "UniPCMultistepScheduler",
    about: "UniPC: deterministic predictor-corrector; good at 10 steps",
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
        &field::FINAL_SIGMA,
        &field::RESCALE_BETAS,
    ],
    build: |config, steps| Ok(Box::new(UniPc::new(config, steps)?)),
};

const SOLVER: [Field; 9] = [
    solver_order(9),
    flag("predict_x0", true),
    field(
        "solver_type",
        Kind::Choice {
            default: "bh2",
            options: &["bh1", "bh2"],
            aliases: &[("midpoint", "bh2"), ("heun", "bh2"), ("logrho", "bh2")],
        },
    ),
    flag("lower_order_final", true),
    field("disable_corrector", Kind::Numbers),
    field("solver_p", Kind::Off),
    field("sigma_min", Kind::OptionalNumber),
    field("sigma_max", Kind::OptionalNumber),
    field("shift_terminal", Kind::Off),
];

struct UniPc {
    grid: SigmaGrid,
    order: usize,
    predict_original: bool,
    /// `B(h) = h` instead of `exp(h) - 1`.
    first_b: bool,
    lower_order_final: bool,
    /// The steps without correction.
    uncorrected: Vec<usize>,
    prediction: Prediction,
    limit: Limit,
    /// Converted model outputs, newest first.
    outputs: Vec<Vec<f32>>,
    /// The starting sample of the last step, after correction, and the order of that step.
    last: Option<(Vec<f32>, usize)>,
}

impl UniPc {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<UniPc, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let order = config.integer("solver_order");
        let predict_original = config.bool("predict_x0");
        let lower_order_final = config.bool("lower_order_final");
        if !config.ends_at_sigma_min() {
            // The last step would divide by an infinite difference of log-SNRs.
            if !lower_order_final && order > 1 {
                return Err(config.bad_value("lower_order_final", "needs `final_sigmas_type` = sigma_min"));
            }
            if !predict_original {
                return Err(config.bad_value("predict_x0", "needs `final_sigmas_type` = sigma_min"));
            }
        }
        // diffusers' class rounds the timesteps of this sigma schedule only.
        let rounds = config.sigmas()? == SigmaSchedule::Karras;
        let rules = SolverRules { clips_log_snr: false, rounds, end: End::of(config, true) };
        let uncorrected = config.numbers("disable_corrector").unwrap_or_default();
        Ok(UniPc {
            grid: solver_grid(config, &schedule, rules, steps)?,
            order,
            predict_original,
            first_b: config.choice("solver_type") == "bh1",
            lower_order_final,
            uncorrected: uncorrected.into_iter().map(|step| step as usize).collect(),
            prediction: config.prediction()?,
            // diffusers limits predicted samples only.
            limit: if predict_original { Limit::of(config)? } else { Limit::None },
            outputs: Vec::new(),
            last: None,
        })
    }

    /// The step from level `base` to the next. An order needs `order - 1` earlier outputs. A corrector also
    /// takes the model output `arrived` at the next level.
    fn update(&self, base: usize, sample: &[f32], order: usize, arrived: Option<&[f32]>) -> Vec<f32> {
        let level = |index: usize| Mix::of_level(self.grid.sigmas[index]);
        let (from, to) = (level(base), level(base + 1));
        let h = to.lambda() - from.lambda();
        let newest = &self.outputs[0];

        let mut ratios = Vec::with_capacity(order);
        let mut differences = Vec::with_capacity(order);
        for back in 1..order {
            let ratio = (level(base - back).lambda() - from.lambda()) / h;
            ratios.push(ratio);
            differences.push(zip_map(&self.outputs[back], newest, |m, m0| (m - m0) / ratio));
        }
        ratios.push(1.0);
        let signed_h = if self.predict_original { -h } else { h };
        let phi = exp_m1(signed_h);
        let b_h = if self.first_b { signed_h } else { phi };
        let moments = moments(signed_h, phi, b_h, order);

        let mut weights = match (order, arrived.is_some()) {
            (1, false) => vec![],
            (2, false) | (1, true) => vec![0.5],
            (_, false) => solve_vandermonde(&ratios[..order - 1], &moments[..order - 1]),
            (_, true) => solve_vandermonde(&ratios, &moments),
        };
        let (sample_scale, scale) = if self.predict_original {
            (to.sigma / from.sigma, to.alpha)
        } else {
            (to.alpha / from.alpha, to.sigma)
        };
        let (newest_scale, residual_scale) = (scale * phi, scale * b_h);
        let first = zip_map(sample, newest, |x, m| sample_scale * x - newest_scale * m);
        if weights.is_empty() {
            return first;
        }
        let mut residual = vec![0.0; sample.len()];
        let arrived = arrived.map(|output| {
            let weight = weights.pop().unwrap_or_default();
            zip_map(output, newest, |m, m0| weight * (m - m0))
        });
        for (difference, weight) in differences.iter().zip(&weights) {
            residual = zip_map(&residual, difference, |sum, d| sum + weight * d);
        }
        if let Some(arrived) = arrived {
            residual = zip_map(&residual, &arrived, |sum, d| sum + d);
        }
        zip_map(&first, &residual, |x, r| x - residual_scale * r)
    }
}

impl Scheduler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let mix = Mix::of_level(self.grid.sigmas[index]);
        let mut original = mix.original(self.prediction, model_output, sample);
        self.limit.apply(&mut original, images);
        let converted = if self.predict_original {
            original.clone()
        } else {
            mix.epsilon(self.prediction, model_output, sample)
        };

        let corrected = match &self.last {
            Some((start, order)) if !self.uncorrected.contains(&(index - 1)) => {
                Some(self.update(index - 1, start, *order, Some(&converted)))
            }
            _ => None,
        };
        let sample = corrected.unwrap_or_else(|| sample.to_vec());
        self.outputs.insert(0, converted);
        self.outputs.truncate(self.order);

        let remaining = self.grid.timesteps.len() - index;
        let allowed = if self.lower_order_final { remaining } else { self.order };
        let order = self.outputs.len().min(allowed);
        let previous = self.update(index, &sample, order, None);
        self.last = Some((sample, order));
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        Mix::of_level(self.grid.sigmas[index]).add_noise(original, noise)
    }
}

/// The right-hand side of the order conditions: `k! phi_{k+1}(h) h / B(h)` for `k` from 1 to `order`.
fn moments(h: f32, phi: f32, b_h: f32, order: usize) -> Vec<f32> {
    let mut phi_k = phi / h - 1.0;
    let mut factorial = 1.0_f64;
    let mut next = |k: usize| {
        let moment = phi_k * factorial as f32 / b_h;
        factorial *= (k + 1) as f64;
        phi_k = phi_k / h - (1.0 / factorial) as f32;
        moment
    };
    (1..=order).map(&mut next).collect()
}

/// Solves `sum_j ratios[j]^i x[j] = moments[i]` by Gaussian elimination with partial pivoting, in f64.
fn solve_vandermonde(ratios: &[f32], moments: &[f32]) -> Vec<f32> {
    let n = ratios.len();
    let row = |i: usize| -> Vec<f64> {
        let powers = ratios.iter().map(|ratio| f64::from(ratio.powi(i as i32)));
        powers.chain([f64::from(moments[i])]).collect()
    };
    let mut rows: Vec<Vec<f64>> = (0..n).map(row).collect();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let (above, below) = rows.split_at_mut(column + 1);
        let pivot = &above[column];
        for row in below {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(pivot).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    let mut solution = vec![0.0; n];
    for column in (0..n).rev() {
        let known: f64 = (column + 1..n).map(|k| rows[column][k] * solution[k]).sum();
        solution[column] = (rows[column][n] - known) / rows[column][column];
    }
    solution.into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::solve_vandermonde;

    #[test]
    fn the_solution_satisfies_the_conditions() {
        let (ratios, moments) = ([-2.0, -1.0, 1.0], [0.5, 0.25, 3.0]);
        let solution = solve_vandermonde(&ratios, &moments);
        for (power, moment) in moments.into_iter().enumerate() {
            let sum: f32 = ratios.iter().zip(&solution).map(|(r, x)| r.powi(power as i32) * x).sum();
            assert!((sum - moment).abs() < 1e-6, "{power}: {sum} for {moment}");
        }
    }
}
