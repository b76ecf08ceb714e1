//! An evaluation of the demo model: held-out captions, drawn by mixbit and measured from pixels.

mod measure;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use mixbit_app::parameters::Parameters;
use mixbit_app::picture;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Image, Request, Role, Session, Text};
use mixbit_engine_cpu::Cpu;
use mixbit_packages::source::DiffusersModel;

use crate::repository;
use measure::{Verdict, measure};
use world::{Caption, World};

/// The least number of pictures of 100 with the right colours and positions.
const MIN_COLOUR_AND_POSITION: usize = 90;

/// The least number of pictures of 100 with the right shapes.
const MIN_SHAPE: usize = 85;

/// The arguments of `cargo xtask demo-eval`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Inference steps
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// The guidance scale
    #[arg(long, default_value_t = 3.0)]
    guidance_scale: f32,
    /// The number of held-out captions, from the first
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// A directory for the pictures
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Another model of the same scenes, in the diffusers layout
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

/// The number of right pictures.
#[derive(Default)]
struct Totals {
    colour: usize,
    position: usize,
    colour_and_position: usize,
    shape: usize,
}

impl Totals {
    fn add(&mut self, verdict: Verdict) {
        self.colour += usize::from(verdict.colour);
        self.position += usize::from(verdict.position);
        self.colour_and_position += usize::from(verdict.colour && verdict.position);
        self.shape += usize::from(verdict.shape);
    }
}

/// Draws the captions and prints the number of right pictures.
///
/// # Errors
/// If a picture can't be drawn or saved, or too few are right.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let demo = repository().join("crates/app/demo");
    let world = World::read(&demo.join("heldout.json"))?;
    let captions = &world.captions[..arguments.count.min(world.captions.len())];
    if captions.is_empty() {
        bail!("there is no caption to draw");
    }
    let files = DiffusersModel::open(arguments.model.as_deref().unwrap_or(&demo), None)?;
    let model = Arc::new(DiffusionModel::from_files(&files)?);
    let mut session = Session::new(model, Arc::new(Cpu::new(None)?));
    if let Some(directory) = &arguments.save {
        fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
    }
    let start = Instant::now();
    let mut totals = Totals::default();
    for (index, caption) in captions.iter().enumerate() {
        let image = draw(&mut session, world.side, caption, arguments)
            .with_context(|| format!("caption {index}, \"{}\"", caption.caption))?;
        let verdict = measure(&image.to_rgb8(), &world, caption)?;
        if let Some(directory) = &arguments.save {
            save(directory, index, &image, caption, arguments)?;
        }
        for wrong in verdict.wrong() {
            println!("{index:03}: wrong {wrong}: {}", caption.caption);
        }
        totals.add(verdict);
    }
    report(&totals, captions.len(), start.elapsed().as_secs_f64())
}

fn draw(
    session: &mut Session,
    side: usize,
    caption: &Caption,
    arguments: &Arguments,
) -> anyhow::Result<Image> {
    let request = Request {
        size: [side, side],
        steps: arguments.steps,
        guidance_scale: arguments.guidance_scale,
        ..Request::new(session.model(Role::Base)?, Text::new(&caption.caption))?
    };
    let mut noise = random_source("torch")?.seeded(caption.seed)?;
    Ok(session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?)
}

fn save(
    directory: &Path,
    index: usize,
    image: &Image,
    caption: &Caption,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let mut parameters = Parameters { prompt: caption.caption.clone(), ..Parameters::default() };
    parameters.set("Steps", arguments.steps);
    parameters.set("CFG scale", arguments.guidance_scale);
    parameters.set("Seed", caption.seed);
    Ok(picture::write(&directory.join(format!("{index:03}.png")), image, &parameters.to_string())?)
}

fn report(totals: &Totals, count: usize, seconds: f64) -> anyhow::Result<()> {
    println!(
        "of {count}: colour {}, position {}, colour and position {}, shape {} in {seconds:.0} s",
        totals.colour, totals.position, totals.colour_and_position, totals.shape
    );
    for (property, right, needed) in [
        ("colour and position", totals.colour_and_position, MIN_COLOUR_AND_POSITION),
        ("shape", totals.shape, MIN_SHAPE),
    ] {
        if right * 100 < needed * count {
            bail!("{property} is right in {right} of {count} pictures, below {needed} of 100");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_right_pictures_fail() {
        let totals = |colour_and_position, shape| Totals { colour_and_position, shape, ..Totals::default() };
        for (totals, count, expected) in [
            (totals(90, 85), 100, None),
            (totals(89, 100), 100, Some("colour and position is right in 89 of 100")),
            (totals(100, 84), 100, Some("shape is right in 84 of 100")),
            (totals(9, 9), 10, None),
            (totals(9, 8), 10, Some("shape is right in 8 of 10")),
        ] {
            let error = report(&totals, count, 0.0).err().map(|error| error.to_string());
            match (error, expected) {
                (None, None) => {}
                (Some(error), Some(expected)) => assert!(error.starts_with(expected), "{error}"),
                (error, expected) => panic!("{error:?}, expected {expected:?}"),
            }
        }
    }
}
