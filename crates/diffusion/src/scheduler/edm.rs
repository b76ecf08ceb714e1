//! Euler's method and the multistep DPM-Solver++ for models that are trained as in Karras et al. (arXiv
//! 2206.00364): its noise levels (equation 5) and its preconditioning (table 1), as Playground 2.5 needs.

use super::config::SchedulerConfig;
use super::dpm_solver::{self, History, Solver};
use super::error::SchedulerError;
use super::field::{self, Field, Kind, choice, field, flag, solver_order};
use super::float::{exp, ln, torch_linspace, zip_map};
use super::prediction::{Limit, Mix};
use super::sigmas;
use super::{Scheduler, SchedulerEntry, StepInput, StepOutput, Training};
use crate::random::NoiseSource;

pub(super) const EULER_ENTRY: SchedulerEntry = SchedulerEntry {
    name: "edm-euler",
    label: "EDM Euler",
    aliases: &[],
    class: "EDMEulerScheduler",
    about: "Euler for models trained with EDM preconditioning",
    training: Training::Edm,
    presets: &[],
    fields: &[
        &LEVELS,
        &[choice("prediction_type", "epsilon", &["epsilon", "v_prediction"])],
        &field::FINAL_SIGMA,
    ],
    build: |config, steps| Ok(Box::new(EdmEuler { grid: Grid::new(config, steps, true)? })),
};

pub(super) const MULTISTEP_ENTRY: SchedulerEntry = SchedulerEntry {
    name: "edm-dpmpp-2m",
    label: "EDM DPM++ 2M",
    aliases: &[],
    class: "EDMDPMSolverMultistepScheduler",
    about: "DPM++ 2M for models trained with EDM preconditioning",
    training: Training::Edm,
    presets: &[],
    fields: &[
        &LEVELS,
        // diffusers lists `sample` too, but raises an error on use.
        &[choice("prediction_type", "epsilon", &["epsilon", "v_prediction"])],
        &SOLVER,
        &field::THRESHOLDING,
        &field::FINAL_SIGMA,
    ],
    build: |config, steps| Ok(Box::new(EdmMultistep::new(config, steps)?)),
};

/// The fields of the noise levels and the preconditioning.
const LEVELS: [Field; 6] = [
    field("num_train_timesteps", Kind::Integer { default: 1000, min: 1, max: 100_000 }),
    field("sigma_min", Kind::OptionalNumber),
    field("sigma_max", Kind::OptionalNumber),
    field("sigma_data", Kind::Number(0.5)),
    field("rho", Kind::Number(7.0)),
    choice("sigma_schedule", "karras", &["karras", "exponential"]),
];

const SOLVER: [Field; 5] = [
    solver_order(3),
    dpm_solver::algorithm_type(&["dpmsolver++", "sde-dpmsolver++"]),
    dpm_solver::SOLVER_TYPE,
    flag("lower_order_final", true),
    flag("euler_at_final", false),
];

/// The noise levels of a run and the preconditioning.
struct Grid {
    timesteps: Vec<f64>,
    /// The noise levels in descending order, followed by the final one.
    sigmas: Vec<f32>,
    /// The deviation of the data.
    data: f32,
    largest: f64,
    is_velocity: bool,
}

