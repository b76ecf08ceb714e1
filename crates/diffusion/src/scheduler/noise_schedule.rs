//! The noise schedule of training: betas and cumulative alphas.
//!
//! Linear betas follow DDPM (Ho et al., arXiv 2006.11239), scaled-linear ones latent diffusion, and
//! squared-cosine ones Nichol and Dhariwal (arXiv 2102.09672). Rescaling to zero terminal SNR is Algorithm 1
//! of Lin et al. (arXiv 2305.08891).

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::float::torch_linspace;
use super::words::BetaSchedule;

/// The smallest positive f16. diffusers substitutes it for zero to keep a sigma finite.
const SMALLEST_HALF: f32 = 1.0 / 16_777_216.0;

/// Cumulative alphas of training, `alpha_bar[t]` for `t` in `0..T`, rounded to f32.
#[derive(Debug, Clone)]
pub(super) struct NoiseSchedule {
    alphas_cumprod: Vec<f32>,
}

impl NoiseSchedule {
    /// The schedule of a configuration.
    ///
    /// # Errors
    ///
    /// If the betas do not match the number of timesteps, or give an alpha outside `[0, 1]`.
    pub(super) fn of(config: &SchedulerConfig) -> Result<NoiseSchedule, SchedulerError> {
        let mut betas = betas(config)?;
        if config.enabled("rescale_betas_zero_snr") {
            betas = rescale_zero_terminal_snr(&betas);
        }
        let alphas_cumprod = cumulated_alphas(&betas);
        if !alphas_cumprod.iter().all(|alpha| (0.0..=1.0).contains(alpha)) {
            let field = if config.numbers("trained_betas").is_some() { "trained_betas" } else { "beta_end" };
            return Err(config.bad_value(field, "gives cumulated alphas outside 0 to 1"));
        }
        Ok(NoiseSchedule { alphas_cumprod })
    }

    /// The same for sigma-based schedulers: a tiny terminal SNR replaces zero.
    ///
    /// # Errors
    ///
    /// As [`NoiseSchedule::of`], and if a sigma is not finite.
    pub(super) fn for_sigmas(config: &SchedulerConfig) -> Result<NoiseSchedule, SchedulerError> {
        let mut schedule = NoiseSchedule::of(config)?;
        if config.enabled("rescale_betas_zero_snr") {
            let last = schedule.alphas_cumprod.len() - 1;
            schedule.alphas_cumprod[last] = SMALLEST_HALF;
        }
        if !schedule.sigmas().iter().all(|sigma| sigma.is_finite() && *sigma > 0.0) {
            return Err(config.bad_value("beta_schedule", "gives a sigma that is zero or infinite"));
        }
        Ok(schedule)
    }

    /// `alpha_bar[t]`.
    pub(super) fn alpha(&self, timestep: usize) -> f32 {
        self.alphas_cumprod[timestep]
    }

    /// The number of training timesteps.
    pub(super) fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// `sigma[t] = sqrt((1 - alpha_bar) / alpha_bar)`, ascending.
    pub(super) fn sigmas(&self) -> Vec<f32> {
        self.alphas_cumprod.iter().map(|&alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }

    /// The forward process at a timestep: `sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise`.
    pub(super) fn add_noise(&self, original: &[f32], noise: &[f32], timestep: usize) -> Vec<f32> {
        let alpha = self.alpha(timestep);
        let (signal, deviation) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        super::float::zip_map(original, noise, |x, n| signal * x + deviation * n)
    }
}

fn betas(config: &SchedulerConfig) -> Result<Vec<f32>, SchedulerError> {
    let train = config.integer("num_train_timesteps");
    if let Some(betas) = config.numbers("trained_betas") {
        if betas.len() != train {
            let reason = format!("has {} values for {train} timesteps", betas.len());
            return Err(config.bad_value("trained_betas", reason));
        }
        return Ok(betas.iter().map(|&beta| beta as f32).collect());
    }
    let (start, end) = (config.number("beta_start"), config.number("beta_end"));
    for (name, beta) in [("beta_start", start), ("beta_end", end)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(config.bad_value(name, "is not between 0 and 1"));
        }
    }
    Ok(match config.word("beta_schedule")? {
        BetaSchedule::ScaledLinear => {
            let roots = torch_linspace(start.sqrt() as f32, end.sqrt() as f32, train);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosine => {
            betas_for_alpha_bar(train, |t| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2))
        }
        BetaSchedule::Laplace => betas_for_alpha_bar(train, |t| {
            let half = -0.5 * 1.0_f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            let snr = half.exp();
            (snr / (1.0 + snr)).sqrt()
        }),
        BetaSchedule::Exponential => betas_for_alpha_bar(train, |t| (t * -12.0).exp()),
        BetaSchedule::Sigmoid => {
            let (scale, start) = ((end - start) as f32, start as f32);
            let sigmoid = |x: f32| (1.0 / (1.0 + f64::from(-x).exp())) as f32;
            torch_linspace(-6.0, 6.0, train).into_iter().map(|x| sigmoid(x) * scale + start).collect()
        }
        BetaSchedule::Linear => torch_linspace(start as f32, end as f32, train),
    })
}

/// Betas, at most 0.999, for a given cumulative alpha over time from 0 to 1.
fn betas_for_alpha_bar(train: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let time = |index: usize| index as f64 / train as f64;
    let beta = |index| (1.0 - alpha_bar(time(index + 1)) / alpha_bar(time(index))).min(0.999) as f32;
    (0..train).map(beta).collect()
}

/// `torch.cumprod(1 - betas)`: accumulated in f64, stored as f32.
fn cumulated_alphas(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    let mut next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

/// Shifts and scales `sqrt(alpha_bar)` so that its last value becomes 0 and its first is unchanged.
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = cumulated_alphas(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    roots.iter_mut().for_each(|root| *root = (*root - last) * scale);
    let alphas_bar: Vec<f32> = roots.iter().map(|root| root * root).collect();
    let mut previous = 1.0;
    let beta = |&alpha_bar: &f32| {
        let alpha = alpha_bar / previous;
        previous = alpha_bar;
        1.0 - alpha
    };
    alphas_bar.iter().map(beta).collect()
}
