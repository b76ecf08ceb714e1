//! `mixbit palettize`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use mixbit_app::hub::Wish;
use mixbit_compress::{Scheme, Width};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_diffusion::model::ModelFiles;
use mixbit_engine::Cancel;
use mixbit_mil::Unit;
use mixbit_packages::bundle::Bundle;
use mixbit_packages::inspect::is_checkpoint;
use mixbit_packages::package::{
    ConversionOptions, DeploymentTarget, PACKAGE_KINDS, added_words, is_package, left_out_safety_checker,
};
use mixbit_packages::palettize::{
    Job, JobError, MIN_SIZE, Outcome, Phase, PlanSource, Report, Target, Targets,
};

use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::progress::Progress;
use super::table::{Side, Table, byte_size, counted, shortened};
use super::{estimate, interrupt, memory, next, opening, print_line, recipe, values, verify};

/// The number of layers listed by PSNR for each package.
const WORST: usize = 10;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").required(true).args(["nbits", "scheme", "recipe"]))]
#[command(after_help = "Examples:
  mixbit palettize --model sdxl --nbits 6 --output sdxl-6-bit
  mixbit palettize --model sdxl --recipe recipe.json --select 4.50 --output sdxl-4.5-bit
  mixbit palettize --model Unet.mlpackage --recipe recipe.json --select 4.50 --like sdxl --output small
  mixbit palettize --model Unet.mlpackage --scheme linear-8 --output small/Unet.mlpackage")]
pub(super) struct Arguments {
    /// A model: a file (.safetensors, .ckpt, .gguf), a directory in the diffusers layout or of Core ML
    /// packages, one package, or a name on the Hugging Face Hub (OWNER/NAME)
    #[arg(short, long, alias = "model-version", value_name = "MODEL", env = "MIXBIT_MODEL")]
    model: Option<PathBuf>,
    /// The demo model in the binary
    #[arg(long)]
    demo: bool,
    /// The directory for the packages, made if it is not there; for one package also its path
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Only these parts of the model, such as unet [default: all that it has]
    #[arg(long, value_name = "NAME", value_parser = values::parts(), num_args = 1..)]
    part: Vec<String>,
    /// Then measure the PSNR of the UNet on images of this model, as after an analysis
    #[arg(long)]
    verify: bool,
    /// Also compile the packages into a Resources directory, as Apple's and other apps load them
    #[arg(long)]
    bundle_resources_for_swift_cli: bool,
    /// Replace packages that are there, and compress layers again that are compressed already
    #[arg(long)]
    force: bool,
    /// Print only the packages' names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    files: ModelFileOptions,

