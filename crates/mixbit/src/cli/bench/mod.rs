//! `mixbit bench`.

mod measure;
mod report;
mod synthetic;
mod trace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use mixbit_compress::Width;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Component, GenerateError, Request, Session, Text};
use mixbit_engine::Backend;

use super::backends::Machine;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::phases::Phases;
use super::progress::Progress;
use super::{estimate, interrupt, memory, opening, print_line, values};
use measure::{Measured, Peaks, measure};
use report::Report;
pub(super) use report::device;
pub(super) use synthetic::default_directory as cache_directory;

/// The prompt of all measurements. Prompts of any length take the same time.
const PROMPT: &str = "a high quality photo of an astronaut riding a horse";

/// The noise seed.
const SEED: u64 = 93;

/// The parts of a model by command-line name, in pipeline order.
const PARTS: [(&str, Component); 3] =
    [("text", Component::TextEncoder), ("unet", Component::Unet), ("vae", Component::Decoder)];

/// The names of the measurable parts.
fn part_names() -> PossibleValuesParser {
    PARTS.map(|(name, _)| PossibleValue::new(name)).to_vec().into()
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit bench
  mixbit bench --synthetic sd15 --runs 3 --profile
  mixbit bench --synthetic sdxl-base --nbits 6 --size 768x768 --only unet
  mixbit bench --model DIR --steps 25 --json")]
pub(super) struct Arguments {
    /// A model: a file (.safetensors, .ckpt, .gguf), a directory in the diffusers layout or of Core ML
    /// packages, or a name on the Hugging Face Hub (OWNER/NAME); without it, the demo model in the binary
    #[arg(short, long, value_name = "MODEL", env = "MIXBIT_MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    #[command(flatten)]
    files: ModelFileOptions,
    /// In place of --model, a published model with random weights, which are written once: 2 to 7 GB
    #[arg(long, value_name = "NAME", value_parser = values::published_models(), help_heading = "Model")]
    synthetic: Option<String>,
    /// The directory that random weights are written to and found in again [default: mixbit-bench in the
    /// system's temporary directory]
    #[arg(long, value_name = "DIR", requires = "synthetic", help_heading = "Model")]
    cache: Option<PathBuf>,
    /// Palettes of this many bits for the random weights, as `mixbit palettize` makes them
    #[arg(long, value_name = "N", value_parser = values::width, requires = "synthetic",
          help_heading = "Model")]
    nbits: Option<Width>,
    /// What the model is computed in
    #[arg(long, value_parser = values::precisions(), default_value = values::AUTO, help_heading = "Model")]
    precision: String,
    /// Threads to compute with [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Model")]
    threads: Option<u16>,

    #[command(flatten, next_help_heading = "Measuring")]
    size: values::Size,
    /// How often each part is run and timed, after one run that is timed by itself
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Measuring")]
    runs: u32,
    /// Draw an image in N steps for the end-to-end time [default: computed from the parts, for the model's
    /// own number of steps]
    #[arg(long, value_name = "N", conflicts_with = "only", help_heading = "Measuring")]
    steps: Option<usize>,
    /// Only these parts, such as unet,vae
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = part_names(),
          help_heading = "Measuring")]
    only: Vec<String>,

    /// Also print where the time went, by kind of op
    #[arg(long, help_heading = "Output")]
    profile: bool,
    /// Write the steps of each part's last run as a trace for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    trace: Option<PathBuf>,
    /// Print only results
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Print one JSON object; docs/command-line.md lists its fields
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let model = self.model.iter_mut().filter(|_| self.synthetic.is_none());
        let wish = self.files.wish();
        let model = model.map(|argument| Asked { argument, wish: wish.clone() });
        model.chain(self.files.models()).collect()
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    // Fails before the measurements, not after them.
    if let Some(file) = &arguments.trace {
        trace::check(file)?;
    }
    let given = arguments.model.as_deref();
    if arguments.synthetic.is_some() && given.is_some() && !values::is_of_environment(given) {
        bail!("--synthetic is a model by itself: leave out --model");
    }
    let path = match &arguments.synthetic {
        Some(name) => {
            let cache = synthetic::Cache::new(arguments.cache.as_deref(), &cancel, &progress);
            Some(cache.model(name, arguments.nbits)?)
        }
        None => arguments.model.clone(),
    };
    let begin = Instant::now();
    let (model, name) = opening::open(path.as_deref(), &arguments.files.open(), &progress)?;
    let load_time = begin.elapsed();
    let model = Arc::new(model);
    let machine = Machine::new(arguments.threads.map(usize::from))?;
    let request = request(arguments, &model, &*machine.backend)?;
    let mut session = Session::new(model.clone(), machine.backend.clone());
    let mut noise = random_source("torch")?.seeded(SEED)?;
    let runs = arguments.runs as usize;
    let stages = session.stages(&request, &arguments.components(), runs + 1, &mut *noise)?;
    let mut peaks = Peaks::default();
    let estimated = !arguments.quiet && !arguments.json;
    let work: f64 = stages.iter().map(|stage| (runs + 1) as f64 * estimate::of_stage(stage)).sum();
    let seconds = estimated.then(|| estimate::computing(&machine, request.precision, work)).flatten();
    if let Some(seconds) = seconds {
        progress.say(format_args!("measuring takes {} on this machine", estimate::or_more(seconds)));
    }
    let measured = stages.into_iter().map(|stage| {
        peaks.measure(&machine, stage.precision);
        measure(&mut session, stage, runs, &cancel, &progress)
    });
    let parts = measured.collect::<Result<Vec<Measured>, GenerateError>>().map_err(explained)?;
    if let Some(file) = &arguments.trace {
        trace::write(file, &parts)?;
    }
    let drawn = match arguments.steps {
        Some(_) => {
            Some(draw(Session::new(model, machine.backend.clone()), &request, &cancel, load_time, &progress)?)
        }
        None => None,
    };
    let evaluations = request.scheduler.build(request.steps)?.timesteps().len();
    let report = Report {
        name: match arguments.synthetic {
            Some(_) => format!("{name}, random weights"),
            None => name,
        },
        request: &request,
        threads: machine.threads,
        load: load_time,
        evaluations,
        parts: &parts,
        peaks: &peaks,
        drawn,
        memory: memory::peak(),
    };
    match arguments.json {
        true => print_line(format_args!("{:#}", report.json())),
        false => print_line(report.tables(arguments.profile)),
    }
}

