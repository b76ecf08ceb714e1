//! `mixbit compare`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use mixbit_compress::{Layer, Plan, Scheme, layers, uniform};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::scheduler::SchedulerError;
use mixbit_diffusion::session::{Cancel, Component, PipelineStage, Precision, Request, Role, Session, Text};
use mixbit_formats::{remove_leftovers, write_atomically, write_where_asked};
use mixbit_mil::{Constant, Def, Function, WeightRef, constexpr};
use serde_json::json;

use super::backends::Machine;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::output::{check_format, directory_of, is_png};
use super::progress::{Progress, Wait};
use super::table::{Side, Table, counted, shortened};
use super::{estimate, interrupt, opening, palettize, print_line, values};
use mixbit_analysis::report::{Cell, Grid, OneOf, Picture, Planner, Recoded, draw, latent_psnr, pixel_psnr};
use mixbit_app::parameters::Parameters;
use mixbit_app::source::{self, LoadedModel};
use mixbit_packages::palettize::{MIN_SIZE, by_recipe};
use mixbit_packages::recipe::RecipeFile;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit compare --models sdxl,sdxl-4.5-bit \"a lighthouse\" \"a bicycle\"
  mixbit compare --models sdxl --recipes analysis/sdxl_palettization_recipe.json --select 3.00,4.50 \"a lighthouse\"
  mixbit compare --schemes palette-8,palette-4,palette-2 \"a small red circle above a large blue square\"")]
pub(super) struct Arguments {
    /// What to draw: a row for each
    #[arg(required = true, value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Models, a column for each: files, directories in the diffusers layout or of Core ML packages, or names
    /// on the Hugging Face Hub [default: the demo model]
    #[arg(short, long, value_name = "MODEL", value_delimiter = ',', help_heading = "Columns")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    files: ModelFileOptions,
    /// A recipe file, Apple's or one of `mixbit analyze`: also draw each model with recipes
    #[arg(long, value_name = "FILE", help_heading = "Columns")]
    recipes: Option<PathBuf>,
    /// Which recipes of the file: names, or parts that no other has, such as 4.50 [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "recipes", help_heading = "Columns")]
    select: Vec<String>,
    /// Also draw each model with all layers of the UNet in these forms
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = values::schemes(),
          hide_possible_values = true, help_heading = "Columns")]
    schemes: Vec<String>,

    /// What not to draw
    #[arg(short, long, value_name = "PROMPT", help_heading = "Drawing")]
    negative_prompt: Option<String>,
    /// The seed of the noise, the same for all
    #[arg(long, value_name = "N", default_value_t = 93, help_heading = "Drawing")]
    seed: u64,
    /// Inference steps [default: each model's]
    #[arg(short, long, value_name = "N", help_heading = "Drawing")]
    steps: Option<usize>,
    /// Guidance scale [default: each model's]
    #[arg(short, long, value_name = "X", allow_negative_numbers = true, help_heading = "Drawing")]
    guidance_scale: Option<f32>,
    #[command(flatten, next_help_heading = "Drawing")]
    size: values::Size,
    /// Threads to compute with [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Drawing")]
    threads: Option<u16>,

    /// The image file, PNG [default: grid.png]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Print only the file's name
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Print one JSON object with the file, its columns, and the PSNR of each image; docs/command-line.md
    /// lists its fields
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// A model in one form, before it draws.
struct Candidate {
    name: String,
    model: Arc<DiffusionModel>,
    /// The UNet's weights in packages.
    bytes: u64,
    /// Multiply-adds of one image.
    work: f64,
    /// Seconds to store its layers in fewer bits, roughly.
    encoding: f64,
}

/// A model and its images by prompt.
struct Column {
    name: String,
    bytes: u64,
    pictures: Vec<Picture>,
}

/// A name and its layer plan; without a plan, layers stay unchanged.
type Form = (Option<String>, Option<Box<Planner>>);