    /// Palettes of this many bits for every layer: 1, 2, 3, 4, 6 or 8
    #[arg(long, value_name = "N", value_parser = values::width, help_heading = "Bits")]
    nbits: Option<Width>,
    /// One form for every layer, such as grouped-palette-4 or linear-8; some need macOS 15
    #[arg(long, value_name = "NAME", value_parser = values::schemes(), hide_possible_values = true,
          help_heading = "Bits")]
    scheme: Option<String>,
    /// The bits of each layer of the UNet from a recipe file, Apple's or one of `mixbit analyze`
    #[arg(long, value_name = "FILE", help_heading = "Bits")]
    recipe: Option<PathBuf>,
    /// Which recipe of the file: its name, a part that no other has, or bits per weight, such as 4.5, for
    /// the nearest [default: the only one]
    #[arg(long, value_name = "NAME", requires = "recipe", help_heading = "Bits")]
    select: Option<String>,
    /// A checkpoint with the configuration of a package that has lost the names of its layers: they are found
    /// by what the graphs compute
    #[arg(long, value_name = "CHECKPOINT", requires = "recipe", help_heading = "Bits")]
    like: Option<PathBuf>,
    /// Leave layers of at most N weights unchanged
    #[arg(long, value_name = "N", default_value_t = MIN_SIZE, conflicts_with = "recipe",
          help_heading = "Bits")]
    min_size: usize,

    /// The model's name in file names and metadata [default: the directory's]
    #[arg(long, value_name = "NAME", help_heading = "Checkpoints")]
    name: Option<String>,
    /// How attention is written: for the Neural Engine split, for the GPU original [default: SPLIT_EINSUM]
    #[arg(long, value_name = "NAME", value_parser = values::attention(), ignore_case = true,
          help_heading = "Checkpoints")]
    attention_implementation: Option<AttentionImplementation>,
    /// Cut UNets in two, for devices that can't load them whole
    #[arg(long, help_heading = "Checkpoints")]
    chunk_unet: bool,
    /// The oldest system to run on; a form that came later raises it [default: macOS13]
    #[arg(long, value_name = "NAME", value_parser = values::targets(), ignore_case = true,
          help_heading = "Checkpoints")]
    min_deployment_target: Option<&'static DeploymentTarget>,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let has_safety_checker =
            self.part.is_empty() || self.part.iter().any(|part| part == "safety_checker");
        let wish = Wish { safety_checker: has_safety_checker, ..self.files.wish() };
        let model = self.model.iter_mut().filter(|_| !self.demo);
        let model = model.map(|argument| Asked { argument, wish: wish.clone() });
        let others = self.recipe.iter_mut().chain(&mut self.like).map(Asked::plain);
        model.chain(others).chain(self.files.models()).collect()
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let begin = Instant::now();
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    let source = arguments.plan_source()?;
    if let PlanSource::Recipe { name, file, .. } = &source {
        progress.say(recipe::chosen_in_words(file, name, arguments.select.as_deref()));
    }
    let (mut job, warnings) = Job::new(arguments.targets(&source, &progress)?, &source)?;
    if arguments.bundle_resources_for_swift_cli {
        job = job.with_bundle()?;
    }
    for warning in warnings {
        progress.say(warning);
    }
    let shown = Shown { progress: &progress, cancel: &cancel };
    shown.begin(&job, arguments.force)?;
    let (layers, weights) = job.work();
    let scheme = source.schemes().into_iter().next().filter(|_| !arguments.quiet);
    if let Some(seconds) = scheme.and_then(|scheme| estimate::encoding(scheme, layers, weights)) {
        let (layers, takes) = (counted(layers as u64, "layer"), if layers == 1 { "takes" } else { "take" });
        progress.say(format_args!("{layers} {takes} {} on this machine", estimate::about(seconds)));
    }
    let (mut before, mut after, mut kept) = (0, 0, 0);
    for (index, target) in job.targets().iter().enumerate() {
        let name = target.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match shown.write(&job, index, arguments.force)? {
            Outcome::Kept => kept += 1,
            Outcome::Copied => {}
            Outcome::Palettized(report) => {
                if !arguments.quiet {
                    print_report(target.kind.map_or(&name, |kind| kind.name), &report)?;
                }
                before += report.before;
                after += report.after;
            }
        }
        print_line(target.path.display())?;
        shown.bundle(&job, index, arguments.force)?;
        shown.check_stopped(&name)?;
    }
    progress.say(format_args!(
        "{}, {}, in {:.1} s{}",
        counted(job.targets().len() as u64, "package"),
        match kept == job.targets().len() {
            true => "there already".to_string(),
            false => format!(
                "layers {} before and {} after",
                byte_size(before as usize),
                byte_size(after as usize)
            ),
        },
        begin.elapsed().as_secs_f64(),
        memory::in_summary()
    ));
    if arguments.verify {
        print_line(verify::verify(
            values::model(arguments.model.as_deref(), arguments.demo)?,
            &arguments.files.open()?,
            &source,
            &cancel,
            &progress,
        )?)?;
    }
    let is_whole = arguments.part.is_empty() && job.targets().len() > 1;
    if is_whole {
        progress.say(next::drawing(&arguments.output));
    }
    if arguments.bundle_resources_for_swift_cli {
        progress.say(next::app(&arguments.output.join("Resources")));
    }
    Ok(())
}

/// The display of a job, and the flag that stops it.
pub(super) struct Shown<'a> {
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
}

/// Says what of a model its packages can't have, or apps can't use. `is_whole` if all parts are converted.
pub(super) fn say_limits(model: &dyn ModelFiles, is_whole: bool, progress: &Progress) -> anyhow::Result<()> {
    if let Some(reason) = left_out_safety_checker(model)?.filter(|_| is_whole) {
        progress.say(format_args!("warning: the safety checker is left out: {reason}"));
    }
    let added = added_words(model)?;
    if !added.is_empty() {
        progress.say(format_args!(
            "warning: apps that use Apple's Swift tokenizer do not know the added tokens (mixbit does): {}",
            shortened(&added.join(" "))
        ));
    }
    Ok(())
}

