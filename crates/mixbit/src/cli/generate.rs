//! `mixbit generate`.

use std::collections::BTreeSet;
use std::io::{Write, stderr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::{NoiseSource, random_source};
use mixbit_diffusion::scheduler::{SchedulerError, SigmaSchedule, TimestepSpacing};
use mixbit_diffusion::session::{
    DroppedWords, GenerateError, Request, Role, Run, Session, SessionOptions, Start, Text,
};
use mixbit_engine::Backend;
use serde_json::json;

use super::backends::Machine;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::output::{Images, Output, preview};
use super::phases::Phases;
use super::progress::{Counter, Progress};
use super::table::counted;
use super::{advice, input, interrupt, lora, memory, opening, print_line, profile, values};
use mixbit_app::demo;
use mixbit_app::picture;
use mixbit_app::request::{DrawRequest, Origin, parameters};
use mixbit_app::source::LoadedModel;
use mixbit_packages::OpenError;
use mixbit_packages::source::{AddedEmbedding, Opening};

/// The maximum number of characters shown of dropped words.
const LONGEST_DROPPED: usize = 400;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit generate \"a small red circle above a large blue square\"
  mixbit generate \"a lighthouse\" --model sdxl --size 1024x1024 --seed 7
  mixbit generate \"a lighthouse\" --model sd21 --scheduler dpmpp-2m-karras")]
pub(super) struct Arguments {
    /// The prompt; - reads it from standard input
    #[arg(required_unless_present = "prompts_file", conflicts_with = "prompts_file")]
    prompt: Option<String>,
    /// Draw each line of this file; - reads the lines from standard input
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// What not to draw
    #[arg(short, long, value_name = "PROMPT")]
    negative_prompt: Option<String>,
    /// The prompt for the second text encoder of XL models, if it is another
    #[arg(long, value_name = "PROMPT")]
    prompt_2: Option<String>,
    /// The negative prompt for the second text encoder of XL models, if it is another
    #[arg(long, value_name = "PROMPT")]
    negative_prompt_2: Option<String>,

    /// A model: a file (.safetensors, .ckpt, .gguf), a directory in the diffusers layout or of Core ML
    /// packages, or a name on the Hugging Face Hub (OWNER/NAME); without it, the small demo model in the
    /// binary draws coloured shapes
    #[arg(short, long, value_name = "MODEL", env = "MIXBIT_MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    #[command(flatten)]
    files: ModelFileOptions,
    /// What the model is computed in
    #[arg(long, value_parser = values::precisions(), default_value = values::AUTO, help_heading = "Model")]
    precision: String,
    /// Load each of the model's networks when it is needed and unload it when another is
    #[arg(long, help_heading = "Model")]
    reduce_memory: bool,
    /// Decode the image in tiles, which takes less memory [default: for images that take much, above about
    /// 768x768]
    #[arg(long, conflicts_with = "no_tiled_decode", help_heading = "Model")]
    tiled_decode: bool,
    /// Decode the image whole, however large it is
    #[arg(long, help_heading = "Model")]
    no_tiled_decode: bool,
    /// Threads to compute with [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Model")]
    threads: Option<u16>,

    /// Inference steps [default: the model's, mostly 25]
    #[arg(short, long, value_name = "N", help_heading = "Drawing")]
    steps: Option<usize>,
    /// How strongly the prompt counts; from 1 down, the negative prompt is not used
    /// [default: the model's, mostly 7.5]
    #[arg(short, long, value_name = "X", allow_negative_numbers = true, help_heading = "Drawing")]
    guidance_scale: Option<f32>,
    /// Keep strong guidance from overexposing, 0 to 1; for v-prediction models, 0.7 is usual
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Drawing")]
    guidance_rescale: f32,
    #[command(flatten, next_help_heading = "Drawing")]
    size: values::Size,
    /// The scheduler; -karras, -exponential, -beta or -lu may follow the name [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = values::SchedulerName, hide_possible_values = true,
        long_help = values::scheduler_help(), help_heading = "Drawing")]
    scheduler: Option<String>,
    /// How the scheduler spaces its timesteps [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = values::spacings(), help_heading = "Drawing")]
    timestep_spacing: Option<String>,
    /// The seed of the first image; the next images take the next seeds [default: random]
    #[arg(long, value_name = "N", help_heading = "Drawing")]
    seed: Option<u64>,
    /// The generator of noise, for the same image as another tool from the same seed
    #[arg(long, value_name = "NAME", value_parser = values::random_sources(), default_value = "torch",
          help_heading = "Drawing")]
    rng: String,
    /// How many images to draw
    #[arg(
        short = 'i',
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Drawing"
    )]
    images: u32,

    /// A file that ends in .png, a directory for files named after the prompt, or - for standard output
    #[arg(short, long, value_name = "PATH", default_value = ".", help_heading = "Output")]
    output: PathBuf,
    /// Also write what the image looks like after every N steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Output")]
    preview_every: Option<u32>,
    /// Print only the files' names
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Also print where the time went, by kind of op
    #[arg(long, help_heading = "Output")]
    profile: bool,
    /// Print one JSON object with files, seeds, timings and memory; docs/command-line.md lists its fields
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let wish = self.files.wish();
        let model = self.model.iter_mut().map(|argument| Asked { argument, wish: wish.clone() });
        model.chain(self.files.models()).collect()
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

