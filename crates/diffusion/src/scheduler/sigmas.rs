//! Noise levels of the sigma-based schedulers.
//!
//! `sigma = sqrt((1 - alpha_bar) / alpha_bar)` is the noise level of Karras et al., "Elucidating the Design
//! Space of Diffusion-Based Generative Models" (arXiv 2206.00364). The Karras schedule is its equation 5, and
//! the exponential one is k-diffusion's. The beta one is from "Beta Sampling is All You Need" (arXiv
//! 2407.12173). The uniform log-SNR one is DPM-Solver's (Lu et al., arXiv 2206.00927).

use super::beta_quantile::beta_quantile;
use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::float::{exp, ln, numpy_linspace, numpy_ln, torch_linspace};
use super::noise_schedule::NoiseSchedule;
use super::spacing::{self, Range};
use super::words::{SigmaSchedule, TimestepSpacing};

/// The sigma grid of a run: timesteps and noise levels.
#[derive(Debug, Clone)]
pub(super) struct SigmaGrid {
    /// One timestep per model evaluation.
    pub timesteps: Vec<f64>,
    /// The noise levels in descending order, followed by the final one.
    pub sigmas: Vec<f32>,
}

impl SigmaGrid {
    /// The standard deviation of the initial noise in k-diffusion's schedulers.
    pub(super) fn init_noise_sigma(&self, spacing: TimestepSpacing) -> f32 {
        let max = self.sigmas.iter().copied().fold(0.0, f32::max);
        match spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        }
    }
}

/// `sample / sqrt(sigma^2 + 1)`, the input scaling of k-diffusion's schedulers.
pub(super) fn scale_input(sample: &[f32], sigma: f32) -> Vec<f32> {
    let scale = (sigma * sigma + 1.0).sqrt();
    sample.iter().map(|x| x / scale).collect()
}

/// Euler's step from level `from` to level `to`, along the line from the sample to its prediction `x0`.
///
/// `x + (x - x0) / from * (to - from)` cancels where `from` is large: with zero terminal SNR the first sample
/// is thousands of times the second. A weighted mean keeps every digit.
pub(super) fn euler_step(sample: &[f32], original: &[f32], from: f32, to: f32) -> Vec<f32> {
    let (kept, reached) = (to / from, (from - to) / from);
    super::float::zip_map(sample, original, |x, x0| kept * x + reached * x0)
}

/// The forward process of k-diffusion's schedulers: `x + sigma noise`.
pub(super) fn add_noise(original: &[f32], noise: &[f32], sigma: f32) -> Vec<f32> {
    super::float::zip_map(original, noise, |x, n| x + n * sigma)
}

/// The sigma grid of k-diffusion's schedulers (LMS, Euler, Heun). Timesteps may be fractional; a sigma
/// schedule spans the levels of the chosen timesteps.
///
/// # Errors
///
/// If two sigma schedules are on.
pub(super) fn continuous_grid(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    steps: usize,
) -> Result<SigmaGrid, SchedulerError> {
    let trained = TrainedSigmas::new(schedule);
    let spaced = spacing::inclusive(config.timestep_spacing()?, Range::of(config), steps);
    let mut timesteps: Vec<f64> = spaced.into_iter().map(|t| f64::from(t as f32)).collect();
    let log_linear = config.has("interpolation_type") && config.choice("interpolation_type") == "log_linear";
    let mut sigmas = if log_linear { trained.log_linear(steps) } else { trained.at(&timesteps) };
    let (min, max) = bounds(config, sigmas[sigmas.len() - 1], sigmas[0])?;
    if let Some(levels) = levels(config.sigmas()?, min, max, steps, &trained) {
        timesteps = levels.iter().map(|&sigma| f64::from(trained.timestep(sigma) as f32)).collect();
        sigmas = levels;
    }
    let last = if config.ends_at_sigma_min() { trained.sigmas[0] } else { 0.0 };
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect();
    Ok(SigmaGrid { timesteps, sigmas })
}