impl Grid {
    /// The grid of a run. `exact` computes the levels in double precision, as Euler's class does.
    fn new(config: &SchedulerConfig, steps: usize, exact: bool) -> Result<Grid, SchedulerError> {
        let positive = |name: &'static str, value: f64| match value > 0.0 {
            true => Ok(value),
            false => Err(config.bad_value(name, "is not positive")),
        };
        let limit = |name, default| positive(name, config.optional_number(name).unwrap_or(default));
        let (min, max) = (limit("sigma_min", 0.002)?, limit("sigma_max", 80.0)?);
        let [data, rho] = ["sigma_data", "rho"].map(|name| positive(name, config.number(name)));
        let (data, rho) = (data?, rho?);
        let levels = match config.choice("sigma_schedule") {
            "exponential" => exponential(min, max, steps),
            _ => karras(min, max, rho, steps, exact),
        };
        let last = match (config.ends_at_sigma_min(), exact) {
            (false, _) => 0.0,
            (true, true) => levels[steps - 1],
            (true, false) => min as f32,
        };
        Ok(Grid {
            timesteps: levels.iter().map(|&sigma| f64::from(0.25 * ln(sigma))).collect(),
            sigmas: [&levels[..], &[last]].concat(),
            data: data as f32,
            largest: max,
            is_velocity: config.choice("prediction_type") == "v_prediction",
        })
    }

    fn init_noise_sigma(&self) -> f32 {
        (self.largest * self.largest + 1.0).sqrt() as f32
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        let sigma = self.sigmas[index];
        let scale = 1.0 / (sigma * sigma + self.data * self.data).sqrt();
        sample.iter().map(|x| x * scale).collect()
    }

    /// The predicted clean sample.
    fn original(&self, model_output: &[f32], sample: &[f32], index: usize) -> Vec<f32> {
        let (sigma, data) = (self.sigmas[index], self.data);
        let square = sigma * sigma + data * data;
        let skip = data * data / square;
        let out = sigma * data / square.sqrt();
        let out = if self.is_velocity { -out } else { out };
        zip_map(sample, model_output, |x, m| skip * x + out * m)
    }
}

fn karras(min: f64, max: f64, rho: f64, steps: usize, exact: bool) -> Vec<f32> {
    let (low, high) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
    if exact {
        let level = |r: f64| (high + r * (low - high)).powf(rho) as f32;
        return (0..steps).map(|step| level(step as f64 / (steps - 1).max(1) as f64)).collect();
    }
    let level = |r: f32| f64::from(high as f32 + r * (low - high) as f32).powf(rho) as f32;
    torch_linspace(0.0, 1.0, steps).into_iter().map(level).collect()
}

fn exponential(min: f64, max: f64, steps: usize) -> Vec<f32> {
    let logs = torch_linspace(min.ln() as f32, max.ln() as f32, steps);
    logs.into_iter().rev().map(exp).collect()
}

struct EdmEuler {
    grid: Grid,
}

impl Scheduler for EdmEuler {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma()
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        self.grid.scale_model_input(sample, index)
    }

    fn step(&mut self, input: StepInput<'_>, _: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, .. } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let original = self.grid.original(model_output, sample, index);
        let (from, to) = (self.grid.sigmas[index], self.grid.sigmas[index + 1]);
        StepOutput { previous: sigmas::euler_step(sample, &original, from, to), original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }
}

struct EdmMultistep {
    grid: Grid,
    limit: Limit,
    history: History,
}

impl EdmMultistep {
    fn new(config: &SchedulerConfig, steps: usize) -> Result<EdmMultistep, SchedulerError> {
        let solver = Solver::of(config)?;
        if solver.algorithm.is_stochastic() && solver.order == 3 {
            return Err(config.bad_value("algorithm_type", "has no third order"));
        }
        let grid = Grid::new(config, steps, false)?;
        if let Some(repeated) = grid.sigmas[..steps].windows(2).position(|pair| pair[0] == pair[1]) {
            let reason = format!("steps {repeated} and {} have the same noise level", repeated + 1);
            return Err(config.bad_steps(steps, reason));
        }
        Ok(EdmMultistep { grid, limit: solver.limit, history: History::new(config, solver, steps) })
    }
}

impl Scheduler for EdmMultistep {
    fn timesteps(&self) -> &[f64] {
        &self.grid.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.grid.init_noise_sigma()
    }

    fn scale_model_input(&self, sample: &[f32], index: usize) -> Vec<f32> {
        self.grid.scale_model_input(sample, index)
    }

    fn step(&mut self, input: StepInput<'_>, noise: &mut dyn NoiseSource) -> StepOutput {
        let StepInput { index, model_output, sample, images } = input;
        assert_eq!(model_output.len(), sample.len(), "the lengths of output and sample differ");
        let mut original = self.grid.original(model_output, sample, index);
        self.limit.apply(&mut original, images);
        let mix = |index: usize| Mix { alpha: 1.0, sigma: self.grid.sigmas[index] };
        let previous = self.history.step((index, original.clone()), sample, mix, noise);
        StepOutput { previous, original }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], index: usize) -> Vec<f32> {
        sigmas::add_noise(original, noise, self.grid.sigmas[index])
    }
}