/// The networks that draw an image.
const DRAWING: [Component; 3] = [Component::TextEncoder, Component::Unet, Component::Decoder];

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let wish = self.files.wish();
        let models = self.models.iter_mut().map(|argument| Asked { argument, wish: wish.clone() });
        models.chain(self.recipes.iter_mut().map(Asked::plain)).chain(self.files.models()).collect()
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    arguments.check_output()?;
    if let Some(model) = arguments.prompts.iter().find(|prompt| Path::new(prompt.as_str()).is_dir()) {
        bail!(
            "`{model}` is a directory, and stands where a prompt does: models go into --models, divided by commas"
        );
    }
    let machine = Machine::new(arguments.threads.map(usize::from))?;
    let (candidates, size) = {
        let _reading = progress.wait("reading the models");
        arguments.candidates(&machine, &progress)?
    };
    let images = candidates.len() * arguments.prompts.len();
    let work =
        candidates.iter().map(|candidate| candidate.work).sum::<f64>() * arguments.prompts.len() as f64;
    let encoding: f64 = candidates.iter().map(|candidate| candidate.encoding).sum();
    let computing = || estimate::computing(&machine, Precision::F32, work);
    if let Some(computing) = (!arguments.quiet).then(computing).flatten() {
        let about = estimate::or_more(computing + encoding);
        let takes = if images == 1 { "takes" } else { "take" };
        progress.say(format_args!("{} {takes} {about} on this machine", counted(images as u64, "image")));
    }
    let mut columns: Vec<Column> = Vec::new();
    let mut session: Option<Session> = None;
    let count = candidates.len();
    for (index, Candidate { name, model, bytes, .. }) in candidates.into_iter().enumerate() {
        let session = session.get_or_insert_with(|| Session::new(model.clone(), machine.backend.clone()));
        let phase = palettize::place_of("model", index, count, &name);
        let drawn = arguments.drawn(session, model, &phase, size, &cancel, &progress);
        columns.push(Column { pictures: drawn.with_context(|| name.clone())?, name, bytes });
    }
    arguments.write_grid(&columns, size)?;
    if arguments.json {
        return print_line(format_args!("{:#}", summary(arguments, &columns)));
    }
    if !arguments.quiet {
        print_line(table(&arguments.prompts, &columns))?;
    }
    print_line(arguments.path().display())?;
    let images = counted(images as u64, "image");
    progress.say(format_args!("{images} of {}x{}, seed {}", size[0], size[1], arguments.seed));
    Ok(())
}

/// The names of models; the paths, where two have one name.
fn names(opened: &[LoadedModel], paths: &[Option<&Path>]) -> Vec<String> {
    let is_taken = |name: &str| opened.iter().filter(|other| other.name == name).count() > 1;
    let one = |(LoadedModel { name, .. }, path): (&LoadedModel, &Option<&Path>)| match path {
        Some(path) if is_taken(name) => path.display().to_string(),
        _ => name.clone(),
    };
    opened.iter().zip(paths).map(one).collect()
}

/// Seconds to store layers as planned, roughly.
fn encoding(graph: &Function, plan: &Plan) -> f64 {
    let planned: Vec<Layer> =
        layers(graph).into_iter().filter(|layer| plan.contains_key(&layer.name)).collect();
    let weights = planned.iter().map(|layer| layer.count() as u64).sum();
    let scheme = plan.values().next().map(|plan| plan.scheme);
    scheme.and_then(|scheme| estimate::encoding(scheme, planned.len(), weights)).unwrap_or_default()
}

/// The bytes of a UNet's weights in packages, with layers stored by a plan.
fn stored(graph: &Function, plan: &Plan) -> u64 {
    let layers = layers(graph);
    let planned = |layer: &&Layer| plan.contains_key(&layer.name);
    let of_weight = |weight: &WeightRef| match weight.encoding() {
        Some(_) => weight.stored_len() as u64,
        None => 2 * weight.ty().count() as u64,
    };
    let all: u64 = graph
        .values()
        .iter()
        .filter_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) => Some(of_weight(weight)),
            _ => None,
        })
        .sum();
    let before: u64 = layers.iter().filter(planned).map(|layer| of_weight(&layer.weight)).sum();
    let after = layers.iter().filter_map(|layer| Some(plan.get(&layer.name)?.scheme.stored_len(layer.ty())));
    all - before + after.sum::<usize>() as u64
}