/// The differences between the sigma grids of the DPM-Solver family's classes.
#[derive(Debug, Clone, Copy)]
pub(super) struct SolverRules {
    /// Drops the noisiest timesteps by `lambda_min_clipped`.
    pub clips_log_snr: bool,
    /// Rounds the timesteps of a sigma schedule instead of truncating them.
    pub rounds: bool,
    /// The last noise level.
    pub end: End,
}

/// The last noise level of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// No noise.
    Zero,
    /// The smallest level of training.
    SmallestTrained,
    /// A sigma schedule's own last level again, else the smallest of training.
    Repeated,
}

impl End {
    /// The end that `final_sigmas_type` chooses. `repeats` is the class's meaning of `sigma_min`.
    pub(super) fn of(config: &SchedulerConfig, repeats: bool) -> End {
        match (config.ends_at_sigma_min(), repeats) {
            (false, _) => End::Zero,
            (true, false) => End::SmallestTrained,
            (true, true) => End::Repeated,
        }
    }
}

/// The sigma grid of the DPM-Solver family. Timesteps are integers; a sigma schedule spans all training
/// levels.
///
/// # Errors
///
/// If two sigma schedules are on, or the clipped log-SNR leaves no timestep. Also if two steps have the same
/// noise level, because the solvers would divide by zero.
pub(super) fn solver_grid(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    rules: SolverRules,
    steps: usize,
) -> Result<SigmaGrid, SchedulerError> {
    let trained = TrainedSigmas::new(schedule);
    let mut range = Range::of(config);
    if rules.clips_log_snr {
        range.last -= clipped_timesteps(schedule, config.number("lambda_min_clipped") as f32);
        if range.last == 0 {
            return Err(config.bad_value("lambda_min_clipped", "leaves no timestep"));
        }
    }
    let (min, max) =
        bounds(config, trained.sigmas[0].into(), trained.sigmas[trained.sigmas.len() - 1].into())?;
    let sigma_schedule = config.sigmas()?;
    let (timesteps, sigmas) = match levels(sigma_schedule, min, max, steps, &trained) {
        Some(sigmas) => {
            let whole = |t: f64| if rules.rounds { t.round_ties_even() } else { t.trunc() };
            (sigmas.iter().map(|&sigma| whole(trained.timestep(sigma))).collect(), sigmas)
        }
        None => {
            let timesteps = spacing::without_last(config.timestep_spacing()?, range, steps);
            let sigmas = trained.at(&timesteps);
            (timesteps, sigmas)
        }
    };
    if let Some(repeated) = sigmas.windows(2).position(|pair| pair[0] as f32 == pair[1] as f32) {
        let reason = format!("steps {repeated} and {} have the same noise level", repeated + 1);
        return Err(config.bad_steps(steps, reason));
    }
    let last = match rules.end {
        End::Zero => 0.0,
        End::Repeated if sigma_schedule != SigmaSchedule::Trained => sigmas[sigmas.len() - 1] as f32,
        End::Repeated | End::SmallestTrained => trained.sigmas[0],
    };
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect();
    Ok(SigmaGrid { timesteps, sigmas })
}

/// The range of a sigma schedule: the configuration's own limits if its class has them, else the given ones.
///
/// # Errors
///
/// If one of the configuration's own limits is not positive.
fn bounds(config: &SchedulerConfig, min: f64, max: f64) -> Result<(f64, f64), SchedulerError> {
    let own = |name, default| match config.has(name).then(|| config.optional_number(name)).flatten() {
        None => Ok(default),
        Some(level) if level > 0.0 => Ok(level),
        Some(_) => Err(config.bad_value(name, "is not positive")),
    };
    Ok((own("sigma_min", min)?, own("sigma_max", max)?))
}

/// The number of final timesteps whose log-SNR `ln(alpha / sigma)` is below `lambda_min`.
fn clipped_timesteps(schedule: &NoiseSchedule, lambda_min: f32) -> usize {
    let lambda = |timestep| {
        let alpha = schedule.alpha(timestep);
        ln(alpha.sqrt()) - ln((1.0 - alpha).sqrt())
    };
    (0..schedule.len()).rev().take_while(|&timestep| lambda(timestep) < lambda_min).count()
}

