//! `mixbit compare`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use mixbit_compress::{Layer, Scheme, uniform};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::session::{Cancel, Request, Role, Session, Text};
use mixbit_formats::{remove_leftovers, write_atomically, write_where_asked};
use serde_json::json;

use super::backends::Machine;
use super::output::{check_format, directory_of};
use super::progress::Progress;
use super::table::{Side, Table, shortened};
use super::{interrupt, print_line, values};
use mixbit_analysis::report::{Grid, OneOf, Picture, Planner, Recoded, draw, latent_psnr, pixel_psnr};
use mixbit_app::source::{self, LoadedModel};
use mixbit_packages::palettize::{MIN_SIZE, by_recipe};
use mixbit_packages::recipe::RecipeFile;
use mixbit_packages::source::OpenOptions;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit compare --models sdxl,sdxl-4.5-bit \"a lighthouse\" \"a bicycle\"
  mixbit compare --models sdxl --recipes analysis/sdxl_palettization_recipe.json --select 3.00,4.50 \"a lighthouse\"
  mixbit compare --schemes palette-8,palette-4,palette-2 \"a small red circle above a large blue square\"")]
pub(super) struct Arguments {
    /// What to draw: a row for each
    #[arg(required = true, value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Models, a column for each: directories in the diffusers layout, or of Core ML packages [default: the
    /// demo model]
    #[arg(short, long, value_name = "DIR", value_delimiter = ',', help_heading = "Columns")]
    models: Vec<PathBuf>,
    /// Which of several weight files to take, such as fp16
    #[arg(long, value_name = "NAME", requires = "models", help_heading = "Columns")]
    variant: Option<String>,
    /// What the UNet predicts, for Core ML packages that do not say it [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = values::prediction_types(), help_heading = "Columns")]
    prediction_type: Option<String>,
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
    /// Width and height in pixels [default: the first model's]
    #[arg(long, value_name = "WxH", value_parser = values::size, help_heading = "Drawing")]
    size: Option<[usize; 2]>,
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

/// A model and its images by prompt.
struct Column {
    name: String,
    pictures: Vec<Picture>,
}

/// A name and its layer plan; without a plan, layers stay unchanged.
type Form = (Option<String>, Option<Box<Planner>>);

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    let backend = Machine::new(arguments.threads.map(usize::from))?.backend;
    // Checks the output and the recipe file before any work.
    arguments.check_output()?;
    arguments.forms()?;
    let models: Vec<Option<&Path>> = match arguments.models[..] {
        [] => vec![None],
        ref paths => paths.iter().map(|path| Some(path.as_path())).collect(),
    };
    let mut columns: Vec<Column> = Vec::new();
    let mut size = arguments.size;
    for &path in &models {
        let options = OpenOptions {
            variant: arguments.variant.clone(),
            prediction_type: arguments.prediction_type.clone(),
        };
        let LoadedModel { model, name, assumptions } = source::load(path, &options)?;
        assumptions.iter().for_each(|assumption| progress.say(format_args!("warning: {name}: {assumption}")));
        let size = *size.get_or_insert(model.defaults.size);
        let model = Arc::new(model);
        let recoded = Recoded::new(model.clone());
        let mut session = Session::new(model, backend.clone());
        for (form, choose) in arguments.forms()? {
            let name = match (&form, models.len()) {
                (None, _) => name.clone(),
                (Some(form), 1) => form.clone(),
                (Some(form), _) => format!("{name} {form}"),
            };
            let model = match choose {
                Some(choose) => recoded.with(choose),
                None => recoded.original(),
            };
            let drawn = arguments.drawn(&mut session, model, &name, size, &cancel, &progress);
            columns.push(Column { pictures: drawn.with_context(|| name.clone())?, name });
        }
    }
    arguments.write_grid(&columns)?;
    if arguments.json {
        return print_line(format_args!("{:#}", summary(arguments, &columns)));
    }
    if !arguments.quiet {
        print_line(table(&arguments.prompts, &columns))?;
    }
    print_line(arguments.path().display())
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

    /// Writes the images beside each other.
    fn write_grid(&self, columns: &[Column]) -> anyhow::Result<()> {
        let row = |(index, prompt): (usize, &'_ String)| {
            let images = columns.iter().map(|column| &column.pictures[index].image);
            (prompt.clone(), images.collect::<Vec<_>>())
        };
        let rows: Vec<_> = self.prompts.iter().enumerate().map(row).collect();
        let grid = Grid {
            columns: columns.iter().map(|column| column.name.as_str()).collect(),
            rows: rows.iter().map(|(prompt, images)| (prompt.as_str(), images.clone())).collect(),
        };
        match &self.output {
            Some(path) => write_where_asked(path, |file| grid.write_png(file))?,
            None => write_atomically(self.path(), |file| grid.write_png(file))?,
        }
        Ok(())
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
        name: &str,
        size: [usize; 2],
        cancel: &Cancel,
        progress: &Progress,
    ) -> anyhow::Result<Vec<Picture>> {
        session.set_model(Role::Base, model.clone());
        let progress = progress.phase(name);
        let mut pictures = Vec::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let text = Text { negative_prompt: self.negative_prompt.clone(), ..Text::new(prompt.as_str()) };
            let mut request = Request { size, ..Request::new(&model, text)? };
            request.steps = self.steps.unwrap_or(request.steps);
            request.guidance_scale = self.guidance_scale.unwrap_or(request.guidance_scale);
            let progress = OneOf { progress: &progress, index, count: self.prompts.len() };
            pictures.push(draw(session, &request, self.seed, cancel, &progress)?);
        }
        Ok(pictures)
    }
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

fn table(prompts: &[String], columns: &[Column]) -> Table<4> {
    let sides = [Side::Left, Side::Right, Side::Right, Side::Left];
    let names = ["model", "latents, dB", "pixels, dB", "prompt"];
    let mut table = Table::new([0, 1, 2, 3].map(|index| (names[index], sides[index])));
    for (index, prompt) in prompts.iter().enumerate() {
        for (at, column) in columns.iter().enumerate().skip(1) {
            let [latents, pixels] = compared(columns, at, index).map(|psnr| match psnr {
                Some(psnr) if psnr.is_infinite() => "equal".to_string(),
                Some(psnr) => format!("{psnr:.1}"),
                None => "-".to_string(),
            });
            table.row([column.name.clone(), latents, pixels, shortened(prompt)]);
        }
    }
    table
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
