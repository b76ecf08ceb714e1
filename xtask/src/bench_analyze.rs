//! A comparison of the methods of `mixbit analyze`: the cost of measuring, and the PSNR of their recipes on
//! prompts and states that no method saw.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use mixbit_analysis::analyze::{
    Analysis, AnalysisMethod, EFFORTS, Effort, FittedRecipe, Goal, METHODS, Options, Outcome, Phases, Point,
    Setting, Shard, analyze, measure_recipes, schemes_of_recipes,
};
use mixbit_app::source;
use mixbit_engine::{Backend, Cancel};
use mixbit_engine_cpu::Cpu;

use crate::repository;

/// Bits per weight of the recipes.
const BITS: [f64; 10] = [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0];

/// Layers of at most this many weights stay unchanged: the demo model's are small.
const MIN_SIZE: usize = 1000;

/// The largest cost of the default and of the high effort, relative to the exhaustive method.
const MAX_COST: [f64; 2] = [0.05, 0.5];

/// The least gain of the high effort's recipes over the exhaustive method's, in dB.
const MIN_GAIN: f64 = 2.0;

/// The bits for which [`MIN_GAIN`] holds.
const GAINING_BITS: RangeInclusive<f64> = 3.5..=5.0;

/// The largest error of a prediction, in dB.
const MAX_PREDICTION_ERROR: f64 = 1.5;

/// Prompts that all methods measure on; every other one is for their own verification.
const MEASURED: [&str; 16] = [
    "a large red circle at the left and a small blue square at the right on a white background",
    "a small yellow circle at the top on a black background",
    "a green triangle above a yellow star on a gray background",
    "a large blue heart below a small white circle",
    "a small black heart at the top left on a pink background",
    "a red square next to a green circle on a cyan background",
    "a purple circle next to a brown square",
    "a large white diamond on a purple background",
    "a tiny gray diamond at the bottom right and a huge cyan star at the left on a black background",
    "a small green square to the left of a large pink triangle",
    "a white star on a blue background",
    "a black triangle at the top and a yellow heart at the bottom on a white background",
    "a large gray triangle below a small red heart",
    "a huge blue circle at the center on an orange background",
    "a pink circle to the left of a green diamond on a yellow background",
    "a small brown star at the top right and a large cyan square at the left",
];

/// Prompts that no method sees.
const HELD_OUT: [&str; 8] = [
    "a small pink diamond at the right and a small green square at the left on a white background",
    "a large yellow square at the left and a small black diamond at the bottom right on a blue background",
    "a blue triangle above a white heart on a brown background",
    "a tiny red star at the center on a gray background",
    "a large cyan circle below a small purple square on a yellow background",
    "a black circle next to a pink heart",
    "a huge green heart on a white background",
    "a small white triangle at the bottom left and a large red diamond at the top on a black background",
];

/// Evaluations, spread over runs of 25 steps, that no method measures on.
const EVALUATIONS: [usize; 9] = [0, 3, 6, 9, 12, 15, 18, 21, 24];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder of the measurements; an interrupted run goes on from them
    #[arg(long, default_value = "target/bench-analyze")]
    scratch: PathBuf,
}

/// Analyzes the demo model by each method and prints costs, PSNRs and predictions.
///
/// # Errors
/// If a cost or a PSNR misses its bound.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bench = Bench::new(arguments)?;
    let exhaustive = bench.analyze(&METHODS[1], &EFFORTS[1])?;
    let medium = bench.analyze(&METHODS[0], &EFFORTS[1])?;
    let high = bench.analyze(&METHODS[0], &EFFORTS[2])?;
    let mut missed = Vec::new();
    println!("\n| method | evaluations of one image | of the exhaustive method |\n| --- | --- | --- |");
    for (entry, most) in [(&exhaustive, 1.0), (&medium, MAX_COST[0]), (&high, MAX_COST[1])] {
        let part = entry.analysis.evaluations / exhaustive.analysis.evaluations;
        println!("| {} | {:.0} | {:.1} % |", entry.name, entry.analysis.evaluations, 100.0 * part);
        if part > most {
            missed.push(format!("{} costs {:.1} %", entry.name, 100.0 * part));
        }
    }
    println!(
        "\nWith every measurement a whole run, as Apple's script makes it, the exhaustive method takes {:.0}.",
        exhaustive.analysis.whole_evaluations
    );
    println!(
        "\nPSNR in dB on prompts and states that no method saw, and what was predicted and verified on states that were \
         not measured on:\n\n| bits | exhaustive | medium | high | medium: predicted, verified | high: predicted, verified \
         |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (index, bits) in BITS.into_iter().enumerate() {
        let [theirs, ours, best] = [&exhaustive, &medium, &high].map(|entry| entry.held_out[index]);
        let [(expected, verified), (expected_best, verified_best)] = [&medium, &high].map(|entry| {
            let recipe = &entry.analysis.recipes[index];
            (recipe.predicted.unwrap_or(f64::NAN), recipe.mean_psnr())
        });
        println!(
            "| {bits} | {theirs:.2} | {ours:.2} | {best:.2} | {expected:.2}, {verified:.2} | {expected_best:.2}, \
             {verified_best:.2} |"
        );
        if ours < theirs {
            missed.push(format!("at {bits} bits the default is {:.2} dB worse", theirs - ours));
        }
        if GAINING_BITS.contains(&bits) && best < theirs + MIN_GAIN {
            missed.push(format!("at {bits} bits the high effort is only {:.2} dB better", best - theirs));
        }
        for (name, off) in [("default", expected - verified), ("high effort", expected_best - verified_best)]
        {
            if off.is_nan() || off.abs() > MAX_PREDICTION_ERROR {
                missed.push(format!("at {bits} bits the {name}'s prediction is off by {off:.2} dB"));
            }
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => bail!("missed: {}", missed.join("; ")),
    }
}

