//! Whole runs of tiny models against the final latents of diffusers' own pipelines.

use std::sync::Arc;

use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::NoiseSource;
use mixbit_diffusion::scheduler::SchedulerConfig;
use mixbit_diffusion::session::{Cancel, MicroConditioning, Placement, Request, Session, Start, Text};
use mixbit_engine::{Backend, Reference};
use mixbit_engine_cpu::Cpu;
use mixbit_packages::source::DiffusersModel;
use mixbit_testkit::{ErrorStats, Failures, Fixture};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

/// Relative to the largest latent; diffusers' own runs on another number of threads differ by up to 1e-5.
const TOLERANCE: f64 = 1e-3;

#[test]
fn final_latents_are_those_of_diffusers() {
    let cpu = Arc::new(Cpu::new(Some(2)).unwrap());
    compare("pipelines on the CPU", cpu, |_| true);
}

#[test]
fn final_latents_of_each_model_on_the_reference() {
    compare("pipelines on the reference", Arc::new(Reference), |key| key.ends_with("/default"));
}

fn compare(table: &str, backend: Arc<dyn Backend>, chosen: impl Fn(&str) -> bool) {
    let fixture = Fixture::open("pipelines");
    let arrays = fixture.arrays("results.safetensors");
    let mut failures = Failures::new(table);
    for case in fixture.json("cases.json")["cases"].as_array().unwrap() {
        let key = case["key"].as_str().unwrap();
        if !chosen(key) {
            continue;
        }
        failures.case(key, || {
            let directory = fixture.path(case["dir"].as_str().unwrap());
            let model = Arc::new(DiffusionModel::from_files(&DiffusersModel::open(&directory, None)?)?);
            let found = draw(&model, backend.clone(), case, |name| {
                arrays.get(&format!("{key}/{name}")).map(|array| array.f32s()).unwrap_or_default()
            })?;
            let expected = &arrays[&format!("{key}/latents")];
            ErrorStats::compare(&found.latents, &expected.f32s()).within(TOLERANCE)?;
            if let Some(image) = arrays.get(&format!("{key}/image")) {
                let within = ErrorStats::compare(&found.image, &image.f32s()).within(TOLERANCE);
                within.map_err(|error| format!("image: {error}"))?;
            }
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

/// All images of a call, one after another.
struct Drawn {
    latents: Vec<f32>,
    image: Vec<f32>,
}

fn draw(
    model: &Arc<DiffusionModel>,
    backend: Arc<dyn Backend>,
    case: &Value,
    array: impl Fn(&str) -> Vec<f32>,
) -> Result<Drawn, Error> {
    let arguments = &case["arguments"];
    let mut session = Session::new(model.clone(), Placement::new(backend));
    let mut request = request(model, case)?;
    let images = arguments["num_images_per_prompt"].as_u64().unwrap_or(1) as usize;
    let latent = &model.autoencoder.latent;
    let count = latent.channels * request.size.map(|extent| extent / latent.scale).iter().product::<usize>();
    let (start, noise) = (array("start"), array("noise"));
    let mut drawn = Drawn { latents: Vec::new(), image: Vec::new() };
    for image in 0..images {
        let own = |draws: &[f32]| -> Vec<f32> {
            draws.chunks(images * count).flat_map(|draw| draw[image * count..][..count].to_vec()).collect()
        };
        let (start, mut draws) = (own(&start), own(&noise));
        let float = |name: &str| arguments[name].as_f64();
        request.start = match (float("strength"), float("denoising_start")) {
            (Some(strength), _) => Start::Latents { latents: start, strength },
            (None, Some(from)) => Start::Continue { latents: start, from },
            (None, None) => {
                draws.splice(0..0, start.iter().copied());
                Start::Noise
            }
        };
        let mut noise = Recorded(draws);
        let mut run = session.begin(&request, &mut noise, &Cancel::default(), &mut |_| {})?;
        while session.step(&mut run, &mut noise, &mut |_| {})? {}
        assert!(noise.0.is_empty(), "{} values of noise are left", noise.0.len());
        drawn.image.extend(session.decode(&run, run.latents(), &mut |_| {})?.planes);
        drawn.latents.extend(run.latents());
    }
    Ok(drawn)
}

fn request(model: &DiffusionModel, case: &Value) -> Result<Request, Error> {
    let arguments = &case["arguments"];
    let text = |name: &str| arguments[name].as_str().map(str::to_string);
    let float = |name: &str| arguments[name].as_f64().map(|value| value as f32);
    let pair = |name: &str| {
        let values = arguments[name].as_array()?;
        Some([values[0].as_u64()? as usize, values[1].as_u64()? as usize])
    };
    let size = |name: &str| case[name].as_u64().unwrap() as usize;
    let defaults = MicroConditioning::default();
    Ok(Request {
        size: [size("width"), size("height")],
        steps: arguments["num_inference_steps"].as_u64().ok_or("no steps")? as usize,
        guidance_scale: float("guidance_scale").ok_or("no guidance scale")?,
        guidance_rescale: float("guidance_rescale").unwrap_or(0.0),
        scheduler: SchedulerConfig::from_json(&case["scheduler_config"])?,
        micro: MicroConditioning {
            original_size: pair("original_size"),
            crop: pair("crops_coords_top_left").unwrap_or(defaults.crop),
            target_size: pair("target_size"),
            negative_original_size: pair("negative_original_size"),
            negative_crop: pair("negative_crops_coords_top_left").unwrap_or(defaults.negative_crop),
            negative_target_size: pair("negative_target_size"),
            aesthetic_score: float("aesthetic_score").unwrap_or(defaults.aesthetic_score),
            negative_aesthetic_score: float("negative_aesthetic_score")
                .unwrap_or(defaults.negative_aesthetic_score),
        },
        ..Request::new(
            model,
            Text {
                prompt: text("prompt").ok_or("no prompt")?,
                prompt_2: text("prompt_2"),
                negative_prompt: text("negative_prompt"),
                negative_prompt_2: text("negative_prompt_2"),
            },
        )?
    })
}

/// Noise that diffusers drew, in order.
struct Recorded(Vec<f32>);

impl NoiseSource for Recorded {
    fn fill(&mut self, noise: &mut [f32]) {
        noise.copy_from_slice(&self.0[..noise.len()]);
        self.0.drain(..noise.len());
    }
}
