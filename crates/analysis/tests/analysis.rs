//! Analyses of tiny models: the same however the work is shared or interrupted, and refused where they make
//! no sense.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mixbit_analysis::analyze::{
    Analysis, AnalysisMethod, AnalyzeError, EFFORTS, Goal, JournalError, METHODS, Options, Outcome, Phases,
    Setting, Shard, analyze, expected, schemes_of_recipes,
};
use mixbit_compress::Scheme;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Component, Request, Session, Text};
use mixbit_engine::{Backend, Cancel};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::{Progress, Stopped, Unit};
use mixbit_packages::recipe::RecipeFile;
use mixbit_packages::source::{DIFFUSERS, OpenOptions, open};
use mixbit_testkit::{Scratch, fixture_root};

/// Layers of more weights than this are analyzed: those of the fixtures are small.
const MIN_SIZE: usize = 2000;

fn model(name: &str) -> Arc<DiffusionModel> {
    let path = fixture_root().join("pipelines").join(name);
    Arc::new(open(Some(&path), &OpenOptions::default(), [&DIFFUSERS]).unwrap().model().unwrap())
}

fn options(
    model: &DiffusionModel,
    method: &'static AnalysisMethod,
    shard: Option<Shard>,
    directory: &Path,
) -> Options {
    Options {
        method,
        effort: &EFFORTS[1],
        schemes: schemes_of_recipes(),
        min_size: MIN_SIZE,
        goals: vec![Goal::Bits(3.0), Goal::Bits(4.5), Goal::Psnr(30.0), Goal::Psnr(500.0)],
        earlier: Vec::new(),
        int8: Some(45.0),
        prompts: ["a red circle", "a blue square", "a dog"].map(str::to_string).into(),
        seed: 7,
        setting: Setting {
            negative_prompt: None,
            size: model.defaults.size,
            steps: 4,
            guidance_scale: model.defaults.guidance_scale,
        },
        shard,
        directory: directory.to_path_buf(),
    }
}

/// Cancels after some measurements.
struct Stops {
    after: usize,
    seen: AtomicUsize,
    cancel: Cancel,
}

impl Stops {
    fn after(after: usize) -> Self {
        Stops { after, seen: AtomicUsize::new(0), cancel: Cancel::new() }
    }

    fn never() -> Self {
        Stops::after(usize::MAX)
    }
}

impl Progress for Stops {
    fn advance(&self, _: u64, _: u64, _: Unit) -> Result<(), Stopped> {
        if self.seen.fetch_add(1, Ordering::Relaxed) >= self.after {
            self.cancel.cancel();
        }
        Ok(())
    }
}

fn run(model: &Arc<DiffusionModel>, options: &Options, stops: Stops) -> Result<Outcome, AnalyzeError> {
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(Some(1)).unwrap());
    analyze(model, &backend, options, &stops.cancel, Phases { measuring: &stops, verifying: &() })
}

fn done(outcome: Outcome) -> Analysis {
    match outcome {
        Outcome::Done(analysis) => *analysis,
        Outcome::Partial { done, total } => panic!("only {done} of {total}"),
    }
}

/// Keeps the number of measurements of a phase.
struct Total(AtomicUsize);

