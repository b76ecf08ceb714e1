//! A request: everything that decides a picture, besides the noise.

use super::error::GenerateError;
use super::image::Image;
use super::precision::Precision;
use super::role::Role;
use super::text::{MicroConditioning, Text};
use super::tiles::Tiling;
use crate::arch::GraphOptions;
use crate::model::DiffusionModel;
use crate::scheduler::{SchedulerConfig, SchedulerError};

/// The largest width and height in pixels.
pub const MAX_SIZE: usize = 8192;

/// The state that denoising starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Start {
    /// Noise alone.
    #[default]
    Noise,
    /// An image, encoded to latents, with noise added. An image of another size is resized.
    Image {
        /// The image.
        image: Image,
        /// The part of the steps that is run, 0 to 1: the larger, the less is kept of the image.
        strength: f64,
    },
    /// Latents (channels, height, width) of an image, with noise added.
    Latents {
        /// The UNet's latents of the image.
        latents: Vec<f32>,
        /// The part of the steps that is run, 0 to 1: the larger, the less is kept of the image.
        strength: f64,
    },
    /// Latents (channels, height, width) that another model left unfinished; no noise is added.
    Continue {
        /// The other model's latents.
        latents: Vec<f32>,
        /// The part of the noise that is gone already, 0 to 1: diffusers' `denoising_start`.
        from: f64,
    },
}

/// Everything that decides a picture, besides the noise.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model that draws.
    pub role: Role,
    /// The prompts.
    pub text: Text,
    /// Width and height in pixels, multiples of the latent scale, 8.
    pub size: [usize; 2],
    /// Inference steps.
    pub steps: usize,
    /// The scale of classifier-free guidance; up to 1, guidance is off and the negative prompt has no effect.
    pub guidance_scale: f32,
    /// The share, 0 to 1, by which the guided prediction is brought back to the deviation of the unguided one
    /// (arXiv 2305.08891).
    pub guidance_rescale: f32,
    /// The scheduler.
    pub scheduler: SchedulerConfig,
    /// The sizes that Stable Diffusion XL is conditioned on.
    pub micro: MicroConditioning,
    /// The precision that networks are computed in.
    pub precision: Precision,
    /// The choice to decode the image in tiles.
    pub tiling: Tiling,
    /// The state that denoising starts from.
    pub start: Start,
}

impl Request {
    /// A request with the model's own defaults.
    ///
    /// # Errors
    /// If the model's own scheduler is not supported; [`with_scheduler`](Self::with_scheduler) takes another.
    pub fn new(model: &DiffusionModel, text: Text) -> Result<Self, SchedulerError> {
        Ok(Self::with_scheduler(model, text, model.scheduler.config()?))
    }

    /// A request with the model's own defaults and a scheduler.
    pub fn with_scheduler(model: &DiffusionModel, text: Text, scheduler: SchedulerConfig) -> Self {
        Request {
            role: Role::default(),
            text,
            size: model.defaults.size,
            steps: model.defaults.steps,
            guidance_scale: model.defaults.guidance_scale,
            guidance_rescale: 0.0,
            scheduler,
            micro: MicroConditioning::default(),
            precision: Precision::default(),
            tiling: Tiling::default(),
            start: Start::default(),
        }
    }

    /// Checks the options that need no network.
    pub(super) fn check(&self, model: &DiffusionModel) -> Result<(), GenerateError> {
        let option = |option, what: String| Err(GenerateError::Option { option, what });
        let scale = model.autoencoder.latent.scale;
        for (name, extent) in [("width", self.size[0]), ("height", self.size[1])] {
            if !(1..=MAX_SIZE).contains(&extent) || !extent.is_multiple_of(scale) {
                let below = (extent / scale * scale).clamp(scale, MAX_SIZE);
                let what =
                    format!("must be a multiple of {scale} up to {MAX_SIZE}, not {extent}; try {below}");
                return option(name, what);
            }
        }
        if !self.guidance_scale.is_finite() {
            return option("guidance scale", format!("must be finite, not {}", self.guidance_scale));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return option("guidance rescale", format!("must be 0 to 1, not {}", self.guidance_rescale));
        }
        Ok(())
    }

    /// True if a step makes two predictions, the negative prompt's and the prompt's.
    pub(super) fn is_guided(&self, model: &DiffusionModel) -> bool {
        self.guidance_scale > 1.0 && !model.unet.takes_guidance
    }

    /// The graphs' options for the request's size.
    pub(super) fn graph_options(&self, model: &DiffusionModel, precision: Precision) -> GraphOptions {
        let [_, height, width] = self.latent_shape(model);
        GraphOptions { height, width, dtype: precision.dtype(), ..GraphOptions::default() }
    }

    /// Channels, height and width of the latents.
    pub(super) fn latent_shape(&self, model: &DiffusionModel) -> [usize; 3] {
        let latent = &model.autoencoder.latent;
        let [width, height] = self.size;
        [latent.channels, height / latent.scale, width / latent.scale]
    }
}