struct Bench<'a> {
    arguments: &'a Arguments,
    model: Arc<mixbit_diffusion::model::DiffusionModel>,
    backend: Arc<dyn Backend>,
    setting: Setting,
    cancel: Cancel,
}

/// A method's result.
struct Entry {
    name: String,
    analysis: Analysis,
    /// The mean PSNR of each recipe on states that no method saw.
    held_out: Vec<f64>,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a Arguments) -> anyhow::Result<Self> {
        let (model, _) = source::load(Some(&repository().join("crates/app/demo")), None)?;
        let setting = Setting {
            negative_prompt: None,
            size: model.defaults.size,
            steps: model.defaults.steps,
            guidance_scale: model.defaults.guidance_scale,
        };
        Ok(Bench {
            arguments,
            model: Arc::new(model),
            backend: Arc::new(Cpu::new(None)?),
            setting,
            cancel: Cancel::new(),
        })
    }

    fn analyze(&self, method: &'static AnalysisMethod, effort: &'static Effort) -> anyhow::Result<Entry> {
        let name = match method.name {
            "exhaustive" => method.name.to_string(),
            _ => format!("{}, {}", method.name, effort.name),
        };
        eprintln!("{name}");
        let options = Options {
            int8: None,
            method,
            effort,
            schemes: schemes_of_recipes(),
            min_size: MIN_SIZE,
            goals: BITS.map(Goal::Bits).into(),
            earlier: Vec::new(),
            prompts: MEASURED.map(str::to_string).into(),
            seed: 93,
            setting: self.setting.clone(),
            shard: Some(Shard::WHOLE),
            directory: self.arguments.scratch.join(&name),
        };
        let measuring = |done: u64, total, _| {
            if done.is_multiple_of(200) || done == total {
                eprintln!("  measured {done} of {total}");
            }
        };
        let verifying = |done: u64, total: u64, _| {
            if done == total {
                eprintln!("  verified {total}");
            }
        };
        let phases = Phases { measuring: &measuring, verifying: &verifying };
        let outcome = analyze(&self.model, &self.backend, &options, &self.cancel, phases)?;
        let Outcome::Done(analysis) = outcome else { bail!("{name}: measurements are missing") };
        if analysis.recipes.len() != BITS.len() {
            bail!("{name}: a recipe could not be made");
        }
        let point = |index: usize| Point {
            prompt: HELD_OUT[index % HELD_OUT.len()].to_string(),
            seed: 5000 + (index % HELD_OUT.len()) as u64,
            evaluation: EVALUATIONS[2 * index % EVALUATIONS.len()],
        };
        let points: Vec<Point> = (0..2 * HELD_OUT.len()).map(point).collect();
        let recipes: Vec<FittedRecipe<'_>> = analysis
            .recipes
            .iter()
            .map(|recipe| FittedRecipe { layers: &recipe.layers, importance: &analysis.importance })
            .collect();
        let all = measure_recipes(&self.model, &self.backend, &self.setting, &points, &recipes, &self.cancel);
        let held_out = all.context("the held-out states")?;
        let held_out = held_out.iter().map(|one| one.iter().sum::<f64>() / one.len() as f64).collect();
        Ok(Entry { name, analysis: *analysis, held_out })
    }
}