fn request(arguments: &Arguments, model: &DiffusionModel, backend: &dyn Backend) -> anyhow::Result<Request> {
    let request = Request::new(model, Text::new(PROMPT))?;
    Ok(Request {
        size: arguments.size.or(request.size),
        steps: arguments.steps.unwrap_or(request.steps),
        precision: values::precision(&arguments.precision, backend),
        ..request
    })
}

/// The time for one image, from opening the model to its pixels.
fn draw(
    mut session: Session,
    request: &Request,
    cancel: &Cancel,
    load: Duration,
    progress: &Progress,
) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut noise = random_source("torch")?.seeded(SEED)?;
    let mut run = {
        let mut phases = Phases::new(progress, "loading the model");
        session.begin(request, &mut *noise, cancel, &mut |event| phases.on(event)).map_err(explained)?
    };
    let counter = progress.evaluations("drawing", request.steps, run.total());
    while session.step(&mut run, &mut *noise, &mut |_| {}).map_err(explained)? {
        counter.steps(run.done(), run.total());
    }
    drop(counter);
    session.unload_unet(&run);
    let mut phases = Phases::new(progress, "decoding the image");
    session.decode(&run, run.latents(), &mut |event| phases.on(event)).map_err(explained)?;
    Ok(load + begin.elapsed())
}

/// The error of an interrupted measurement.
fn explained(error: GenerateError) -> anyhow::Error {
    match error {
        GenerateError::Cancelled => anyhow!("stopped; nothing is reported"),
        error => error.into(),
    }
}

impl Arguments {
    /// The parts to measure.
    fn components(&self) -> Vec<Component> {
        let is_asked = |name: &str| self.only.is_empty() || self.only.iter().any(|only| only == name);
        PARTS.iter().filter(|(name, _)| is_asked(name)).map(|(_, component)| *component).collect()
    }
}
