//! The first evaluation of a run, and its sample.

use super::error::GenerateError;
use super::request::{Request, Start};
use crate::random::NoiseSource;
use crate::scheduler::Scheduler;

/// The first evaluation of a request.
///
/// # Errors
/// If the start is out of range, or leaves nothing to run.
pub(super) fn first_evaluation(request: &Request, scheduler: &dyn Scheduler) -> Result<usize, GenerateError> {
    match &request.start {
        Start::Noise => Ok(0),
        Start::Image { strength, .. } | Start::Latents { strength, .. } => {
            of_strength(request, scheduler, *strength)
        }
        Start::Continue { from, .. } => of_continuation(request, scheduler, *from),
    }
}

/// The sample of a request's first evaluation, of `count` values. `encoded` are the latents of
/// [`Start::Image`].
///
/// # Errors
/// If the latents have another number of values.
pub(super) fn sample(
    request: &Request,
    encoded: Option<&[f32]>,
    scheduler: &dyn Scheduler,
    first: usize,
    count: usize,
    noise: &mut dyn NoiseSource,
) -> Result<Vec<f32>, GenerateError> {
    let latents = match &request.start {
        Start::Noise => None,
        Start::Image { .. } => encoded,
        Start::Latents { latents, .. } | Start::Continue { latents, .. } => Some(&latents[..]),
    };
    if let Some(latents) = latents.filter(|latents| latents.len() != count) {
        let what = format!("must have {count} values, not {}", latents.len());
        return Err(GenerateError::Option { option: "latents", what });
    }
    if let (Start::Continue { .. }, Some(latents)) = (&request.start, latents) {
        return Ok(latents.to_vec());
    }
    let mut sample = vec![0.0; count];
    noise.fill(&mut sample);
    match latents {
        Some(latents) => Ok(scheduler.add_noise(latents, &sample, first)),
        None => {
            sample.iter_mut().for_each(|value| *value *= scheduler.init_noise_sigma());
            Ok(sample)
        }
    }
}

/// The first evaluation of an image's latents.
fn of_strength(request: &Request, scheduler: &dyn Scheduler, strength: f64) -> Result<usize, GenerateError> {
    let steps = (request.steps as f64 * share("strength", strength)?) as usize;
    let first = (request.steps - steps.min(request.steps)) * scheduler.order();
    if first >= scheduler.timesteps().len() {
        let what = format!("of {strength} leaves none of {} steps to run", request.steps);
        return Err(GenerateError::Option { option: "strength", what });
    }
    Ok(first)
}

/// The first evaluation after a share of the noise is gone.
fn of_continuation(request: &Request, scheduler: &dyn Scheduler, from: f64) -> Result<usize, GenerateError> {
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
