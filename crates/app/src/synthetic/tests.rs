use std::fs;
use std::sync::{Arc, Mutex};

use mixbit_diffusion::family::FAMILIES;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::scheduler::SchedulerConfig;
use mixbit_diffusion::session::{Cancel, Precision, Request, Session, Text};
use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::Stopped;
use mixbit_testkit::{Failures, Scratch, fixture_root};

use super::*;
use mixbit_packages::source::DiffusersModel;

/// Name, tensors and parameters of each component, as PyTorch counts them.
type Components = &'static [(&'static str, usize, usize)];

const OF_2: Components =
    &[("text_encoder", 372, 340_387_840), ("unet", 686, 865_910_724), ("vae", 248, 83_653_863)];

/// The published models.
const PUBLISHED: [(&str, Components); 5] = [
    (
        "sd15",
        &[
            ("safety_checker", 396, 303_981_588),
            ("text_encoder", 196, 123_060_480),
            ("unet", 686, 859_520_964),
            ("vae", 248, 83_653_863),
        ],
    ),
    ("sd21", OF_2),
    ("sd21-base", OF_2),
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

fn described(model: &str) -> Skeleton {
    Skeleton::of_family(Family::of_name(model).unwrap()).unwrap()
}

/// The names in a directory, sorted.
fn list(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The text files of a model's directory, sorted by path.
fn read(directory: &Path) -> Vec<(String, String)> {
    let is_text = |path: &String| path.ends_with(".json") || path.ends_with(".txt");
    let folders = list(directory).into_iter().flat_map(|name| match directory.join(&name).is_dir() {
        true => list(&directory.join(&name)).into_iter().map(|file| format!("{name}/{file}")).collect(),
        false => vec![name],
    });
    let mut paths: Vec<String> = folders.filter(is_text).collect();
    paths.sort();
    let text = |path: String| (path.clone(), fs::read_to_string(directory.join(path)).unwrap());
    paths.into_iter().map(text).collect()
}

#[test]
fn networks_have_the_published_sizes() {
    assert!(PUBLISHED.iter().map(|(model, _)| *model).eq(FAMILIES.iter().map(|family| family.name)));
    let mut failures = Failures::new("published sizes");
    for (model, expected) in PUBLISHED {
        failures.case(model, || {
            let count = |shapes: &Shapes| shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
            let shapes = described(model).shapes;
            let found: Vec<(&str, usize, usize)> =
                shapes.iter().map(|(name, shapes)| (name.as_str(), shapes.len(), count(shapes))).collect();
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    failures.finish();
}

#[test]
fn schedulers_and_tokenizers_can_be_used() {
    let mut failures = Failures::new("schedulers and tokenizers");
    for Family { name: model, .. } in FAMILIES {
        let Skeleton { model: source, files, .. } = described(model);
        failures.case(&format!("{model} scheduler"), || {
            let config =
                source.json("scheduler", "scheduler_config.json").map_err(|error| error.to_string())?;
            let config = SchedulerConfig::from_json(&config).map_err(|error| error.to_string())?;
            config.build(20).map(|_| ()).map_err(|error| error.to_string())
        });
        let parts = source.components().iter().filter(|(_, part)| part.is_some());
        for (name, _) in parts.filter(|(name, _)| name.starts_with("tokenizer")) {
            let [vocab, merges, config, special] =
                ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
                    .map(|file| files[&format!("{name}/{file}")].as_str());
            failures.case(&format!("{model} {name}"), || {
                let files = TokenizerFiles {
                    vocab: Some(vocab),
                    merges: Some(merges),
                    config: Some(config),
                    special_tokens_map: Some(special),
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
    let scratch = Scratch::new();
    let mut failures = Failures::new("tiny models");
    for (tiny, dtype) in [("sd15", DType::F16), ("sd21", DType::F32), ("sdxl", DType::F16)] {
        failures.case(tiny, || {
            let directory = scratch.path().join(tiny);
            let skeleton = Skeleton::new(tiny, read(&fixture_root().join("pipelines").join(tiny)))?;
            let last = Mutex::new((0, 0));
            let record = |done, total, _| *last.lock().unwrap() = (done, total);
            skeleton.write(&directory, 93, dtype, &record)?;
            let last = last.into_inner().unwrap();
            assert!(last.0 == last.1 && last.0 > 0, "{last:?}");
            draw(&directory)
        });
    }
    failures.finish();
}

#[test]
fn the_receiver_of_progress_ends_the_writing() {
    struct Stops;
    impl Progress for Stops {
        fn advance(&self, _: u64, _: u64, _: Unit) -> Result<(), Stopped> {
            Err(Stopped)
        }
    }

    let scratch = Scratch::new();
    let skeleton = Skeleton::new("tiny", read(&fixture_root().join("pipelines/sd15"))).unwrap();
    let error = skeleton.write(scratch.path(), 0, DType::F16, &Stops).unwrap_err();
    assert!(error.to_string().contains("stopped while writing"), "{error}");
    assert!(!scratch.path().join(INDEX).exists());
}

fn draw(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let model = Arc::new(DiffusionModel::from_files(&DiffusersModel::open(directory, None)?)?);
    let mut session = Session::new(model.clone(), Arc::new(Cpu::new(Some(1))?));
    for precision in [Precision::F32, Precision::F16] {
        let request = Request {
            steps: 3,
            size: [32, 24],
            guidance_scale: 15.0,
            precision,
            ..Request::new(&model, Text::new("a")).unwrap()
        };
        let mut noise = random_source("torch")?.seeded(0)?;
        session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?;
    }
    Ok(())
}
