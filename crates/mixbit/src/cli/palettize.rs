//! `mixbit palettize`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use mixbit_compress::{Layer, Scheme, Width};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_formats::coreml;
use mixbit_mil::{Function, constexpr};

use super::progress::Progress;
use super::table::{Side, Table};
use super::{interrupt, memory, print_line, values};
use mixbit_app::model::open_or_demo;
use mixbit_packages::bundle::{CHUNKS, WHOLE, is_named};
use mixbit_packages::inspect::{Form, is_checkpoint, is_package, open, size};
use mixbit_packages::package::{
    DEPLOYMENT_TARGETS, DeploymentTarget, Options, PARTS, Part, Source, keys, plan, write_vocabulary,
};
use mixbit_packages::palettize::{
    Choices, MIN_SIZE, Palettized, Report, by_recipe, by_structure, model_layers, palettize, uniform,
};
use mixbit_packages::recipe::RecipeFile;

/// Parts that a recipe is for.
const UNETS: [&str; 3] = ["unet", "refiner", "control-unet"];

/// Parts that stay as they are when all layers are palettized, as with Apple's converter.
const WHOLE_PARTS: [&str; 3] = ["vae_decoder", "vae_encoder", "safety_checker"];

/// Whether a part is palettized when all layers are.
pub(super) fn is_for_all(part: &str) -> bool {
    !WHOLE_PARTS.contains(&part)
}

/// Layers of each package that are listed by their PSNR.
const WORST: usize = 10;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").required(true).args(["nbits", "scheme", "recipe"]))]
#[command(after_help = "Examples:
  mixbit palettize --model sdxl --nbits 6 --output sdxl-6-bit
  mixbit palettize --model sdxl --recipe recipe.json --select 4.50 --output sdxl-4.5-bit
  mixbit palettize --model Unet.mlpackage --recipe recipe.json --select 4.50 --like sdxl --output small
  mixbit palettize --model Unet.mlpackage --scheme linear-8 --output small/Unet.mlpackage")]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a directory of Core ML packages, or one package; without it, the demo
    /// model in the binary
    #[arg(short, long, value_name = "PATH", env = "MIXBIT_MODEL")]
    model: Option<PathBuf>,
    /// The directory for the packages, made if it is not there; for one package also its path
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Only these parts of the model, such as unet [default: all that it has]
    #[arg(long, value_name = "NAME", value_parser = values::parts(), num_args = 1..)]
    part: Vec<String>,
    /// Write packages again that are there, and compress again what is compressed already
    #[arg(long)]
    force: bool,
    /// Print only the packages' names
    #[arg(short, long)]
    quiet: bool,

    /// Palettes of this many bits for every layer: 1, 2, 3, 4, 6 or 8
    #[arg(long, value_name = "N", value_parser = values::width, help_heading = "Bits")]
    nbits: Option<Width>,
    /// One form for every layer, such as grouped-palette-4 or linear-8; some need macOS 15
    #[arg(long, value_name = "NAME", value_parser = values::schemes(), hide_possible_values = true,
          help_heading = "Bits")]
    scheme: Option<String>,
    /// The bits of each layer of the UNet from a recipe file, Apple's or one of `mixbit analyze`
    #[arg(long, value_name = "FILE", requires = "select", help_heading = "Bits")]
    recipe: Option<PathBuf>,
    /// Which recipe of the file: its name, or a part that no other has, such as 4.50
    #[arg(long, value_name = "NAME", requires = "recipe", help_heading = "Bits")]
    select: Option<String>,
    /// A checkpoint with the configuration of a package that has lost the names of its layers: they are found by what the
    /// graphs compute
    #[arg(long, value_name = "CHECKPOINT", requires = "recipe", help_heading = "Bits")]
    like: Option<PathBuf>,
    /// Layers of at most so many weights stay as they are
    #[arg(long, value_name = "N", default_value_t = MIN_SIZE, conflicts_with = "recipe", help_heading = "Bits")]
    min_size: usize,

    /// The model's name in file names and metadata [default: the directory's]
    #[arg(long, value_name = "NAME", help_heading = "Checkpoints")]
    model_version: Option<String>,
    /// How attention is written: for the Neural Engine split, for the GPU original
    #[arg(long, value_name = "NAME", value_parser = values::attention(), ignore_case = true,
          default_value = "SPLIT_EINSUM", help_heading = "Checkpoints")]
    attention_implementation: String,
    /// Cut UNets in two, for devices that can't load them whole
    #[arg(long, help_heading = "Checkpoints")]
    chunk_unet: bool,
    /// The oldest system to run on; a form that came later raises it
    #[arg(long, value_name = "NAME", value_parser = values::targets(), ignore_case = true,
          default_value = "macOS13", help_heading = "Checkpoints")]
    min_deployment_target: String,
}