/// A written image.
struct Drawn {
    path: PathBuf,
    seed: u64,
}

/// The durations of a run.
#[derive(Default)]
struct Times {
    load: Duration,
    steps: Duration,
    evaluations: usize,
    decode: Duration,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let begin = Instant::now();
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    let mut options = arguments.files.open()?;
    let typed = arguments.prompts()?;
    let (prompts, loras) = lora::taken_from(&typed, arguments.files.lora_dir())?;
    options.loras.extend(loras);
    options.embeddings.prompts = Some(arguments.texts(&prompts));
    let LoadedModel { model, name: model_name, opening: Opening { loras, embeddings, .. }, .. } =
        opening::loaded(arguments.model.as_deref(), &options, &progress)?;
    let model = Arc::new(model);
    let backend = Machine::new(arguments.threads.map(usize::from))?.backend;
    let request_of = |prompt: &str| arguments.request(prompt, &*backend).request(&model, Start::Noise);
    let requests = prompts.iter().map(|prompt| request_of(prompt)).collect::<Result<Vec<_>, _>>()?;
    for note in requests.first().into_iter().flat_map(|request| request.scheduler.notes()) {
        progress.say(format_args!("note: {note}"));
    }
    if let Some(refusal) = requests.iter().find_map(|request| advice::refused(&model, &request.text)) {
        bail!(refusal);
    }
    let hashes = requests.iter().map(|request| used(&model, &embeddings, &request.text));
    let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
    let source = random_source(&arguments.rng)?;
    let seeds = seeds(arguments, source.max_seed)?;
    let (first_seed, last_seed) = (*seeds.start(), *seeds.end());
    let output = Output::new(&arguments.output, &Images { prompts: &prompts, first_seed, last_seed })?;
    let count = prompts.len() * arguments.images as usize;
    let options = SessionOptions {
        reduce_memory: arguments.reduce_memory,
        planned_images: count,
        ..SessionOptions::default()
    };
    let own = model.scheduler.clone();
    let mut session = Session::with_options(model, backend, options);
    let mut times = Times::default();
    let mut dropped = Vec::new();
    let mut drawn = Vec::new();
    let images = (0..prompts.len()).flat_map(|prompt| seeds.clone().map(move |seed| (prompt, seed)));
    for (index, (prompt, seed)) in images.enumerate() {
        let request = &requests[prompt];
        let place = output.place(prompt, &prompts[prompt], seed)?;
        let origin = Origin {
            model: &model_name,
            source,
            seed,
            start: None,
            embeddings: &hashes[prompt],
            own: &own,
            prediction_type: arguments.files.prediction_type(),
        };
        let mut parameters = parameters(request, &origin)?;
        parameters.prompt.clone_from(&typed[prompt]);
        mixbit_app::loras::record(&loras, &mut parameters)?;
        let parameters = parameters.to_string();
        let name = match count {
            1 => "drawing".to_string(),
            count => format!("image {} of {count}", index + 1),
        };
        let previews = Previews {
            every: arguments.preview_every.filter(|_| place.path().is_some()),
            path: place.path().unwrap_or(Path::new("")),
            parameters: &parameters,
        };
        let mut noise = source.seeded(seed)?;
        let mut run = {
            let mut phases = Phases::new(&progress, "loading the model");
            session.begin(request, &mut *noise, &cancel, &mut |event| phases.on(event))?
        };
        if index == 0 {
            times.load = begin.elapsed();
        }
        if seed == first_seed {
            let warnings = advice::all(session.model(Role::Base)?, request, model_name == demo::NAME);
            let dropped_words = dropped_words(run.dropped());
            warnings.into_iter().chain(dropped_words).for_each(|warning| progress.say(warning));
            dropped.extend(run.dropped().to_vec());
        }
        let counter = progress.evaluations(name, request.steps, run.total());
        denoise(&mut session, &mut run, &mut *noise, &counter, &previews, &mut times)?;
        drop(counter);
        if index + 1 == count {
            session.unload_unet(&run);
        }
        let image = {
            let mut phases = Phases::new(&progress, "decoding the image");
            let begin = Instant::now();
            let image = session.decode(&run, run.latents(), &mut |event| phases.on(event));
            times.decode += begin.elapsed();
            image.map_err(|error| explained(error, &run))?
        };
        let path = place.write(&image, &parameters)?;
        if let Some(path) = path.as_ref().filter(|_| !arguments.json) {
            print_line(path.display())?;
        }
        drawn.extend(path.map(|path| Drawn { path, seed }));
    }
    let total = begin.elapsed();
    if arguments.profile {
        for (network, timings) in session.profile(Role::Base) {
            let _ = write!(stderr(), "{}", profile::timings(&network, &timings));
        }
    }
    if !arguments.json {
        progress.say(summary(&requests[0], &times, [first_seed, last_seed], count, total)?);
        return Ok(());
    }
    let summary = summary_json(&dropped, &requests[0], &model_name, &drawn, &times, total);
    print_line(format_args!("{summary:#}"))
}

