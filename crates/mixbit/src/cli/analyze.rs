//! `mixbit analyze`.

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use mixbit_compress::Scheme;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Component, Request, Session, Text};
use mixbit_engine::Backend;

use super::backends::Machine;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::progress::{Progress, Wait};
use super::table::{Side, Table, counted};
use super::{estimate, input, interrupt, next, opening, print_line, values};
use mixbit_analysis::analyze::{
    self, Analysis, Cost, EFFORTS, EarlierRecipe, Goal, METHODS, Options, Outcome, PROMPTS, Phases, Setting,
    Shard, Verified, analyze, schemes_of_recipes,
};
use mixbit_analysis::report::{self, Report};
use mixbit_packages::palettize::MIN_SIZE;
use mixbit_packages::recipe::{Recipe, RecipeFile};

/// The default bits per weight of the recipes.
const TARGET_BITS: [f64; 7] = [3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0];

/// The upper limit of the default number of steps for measured images.
const MOST_STEPS: usize = 25;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit analyze --model sdxl --output analysis --target-bits 4.5 --target-size 1.4GB
  mixbit analyze --model sdxl --output /shared/analysis --shard 2/8    (then: mixbit analyze merge ...)
  mixbit palettize --model sdxl --recipe analysis/sdxl_palettization_recipe.json --select 4.50")]
pub(super) struct Arguments {
    /// `merge` measures nothing: it makes the recipes of what shards have measured
    #[arg(value_name = "STEP")]
    step: Option<Step>,
    /// A model: a file (.safetensors, .ckpt, .gguf), a directory in the diffusers layout or of Core ML
    /// packages, or a name on the Hugging Face Hub (OWNER/NAME)
    #[arg(short, long, alias = "model-version", value_name = "MODEL", env = "MIXBIT_MODEL")]
    model: Option<PathBuf>,
    /// The demo model in the binary
    #[arg(long)]
    demo: bool,
    /// The directory for measurements, recipes and the report; an interrupted analysis continues there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The model's name in the recipe file [default: the directory's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    files: ModelFileOptions,

