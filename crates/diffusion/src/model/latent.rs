//! How the UNet's latents relate to the autoencoder's.

use crate::arch::vae;

/// The scale of a model's latents: `unet = ((vae - mean) / std - shift) * scaling`, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentFormat {
    /// Channels.
    pub channels: usize,
    /// Pixels along each side of one latent pixel.
    pub scale: usize,
    factor: f64,
    shift: f64,
    /// Mean and deviation of each channel, for models that have them.
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

    /// A format that only scales.
    pub fn scaled(channels: usize, scale: usize, factor: f64) -> Self {
        LatentFormat { channels, scale, factor, shift: 0.0, moments: None }
    }

    /// The decoder's input for the UNet's latents (channels, height, width).
    pub fn to_decoder(&self, latents: &[f32]) -> Vec<f32> {
        let plane = (latents.len() / self.channels).max(1);
        let value = |(index, &latent): (usize, &f32)| {
            let channel = index / plane;
            let [mean, std] = self.moments.as_ref().map_or([0.0, 1.0], |moments| moments[channel]);
            (f64::from(latent) * std / self.factor + self.shift + mean) as f32
        };
        latents.iter().enumerate().map(value).collect()
    }
}