/// A package among several, as the beginning of its phases' names.
pub(super) fn place(index: usize, count: usize, target: &Target) -> String {
    place_of("package", index, count, target.kind.map_or(&target.source, |kind| kind.name))
}

/// One thing among several.
pub(super) fn place_of(what: &str, index: usize, count: usize, name: &str) -> String {
    match count {
        1 => name.to_string(),
        _ => format!("{what} {} of {count}, {name}", index + 1),
    }
}

impl Shown<'_> {
    /// Prepares the output directories, and says what was removed there.
    pub(super) fn begin(&self, job: &Job, force: bool) -> anyhow::Result<()> {
        for path in job.begin(force)? {
            self.progress.say(format_args!("removed {}", path.display()));
        }
        Ok(())
    }

    /// Writes a package, and says so if it is kept.
    pub(super) fn write(&self, job: &Job, index: usize, force: bool) -> anyhow::Result<Outcome> {
        let target = &job.targets()[index];
        let place = place(index, job.targets().len(), target);
        let written = job.write(index, force, &|phase| self.phase(phase, target, &place));
        let outcome = written.or_else(|error| self.explained(error, target))?;
        if let Outcome::Kept = outcome {
            self.progress.say(kept(&target.path));
        }
        Ok(outcome)
    }

    /// Compiles a package if the job does so, and prints the path.
    pub(super) fn bundle(&self, job: &Job, index: usize, force: bool) -> anyhow::Result<()> {
        let target = &job.targets()[index];
        let place = place(index, job.targets().len(), target);
        let bundled = job.bundle(index, force, &|phase| self.phase(phase, target, &place));
        let Some((path, is_new)) = bundled.or_else(|error| self.explained(error, target))? else {
            return Ok(());
        };
        if !is_new {
            self.progress.say(kept(&path));
        }
        print_line(path.display())
    }

    /// Fails if the user stopped the run.
    pub(super) fn check_stopped(&self, name: &str) -> anyhow::Result<()> {
        if self.cancel.is_cancelled() {
            bail!("stopped after {name}; run it again to go on from there");
        }
        Ok(())
    }

    /// The receiver of a phase of one package at its place among all, which stops the work once the user asks
    /// for it.
    pub(super) fn phase(
        &self,
        phase: Phase,
        target: &Target,
        place: &str,
    ) -> Box<dyn mixbit_mil::Progress + '_> {
        let progress = self.progress;
        Box::new(match phase {
            Phase::Palettes => progress.count(format!("{place}, palettes"), Unit::Layers, 0),
            Phase::Writing => progress.bytes(format!("{place}, writing")),
            Phase::Copying => progress.bytes(format!("{place}, copying")),
            Phase::Checking => progress.count(format!("{place}, checking"), Unit::Layers, 0),
            Phase::Bundling => progress.bytes(format!("{place}, compiling")),
            Phase::Waiting => {
                progress.say(format_args!("{}: another run writes it; waiting for that", target.source));
                progress.wait(format!("{place}, waiting for another run"))
            }
        })
    }

    fn explained<T>(&self, error: JobError, target: &Target) -> anyhow::Result<T> {
        if self.cancel.is_cancelled() {
            bail!("stopped before {} was complete; run it again to go on from there", target.source);
        }
        Err(error.into())
    }
}

/// The message that an existing output is kept.
fn kept(path: &Path) -> String {
    format!("{} is there already; --force writes it again", path.display())
}

/// Prints the sizes of a package's layers, and the layers with the lowest PSNR by name.
fn print_report(name: &str, report: &Report) -> anyhow::Result<()> {
    let bits = |bytes: u64| 8.0 * bytes as f64 / report.weights.max(1) as f64;
    print_line(format_args!(
        "{name}: {} at {:.2} bits, now {} at {:.2} bits\n  {} palettized, each decoded again and right",
        byte_size(report.before as usize),
        bits(report.before),
        byte_size(report.after as usize),
        bits(report.after),
        counted(report.layers.len() as u64, "layer")
    ))?;
    let mut layers: Vec<_> = report.layers.iter().collect();
    layers.sort_by(|a, b| a.psnr.total_cmp(&b.psnr).then_with(|| a.name.cmp(&b.name)));
    let mut table = Table::new([("PSNR", Side::Right), ("bits", Side::Right), ("worst layers", Side::Left)]);
    for layer in layers.iter().take(WORST) {
        table.row([format!("{:.1}", layer.psnr), format!("{:.2}", layer.bits), layer.name.clone()]);
    }
    if layers.is_empty() { Ok(()) } else { print_line(table) }
}

