//! The conversion between the UNet's and the autoencoder's latents.

use crate::arch::vae;
use crate::random::NoiseSource;

/// The range that log variances are clamped to, as in diffusers' `DiagonalGaussianDistribution`.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];

/// The scale of a model's latents: `unet = ((vae - mean) / std - shift) * scaling`, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentFormat {
    /// Channels.
    pub channels: usize,
    /// Image pixels per latent pixel, along each side.
    pub scale: usize,
    factor: f64,
    shift: f64,
    /// Mean and standard deviation of each channel, for models that normalize by channel.
    moments: Option<Vec<[f64; 2]>>,
}

impl LatentFormat {
    /// The format of an autoencoder's latents.
    pub fn of(config: &vae::Config) -> Self {
        let moments = match (&config.latents_mean, &config.latents_std) {
            (Some(mean), Some(std)) => Some(mean.iter().zip(std).map(|(&mean, &std)| [mean, std]).collect()),
            _ => None,
        };
        LatentFormat {
            channels: config.latent_channels,
            scale: config.scale(),
            factor: config.scaling_factor,
            shift: config.shift_factor.unwrap_or(0.0),
            moments,
        }
    }

    /// A format with a scaling factor only.
    pub fn scaled(channels: usize, scale: usize, factor: f64) -> Self {
        LatentFormat { channels, scale, factor, shift: 0.0, moments: None }
    }

    /// The scaling factor.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// The UNet's latents (channels, height, width), sampled with `noise` from the encoder's output.
    /// `moments` holds the means, then the log variances, of a normal distribution.
    pub fn from_encoder(&self, moments: &[f32], noise: &mut dyn NoiseSource) -> Vec<f32> {
        let (means, log_variances) = moments.split_at(moments.len() / 2);
        let mut sample = vec![0.0; means.len()];
        noise.fill(&mut sample);
        let plane = (means.len() / self.channels).max(1);
        for (index, value) in sample.iter_mut().enumerate() {
            let deviation = (0.5 * log_variances[index].clamp(LOG_VARIANCE[0], LOG_VARIANCE[1])).exp();
            let latent = f64::from(means[index] + deviation * *value);
            let [mean, std] = self.moments(index / plane);
            *value = ((latent - self.shift - mean) / std * self.factor) as f32;
        }
        sample
    }

    /// Mean and standard deviation of a channel.
    fn moments(&self, channel: usize) -> [f64; 2] {
        self.moments.as_ref().map_or([0.0, 1.0], |moments| moments[channel])
    }

    /// The decoder's input for the UNet's latents (channels, height, width).
    pub fn to_decoder(&self, latents: &[f32]) -> Vec<f32> {
        let plane = (latents.len() / self.channels).max(1);
        let value = |(index, &latent): (usize, &f32)| {
            let [mean, std] = self.moments(index / plane);
            (f64::from(latent) * std / self.factor + self.shift + mean) as f32
        };
        latents.iter().enumerate().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same noise for every value.
    struct Constant(f32);

    impl NoiseSource for Constant {
        fn fill(&mut self, noise: &mut [f32]) {
            noise.fill(self.0);
        }
    }

    #[test]
    fn encoded_latents_are_decoded_from_the_same_scale() {
        let moments = Some(vec![[0.5, 2.0], [-1.0, 0.25]]);
        for (shift, moments) in [(0.0, None), (0.75, None), (0.0, moments)] {
            let format = LatentFormat { channels: 2, scale: 8, factor: 0.18215, shift, moments };
            let means = [0.5, -1.0, 2.0, 0.25, 3.0, -0.125];
            let log_variances = [0.0, 4f32.ln(), 100.0, -100.0, 0.0, 0.0];
            let deviations = [1.0, 2.0, 10f32.exp(), (-15f32).exp(), 1.0, 1.0];
            let latents = format.from_encoder(&[means, log_variances].concat(), &mut Constant(-1.0));
            for (index, found) in format.to_decoder(&latents).into_iter().enumerate() {
                let expected = means[index] - deviations[index];
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found}, {expected}");
            }
        }
    }
}