/// One package to be written.
struct Item {
    /// What it was, for people.
    from: String,
    /// Where it goes.
    path: PathBuf,
    /// The part that it is, or is a chunk of; unknown for a package that is given by itself under another name.
    part: Option<&'static str>,
    model: coreml::Model,
    layers: Vec<Layer>,
}

/// How each layer is to be stored.
enum How {
    Uniform(Scheme),
    Recipe { file: Box<RecipeFile>, name: String, like: Option<PathBuf> },
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let begin = Instant::now();
    let stop = interrupt::flag()?;
    let progress = Progress::new(arguments.quiet);
    let how = arguments.how()?;
    let items = arguments.items(&how, &progress)?;
    let choices = choices(&items, &how, arguments.min_size, &progress)?;
    let notes = Notes::of(&how);
    let (mut before, mut after) = (0, 0);
    for (item, choices) in items.iter().zip(choices) {
        let name = item.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if item.path.exists() && !arguments.force {
            already(item, &choices, &notes.how)?;
            progress.say(format_args!("{} is there already; --force writes it again", item.path.display()));
        } else if let Some(choices) = choices {
            let report = write(item, &choices, &notes, arguments.force, &progress)
                .with_context(|| item.from.clone())?;
            if !arguments.quiet {
                print_report(&name, &report)?;
            }
            before += report.before;
            after += report.after;
        } else {
            write_model(&item.path, &item.model, &progress.bytes(name.clone()))?;
        }
        print_line(item.path.display())?;
        if stop.load(Ordering::SeqCst) {
            bail!("stopped after {name}; run it again to go on from there");
        }
    }
    progress.say(format_args!(
        "{} packages, layers {} before and {} after, in {:.1} s{}",
        items.len(),
        size(before as usize),
        size(after as usize),
        begin.elapsed().as_secs_f64(),
        memory::in_summary()
    ));
    Ok(())
}

/// What a palettized package says of how it was made.
pub(super) struct Notes {
    /// A scheme, or a recipe's name and checksum.
    pub(super) how: String,
    /// The layers that the recipe's model needs in floats where others are computed in 8-bit integers.
    pub(super) full_precision: Vec<String>,
}

impl Notes {
    fn of(how: &How) -> Self {
        match how {
            How::Uniform(scheme) => Notes { how: scheme.to_string(), full_precision: Vec::new() },
            How::Recipe { file, name, .. } => {
                let checksum =
                    file.recipes.get(name).map(mixbit_packages::recipe::Recipe::checksum).unwrap_or_default();
                let int8 = file.details.as_ref().and_then(|details| details.int8.as_ref());
                Notes {
                    how: format!("{name} {checksum}"),
                    full_precision: int8.map(|int8| int8.full_precision.clone()).unwrap_or_default(),
                }
            }
        }
    }
}

/// Refuses a package that is there and was made in another way: going on would mix the two.
fn already(item: &Item, choices: &Option<Choices>, note: &str) -> anyhow::Result<()> {
    let found = coreml::read(&item.path)
        .with_context(|| format!("{} is there already; --force writes it again", item.path.display()))?;
    let found = found.metadata.user_defined.get(keys::RECIPE).map(String::as_str);
    let expected = choices.as_ref().map(|_| note);
    if expected.is_some() && found != expected {
        let said = found.map_or("not palettized".to_string(), |found| format!("palettized by {found}"));
        bail!("{} is there already, {said}: choose another directory, or --force", item.path.display());
    }
    Ok(())
}

