//! Prediction types, and limits on the predicted sample.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::float::zip_map;
use super::words::Prediction;

/// The scales of signal and noise in `x = alpha x0 + sigma noise`, with `alpha^2 + sigma^2 = 1`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix {
    pub alpha: f32,
    pub sigma: f32,
}

impl Mix {
    /// Converts a cumulative alpha.
    pub(super) fn of_alpha_bar(alpha_bar: f32) -> Mix {
        Mix { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
    }

    /// Converts a noise level `sigma / alpha`.
    pub(super) fn of_level(level: f32) -> Mix {
        let alpha = 1.0 / (level * level + 1.0).sqrt();
        Mix { alpha, sigma: level * alpha }
    }

    /// `ln(alpha / sigma)`, half the log-SNR; infinite without noise.
    pub(super) fn lambda(self) -> f32 {
        super::float::ln(self.alpha) - super::float::ln(self.sigma)
    }

    /// The predicted `x0`.
    pub(super) fn original(self, prediction: Prediction, output: &[f32], sample: &[f32]) -> Vec<f32> {
        let Mix { alpha, sigma } = self;
        match prediction {
            Prediction::Epsilon => zip_map(sample, output, |x, m| (x - sigma * m) / alpha),
            Prediction::Velocity => zip_map(sample, output, |x, m| alpha * x - sigma * m),
            Prediction::Original => output.to_vec(),
        }
    }

    /// The predicted noise.
    pub(super) fn epsilon(self, prediction: Prediction, output: &[f32], sample: &[f32]) -> Vec<f32> {
        let Mix { alpha, sigma } = self;
        match prediction {
            Prediction::Epsilon => output.to_vec(),
            Prediction::Velocity => zip_map(sample, output, |x, m| alpha * m + sigma * x),
            Prediction::Original => zip_map(sample, output, |x, m| (x - alpha * m) / sigma),
        }
    }

    /// The forward process: `alpha x + sigma noise`.
    pub(super) fn add_noise(self, original: &[f32], noise: &[f32]) -> Vec<f32> {
        zip_map(original, noise, |x, n| self.alpha * x + self.sigma * n)
    }
}

/// The predicted `x0` of a sample `x0 + level noise`, in k-diffusion's scaling.
pub(super) fn original_at_level(
    prediction: Prediction,
    output: &[f32],
    sample: &[f32],
    level: f32,
) -> Vec<f32> {
    let square = level * level + 1.0;
    let skip = -level / square.sqrt();
    match prediction {
        Prediction::Epsilon => zip_map(sample, output, |x, m| x - level * m),
        Prediction::Velocity => zip_map(sample, output, |x, m| m * skip + x / square),
        Prediction::Original => output.to_vec(),
    }
}

/// The limit on the predicted `x0`. Latent models use none; some pixel-space configurations do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// Unchanged.
    None,
    /// Clamped to plus and minus a bound.
    Clip(f32),
    /// Dynamic thresholding of Imagen (Saharia et al., arXiv 2205.11487, section 2.3), per image.
    Threshold {
        /// The quantile of absolute values that is scaled to 1.
        ratio: f32,
        /// The upper limit of the clipping bound.
        max: f32,
    },
}

impl Limit {
    /// The limit of a configuration, from the fields of its class.
    ///
    /// # Errors
    ///
    /// A bound that is not positive, or a quantile outside 0 to 1.
    pub(super) fn of(config: &SchedulerConfig) -> Result<Limit, SchedulerError> {
        let positive = |name| match config.number(name) as f32 {
            bound if bound > 0.0 => Ok(bound),
            _ => Err(config.bad_value(name, "is not positive")),
        };
        if config.enabled("thresholding") {
            let ratio = config.fraction("dynamic_thresholding_ratio")? as f32;
            return Ok(Limit::Threshold { ratio, max: positive("sample_max_value")? });
        }
        if config.enabled("clip_sample") {
            return Ok(Limit::Clip(positive("clip_sample_range")?));
        }
        Ok(Limit::None)
    }

    /// Applies the limit to a batch of `images`.
    pub(super) fn apply(self, original: &mut [f32], images: usize) {
        match self {
            Limit::None => {}
            Limit::Clip(bound) => original.iter_mut().for_each(|x| *x = x.clamp(-bound, bound)),
            Limit::Threshold { ratio, max } => {
                let image = original.len() / images;
                for values in original.chunks_mut(image) {
                    let bound = quantile(values, ratio).max(1.0).min(max);
                    values.iter_mut().for_each(|x| *x = x.clamp(-bound, bound) / bound);
                }
            }
        }
    }
}

/// `torch.quantile` of the absolute values, interpolated linearly.
fn quantile(values: &[f32], ratio: f32) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f32;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    let weight = rank - rank.floor();
    if weight < 0.5 { low + weight * (high - low) } else { high - (high - low) * (1.0 - weight) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholding_is_per_image() {
        let mut values = [0.0, -1.0, 4.0, 2.0, 0.25, -0.5, 0.5, 0.0];
        Limit::Threshold { ratio: 1.0, max: 3.0 }.apply(&mut values, 2);
        assert_eq!(values, [0.0, -1.0 / 3.0, 1.0, 2.0 / 3.0, 0.25, -0.5, 0.5, 0.0]);
    }
}