impl Arguments {
    /// The file of the grid.
    fn path(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("grid.png"))
    }

    /// Refuses an output that is no image file of PNG, or in no directory that can be written to.
    fn check_output(&self) -> anyhow::Result<()> {
        let path = self.path();
        check_format(path)?;
        if path.exists() && !path.is_dir() && !is_png(path) {
            bail!("{} is a file, and no PNG: give a name that ends in .png", path.display());
        }
        if path.is_dir() {
            bail!("{} is a directory: name a file for the grid", path.display());
        }
        let directory = directory_of(path);
        if !directory.is_dir() {
            bail!("{} is no directory to write the grid to", directory.display());
        }
        remove_leftovers(&directory);
        Ok(())
    }

    /// Every model in every form, checked, and the size of the images. Nothing is drawn.
    fn candidates(
        &self,
        machine: &Machine,
        progress: &Progress,
    ) -> anyhow::Result<(Vec<Candidate>, [usize; 2])> {
        let paths: Vec<Option<&Path>> = match self.models[..] {
            [] => vec![None],
            ref paths => paths.iter().map(|path| Some(path.as_path())).collect(),
        };
        let options = self.files.open()?;
        let open = |path: &Option<&Path>| source::load(*path, &options);
        let opened = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let names = names(&opened, &paths);
        let size = self.size.or(opened.first().map_or([512, 512], |opened| opened.model.defaults.size));
        let mut candidates = Vec::new();
        for (loaded, name) in opened.into_iter().zip(names) {
            let LoadedModel { model, opening, assumptions, .. } = loaded;
            opening::say(&name, &opening, progress);
            assumptions
                .iter()
                .for_each(|assumption| progress.say(format_args!("warning: {name}: {assumption}")));
            let model = Arc::new(model);
            let (graph, work) = self.checked(&model, size, machine).with_context(|| name.clone())?;
            let recoded = Recoded::new(model);
            for (form, choose) in self.forms()? {
                let full = match (&form, paths.len()) {
                    (None, _) => name.clone(),
                    (Some(form), 1) => form.clone(),
                    (Some(form), _) => format!("{name} {form}"),
                };
                let (model, plan) = match choose {
                    Some(choose) => {
                        let plan = choose(&layers(&graph)).with_context(|| full.clone())?;
                        (recoded.with(choose), plan)
                    }
                    None => (recoded.original(), Plan::default()),
                };
                let encoding = encoding(&graph, &plan);
                candidates.push(Candidate {
                    name: full,
                    model,
                    bytes: stored(&graph, &plan),
                    work,
                    encoding,
                });
            }
        }
        Ok((candidates, size))
    }

    /// The UNet's graph and the multiply-adds of one image, if the model can draw it.
    fn checked(
        &self,
        model: &Arc<DiffusionModel>,
        size: [usize; 2],
        machine: &Machine,
    ) -> anyhow::Result<(Function, f64)> {
        let mut session = Session::new(model.clone(), machine.backend.clone());
        let mut noise = random_source("torch")?.seeded(self.seed)?;
        let prompt = self.prompts.first().map_or("", String::as_str);
        let request = self.request(model, prompt, size)?;
        let evaluations = request.scheduler.build(request.steps)?.timesteps().len();
        let stages = session.stages(&request, &DRAWING, 1, &mut *noise)?;
        let runs = |stage: &PipelineStage| if stage.component == Component::Unet { evaluations } else { 1 };
        let work = stages.iter().map(|stage| runs(stage) as f64 * estimate::of_stage(stage)).sum();
        let unet = stages.iter().find(|stage| stage.component == Component::Unet);
        let graph = unet.and_then(PipelineStage::graph).context("it has no UNet")?;
        Ok((constexpr::decoded(graph)?, work))
    }

    fn request(
        &self,
        model: &DiffusionModel,
        prompt: &str,
        size: [usize; 2],
    ) -> Result<Request, SchedulerError> {
        let text = Text { negative_prompt: self.negative_prompt.clone(), ..Text::new(prompt) };
        let mut request = Request { size, ..Request::new(model, text)? };
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.guidance_scale.unwrap_or(request.guidance_scale);
        Ok(request)
    }

    /// The generated variants of each model; the first is unchanged.
    fn forms(&self) -> anyhow::Result<Vec<Form>> {
        let mut forms: Vec<Form> = vec![(None, None)];
        if let Some(path) = &self.recipes {
            let file = Arc::new(RecipeFile::read(path)?);
            let named = |asked: &String| -> anyhow::Result<String> {
                Ok(file.select(asked).with_context(|| path.display().to_string())?.0.to_string())
            };
            let names: Vec<String> = match self.select[..] {
                [] => file.recipes.keys().cloned().collect(),
                ref asked => asked.iter().map(named).collect::<anyhow::Result<_>>()?,
            };
            if names.is_empty() {
                bail!("{} has no recipes", path.display());
            }
            for name in names {
                let file = file.clone();
                let recipe = file.recipes.get(&name).cloned().unwrap_or_default();
                let choose = move |layers: &[Layer]| Ok(by_recipe(&file, &recipe, layers)?.0);
                forms.push((Some(name), Some(Box::new(choose))));
            }
        }
        for name in &self.schemes {
            let scheme: Scheme = name.parse()?;
            let choose = move |layers: &[Layer]| Ok(uniform(layers, scheme, MIN_SIZE));
            forms.push((Some(name.clone()), Some(Box::new(choose))));
        }
        Ok(forms)
    }

    /// One image per prompt.
    fn drawn(
        &self,
        session: &mut Session,
        model: Arc<DiffusionModel>,
        phase: &str,
        size: [usize; 2],
        cancel: &Cancel,
        progress: &Progress,
    ) -> anyhow::Result<Vec<Picture>> {
        session.set_model(Role::Base, model.clone());
        let wait = Wait::default();
        let progress_of_all = progress.phase_after(phase, &wait, Some("decoding the image"));
        wait.set(Some(progress.wait(format!("{phase}, preparing"))));
        let mut pictures = Vec::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let request = self.request(&model, prompt, size)?;
            let progress = OneOf { progress: &progress_of_all, index, count: self.prompts.len() };
            pictures.push(draw(session, &request, self.seed, cancel, &progress)?);
        }
        Ok(pictures)
    }

    /// Writes the picture: MB of the UNet below each name, PSNR below each image, and the parameters as text.
    fn write_grid(&self, columns: &[Column], size: [usize; 2]) -> anyhow::Result<()> {
        let heads: Vec<String> = columns
            .iter()
            .map(|column| format!("{}\nUNet {:.1} MB", column.name, column.bytes as f64 / 1e6))
            .collect();
        let mut rows = Vec::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let mut cells = Vec::new();
            for (at, column) in columns.iter().enumerate() {
                let caption = match compared(columns, at, index)[1] {
                    Some(psnr) if at > 0 && psnr.is_finite() => format!("{} dB", shown(psnr)),
                    Some(psnr) if at > 0 => shown(psnr),
                    _ => String::new(),
                };
                cells.push(Cell { image: &column.pictures[index].image, caption });
            }
            rows.push((prompt.as_str(), cells));
        }
        let grid = Grid { columns: heads.iter().map(String::as_str).collect(), rows };
        let parameters = self.parameters(columns, size).to_string();
        match &self.output {
            Some(path) => write_where_asked(path, |file| grid.write_png(file, &parameters))?,
            None => write_atomically(self.path(), |file| grid.write_png(file, &parameters))?,
        }
        Ok(())
    }

    /// The parameters of the picture, as text in its file.
    fn parameters(&self, columns: &[Column], [width, height]: [usize; 2]) -> Parameters {
        let mut parameters = Parameters {
            prompt: self.prompts.join("\n"),
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            settings: Vec::new(),
        };
        if let Some(steps) = self.steps {
            parameters.set("Steps", steps);
        }
        if let Some(scale) = self.guidance_scale {
            parameters.set("CFG scale", scale);
        }
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        parameters.set("Seed", self.seed);
        parameters.set("Size", format!("{width}x{height}"));
        parameters.set("Models", names.join(", "));
        parameters.set("Version", format!("mixbit {}", env!("CARGO_PKG_VERSION")));
        parameters
    }
}