fn write_model(
    path: &Path,
    model: &coreml::Model,
    progress: &dyn mixbit_mil::Progress,
) -> Result<(), mixbit_formats::Error> {
    match path.extension().is_some_and(|extension| extension == "mlmodelc") {
        true => coreml::write_compiled(path, model, progress),
        false => coreml::write_package(path, model, progress),
    }
}

/// Palettizes a package, writes it and checks what was written.
fn write(
    item: &Item,
    choices: &Choices,
    notes: &Notes,
    force: bool,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let mut palettized = palettized(&item.model, choices, notes, force, progress, &item.from)?;
    palettized.model.class = item.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    write_model(&item.path, &palettized.model, &progress.bytes(format!("{}, writing", item.from)))?;
    let counter = progress.count(format!("{}, checking", item.from), palettized.layer_count());
    Ok(palettized.check(&item.path, &counter)?)
}

/// A palettized model that says so.
pub(super) fn palettized(
    model: &coreml::Model,
    choices: &Choices,
    notes: &Notes,
    force: bool,
    progress: &Progress,
    name: &str,
) -> anyhow::Result<Palettized> {
    let counter = progress.count(format!("{name}, palettes"), choices.len());
    let mut palettized = palettize(model, choices, force, &counter)?;
    drop(counter);
    let metadata = &mut palettized.model.metadata.user_defined;
    metadata.insert(keys::RECIPE.to_string(), notes.how.clone());
    if !notes.full_precision.is_empty() {
        metadata.insert(keys::FULL_PRECISION.to_string(), notes.full_precision.join(" "));
    }
    Ok(palettized)
}

/// Prints what became of a package's layers, the worst of them by name.
fn print_report(name: &str, report: &Report) -> anyhow::Result<()> {
    let bits = |bytes: u64| 8.0 * bytes as f64 / report.weights.max(1) as f64;
    print_line(format_args!(
        "{name}: layers {} at {:.2} bits, now {} at {:.2} bits; {} of them palettized, each decoded again and right",
        size(report.before as usize),
        bits(report.before),
        size(report.after as usize),
        bits(report.after),
        report.layers.len()
    ))?;
    let mut layers: Vec<_> = report.layers.iter().collect();
    layers.sort_by(|a, b| a.psnr.total_cmp(&b.psnr).then_with(|| a.name.cmp(&b.name)));
    let mut table = Table::new([("PSNR", Side::Right), ("bits", Side::Right), ("worst layers", Side::Left)]);
    for layer in layers.iter().take(WORST) {
        table.row([format!("{:.1}", layer.psnr), format!("{:.2}", layer.bits), layer.name.clone()]);
    }
    if layers.is_empty() { Ok(()) } else { print_line(table) }
}

