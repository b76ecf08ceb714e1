//! Where a run begins.

use crate::random::NoiseSource;
use crate::scheduler::Scheduler;

use super::{PipelineError, Request};

/// Where a run begins.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// From noise alone.
    Noise,
    /// From an image's latents, with noise added: the larger `strength` (0 to 1), the earlier.
    Image {
        /// The UNet's latents (channels, height, width) of the image.
        latents: &'a [f32],
        /// The part of the steps that is run.
        strength: f64,
    },
    /// From where another model left off, as a refiner does.
    Continue {
        /// That model's latents (channels, height, width).
        latents: &'a [f32],
        /// The part of the noise that is gone, 0 to 1: diffusers' `denoising_start`.
        from: f64,
    },
}

impl Start<'_> {
    /// The first evaluation, and its sample of `count` values.
    pub(super) fn begin(
        self,
        scheduler: &dyn Scheduler,
        request: &Request,
        count: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<(usize, Vec<f32>), PipelineError> {
        let part = |option, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => Err(PipelineError::Option { option, what: format!("must be 0 to 1, not {value}") }),
        };
        let fit = |latents: &[f32]| match latents.len() == count {
            true => Ok(latents.to_vec()),
            false => {
                let what = format!("must have {count} values, not {}", latents.len());
                Err(PipelineError::Option { option: "latents", what })
            }
        };
        let evaluations = scheduler.timesteps().len();
        match self {
            Start::Noise => {
                let mut sample = vec![0.0; count];
                noise.fill(&mut sample);
                sample.iter_mut().for_each(|value| *value *= scheduler.init_noise_sigma());
                Ok((0, sample))
            }
            Start::Image { latents, strength } => {
                let latents = fit(latents)?;
                let steps = (request.steps as f64 * part("strength", strength)?) as usize;
                let first = (request.steps - steps.min(request.steps)) * scheduler.order();
                if first >= evaluations {
                    let what = format!("of {strength} leaves none of {} steps to run", request.steps);
                    return Err(PipelineError::Option { option: "strength", what });
                }
                let mut added = vec![0.0; count];
                noise.fill(&mut added);
                Ok((first, scheduler.add_noise(&latents, &added, first)))
            }
            Start::Continue { latents, from } => {
                let latents = fit(latents)?;
                let train = request.scheduler.training_steps() as f64;
                let cutoff = (train - part("denoising start", from)? * train).round_ties_even();
                let mut left = scheduler.timesteps().iter().filter(|&&timestep| timestep < cutoff).count();
                // A step of two evaluations is not entered in its middle.
                if scheduler.order() == 2 && left % 2 == 0 {
                    left += 1;
                }
                let first = evaluations.saturating_sub(left);
                if first >= evaluations {
                    let what = format!("of {from} leaves nothing to run");
                    return Err(PipelineError::Option { option: "denoising start", what });
                }
                Ok((first, latents))
            }
        }
    }
}