/// A PSNR without its unit.
fn shown(psnr: f64) -> String {
    if psnr.is_infinite() { "equal".to_string() } else { format!("{psnr:.1}") }
}

/// PSNR in dB of latents and pixels against the first column; `None` for latents of another shape.
fn compared(columns: &[Column], column: usize, prompt: usize) -> [Option<f64>; 2] {
    let [first, other] = [0, column].map(|index| &columns[index].pictures[prompt]);
    let is_alike = first.latents.len() == other.latents.len();
    let is_as_large = (first.image.width, first.image.height) == (other.image.width, other.image.height);
    [
        is_alike.then(|| latent_psnr(&first.latents, &other.latents)),
        is_as_large.then(|| pixel_psnr(&first.image, &other.image)),
    ]
}

/// The PSNR of each model's images, by prompt.
fn table(prompts: &[String], columns: &[Column]) -> String {
    let mut text = String::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let mut table = Table::new([
            ("MB", Side::Right),
            ("latents, dB", Side::Right),
            ("pixels, dB", Side::Right),
            ("model", Side::Left),
        ]);
        for (at, column) in columns.iter().enumerate() {
            let [latents, pixels] = compared(columns, at, index).map(|psnr| match psnr {
                _ if at == 0 => "-".to_string(),
                Some(psnr) => shown(psnr),
                None => "-".to_string(),
            });
            let megabytes = format!("{:.1}", column.bytes as f64 / 1e6);
            table.row([megabytes, latents, pixels, column.name.clone()]);
        }
        let blank = if index > 0 { "\n" } else { "" };
        text += &format!("{blank}{}\n{}", shortened(prompt), table.whole());
    }
    text
}

fn summary(arguments: &Arguments, columns: &[Column]) -> serde_json::Value {
    let image = |at: usize, column: &Column, prompt: usize| {
        let [latents, pixels] = compared(columns, at, prompt);
        json!({
            "model": column.name,
            "prompt": arguments.prompts[prompt],
            // JSON lacks infinity.
            "is_equal": latents == Some(f64::INFINITY) && pixels == Some(f64::INFINITY),
            "latents_psnr": latents.filter(|psnr| psnr.is_finite()),
            "pixels_psnr": pixels.filter(|psnr| psnr.is_finite()),
        })
    };
    let images: Vec<_> = (0..arguments.prompts.len())
        .flat_map(|prompt| columns.iter().enumerate().map(move |(at, column)| (at, column, prompt)))
        .map(|(at, column, prompt)| image(at, column, prompt))
        .collect();
    json!({
        "grid": arguments.path().to_string_lossy(),
        "seed": arguments.seed,
        "models": columns.iter().map(|column| &column.name).collect::<Vec<_>>(),
        "images": images,
    })
}