/// How the layers of each package are stored; `None` for one that is written as it is.
fn choices(
    items: &[Item],
    how: &How,
    min_size: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<Option<Choices>>> {
    match how {
        How::Uniform(scheme) => Ok(items
            .iter()
            .map(|item| {
                let is_whole = items.len() > 1 && item.part.is_some_and(|part| !is_for_all(part));
                (!is_whole).then(|| uniform(&item.layers, *scheme, min_size))
            })
            .collect()),
        How::Recipe { file, name, like } => {
            let recipe = file.recipes.get(name).context("the recipe is not there")?;
            // The chunks of a network are matched as one.
            let mut networks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (index, item) in items.iter().enumerate() {
                let part = item.part.or((items.len() == 1).then_some("unet"));
                if let Some(part) = part.filter(|part| UNETS.contains(part)) {
                    networks.entry(part).or_default().push(index);
                }
            }
            let mut all: Vec<Option<Choices>> = items.iter().map(|_| None).collect();
            let mut refused = Vec::new();
            for (part, indices) in &networks {
                let layers: Vec<Layer> =
                    indices.iter().flat_map(|&index| items[index].layers.iter().cloned()).collect();
                let by_names = by_recipe(file, recipe, &layers);
                let found = match like {
                    Some(like) if by_names.is_err() => {
                        let models: Vec<&coreml::Model> =
                            indices.iter().map(|&index| &items[index].model).collect();
                        by_structure(file, recipe, &network(&models)?, &named(like, part)?)
                    }
                    _ => by_names,
                };
                match found {
                    Ok((choices, is_same)) => {
                        if is_same == Some(false) {
                            progress
                                .say(format_args!("{part}: it has other layers than the recipe was made on"));
                        }
                        for &index in indices {
                            let own = items[index].layers.iter();
                            let own = own.filter_map(|layer| choices.get_key_value(&layer.name));
                            all[index] =
                                Some(own.map(|(name, chosen)| (name.clone(), chosen.clone())).collect());
                        }
                    }
                    Err(error) => refused.push((part, error)),
                }
            }
            if all.iter().all(Option::is_none) {
                match refused.into_iter().next() {
                    Some((part, error)) => return Err(error).context(part.to_string()),
                    None => bail!("a recipe is for a UNet, and there is none"),
                }
            }
            for (part, error) in refused {
                progress.say(format_args!("{part} stays as it is: {error}"));
            }
            Ok(all)
        }
    }
}

/// The graph of a network, of one package or two chunks.
fn network(models: &[&coreml::Model]) -> anyhow::Result<Function> {
    let functions = models.iter().map(|model| {
        let function = model.program.main().context("it has no function `main`")?;
        Ok(constexpr::decoded(function)?)
    });
    match &functions.collect::<anyhow::Result<Vec<Function>>>()?[..] {
        [whole] => Ok(whole.clone()),
        [first, second] => mixbit_mil::join(first, second).context("the chunks are not of one network"),
        several => bail!("{} packages are the same part", several.len()),
    }
}

/// The graphs that a part of a checkpoint has, as attention may be written.
fn named(checkpoint: &Path, part: &str) -> anyhow::Result<Vec<Function>> {
    let is_controlled = part == "control-unet";
    let compiled = if is_controlled { "ControlledUnet" } else { "Unet" };
    let mut graphs = Vec::new();
    for attention in AttentionImplementation::ALL {
        let form = Form { attention, control_unet: is_controlled, ..Form::default() };
        let parts = open(checkpoint, &form)?;
        let of_part = parts.into_iter().find(|found| found.name.trim_end_matches(".mlmodelc") == compiled);
        graphs.extend(of_part.and_then(|part| part.function));
    }
    if graphs.is_empty() {
        bail!("{} has no UNet that names could be taken from", checkpoint.display());
    }
    Ok(graphs)
}

impl Arguments {
    fn how(&self) -> anyhow::Result<How> {
        if let Some(width) = self.nbits {
            return Ok(How::Uniform(Scheme::palette(width)));
        }
        if let Some(scheme) = &self.scheme {
            return Ok(How::Uniform(scheme.parse()?));
        }
        let path = self.recipe.as_deref().context("say --nbits, --scheme or --recipe")?;
        let file = RecipeFile::read(path)?;
        let select = self.select.as_deref().unwrap_or_default();
        let (name, _) = file.select(select).with_context(|| path.display().to_string())?;
        Ok(How::Recipe { name: name.to_string(), file: Box::new(file), like: self.like.clone() })
    }

    /// The packages to be written; no weight is read. Files that a bundle has beside them are copied.
    fn items(&self, how: &How, progress: &Progress) -> anyhow::Result<Vec<Item>> {
        match &self.model {
            Some(path) if is_package(path) => {
                let is_path = is_package(&self.output);
                let name = path.file_name().unwrap_or_default();
                let output = if is_path { self.output.clone() } else { self.output.join(name) };
                if let Some(folder) = output.parent() {
                    make(folder)?;
                }
                Ok(vec![Item::read(path, output)?])
            }
            Some(path)
                if path.is_dir() && !is_checkpoint(path) && mixbit_packages::bundle::Bundle::is_at(path) =>
            {
                self.bundle(path)
            }
            path => self.checkpoint(path.as_deref(), how, progress),
        }
    }

    /// Whether a package is of a part that is asked for.
    fn is_wanted(&self, path: &Path) -> bool {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_asked = |part: &Part| self.part.iter().any(|asked| asked == part.asked_as);
        self.part.is_empty() || part(&stem).is_some_and(is_asked)
    }

    fn bundle(&self, directory: &Path) -> anyhow::Result<Vec<Item>> {
        make(&self.output)?;
        let mut items = Vec::new();
        for folder in ["", "controlnet"] {
            let folder = Path::new(folder);
            let path = directory.join(folder);
            if !path.is_dir() {
                continue;
            }
            let entries =
                fs::read_dir(&path).with_context(|| format!("{} can't be listed", path.display()))?;
            let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths.iter().filter(|path| !is_hidden(path)) {
                let output = self.output.join(folder).join(path.file_name().unwrap_or_default());
                if is_package(path) {
                    if !self.is_wanted(path) {
                        continue;
                    }
                    make(output.parent().unwrap_or(&self.output))?;
                    items.push(Item::read(path, output)?);
                } else if path.is_file() {
                    let text = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
                    mixbit_formats::write_atomically(&output, |file| std::io::Write::write_all(file, &text))?;
                }
            }
        }
        Ok(items)
    }

    fn checkpoint(&self, path: Option<&Path>, how: &How, progress: &Progress) -> anyhow::Result<Vec<Item>> {
        let model = open_or_demo(path, None)?;
        let source = Source { model: &model, refiner: None, vae: None, controlnets: Vec::new() };
        let asked = DEPLOYMENT_TARGETS.iter().find(|target| {
            target.names.iter().any(|name| name.eq_ignore_ascii_case(&self.min_deployment_target))
        });
        let asked = asked.context("the deployment target is unknown")?;
        let target = raised(asked, how);
        if target != asked {
            progress.say(format_args!(
                "the deployment target is {}, not {}: what is asked for is not in older systems",
                target.names[0], asked.names[0]
            ));
        }
        let attention = AttentionImplementation::ALL
            .into_iter()
            .find(|attention| attention.name().eq_ignore_ascii_case(&self.attention_implementation));
        let options = Options {
            parts: PARTS
                .iter()
                .map(|part| part.asked_as)
                .filter(|part| self.part.iter().any(|it| it == part))
                .collect(),
            model_version: self.model_version.clone().unwrap_or_else(|| model.name().to_string()),
            latent: None,
            batch_one: false,
            attention: attention.context("the attention implementation is unknown")?,
            chunk_unet: self.chunk_unet,
            control_unet: false,
            target,
        };
        let packages = plan(&source, &options).with_context(|| model.name().to_string())?;
        make(&self.output)?;
        write_vocabulary(&model, &self.output)?;
        packages.iter().map(|package| Item::of(package.path(&self.output), package.model()?)).collect()
    }
}

/// The oldest system that has all that is asked for.
fn raised(asked: &'static DeploymentTarget, how: &How) -> &'static DeploymentTarget {
    let needed = match how {
        How::Uniform(scheme) => Some(scheme.since()),
        How::Recipe { file, name, .. } => {
            let layers = file.recipes.get(name).map(|recipe| recipe.layers.values());
            layers.and_then(|schemes| schemes.flatten().map(|scheme| scheme.since()).max())
        }
    };
    let fits = |target: &&DeploymentTarget| Some(target.opset) >= needed && target.opset >= asked.opset;
    DEPLOYMENT_TARGETS.iter().find(fits).unwrap_or(asked)
}

impl Item {
    fn read(path: &Path, output: PathBuf) -> anyhow::Result<Self> {
        if let (Ok(source), Ok(target)) = (path.canonicalize(), output.canonicalize())
            && source == target
        {
            bail!("{} is what is read: choose another output", output.display());
        }
        Self::of(output, coreml::read(path)?).with_context(|| path.display().to_string())
    }

    fn of(path: PathBuf, model: coreml::Model) -> anyhow::Result<Self> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let part = part(&stem).map(|part| part.name);
        Ok(Item { from: stem, path, part, layers: model_layers(&model)?, model })
    }
}

/// The part that a package of that name is, or is a chunk of.
fn part(stem: &str) -> Option<&'static Part> {
    let ends = [WHOLE, CHUNKS[0], CHUNKS[1]];
    PARTS.iter().find(|part| ends.iter().any(|ends| is_named(stem, part, *ends)))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn make(directory: &Path) -> anyhow::Result<()> {
    if directory.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("the directory {} can't be made", directory.display()))
}