    /// How to measure
    #[arg(long, value_name = "NAME", value_parser = values::analysis_methods(),
          default_value = METHODS[0].name,
          help_heading = "Measuring")]
    method: String,
    /// How much to measure
    #[arg(long, value_name = "NAME", value_parser = values::efforts(), default_value = EFFORTS[1].name,
          help_heading = "Measuring")]
    effort: String,
    /// The schemes that layers may get [default: palette-1,palette-2,palette-4,palette-6,palette-8]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = Scheme::from_str,
          help_heading = "Measuring")]
    schemes: Vec<Scheme>,
    /// Leave layers of at most N weights unchanged; 100000 as Apple's script
    #[arg(long, value_name = "N", default_value_t = MIN_SIZE, help_heading = "Measuring")]
    min_size: usize,
    /// A text file with prompts, one on each line, or - for standard input, to measure on and to verify with
    /// by turns [default: 16 in the binary]
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    prompts: Option<PathBuf>,
    /// What not to draw
    #[arg(long, value_name = "TEXT", help_heading = "Measuring")]
    negative_prompt: Option<String>,
    /// The seed of the first image
    #[arg(long, value_name = "N", default_value_t = 93, help_heading = "Measuring")]
    seed: u64,
    /// Inference steps of the images [default: the model's, at most 25]
    #[arg(long, value_name = "N", help_heading = "Measuring")]
    steps: Option<usize>,
    /// Guidance scale of the images [default: the model's]
    #[arg(long, value_name = "SCALE", help_heading = "Measuring")]
    guidance_scale: Option<f32>,
    #[command(flatten, next_help_heading = "Measuring")]
    size: values::Size,

    /// Make recipes of at most N bits per weight [default: 3,3.5,4,4.5,5,6,8, if there is no other target]
    #[arg(long, value_name = "BITS", value_delimiter = ',', value_parser = positive,
          help_heading = "Recipes")]
    target_bits: Vec<f64>,
    /// Make recipes for at most this size of the UNet, such as 1.4GB
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = bytes, help_heading = "Recipes")]
    target_size: Vec<u64>,
    /// Make recipes of at least this PSNR in dB
    #[arg(long, value_name = "DB", value_delimiter = ',', value_parser = positive, help_heading = "Recipes")]
    target_psnr: Vec<f64>,

    /// Also measure layers in 8-bit integers, and say which must keep floats for `--precision int8` to have
    /// this PSNR
    #[arg(long, value_name = "DB", value_parser = positive, num_args = 0..=1, default_missing_value = "40",
          help_heading = "Recipes")]
    int8: Option<f64>,

    /// Do part I of N in a directory that all share [default: from Slurm's array or Kubernetes' job]
    #[arg(long, value_name = "I/N", value_parser = shard, help_heading = "Sharing")]
    shard: Option<Shard>,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Sharing")]
    threads: Option<u16>,

    /// Draw no images for the report
    #[arg(long, help_heading = "Output")]
    no_images: bool,
    /// Print only the paths of files
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    Merge,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let wish = self.files.wish();
        let model = self.model.iter_mut().filter(|_| !self.demo);
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
    let options = arguments.files.open();
    let path = values::model(arguments.model.as_deref(), arguments.demo)?;
    let (model, name) = opening::open(path, &options, &progress)?;
    let model = Arc::new(model);
    let name = arguments.name.clone().unwrap_or(name);
    let path = arguments.output.join(format!("{}_palettization_recipe.json", name.replace(['/', ' '], "-")));
    let earlier = earlier_file(&path)?;
    let options = Options { earlier: earlier_recipes(&earlier), ..arguments.options(&model.defaults)? };
    let machine = Machine::new(arguments.threads.map(usize::from))?;
    if arguments.step.is_none() && !arguments.quiet {
        progress.say(expected(&model, &machine, &options)?);
    }
    let backend = machine.backend;
    let wait = Wait::default();
    wait.set(Some(progress.wait("drawing the images to measure on")));
    let measuring =
        progress.phase_after("measuring", &wait, Some("choosing recipes, drawing to verify them"));
    let verifying = progress.phase_after("verifying", &wait, None);
    let phases = Phases { measuring: &measuring, verifying: &verifying };
    let outcome = analyze(&model, &backend, &options, &cancel, phases);
    drop((measuring, verifying));
    wait.set(None);
    let outcome = outcome?;
    let analysis = match outcome {
        Outcome::Done(analysis) => *analysis,
        Outcome::Partial { done, total } if arguments.step == Some(Step::Merge) => {
            bail!("{} of {total} measurements missing: let all shards finish, then merge again", total - done)
        }
        Outcome::Partial { done, total } => {
            progress.say(format_args!(
                "{done} of {total} measurements done; when all shards are done, run `mixbit analyze merge` with the \
                 same options"
            ));
            return Ok(());
        }
    };
    let mut file = analysis.recipe_file(&name, &options.setting);
    if let (Some(details), Some(earlier)) = (&mut file.details, earlier.and_then(|file| file.details)) {
        details.int8 = details.int8.take().or(earlier.int8);
    }
    file.write(&path)?;
    summarize(&analysis, &progress);
    print_line(path.display())?;
    let shown = arguments.report(model, &name, &analysis, &options, &backend, &cancel, &progress)?;
    print_line(shown.display())?;
    let asked = arguments.goals();
    if let Some(recipe) = nearest(&analysis.recipes, asked.first().copied().unwrap_or(USUAL)) {
        let select = format!("{:.2}", recipe.bits);
        progress.say(next::palettizing(
            arguments.model.as_deref().filter(|_| !arguments.demo),
            &path,
            &select,
        ));
    }
    let missed: Vec<Goal> = analysis.unreached.iter().filter(|goal| asked.contains(goal)).copied().collect();
    match (missed.first(), analysis.recipes.is_empty()) {
        (None, false) => Ok(()),
        (Some(&goal), _) => bail!(unreachable(&analysis, goal)),
        (None, true) => bail!("no recipe was made: {}", unreachable(&analysis, USUAL)),
    }
}