impl Progress for Total {
    fn advance(&self, _: u64, total: u64, _: Unit) -> Result<(), Stopped> {
        self.0.store(total as usize, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn the_cost_is_known_before_an_analysis_begins() {
    let model = model("sd15");
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(Some(1)).unwrap());
    let mut session = Session::new(model.clone(), backend.clone());
    let request = Request::new(&model, Text::new("")).unwrap();
    let mut noise = random_source("torch").unwrap().seeded(1).unwrap();
    let stages = session.stages(&request, &[Component::Unet], 1, &mut *noise).unwrap();
    for method in METHODS {
        let scratch = Scratch::new();
        let options = Options { int8: None, ..options(&model, method, Some(Shard::WHOLE), scratch.path()) };
        let cost = expected(stages[0].graph().unwrap(), &options).unwrap();
        let total = Total(AtomicUsize::new(0));
        let phases = Phases { measuring: &total, verifying: &() };
        let analysis = done(analyze(&model, &backend, &options, &Cancel::new(), phases).unwrap());
        assert_eq!(cost.measurements, total.0.into_inner(), "{}", method.name);
        // Two predictions a step; what is counted afterwards leaves out most of the verification.
        let counted = analysis.evaluations / 2.0;
        assert!(
            (counted..counted + 400.0).contains(&cost.steps),
            "{}: {} {counted}",
            method.name,
            cost.steps
        );
        assert_eq!(cost.layers, analysis.candidates.len() * options.schemes.len());
    }
}

#[test]
fn an_interrupted_analysis_goes_on_to_the_same_end() {
    let model = model("sd15");
    for method in METHODS {
        let (whole, parts) = (Scratch::new(), Scratch::new());
        let options = |directory: &Path| options(&model, method, Some(Shard::WHOLE), directory);
        let expected = done(run(&model, &options(whole.path()), Stops::never()).unwrap());
        let mut interruptions = 0;
        let found = loop {
            let after = if method.name == "exhaustive" { 30 } else { 4 };
            let stops = Stops::after(after);
            match run(&model, &options(parts.path()), stops) {
                Ok(outcome) => break done(outcome),
                Err(error) => {
                    assert!(matches!(error, AnalyzeError::Cancelled), "{}: {error}", method.name);
                    assert!(error.to_string().contains("stopped"), "{}: {error}", method.name);
                }
            }
            interruptions += 1;
        };
        assert!(interruptions > 1, "{}", method.name);
        assert!(found == expected, "{}: the analyses differ", method.name);
    }
}

#[test]
fn a_shared_analysis_is_that_of_one_machine() {
    let model = model("sdxl");
    for method in METHODS {
        let (whole, shared) = (Scratch::new(), Scratch::new());
        let options = |shard, directory: &Path| options(&model, method, shard, directory);
        let expected = done(run(&model, &options(Some(Shard::WHOLE), whole.path()), Stops::never()).unwrap());
        // The exhaustive method's second half needs all of the first one.
        let rounds = if method.name == "exhaustive" { 2 } else { 1 };
        for round in 0..rounds {
            for index in [2, 0, 1] {
                let merged = run(&model, &options(None, shared.path()), Stops::never()).unwrap();
                assert!(round > 0 || matches!(merged, Outcome::Partial { .. }), "{}", method.name);
                let shard = Some(Shard { index, count: 3 });
                run(&model, &options(shard, shared.path()), Stops::never()).unwrap();
            }
        }
        let found = done(run(&model, &options(None, shared.path()), Stops::never()).unwrap());
        assert!(found == expected, "{}: the analyses differ", method.name);
    }
}

#[test]
fn recipes_keep_to_their_goals() {
    let model = model("sd15");
    for method in METHODS {
        let scratch = Scratch::new();
        let options = options(&model, method, Some(Shard::WHOLE), scratch.path());
        let analysis = done(run(&model, &options, Stops::never()).unwrap());
        let [three, more, reached, ..] = &analysis.recipes[..] else { panic!("{}", method.name) };
        // Apple's way does not count tables, which are large beside these layers.
        let slack = if method.name == "exhaustive" { 1.0 } else { 0.0 };
        assert!(three.bits <= 3.0 + slack && more.bits <= 4.5 + slack, "{}", method.name);
        assert!(more.mean_psnr() > three.mean_psnr(), "{}", method.name);
        if method.name == "estimate" {
            // With random weights even one bit is not far from that.
            assert!(reached.mean_psnr() > 28.5, "{}", reached.mean_psnr());
            let predicted = three.predicted.unwrap();
            assert!((predicted - three.mean_psnr()).abs() < 6.0, "{predicted} against {}", three.mean_psnr());
            // Nothing but the original reaches 500 dB.
            assert!(analysis.unreached == [Goal::Psnr(500.0)] || analysis.recipes[3].bits > 15.9);
        }
        let names: Vec<&str> = analysis.baselines.iter().map(|baseline| baseline.name.as_str()).collect();
        assert_eq!(
            names,
            ["original", "palette-1", "palette-2", "palette-4", "palette-6", "palette-8", "linear-8"]
        );
        assert!(analysis.baselines[0].mean_psnr() > 200.0);
        let levels: Vec<f64> = analysis.baselines[1..6].iter().map(|baseline| baseline.mean_psnr()).collect();
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]), "{levels:?}");

        let file = analysis.recipe_file("tiny", &options.setting);
        let read = RecipeFile::parse(&file.to_text()).unwrap();
        assert_eq!(read, file);
        let (_, recipe) = read.select(&three.name).unwrap();
        let chosen: Vec<(&String, Scheme)> =
            recipe.layers.iter().filter_map(|(layer, scheme)| Some((layer, (*scheme)?))).collect();
        assert!(chosen.into_iter().eq(three.layers.iter().map(|(layer, scheme)| (layer, *scheme))));
    }
}

#[test]
fn senseless_options_are_refused() {
    let model = model("sd15");
    let scratch = Scratch::new();
    let good = options(&model, &METHODS[0], Some(Shard::WHOLE), scratch.path());
    let refused = |options: Options| run(&model, &options, Stops::never()).unwrap_err();
    let error = refused(Options { prompts: vec!["one".to_string()], ..good.clone() });
    assert!(matches!(error, AnalyzeError::TooFewPrompts), "{error}");
    assert!(error.to_string().contains("two prompts"), "{error}");
    let error = refused(Options { schemes: Vec::new(), ..good.clone() });
    assert!(matches!(error, AnalyzeError::NoSchemes), "{error}");
    assert!(error.to_string().contains("no width"), "{error}");
    let error = refused(Options { min_size: 1 << 40, ..good.clone() });
    assert!(matches!(error, AnalyzeError::NoLayers { .. }), "{error}");
    assert!(error.to_string().contains("--min-size"), "{error}");
    run(&model, &good, Stops::never()).unwrap();
    let error = refused(Options { seed: 8, ..good.clone() });
    assert!(matches!(error, AnalyzeError::Journal(JournalError::OtherAnalysis { .. })), "{error}");
    assert!(error.to_string().contains("with other options (--seed was 7, and is 8)"), "{error}");
}