/// `count` noise levels from `max` down to `min`; [`SigmaSchedule::Lu`] uses the training range instead.
/// `None` for the default schedule, which depends on timesteps.
fn levels(
    schedule: SigmaSchedule,
    min: f64,
    max: f64,
    count: usize,
    trained: &TrainedSigmas,
) -> Option<Vec<f64>> {
    if schedule == SigmaSchedule::Lu {
        let (min, max) = (f64::from(trained.logs[0]), f64::from(trained.logs[trained.logs.len() - 1]));
        return Some(numpy_linspace(0.0, 1.0, count).iter().map(|r| (max + r * (min - max)).exp()).collect());
    }
    levels_between(schedule, min, max, count)
}

/// `count` noise levels from `max` down to `min`; `None` for schedules that depend on training.
pub(super) fn levels_between(schedule: SigmaSchedule, min: f64, max: f64, count: usize) -> Option<Vec<f64>> {
    let ramp = numpy_linspace(0.0, 1.0, count);
    match schedule {
        SigmaSchedule::Trained | SigmaSchedule::Lu => None,
        SigmaSchedule::Karras => {
            const RHO: f64 = 7.0;
            let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
            Some(ramp.iter().map(|r| (max + r * (min - max)).powf(RHO)).collect())
        }
        SigmaSchedule::Exponential => {
            Some(numpy_linspace(max.ln(), min.ln(), count).into_iter().map(f64::exp).collect())
        }
        SigmaSchedule::Beta => {
            Some(ramp.iter().map(|r| min + beta_quantile(1.0 - r, 0.6) * (max - min)).collect())
        }
    }
}

/// The training noise levels, for interpolation.
pub(super) struct TrainedSigmas {
    /// Ascending, by timestep.
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl TrainedSigmas {
    /// The levels of a schedule.
    pub(super) fn new(schedule: &NoiseSchedule) -> TrainedSigmas {
        let sigmas = schedule.sigmas();
        let logs = sigmas.iter().map(|&sigma| numpy_ln(sigma)).collect();
        TrainedSigmas { sigmas, logs }
    }

    /// The levels at timesteps, interpolated linearly and held at the ends.
    fn at(&self, timesteps: &[f64]) -> Vec<f64> {
        let last = self.sigmas.len() - 1;
        let level = |&timestep: &f64| {
            if timestep >= last as f64 {
                return self.sigmas[last].into();
            }
            let index = timestep.max(0.0) as usize;
            let (low, high) = (f64::from(self.sigmas[index]), f64::from(self.sigmas[index + 1]));
            (high - low) * (timestep.max(0.0) - index as f64) + low
        };
        timesteps.iter().map(level).collect()
    }

    /// `steps + 1` levels, evenly spaced in `ln sigma`, as in `EulerDiscreteScheduler`'s `log_linear`.
    fn log_linear(&self, steps: usize) -> Vec<f64> {
        let (min, max) = (self.logs[0], self.logs[self.logs.len() - 1]);
        torch_linspace(max, min, steps + 1).into_iter().map(|log| exp(log).into()).collect()
    }

    /// [`timestep`](Self::timestep) in f32, as diffusers computes it for a tensor of PyTorch.
    pub(super) fn timestep_f32(&self, sigma: f32) -> f64 {
        let log = numpy_ln(sigma.max(1e-10));
        let below = self.logs.partition_point(|&other| log - other >= 0.0);
        let low = below.saturating_sub(1).min(self.logs.len().saturating_sub(2));
        let Some(&above) = self.logs.get(low + 1) else { return 0.0 };
        let weight = ((self.logs[low] - log) / (self.logs[low] - above)).clamp(0.0, 1.0);
        f64::from((1.0 - weight) * low as f32 + weight * (low + 1) as f32)
    }

    /// The timestep of a level, interpolated in its logarithm and held at the ends.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let below = self.logs.partition_point(|&other| f64::from(other) <= log);
        let low = below.saturating_sub(1).min(self.logs.len().saturating_sub(2));
        let Some(&above) = self.logs.get(low + 1) else { return 0.0 };
        let span = f64::from(self.logs[low] - above);
        let weight = ((f64::from(self.logs[low]) - log) / span).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }
}
