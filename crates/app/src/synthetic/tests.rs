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

/// Zeros of the shapes of a file's tensors, which take no memory until they are read.
struct Zeros(BTreeMap<String, Vec<usize>>, Bytes);

impl mixbit_mil::Weights for Zeros {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<mixbit_mil::WeightRef> {
        let ty = TensorType::new(DType::F16, self.0.get(name)?.clone());
        let bytes = self.1.slice(0..ty.byte_len()?)?;
        mixbit_mil::WeightRef::new(name, ty, bytes).ok()
    }
}

#[test]
fn a_single_file_of_a_published_model_needs_nothing_else() {
    use mixbit_diffusion::model::ModelFiles;
    use mixbit_diffusion::original::{Base, Original, OriginalFiles};
    for family in mixbit_diffusion::family::FAMILIES {
        let skeleton = Skeleton::of_family(family).unwrap();
        let stored = skeleton.stored().unwrap();
        let shapes: BTreeMap<String, Vec<usize>> =
            stored.iter().map(|it| (it.name.clone(), it.shape.clone())).collect();
        assert_eq!(shapes.len(), stored.len(), "{}: two tensors of one name", family.name);
        let largest = shapes.values().map(|shape| 2 * shape.iter().product::<usize>()).max().unwrap();
        let file = Zeros(shapes, Bytes::new(vec![0u8; largest]));
        let original = Original::find(std::sync::Arc::new(file), &skeleton.metadata(), false).unwrap();
        assert_eq!(original.family().name, family.name);
        assert!(original.missing().is_empty(), "{}: {:?}", family.name, original.missing());
        let files = OriginalFiles::new(original, Base::default()).unwrap();
        let mut parts = 0;
        for (component, needed) in &skeleton.shapes {
            if component == "safety_checker" {
                continue;
            }
            let weights = files.weights(component).unwrap_or_else(|error| panic!("{component}: {error}"));
            for (name, shape) in needed {
                let own = weights.get(name).unwrap_or_else(|| panic!("{component} lacks {name}"));
                assert_eq!(&own.ty().shape, shape, "{component}: {name}");
            }
            parts += needed.len();
        }
        // The layer that Stable Diffusion 2 does not use repeats one that it does.
        let unused =
            stored.iter().filter(|it| it.name.contains("resblocks.23.") && family.name.starts_with("sd2"));
        let unused: usize = unused.map(|it| it.parts.len()).sum();
        let all: usize = stored.iter().map(|it| it.parts.len()).sum();
        assert_eq!(all - unused, parts, "{}", family.name);
    }
}