/// The goal that the last line has in mind if none is asked for.
const USUAL: Goal = Goal::Bits(4.5);

/// The recipe nearest to a goal.
fn nearest(recipes: &[Verified], goal: Goal) -> Option<&Verified> {
    let distance = |recipe: &&Verified| match goal {
        Goal::Bits(bits) => (recipe.bits - bits).abs(),
        Goal::Bytes(bytes) => recipe.bytes.abs_diff(bytes) as f64,
        Goal::Psnr(psnr) => (recipe.mean_psnr() - psnr).abs(),
    };
    recipes.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// The reason why no recipe reaches a goal: the nearest network in one form for all layers.
fn unreachable(analysis: &Analysis, goal: Goal) -> String {
    let uniform = || analysis.baselines.iter().filter(|baseline| !baseline.layers.is_empty());
    let nearest = match goal {
        Goal::Psnr(_) => uniform().max_by(|a, b| a.mean_psnr().total_cmp(&b.mean_psnr())),
        _ => uniform().min_by_key(|baseline| baseline.bytes),
    };
    let reachable = match (goal, nearest) {
        (_, None) => "the model has no layer that can be compressed".to_string(),
        (Goal::Psnr(_), Some(best)) => {
            format!("the closest to the model is {} with {:.1} dB", best.name, best.mean_psnr())
        }
        (_, Some(least)) => format!(
            "the smallest is {} with {:.2} bits per weight, {:.1} MB",
            least.name,
            least.bits,
            least.bytes as f64 / 1e6
        ),
    };
    format!("there is no recipe for {goal}: {reachable}")
}

/// The recipe file that an earlier analysis made, if it is there.
///
/// # Errors
/// If it can't be read, or was made otherwise: it is not replaced.
fn earlier_file(path: &Path) -> anyhow::Result<Option<RecipeFile>> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let file =
        RecipeFile::read(path).context("it is there already: move it away, or give another --output")?;
    if file.details.is_none() {
        bail!("{} was not made by mixbit: move it away, or give another --output", path.display());
    }
    Ok(Some(file))
}

/// The recipes of a file, which are kept.
fn earlier_recipes(file: &Option<RecipeFile>) -> Vec<EarlierRecipe> {
    let recipe = |(name, recipe): (&String, &Recipe)| EarlierRecipe {
        name: name.clone(),
        layers: recipe
            .layers
            .iter()
            .filter_map(|(layer, scheme)| Some((layer.clone(), (*scheme)?)))
            .collect(),
        predicted: recipe.predicted_psnr,
    };
    file.iter().flat_map(|file| &file.recipes).map(recipe).collect()
}

/// The measurements of an analysis, and how long they take on this machine.
fn expected(model: &Arc<DiffusionModel>, machine: &Machine, options: &Options) -> anyhow::Result<String> {
    let Setting { size, guidance_scale, .. } = options.setting;
    let request = Request { size, guidance_scale, ..Request::new(model, Text::new(""))? };
    let mut session = Session::new(model.clone(), machine.backend.clone());
    let stages = session.stages(
        &request,
        &[Component::Unet],
        1,
        &mut *random_source("torch")?.seeded(options.seed)?,
    )?;
    let stage = stages.first().context("the model has no UNet")?;
    let graph = stage.graph().context("the model has no UNet")?;
    let Cost { steps, layers, weights, measurements } = analyze::expected(graph, options)?;
    let computing = estimate::computing(machine, request.precision, steps * estimate::of_stage(stage));
    let encoding = options.schemes.first().and_then(|scheme| estimate::encoding(*scheme, layers, weights));
    let seconds = (computing.unwrap_or_default() + encoding.unwrap_or_default())
        / options.shard.map_or(1, |shard| shard.count) as f64;
    Ok(format!(
        "{} {} {} on this machine; Ctrl-C stops, and the same command goes on",
        counted(measurements as u64, "measurement"),
        if measurements == 1 { "takes" } else { "take" },
        estimate::or_more(seconds)
    ))
}

