//! DPM++ SDE: the stochastic second-order solver of "DPM-Solver++" (Lu et al., arXiv 2211.01095) with a
//! midpoint, as in k-diffusion's `sample_dpmpp_sde`.
//!
//! Every step but the last evaluates the model at its start and at the geometric mean of its two levels. Both
//! draw on one Brownian path, so the noise to the end of a step contains the noise to its middle. The path is
//! made of the run's noise; k-diffusion's has a generator of its own, which diffusers seeds at random.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Kind, choice, field};
use super::float::{exp, exp_m1, ln, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::original_at_level;
use super::sigmas::{self, SigmaGrid, TrainedSigmas, continuous_grid};
use super::words::{Prediction, TimestepSpacing};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpmpp-sde",
    label: "DPM++ SDE",
    aliases: &["dpmpp-sde-gpu"],
    class: "DPMSolverSDEScheduler",
    about: "DPM++ SDE: second order with fresh noise, two evaluations a step",
    training: Training::Diffusion,
    presets: &[],
    fields: &[
        &field::betas(0.00085, 0.012, "linear", field::BETA_SCHEDULES),
        // diffusers lists `sample` too, but raises an error on use.
        &[choice("prediction_type", "epsilon", &["epsilon", "v_prediction"])],
        &field::SIGMAS,
        &[field("noise_sampler_seed", Kind::Off)],
        &field::spacing("linspace"),
    ],
    build: |config, steps| Ok(Box::new(DpmSde::new(config, steps)?)),
};

struct DpmSde {
    /// One timestep per evaluation, and the noise levels: every one but the first and the final appears
    /// twice.
    grid: SigmaGrid,
    spacing: TimestepSpacing,
    prediction: Prediction,
    /// The state of a step between its two evaluations.
    half: Option<HalfStep>,
}

struct HalfStep {
    start: Vec<f32>,
    middle: f32,
    /// The Brownian path from the start of the step to its middle.
    path: Vec<f32>,
}

impl DpmSde {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<DpmSde, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let single = continuous_grid(config, &schedule, steps)?;
        let trained = TrainedSigmas::new(&schedule);
        let mut timesteps = single.timesteps[..1].to_vec();
        for (pair, &next) in single.sigmas.windows(2).zip(&single.timesteps[1..]) {
            let middle = (0.5 * (f64::from(pair[0]).ln() + f64::from(pair[1]).ln())).exp();
            timesteps.extend([trained.timestep(middle), next]);
        }
        let twice = single.sigmas[..steps].iter().flat_map(|&sigma| [sigma, sigma]).skip(1);
        let sigmas = twice.chain(single.sigmas[steps..].iter().copied()).collect();
        let (spacing, prediction) = (config.timestep_spacing()?, config.prediction()?);
        Ok(DpmSde { grid: SigmaGrid { timesteps, sigmas }, spacing, prediction, half: None })
    }
}

/// An ancestral step from one level to another: the sample `x` and its prediction to the next sample without
/// its noise, and the deviation of the noise to add.
fn ancestral(sample: &[f32], original: &[f32], from: f32, to: f32) -> (Vec<f32>, f32) {
    let (from_square, to_square) = (from * from, to * to);
    let up = to.min((to_square * (from_square - to_square) / from_square).sqrt());
    let down = (to_square - up * up).sqrt();
    let (time, reached) = (-ln(from), -ln(down));
    let (kept, added) = (exp(-reached) / exp(-time), exp_m1(time - reached));
    (zip_map(sample, original, |x, x0| kept * x - added * x0), up)
}

impl Scheduler for DpmSde {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma(self.spacing)
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        let level = self.half.as_ref().map_or(self.grid.sigmas[index], |half| half.middle);
        sigmas::scale_input(sample, level)
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let half = self.half.take();
        let first = index - usize::from(half.is_some());
        let (from, to) = (self.grid.sigmas[first], self.grid.sigmas[first + 1]);
        let level = half.as_ref().map_or(from, |half| half.middle);
        let original = original_at_level(self.prediction, model_output, sample, level);
        if to == 0.0 {
            return StepOutput { previous: sigmas::euler_step(sample, &original, from, to), original };
        }
        let mut drawn = vec![0.0; sample.len()];
        noise.fill(&mut drawn);
        let Some(HalfStep { start, middle, path }) = half else {
            let middle = exp(ln(from) + (ln(to) - ln(from)) * 0.5);
            let (previous, up) = ancestral(sample, &original, from, middle);
            let previous = zip_map(&previous, &drawn, |x, n| x + n * up);
            let length = (from - middle).sqrt();
            let path = drawn.iter().map(|n| n * length).collect();
            self.half = Some(HalfStep { start: sample.to_vec(), middle, path });
            return StepOutput { previous, original };
        };
        let (previous, up) = ancestral(&start, &original, from, to);
        let (rest, whole) = ((middle - to).sqrt(), (from - to).sqrt());
        let added = zip_map(&path, &drawn, |w, n| (w + n * rest) / whole);
        StepOutput { previous: zip_map(&previous, &added, |x, n| x + n * up), original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }

    fn order(&self) -> usize {
        2
    }
}
