//! A session's memory budget, measured as the anonymous memory of this process.
#![cfg(target_os = "linux")]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mixbit_app::synthetic::Skeleton;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Image, MemoryBudget, Request, Session, SessionOptions, Text};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::DType;
use mixbit_packages::source::DiffusersModel;
use mixbit_testkit::{Scratch, fixture_root};
use serde_json::{Value, json};

const MB: u64 = 1 << 20;

/// Memory that is not the session's: the allocator's, the threads' stacks, the image.
const OTHER: u64 = 12 * MB;

/// The files of the tiny SD 1.5, with wider layers: 20 million parameters.
fn wide() -> Vec<(String, String)> {
    let root = fixture_root().join("pipelines/sd15");
    let read = |path: &str| (path.to_string(), fs::read_to_string(root.join(path)).unwrap());
    let mut files: Vec<(String, String)> = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ]
    .map(read)
    .into();
    for (path, text) in &mut files {
        let mut config: Value = match path.as_str() {
            "unet/config.json" => serde_json::from_str(text).unwrap(),
            _ => continue,
        };
        config["block_out_channels"] = json!([128, 512]);
        *text = config.to_string();
    }
    files
}

/// Anonymous memory of this process in bytes.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// The result, and the most anonymous memory that was added meanwhile, looked at every millisecond.
fn most_added<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = anonymous();
    let (most, done) = (AtomicU64::new(before), AtomicBool::new(false));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    (result, most.into_inner() - before)
}

/// Draws three sizes in one session within a budget.
fn draw(model: &Arc<DiffusionModel>, budget: u64) -> Result<Vec<Image>, Box<dyn Error>> {
    let options =
        SessionOptions { budget: MemoryBudget::new(budget), planned_images: 20, ..SessionOptions::default() };
    let mut session = Session::with_options(model.clone(), Arc::new(Cpu::new(Some(2))?), options);
    let mut images = Vec::new();
    for size in [[256, 256], [256, 128], [128, 256]] {
        let request = Request { steps: 2, size, ..Request::new(model, Text::new("a red circle")).unwrap() };
        let mut noise = random_source("torch")?.seeded(0)?;
        images.push(session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?);
    }
    Ok(images)
}

#[test]
fn a_budget_bounds_anonymous_memory() -> Result<(), Box<dyn Error>> {
    let scratch = Scratch::new();
    Skeleton::new("wide", wide())?.write(scratch.path(), 5, DType::F16, &())?;
    let model =
        Arc::new(DiffusionModel::from_files(&DiffusersModel::open(Path::new(scratch.path()), None)?)?);
    // Within 96 MB first: what a freed arena leaves in the allocator is not counted as new.
    let (within, most) = most_added(|| draw(&model, 96 * MB));
    let (free, more) = most_added(|| draw(&model, 1 << 40));
    println!("{} MB within a budget of 96 MB, {} MB without", most / MB, more / MB);
    assert!(within? == free?, "the budget changed a picture");
    assert!(most <= 96 * MB + OTHER, "{} MB within a budget of 96 MB", most / MB);
    assert!(more > 108 * MB, "the model takes {} MB alone: the budget was no limit", more / MB);
    Ok(())
}