/// The recipes and the networks beside them, as a table.
fn summarize(analysis: &Analysis, progress: &Progress) {
    for goal in &analysis.unreached {
        progress.say(unreachable(analysis, *goal));
    }
    let mut table = Table::new([
        ("bits", Side::Right),
        ("MB", Side::Right),
        ("expected, dB", Side::Right),
        ("PSNR, dB", Side::Right),
        ("UNet", Side::Left),
    ]);
    for verified in analysis.baselines.iter().chain(&analysis.recipes) {
        table.row([
            format!("{:.2}", verified.bits),
            format!("{:.1}", verified.bytes as f64 / 1e6),
            verified.predicted.map_or("-".to_string(), |psnr| format!("{psnr:.1}")),
            format!("{:.1}", verified.mean_psnr()),
            verified.name.clone(),
        ]);
    }
    progress.say(table);
    if let Some(int8) = &analysis.int8 {
        progress.say(format_args!(
            "in 8-bit integers: {:.1} dB with {} of {} layers in floats, {:.1} % of the multiply-adds in integers",
            int8.mean_psnr(),
            int8.full_precision.len(),
            int8.single_layer.len(),
            100.0 * int8.share
        ));
    }
}

impl Arguments {
    /// Writes the report with images of the first verification prompt, and returns the page's path.
    #[expect(clippy::too_many_arguments, reason = "everything that `run` has at its end")]
    fn report(
        &self,
        model: Arc<DiffusionModel>,
        name: &str,
        analysis: &Analysis,
        options: &Options,
        backend: &Arc<dyn Backend>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> anyhow::Result<PathBuf> {
        // Without images first, so that a report exists if they fail.
        let files = report::write(&self.output, &Report { analysis, name, pictures: None })?;
        if let Some(point) = analysis.verified_points.first().filter(|_| !self.no_images) {
            let negative_prompt = options.setting.negative_prompt.clone();
            let request = Request {
                size: options.setting.size,
                guidance_scale: options.setting.guidance_scale,
                ..Request::new(&model, Text { negative_prompt, ..Text::new(point.prompt.as_str()) })?
            };
            let drawing = progress.phase("drawing");
            let pictures = report::pictures(model, backend, analysis, &request, point.seed, cancel, &drawing)
                .context("the report has no images")?;
            report::write(&self.output, &Report { analysis, name, pictures: Some(pictures) })?;
        }
        files.into_iter().next().context("the report has no page")
    }

    /// The goals that are asked for.
    fn goals(&self) -> Vec<Goal> {
        let goals = [
            self.target_bits.iter().map(|&bits| Goal::Bits(bits)).collect::<Vec<_>>(),
            self.target_size.iter().map(|&bytes| Goal::Bytes(bytes)).collect(),
            self.target_psnr.iter().map(|&psnr| Goal::Psnr(psnr)).collect(),
        ];
        goals.concat()
    }

    fn options(&self, defaults: &mixbit_diffusion::model::Defaults) -> anyhow::Result<Options> {
        let method = METHODS.iter().find(|method| method.name == self.method);
        let effort = EFFORTS.iter().find(|effort| effort.name == self.effort);
        let mut goals = self.goals();
        if goals.is_empty() {
            goals = TARGET_BITS.map(Goal::Bits).into();
        }
        let prompts = match &self.prompts {
            Some(path) => input::lines(path)?,
            None => PROMPTS.map(str::to_string).into(),
        };
        let shard = match (self.step, self.shard) {
            (Some(Step::Merge), _) => None,
            (None, Some(shard)) => Some(shard),
            (None, None) => Some(scheduled_shard(&|name| env::var(name).ok())?),
        };
        Ok(Options {
            method: method.context("the method is unknown")?,
            effort: effort.context("the effort is unknown")?,
            schemes: if self.schemes.is_empty() { schemes_of_recipes() } else { self.schemes.clone() },
            min_size: self.min_size,
            goals,
            earlier: Vec::new(),
            int8: self.int8,
            prompts,
            seed: self.seed,
            setting: Setting {
                negative_prompt: self.negative_prompt.clone(),
                size: self.size.or(defaults.size),
                steps: self.steps.unwrap_or(defaults.steps.min(MOST_STEPS)),
                guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            },
            shard,
            directory: self.output.clone(),
        })
    }
}

/// The shard given by a scheduler's environment variables: Slurm's job arrays and tasks, or Kubernetes'
/// indexed jobs. Kubernetes does not set the number of jobs, so the job's template must set
/// `JOB_COMPLETIONS`.
fn scheduled_shard(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Shard> {
    let number = |name: &str| -> anyhow::Result<Option<usize>> {
        let Some(text) = variable(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| anyhow::anyhow!("the variable {name} is `{text}`, not a number"))
    };
    for (index, count, first) in [
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
        ("SLURM_PROCID", "SLURM_NTASKS", ""),
        ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", ""),
    ] {
        let Some(at) = number(index)? else { continue };
        let Some(count) = number(count)? else {
            if index == "JOB_COMPLETION_INDEX" {
                bail!(
                    "JOB_COMPLETION_INDEX is set but JOB_COMPLETIONS is not: set it to the job's completions, or give --shard"
                );
            }
            continue;
        };
        let at = at - number(first)?.unwrap_or(0).min(at);
        if at >= count {
            bail!("{index} is {at}, counted from 0, of only {count} parts: give --shard I/N");
        }
        return Ok(Shard { index: at, count });
    }
    Ok(Shard::WHOLE)
}

fn shard(text: &str) -> Result<Shard, String> {
    let numbers =
        text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match numbers {
        Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index: index - 1, count }),
        _ => Err("must be I/N with I from 1 to N, such as 2/8".to_string()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a number above 0".to_string())
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1e0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "MIB" => 1024f64.powi(2),
        "GIB" => 1024f64.powi(3),
        _ => return Err("must be a number with a unit, such as 1.4GB or 900MB".to_string()),
    };
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok((number * factor) as u64),
        _ => Err("must be a number with a unit, such as 1.4GB or 900MB".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_read_from_schedulers() {
        let of = |pairs: &'static [(&str, &str)]| {
            scheduled_shard(&|name| {
                pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| value.to_string())
            })
        };
        assert_eq!(of(&[]).unwrap(), Shard::WHOLE);
        let slurm = of(&[
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_COUNT", "8"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ]);
        assert_eq!(slurm.unwrap(), Shard { index: 2, count: 8 });
        let tasks = of(&[("SLURM_PROCID", "5"), ("SLURM_NTASKS", "6")]);
        assert_eq!(tasks.unwrap(), Shard { index: 5, count: 6 });
        let kubernetes = of(&[("JOB_COMPLETION_INDEX", "1"), ("JOB_COMPLETIONS", "4")]);
        assert_eq!(kubernetes.unwrap(), Shard { index: 1, count: 4 });
        assert!(of(&[("JOB_COMPLETION_INDEX", "1")]).is_err());
        assert!(of(&[("SLURM_PROCID", "6"), ("SLURM_NTASKS", "6")]).is_err());
        assert!(of(&[("SLURM_PROCID", "x"), ("SLURM_NTASKS", "6")]).is_err());
    }

    #[test]
    fn values_are_read() {
        assert_eq!(shard("2/8"), Ok(Shard { index: 1, count: 8 }));
        assert!(["0/8", "9/8", "8", "a/b", "1/0"].iter().all(|text| shard(text).is_err()));
        assert_eq!(
            (bytes("1.4GB"), bytes("900MB"), bytes("1GiB")),
            (Ok(1_400_000_000), Ok(900_000_000), Ok(1 << 30))
        );
        assert_eq!(positive("4.5"), Ok(4.5));
        assert!(["0", "-1", "nan", "inf", "x"].iter().all(|text| positive(text).is_err()));
        assert!(["", "GB", "-1GB", "1.4TBs", "nanGB"].iter().all(|text| bytes(text).is_err()));
    }
}
