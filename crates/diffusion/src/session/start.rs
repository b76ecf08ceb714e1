//! The first evaluation of a run, and its sample.

use super::error::GenerateError;
use super::request::{Request, Start};
use crate::random::NoiseSource;
use crate::scheduler::Scheduler;

/// The first evaluation of a request, and its sample of `count` values.
///
/// # Errors
/// If the start does not fit the request.
pub(super) fn begin(
    request: &Request,
    scheduler: &dyn Scheduler,
    count: usize,
    noise: &mut dyn NoiseSource,
) -> Result<(usize, Vec<f32>), GenerateError> {
    match &request.start {
        Start::Noise => {
            let mut sample = vec![0.0; count];
            noise.fill(&mut sample);
            sample.iter_mut().for_each(|value| *value *= scheduler.init_noise_sigma());
            Ok((0, sample))
        }
        Start::Latents { latents, strength } => {
            check_count(latents, count)?;
            with_noise(request, scheduler, latents, *strength, noise)
        }
        Start::Continue { latents, from } => {
            check_count(latents, count)?;
            Ok((continuation(request, scheduler, *from)?, latents.clone()))
        }
    }
}

/// The first evaluation of an image's latents, and these with noise.
fn with_noise(
    request: &Request,
    scheduler: &dyn Scheduler,
    latents: &[f32],
    strength: f64,
    noise: &mut dyn NoiseSource,
) -> Result<(usize, Vec<f32>), GenerateError> {
    let steps = (request.steps as f64 * share("strength", strength)?) as usize;
    let first = (request.steps - steps.min(request.steps)) * scheduler.order();
    if first >= scheduler.timesteps().len() {
        let what = format!("of {strength} leaves none of {} steps to run", request.steps);
        return Err(GenerateError::Option { option: "strength", what });
    }
    let mut added = vec![0.0; latents.len()];
    noise.fill(&mut added);
    Ok((first, scheduler.add_noise(latents, &added, first)))
}

/// The first evaluation after a share of the noise is gone.
fn continuation(request: &Request, scheduler: &dyn Scheduler, from: f64) -> Result<usize, GenerateError> {
    let evaluations = scheduler.timesteps().len();
    let train = request.scheduler.training_steps() as f64;
    let cutoff = (train - share("denoising start", from)? * train).round_ties_even();
    let mut left = scheduler.timesteps().iter().filter(|&&timestep| timestep < cutoff).count();
    // A step of two evaluations is not entered in its middle.
    if scheduler.order() == 2 && left % 2 == 0 {
        left += 1;
    }
    let first = evaluations.saturating_sub(left);
    if first >= evaluations {
        let what = format!("of {from} leaves nothing to run");
        return Err(GenerateError::Option { option: "denoising start", what });
    }
    Ok(first)
}

fn share(option: &'static str, value: f64) -> Result<f64, GenerateError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(GenerateError::Option { option, what: format!("must be 0 to 1, not {value}") }),
    }
}

fn check_count(latents: &[f32], count: usize) -> Result<(), GenerateError> {
    match latents.len() == count {
        true => Ok(()),
        false => {
            let what = format!("must have {count} values, not {}", latents.len());
            Err(GenerateError::Option { option: "latents", what })
        }
    }
}
