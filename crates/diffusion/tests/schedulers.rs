//! Compares every scheduler with diffusers: the trajectories in `fixtures/schedulers/`.

use std::collections::BTreeMap;

use mixbit_diffusion::random::NoiseSource;
use mixbit_diffusion::scheduler::{SCHEDULERS, Scheduler, SchedulerConfig, StepInput};
use mixbit_testkit::{Array, ErrorStats, Failures, Fixture};
use serde_json::Value;

/// The error tolerance, relative to the largest value of the tensor.
const TOLERANCE: f64 = 1e-5;

/// Cases that diffusers ends at NaN and mixbit refuses: their last step divides by an infinite change of the
/// log-SNR.
const REFUSED: [&str; 2] = ["unipc/bh1-order2-full-n8", "unipc/bh2-order2-full-n8"];

type Arrays = BTreeMap<String, Array>;
type Error = Box<dyn std::error::Error>;

#[test]
fn trajectories_match_diffusers() {
    let fixture = Fixture::open("schedulers");
    let arrays = fixture.arrays("trajectories.safetensors");
    let mut failures = Failures::new("trajectories");
    for case in fixture.json("cases.json")["cases"].as_array().unwrap() {
        let case = Case { json: case, arrays: &arrays };
        match REFUSED.contains(&case.key()) {
            true => failures.case(case.key(), || case.check_refusal()),
            false => failures.case(case.key(), || case.check()),
        }
    }
    failures.finish();
}

#[test]
fn every_class_has_trajectories() {
    let cases = Fixture::open("schedulers").json("cases.json");
    let mut failures = Failures::new("classes");
    for entry in SCHEDULERS {
        failures.case(entry.name, || {
            let mut classes = cases["cases"].as_array().unwrap().iter().map(|case| &case["class"]);
            if classes.any(|class| class == entry.class) { Ok(()) } else { Err("no trajectory") }
        });
    }
    failures.finish();
}

/// A row of `cases.json` and its tensors.
struct Case<'a> {
    json: &'a Value,
    arrays: &'a Arrays,
}

impl Case<'_> {
    fn key(&self) -> &str {
        self.json["key"].as_str().unwrap()
    }

    fn number(&self, field: &str) -> usize {
        self.json[field].as_u64().unwrap() as usize
    }

    /// A list of indices.
    fn indices(&self, field: &str) -> Vec<usize> {
        let list = self.json[field].as_array().unwrap().iter();
        list.map(|index| index.as_u64().unwrap() as usize).collect()
    }

    /// A tensor shared by all cases.
    fn shared(&self, name: &str) -> Vec<f32> {
        self.arrays[name].f32s()
    }

    /// A tensor of the case, split along its first axis.
    fn rows(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        let array = self.arrays.get(&format!("{}/{name}", self.key()))?;
        let row = array.values.len() / array.shape[0];
        Some(array.f32s().chunks(row).map(<[f32]>::to_vec).collect())
    }

    fn build(&self) -> Result<Box<dyn Scheduler>, Error> {
        let mut config = SchedulerConfig::from_json(&self.json["config"])?;
        if self.json["eta"] != 0.0 {
            config.set("eta", self.json["eta"].clone())?;
        }
        Ok(config.build(self.number("num_inference_steps"))?)
    }

    fn check_refusal(&self) -> Result<(), Error> {
        assert!(self.number("finite_steps") < self.number("steps"));
        match self.build() {
            Err(error) if error.to_string().contains("needs `final_sigmas_type` = sigma_min") => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err("accepted".into()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let scheduler = self.build()?;
        self.check_timesteps(scheduler.timesteps())?;
        let sigma = f64::from(scheduler.init_noise_sigma());
        let expected = self.json["init_noise_sigma"].as_f64().unwrap();
        within("init_noise_sigma", &[sigma], &[expected])?;
        // IPNDM has no noised samples in diffusers.
        let noised = self.rows("noised").unwrap_or_default();
        if noised.is_empty() && self.json["class"] != "IPNDMScheduler" {
            return Err("no `noised`".into());
        }
        for (index, expected) in self.indices("add_noise_indices").into_iter().zip(noised) {
            let found = scheduler.add_noise(&self.shared("original"), &self.shared("start"), index);
            within(&format!("noised at {index}"), &found, &expected)?;
        }
        self.check_steps(scheduler)
    }

    /// Integer timesteps are equal; fractional ones are within the tolerance.
    fn check_timesteps(&self, found: &[f64]) -> Result<(), Error> {
        let expected = &self.arrays[&format!("{}/timesteps", self.key())].values;
        let whole = expected.iter().all(|timestep| timestep.fract() == 0.0);
        if found.len() != expected.len() || (whole && found != expected) {
            return Err(format!("timesteps {found:?} for {expected:?}").into());
        }
        within("timesteps", found, expected)
    }

    fn check_steps(&self, mut scheduler: Box<dyn Scheduler>) -> Result<(), Error> {
        let begin = self.number("begin_index");
        let mut sample = match begin {
            0 => {
                let sigma = scheduler.init_noise_sigma();
                self.shared("start").iter().map(|x| x * sigma).collect()
            }
            _ => scheduler.add_noise(&self.shared("original"), &self.shared("start"), begin),
        };
        within("start", &sample, &self.rows("start").ok_or("no `start`")?.concat())?;
        let (samples, predictions) = (self.rows("samples").ok_or("no `samples`")?, self.rows("predictions"));
        let inputs = self.indices("input_steps").into_iter().zip(self.rows("inputs").ok_or("no `inputs`")?);
        let inputs: BTreeMap<usize, Vec<f32>> = inputs.collect();
        let constant = self.shared("constant");
        let draws = self.shared("noise");
        let mut noise = Draws { values: &draws, used: 0 };
        for (step, expected) in samples.iter().enumerate() {
            let index = begin + step;
            let input = scheduler.scale_model_input(&sample, index);
            if let Some(expected) = inputs.get(&step) {
                within(&format!("input of step {step}"), &input, expected)?;
            }
            let model_output = model(&input, scheduler.timesteps()[index], &constant);
            let given = StepInput { index, model_output: &model_output, sample: &sample, images: 2 };
            let output = scheduler.step(given, &mut noise);
            if let Some(predictions) = &predictions {
                within(&format!("prediction of step {step}"), &output.original, &predictions[step])?;
            }
            within(&format!("sample after step {step}"), &output.previous, expected)?;
            sample = output.previous;
        }
        let (used, expected) = (noise.used / sample.len(), self.number("noise_draws"));
        if used == expected { Ok(()) } else { Err(format!("{used} draws of noise for {expected}").into()) }
    }
}

/// The fixture's pseudo-model, in place of the UNet.
fn model(input: &[f32], timestep: f64, constant: &[f32]) -> Vec<f32> {
    let gain = 0.3 + 0.2 * (timestep / 1000.0);
    let output = |(&x, &bias): (&f32, &f32)| (gain * f64::from(x) + 0.1 * f64::from(bias)) as f32;
    input.iter().zip(constant).map(output).collect()
}

fn within<T: Copy + Into<f64>>(what: &str, found: &[T], expected: &[T]) -> Result<(), Error> {
    let stats = ErrorStats::compare(found, expected);
    Ok(stats.within(TOLERANCE).map_err(|error| format!("{what}: {error}"))?)
}

/// The stored noise, returned in order.
struct Draws<'a> {
    values: &'a [f32],
    used: usize,
}

impl NoiseSource for Draws<'_> {
    fn fill(&mut self, noise: &mut [f32]) {
        noise.copy_from_slice(&self.values[self.used..][..noise.len()]);
        self.used += noise.len();
    }
}
