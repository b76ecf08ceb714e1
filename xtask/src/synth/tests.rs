use diffusion::model::DiffusionModel;
use diffusion::pipeline::{Pipeline, Precision, Request, Start, Text};
use diffusion::random::random_source;
use diffusion::scheduler::SchedulerConfig;
use diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit::model::DiffusersModel;
use testkit::{Failures, fixture_root};

use super::*;

/// Name, tensors and parameters of each component, as PyTorch counts them.
type Components = &'static [(&'static str, usize, usize)];

/// The published models.
const PUBLISHED: [(&str, Components); 4] = [
    (
        "sd15",
        &[
            ("safety_checker", 396, 303_981_588),
            ("text_encoder", 196, 123_060_480),
            ("unet", 686, 859_520_964),
            ("vae", 248, 83_653_863),
        ],
    ),
    ("sd21", &[("text_encoder", 372, 340_387_840), ("unet", 686, 865_910_724), ("vae", 248, 83_653_863)]),
    (
        "sdxl-base",
        &[
            ("text_encoder", 196, 123_060_480),
            ("text_encoder_2", 517, 694_659_840),
            ("unet", 1680, 2_567_463_684),
            ("vae", 248, 83_653_863),
        ],
    ),
    (
        "sdxl-refiner",
        &[("text_encoder_2", 517, 694_659_840), ("unet", 1220, 2_259_526_660), ("vae", 248, 83_653_863)],
    ),
];

fn described(model: &str) -> Diffusers {
    Diffusers::open(&repository().join("xtask/models").join(model)).unwrap()
}

#[test]
fn models_are_the_folders() {
    let mut folders: Vec<String> = fs::read_dir(repository().join("xtask/models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, MODELS);
    assert_eq!(PUBLISHED.map(|(model, _)| model), MODELS);
}

#[test]
fn networks_have_the_published_sizes() {
    let mut failures = Failures::new("published sizes");
    for (model, expected) in PUBLISHED {
        failures.case(model, || {
            let source = described(model);
            let shapes = shapes(&source).map_err(|error| format!("{error:#}"))?;
            let count = |shapes: &Shapes| shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
            let found: Vec<(&str, usize, usize)> =
                shapes.iter().map(|(name, shapes)| (*name, shapes.len(), count(shapes))).collect();
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    failures.finish();
}

#[test]
fn schedulers_and_tokenizers_can_be_used() {
    let [vocab, merges] = VOCABULARY.map(|file| fs::read_to_string(repository().join(file)).unwrap());
    let mut failures = Failures::new("schedulers and tokenizers");
    for model in MODELS {
        let source = described(model);
        failures.case(&format!("{model} scheduler"), || {
            let config =
                source.json("scheduler", "scheduler_config.json").map_err(|error| error.to_string())?;
            let config = SchedulerConfig::from_json(&config).map_err(|error| error.to_string())?;
            config.build(20).map(|_| ()).map_err(|error| error.to_string())
        });
        let parts = source.components().iter().filter(|(_, part)| part.is_some());
        for (name, _) in parts.filter(|(name, _)| name.starts_with("tokenizer")) {
            let text = |file| source.text(name, file).unwrap();
            let (config, special) = (text("tokenizer_config.json"), text("special_tokens_map.json"));
            failures.case(&format!("{model} {name}"), || {
                let files = TokenizerFiles {
                    vocab: Some(&vocab),
                    merges: Some(&merges),
                    config: Some(&config),
                    special_tokens_map: Some(&special),
                    ..TokenizerFiles::default()
                };
                let tokenizer = Tokenizer::new(&files).map_err(|error| error.to_string())?;
                // The vocabulary is CLIP's, whole.
                match tokenizer.vocabulary_size() {
                    49408 => Ok(()),
                    size => Err(format!("a vocabulary of {size}")),
                }
            });
        }
    }
    failures.finish();
}

/// A whole checkpoint of a tiny model: it is written, read back, and draws with finite numbers.
#[test]
fn what_is_written_runs() {
    let scratch = std::env::temp_dir().join(format!("mixbit-synth-{}", std::process::id()));
    let mut failures = Failures::new("tiny models");
    for (tiny, dtype) in [("sd15", DType::F16), ("sd21", DType::F32), ("sdxl", DType::F16)] {
        failures.case(tiny, || {
            let directory = scratch.join(tiny);
            let source = Diffusers::open(&fixture_root().join("pipelines").join(tiny))?;
            write(&source, &directory, 93, dtype)?;
            draw(&directory)
        });
    }
    fs::remove_dir_all(&scratch).unwrap();
    failures.finish();
}

fn draw(directory: &Path) -> anyhow::Result<()> {
    let model = DiffusionModel::from_files(&DiffusersModel::open(directory, None)?)?;
    let backend = engine::Cpu::new(Some(1))?;
    for precision in [Precision::F32, Precision::F16] {
        let request = Request {
            steps: 3,
            size: [32, 24],
            guidance_scale: 15.0,
            precision,
            ..Request::new(&model, Text::new("a"))
        };
        let mut pipeline = Pipeline::new(&model, &backend, request)?;
        let mut noise = random_source("torch")?.seeded(0)?;
        let mut run = pipeline.begin(Start::Noise, &mut *noise)?;
        while pipeline.step(&mut run, &mut *noise)? {}
        pipeline.decode(run.latents())?;
    }
    Ok(())
}