impl Arguments {
    /// What to draw: the prompt, or the lines of a file that are not empty.
    fn prompts(&self) -> anyhow::Result<Vec<String>> {
        if self.output == Path::new("-") && (self.json || self.preview_every.is_some()) {
            bail!("standard output takes the image alone: leave out --json and --preview-every");
        }
        match (&self.prompt, &self.prompts_file) {
            (Some(prompt), _) if prompt == "-" => {
                let text = input::text(Path::new("-"))?;
                if text.trim().is_empty() {
                    bail!(
                        "standard input has no prompt: write it there, or on the command line (an empty one is \"\")"
                    );
                }
                Ok(vec![text.trim_end_matches(['\r', '\n']).to_string()])
            }
            (Some(prompt), _) => Ok(vec![prompt.clone()]),
            (None, path) => input::lines(path.as_deref().unwrap_or(Path::new("-"))),
        }
    }

    /// All prompts that the text encoders will read.
    fn texts(&self, prompts: &[String]) -> Vec<String> {
        let others = [&self.prompt_2, &self.negative_prompt, &self.negative_prompt_2];
        prompts.iter().chain(others.into_iter().flatten()).cloned().collect()
    }

    /// The request with names resolved; absent options take the model's defaults.
    fn request(&self, prompt: &str, backend: &dyn Backend) -> DrawRequest {
        let [width, height] = self.size.given();
        DrawRequest {
            prompt: prompt.to_string(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt: self.negative_prompt.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            width,
            height,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            scheduler: self.scheduler.clone(),
            timestep_spacing: self.timestep_spacing.clone(),
            precision: Some(values::precision(&self.precision, backend).name().to_string()),
            tiled_decode: (self.tiled_decode || self.no_tiled_decode).then_some(self.tiled_decode),
            ..DrawRequest::default()
        }
    }
}

/// The words of textual inversion in a request's prompts, each with the SHA-256 of its file.
fn used(
    model: &DiffusionModel,
    embeddings: &[AddedEmbedding],
    text: &Text,
) -> Result<Vec<(String, [u8; 32])>, OpenError> {
    let others = [&text.prompt_2, &text.negative_prompt, &text.negative_prompt_2];
    let prompts: Vec<&String> = [&text.prompt].into_iter().chain(others.into_iter().flatten()).collect();
    let mut words = BTreeSet::new();
    for tokenizer in model.text_encoders.iter().map(|encoder| &encoder.tokenizer) {
        let found = prompts.iter().flat_map(|prompt| tokenizer.find_words(prompt));
        words.extend(found.filter_map(|(_, word)| tokenizer.words()[word].names.first()));
    }
    let used = embeddings.iter().filter(|embedding| words.contains(&embedding.name));
    used.map(|embedding| Ok((embedding.name.clone(), embedding.sha256()?))).collect()
}

/// One seed per image.
fn seeds(arguments: &Arguments, largest: u64) -> anyhow::Result<RangeInclusive<u64>> {
    let first = arguments.seed.unwrap_or_else(values::random_seed);
    let images = u64::from(arguments.images);
    let last = first.checked_add(images - 1).filter(|&last| last <= largest).with_context(|| {
        format!(
            "{} from seed {first} would go beyond {largest}, the last seed of --rng {}: give a smaller --seed",
            counted(images, "image"),
            arguments.rng
        )
    })?;
    Ok(first..=last)
}

/// The previews of one image.
struct Previews<'a> {
    every: Option<u32>,
    path: &'a Path,
    parameters: &'a str,
}

