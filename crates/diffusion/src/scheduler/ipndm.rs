//! Improved PNDM: the linear multistep method of Liu et al. (arXiv 2202.09778) without Runge-Kutta steps, as
//! in diffusers' `IPNDMScheduler`. It follows Dance Diffusion's angle from noise to sample, and its timesteps
//! go from 1 to 0.

use super::field::{Kind, field};
use super::float::{torch_linspace, zip_map};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ipndm",
    label: "iPNDM",
    aliases: &[],
    class: "IPNDMScheduler",
    about: "iPNDM: linear multistep of order 4, for models on timesteps from 1 to 0",
    training: Training::Angle,
    presets: &[],
    fields: &[&[
        field("num_train_timesteps", Kind::Integer { default: 1000, min: 1, max: 100_000 }),
        field("trained_betas", Kind::Off),
    ]],
    build: |_, steps| Ok(Box::new(Ipndm::new(steps))),
};

/// The number of model outputs that a step uses.
const ORDER: usize = 4;

struct Ipndm {
    timesteps: Vec<f64>,
    /// The scale of the noise at each timestep, and 0.
    betas: Vec<f32>,
    /// The scale of the sample at each timestep, and 1.
    alphas: Vec<f32>,
    /// The last derivatives, newest first.
    derivatives: Vec<Vec<f32>>,
}

impl Ipndm {
    fn new(steps: usize) -> Ipndm {
        const HALF_PI: f32 = std::f32::consts::FRAC_PI_2;
        let mut times = torch_linspace(1.0, 0.0, steps + 1);
        times[steps] = 0.0;
        let sine = |time: &f32| {
            let sine = f64::from(time * HALF_PI).sin() as f32;
            sine * sine
        };
        let betas: Vec<f32> = times.iter().map(sine).collect();
        let alphas: Vec<f32> = betas.iter().map(|beta| (1.0 - beta * beta).sqrt()).collect();
        let angle = |(&beta, &alpha): (&f32, &f32)| f64::from(beta).atan2(alpha.into()) as f32;
        let angles = betas.iter().zip(&alphas).take(steps).map(angle);
        let timesteps = angles.map(|angle| f64::from(angle / std::f32::consts::PI * 2.0)).collect();
        Ipndm { timesteps, betas, alphas, derivatives: Vec::new() }
    }
}

impl Scheduler for Ipndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let (alpha, beta) = (self.alphas[index], self.betas[index]);
        self.derivatives.insert(0, zip_map(sample, model_output, |x, m| x * beta + m * alpha));
        self.derivatives.truncate(ORDER);
        let weights: &[f32] = match self.derivatives.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut derivative = vec![0.0; sample.len()];
        for (weight, known) in weights.iter().zip(&self.derivatives) {
            derivative = zip_map(&derivative, known, |sum, d| sum + weight * d);
        }
        let original = zip_map(sample, &derivative, |x, d| (x - beta * d) / alpha.max(1e-8));
        let (alpha, beta) = (self.alphas[index + 1], self.betas[index + 1]);
        StepOutput { previous: zip_map(&original, &derivative, |x, d| alpha * x + d * beta), original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        zip_map(original, noise, |x, n| self.alphas[index] * x + self.betas[index] * n)
    }
}
