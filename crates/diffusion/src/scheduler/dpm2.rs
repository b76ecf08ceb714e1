//! DPM-Solver-2 of Lu et al. (arXiv 2206.00927) over the noise levels of Karras et al. (arXiv 2206.00364), as
//! in k-diffusion's `sample_dpm_2` and `sample_dpm_2_ancestral`.
//!
//! Every step but the last evaluates the model at its start and at the geometric mean of its two levels. The
//! ancestral method goes below the next level and then adds noise to reach it.

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::field::{self, Field, choice};
use super::float::{exp, ln, zip_map};
use super::noise_schedule::NoiseSchedule;
use super::prediction::original_at_level;
use super::sigmas::{self, SigmaGrid, TrainedSigmas, continuous_grid};
use super::words::{Prediction, SigmaSchedule, TimestepSpacing};
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm2",
    label: "DPM2",
    aliases: &["kdpm2"],
    class: "KDPM2DiscreteScheduler",
    about: "DPM2: deterministic, second order, two evaluations a step",
    training: Training::Diffusion,
    presets: &[],
    fields: FIELDS,
    build: |config, steps| Ok(Box::new(Dpm2::new(config, steps, false)?)),
};

pub(super) const ANCESTRAL_ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm2-ancestral",
    label: "DPM2 a",
    aliases: &["kdpm2-a"],
    class: "KDPM2AncestralDiscreteScheduler",
    about: "DPM2 with fresh noise at every step",
    training: Training::Diffusion,
    presets: &[],
    fields: FIELDS,
    build: |config, steps| Ok(Box::new(Dpm2::new(config, steps, true)?)),
};

const FIELDS: &[&[Field]] = &[
    &field::betas(0.00085, 0.012, "linear", field::BETA_SCHEDULES),
    &field::SIGMAS,
    // diffusers lists `sample` too, but raises an error on use.
    &[choice("prediction_type", "epsilon", &["epsilon", "v_prediction"])],
    &field::spacing("linspace"),
];

struct Dpm2 {
    /// One timestep per evaluation, and the noise levels: every one but the first appears twice.
    grid: SigmaGrid,
    /// The levels of each step, twice.
    steps: Vec<Levels>,
    ancestral: bool,
    spacing: TimestepSpacing,
    prediction: Prediction,
    /// The sample at the start of a step, between its two evaluations.
    start: Option<Vec<f32>>,
}

/// The levels of a step besides the one that it starts from.
#[derive(Debug, Clone, Copy)]
struct Levels {
    middle: f32,
    down: f32,
    up: f32,
}

impl Dpm2 {
    fn new(config: &SchedulerConfig, steps: usize, ancestral: bool) -> Result<Dpm2, SchedulerError> {
        let schedule = NoiseSchedule::for_sigmas(config)?;
        let mut single = continuous_grid(config, &schedule, steps)?;
        if config.sigmas()? == SigmaSchedule::Karras {
            single.timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
        let levels: Vec<Levels> =
            (0..steps).map(|step| Levels::new(&single.sigmas, step, ancestral)).collect();
        let trained = TrainedSigmas::new(&schedule);
        let middles = levels.iter().map(|levels| trained.timestep_f32(levels.middle));
        let mut timesteps = single.timesteps[..1].to_vec();
        for (middle, &next) in middles.zip(&single.timesteps[1..]) {
            timesteps.extend([middle, next]);
        }
        let sigmas = single.sigmas.iter().flat_map(|&sigma| [sigma, sigma]).skip(1).collect();
        Ok(Dpm2 {
            grid: SigmaGrid { timesteps, sigmas },
            steps: levels.into_iter().flat_map(|levels| [levels, levels]).collect(),
            ancestral,
            spacing: config.timestep_spacing()?,
            prediction: config.prediction()?,
            start: None,
        })
    }

    /// The levels of an evaluation. A run that starts at the second evaluation of a step pairs it with the
    /// first of the next; the two classes of diffusers then take other levels.
    fn levels(&self, index: usize) -> Levels {
        self.steps[index + usize::from(self.ancestral) - usize::from(self.start.is_some())]
    }
}

impl Levels {
    /// The levels of a step over a run's sigmas.
    fn new(sigmas: &[f32], step: usize, ancestral: bool) -> Levels {
        let (from, to) = (sigmas[step], sigmas[step + 1]);
        let (from_square, to_square) = (from * from, to * to);
        let up = match ancestral {
            true => (to_square * (from_square - to_square) / from_square).sqrt(),
            false => 0.0,
        };
        let down = if ancestral { (to_square - up * up).sqrt() } else { to };
        let middle = if to > 0.0 { geometric_mean(from, down) } else { 0.0 };
        Levels { middle, down, up }
    }
}

/// `exp(lerp(ln a, ln b, 0.5))`, as PyTorch computes it.
fn geometric_mean(a: f32, b: f32) -> f32 {
    let (a, b) = (ln(a), ln(b));
    exp(b - (b - a) * 0.5)
}

impl Scheduler for Dpm2 {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma(self.spacing)
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        let level = match self.start {
            None => self.grid.sigmas[index],
            Some(_) => self.levels(index).middle,
        };
        sigmas::scale_input(sample, level)
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let levels = self.levels(index);
        let Some(start) = self.start.take() else {
            let from = self.grid.sigmas[index];
            let original = original_at_level(self.prediction, model_output, sample, from);
            let previous = sigmas::euler_step(sample, &original, from, levels.middle);
            self.start = Some(sample.to_vec());
            return StepOutput { previous, original };
        };
        let from = self.grid.sigmas[index - 1];
        let original = original_at_level(self.prediction, model_output, sample, levels.middle);
        let dt = levels.down - from;
        let derivative = zip_map(sample, &original, |x, x0| (x - x0) / levels.middle);
        let mut previous = zip_map(&start, &derivative, |x, d| x + d * dt);
        if self.ancestral {
            let mut added = vec![0.0; sample.len()];
            noise.fill(&mut added);
            previous = zip_map(&previous, &added, |x, n| x + n * levels.up);
        }
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }

    fn order(&self) -> usize {
        2
    }
}