/// Evaluates the UNet for one image.
fn denoise(
    session: &mut Session,
    run: &mut Run,
    noise: &mut dyn NoiseSource,
    counter: &Counter,
    previews: &Previews,
    times: &mut Times,
) -> anyhow::Result<()> {
    loop {
        let begin = Instant::now();
        if !session.step(run, noise, &mut |_| {}).map_err(|error| explained(error, run))? {
            return Ok(());
        }
        times.steps += begin.elapsed();
        times.evaluations += 1;
        counter.steps(run.done(), run.total());
        if previews.is_due(run.done(), run.total()) {
            let path = preview(previews.path, run.done());
            let image =
                session.decode(run, run.predicted(), &mut |_| {}).map_err(|error| explained(error, run))?;
            picture::write(&path, &image, previews.parameters)?;
            counter.say(path.display());
        }
    }
}

/// The error of a run, with its progress if it was cancelled.
fn explained(error: GenerateError, run: &Run) -> anyhow::Error {
    match error {
        GenerateError::Cancelled => {
            anyhow!("stopped after {} of {} steps; the image was not written", run.done(), run.total())
        }
        error => error.into(),
    }
}

impl Previews<'_> {
    fn is_due(&self, done: usize, total: usize) -> bool {
        self.every.is_some_and(|every| done.is_multiple_of(every as usize) && done < total)
    }
}

/// The words truncated by the text encoders, without repetition: XL's two encoders mostly drop the same
/// words.
fn dropped_words(dropped: &[DroppedWords]) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for DroppedWords { negative, words, .. } in dropped {
        let which = if *negative { "negative prompt" } else { "prompt" };
        let words = shortened(words);
        let message = format!("warning: the {which} is too long; the model does not see: {words}");
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    messages
}

/// The first dropped words, on one line; `--json` lists all of them.
fn shortened(words: &str) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST_DROPPED) {
        Some((end, _)) => {
            let (shown, others) = words.split_at(end);
            format!("{shown}… and {} characters more", others.chars().count())
        }
        None => words,
    }
}

/// The last line: size, seeds and scheduler, then the times.
fn summary(
    request: &Request,
    times: &Times,
    [first, last]: [u64; 2],
    images: usize,
    total: Duration,
) -> Result<String, SchedulerError> {
    let [width, height] = request.size;
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    let seeds = match first == last {
        true => format!("seed {first}"),
        false => format!("seeds {first} to {last}"),
    };
    let noun = if times.evaluations == request.steps * images { "step" } else { "evaluation" };
    Ok(format!(
        "{} of {width}x{height}, {seeds}, {}, {}\nin {}: load {}, {} of {}, decode {}{}",
        counted(images as u64, "image"),
        values::scheduler_name(&request.scheduler)?,
        counted(request.steps as u64, "step"),
        seconds(total),
        seconds(times.load),
        counted(times.evaluations as u64, noun),
        seconds(times.per_step()),
        seconds(times.decode),
        memory::in_summary()
    ))
}

fn summary_json(
    dropped: &[DroppedWords],
    request: &Request,
    model: &str,
    drawn: &[Drawn],
    times: &Times,
    total: Duration,
) -> serde_json::Value {
    let images: Vec<_> =
        drawn.iter().map(|drawn| json!({"path": drawn.path.to_string_lossy(), "seed": drawn.seed})).collect();
    let dropped: Vec<_> = dropped
        .iter()
        .map(|dropped| {
            let DroppedWords { component, negative, words } = dropped;
            json!({"text_encoder": component, "negative": negative, "words": words})
        })
        .collect();
    json!({
        "images": images,
        "model": model,
        "width": request.size[0],
        "height": request.size[1],
        "steps": request.steps,
        "scheduler": request.scheduler.entry().name,
        "sigmas": request.scheduler.sigmas().ok().map(SigmaSchedule::name),
        "timestep_spacing": request.scheduler.spacing().ok().flatten().map(TimestepSpacing::name),
        "prediction_type": request.scheduler.chosen_prediction_type(),
        "guidance_scale": request.guidance_scale,
        "dropped_words": dropped,
        "evaluations": times.evaluations,
        "load_seconds": times.load.as_secs_f64(),
        "seconds_per_step": times.per_step().as_secs_f64(),
        "decode_seconds": times.decode.as_secs_f64(),
        "total_seconds": total.as_secs_f64(),
        "peak_memory_bytes": memory::peak(),
    })
}

impl Times {
    fn per_step(&self) -> Duration {
        self.steps / u32::try_from(self.evaluations.max(1)).unwrap_or(u32::MAX)
    }
}