impl Arguments {
    fn plan_source(&self) -> anyhow::Result<PlanSource> {
        // clap lets an option pass that requires another if that one conflicts with what is given.
        let of_recipes = [("--select", self.select.is_some()), ("--like", self.like.is_some())];
        if let Some((option, _)) =
            of_recipes.into_iter().find(|(_, is_given)| *is_given && self.recipe.is_none())
        {
            bail!("{option} is for recipes, and has no effect without --recipe FILE: leave it out");
        }
        if let Some(like) = self.like.as_ref().filter(|like| !like.exists()) {
            bail!("--like: {} is not there", like.display());
        }
        let uniform = |scheme| PlanSource::Uniform { scheme, min_size: self.min_size, any_kind: true };
        if let Some(width) = self.nbits {
            return Ok(uniform(Scheme::palette(width)));
        }
        if let Some(scheme) = &self.scheme {
            return Ok(uniform(scheme.parse()?));
        }
        let path = self.recipe.as_deref().context("say --nbits, --scheme or --recipe")?;
        let (file, name) = recipe::chosen(path, self.select.as_deref())?;
        Ok(PlanSource::Recipe { name, file: Box::new(file), like: self.like.clone() })
    }

    /// The packages to write; no weight is read. Other files of a bundle are copied.
    fn targets(&self, source: &PlanSource, progress: &Progress) -> anyhow::Result<Targets> {
        let options = self.files.open()?;
        match values::model(self.model.as_deref(), self.demo)? {
            Some(path) if is_package(path) => {
                options.check_for_packages(path)?;
                self.check_no_options_of_checkpoints()?;
                if !self.part.is_empty() {
                    bail!("--part chooses among the parts of a model, and {} is one package", path.display());
                }
                Ok(Targets::of_package(path, &self.output)?)
            }
            Some(path) if path.is_dir() && !is_checkpoint(path, &options) && Bundle::is_at(path) => {
                options.check_for_packages(path)?;
                self.check_no_options_of_checkpoints()?;
                Ok(Targets::of_bundle(path, &self.output, &self.parts())?)
            }
            path => self.of_checkpoint(path, source, progress),
        }
    }

    /// Refuses options that decide how a checkpoint is converted, for packages are converted already.
    fn check_no_options_of_checkpoints(&self) -> anyhow::Result<()> {
        let given = [
            ("--name", self.name.is_some()),
            ("--attention-implementation", self.attention_implementation.is_some()),
            ("--chunk-unet", self.chunk_unet),
            ("--min-deployment-target", self.min_deployment_target.is_some()),
        ];
        let of_files = self.files.of_checkpoints().map(|option| (option, true));
        match of_files.into_iter().chain(given).find(|(_, is_given)| *is_given) {
            Some((option, _)) => bail!(
                "{option} is for checkpoints, and packages are converted already: leave it out, or palettize the checkpoint"
            ),
            None => Ok(()),
        }
    }

    fn of_checkpoint(
        &self,
        path: Option<&Path>,
        source: &PlanSource,
        progress: &Progress,
    ) -> anyhow::Result<Targets> {
        values::check_apart(path, &self.output)?;
        let model = opening::checkpoint(path, &self.files.open()?, progress)?;
        let asked = self.min_deployment_target.unwrap_or_default();
        let target = source.target(asked);
        if target != asked {
            progress.say(format_args!(
                "the deployment target is {}, not {}: what is asked for is not in older systems",
                target.names[0], asked.names[0]
            ));
        }
        let options = ConversionOptions {
            parts: self.parts(),
            model_version: self.name.clone().unwrap_or_else(|| model.name().to_string()),
            attention: self.attention_implementation.unwrap_or(AttentionImplementation::SplitEinsum),
            chunk_unet: self.chunk_unet,
            target,
            ..ConversionOptions::default()
        };
        say_limits(model.files(), options.parts.is_empty(), progress)?;
        Ok(Targets::of_checkpoint(model.name(), model.files(), &options, &self.output)?)
    }

    /// The requested parts, in the order of the table.
    fn parts(&self) -> Vec<&'static str> {
        let all = PACKAGE_KINDS.iter().map(|kind| kind.asked_as);
        all.filter(|part| self.part.iter().any(|asked| asked == part)).collect()
    }
}
