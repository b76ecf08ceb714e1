//! The report of an analysis: a page, a plot, and images of its recipes.
//!
//! - [`write()`] writes `report.html`, `psnr_vs_size.svg` and `psnr_vs_size.png` into a directory. The page
//!   is self-contained.
//! - [`Recoded`] stores a model's UNet by one recipe after the other, [`draw`] draws one image, and
//!   [`pictures`] an image for every recipe of an analysis.
//! - [`Grid`] shows images of several models beside each other.

mod drawing;
mod figure;
mod grid;
mod layers;
mod page;
mod plot;
mod raster;
mod recoded;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mixbit_compress::{Calibration, LayerPlan, Plan, Scheme};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request, Role, Session};
use mixbit_engine::Backend;
use mixbit_formats::write_atomically;
use mixbit_mil::Progress;

pub use drawing::{OneOf, Picture, draw};
pub use grid::{Cell, Grid};
pub use recoded::{Planner, Recoded};

use crate::analyze::{Analysis, Verified};
use mixbit_packages::psnr::{mean_square, psnr, psnr_of};

/// The contents of a report.
#[derive(Debug)]
pub struct Report<'a> {
    /// The analysis.
    pub analysis: &'a Analysis,
    /// The model's name.
    pub name: &'a str,
    /// The images, if they were drawn.
    pub pictures: Option<Pictures>,
}

/// Images of one prompt and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    /// The prompt.
    pub prompt: String,
    /// The seed of the noise.
    pub seed: u64,
    /// The unchanged model's image.
    pub original: Picture,
    /// The image of each recipe, by name.
    pub recipes: Vec<(String, Picture)>,
}

/// Writes the files of a report, each whole or not at all, and returns their paths, the page's first.
///
/// # Errors
/// If a file can't be written, with its path.
pub fn write(directory: &Path, report: &Report<'_>) -> Result<Vec<PathBuf>, mixbit_formats::Error> {
    let plot = plot::plot(&plot::series(report.analysis));
    let paths = ["report.html", "psnr_vs_size.svg", "psnr_vs_size.png"].map(|name| directory.join(name));
    let [page, svg, png] = &paths;
    write_atomically(page, |file| file.write_all(page::page(report, &plot)?.as_bytes()))?;
    write_atomically(svg, |file| file.write_all(plot.svg_file().as_bytes()))?;
    write_atomically(png, |file| raster::Bitmap::of(&plot, 2.0).write_png(file, &[]))?;
    Ok(paths.into())
}

/// The scheme of each layer in a recipe of an analysis, with the mean squares that its palette is fitted to.
fn plan(verified: &Verified, mean_squares: &BTreeMap<String, Vec<f32>>) -> Plan {
    let plan = |(layer, &scheme): (&String, &Scheme)| {
        let calibration = mean_squares.get(layer).cloned().map(Calibration::of_mean_square);
        (layer.clone(), LayerPlan { scheme, calibration })
    };
    verified.layers.iter().map(plan).collect()
}

/// Draws the image of the original model and of every recipe of an analysis. `progress` counts evaluations of
/// the UNet.
///
/// # Errors
/// If the model can't be run with a recipe, or the work was cancelled.
pub fn pictures(
    model: Arc<DiffusionModel>,
    backend: &Arc<dyn Backend>,
    analysis: &Analysis,
    request: &Request,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Pictures, GenerateError> {
    let recoded = Recoded::new(model.clone());
    let mut session = Session::new(model, backend.clone());
    let count = 1 + analysis.recipes.len();
    let mut next = |index, model| {
        session.set_model(Role::Base, model);
        draw(&mut session, request, seed, cancel, &OneOf { progress, index, count })
    };
    let original = next(0, recoded.original())?;
    let mut recipes = Vec::new();
    for (index, recipe) in analysis.recipes.iter().enumerate() {
        let plan = plan(recipe, &analysis.importance);
        let model = recoded.with(Box::new(move |_| Ok(plan.clone())));
        recipes.push((recipe.name.clone(), next(1 + index, model)?));
    }
    Ok(Pictures { prompt: request.text.prompt.clone(), seed, original, recipes })
}

/// The PSNR in dB of latents, with the largest magnitude of the original as the peak; infinite if they are
/// equal.
pub fn latent_psnr(original: &[f32], other: &[f32]) -> f64 {
    let [found, expected] = [other, original].map(|values| values.iter().map(|&value| f64::from(value)));
    psnr_of(found, expected)
}

/// The PSNR in dB of the pixels of images of one size; infinite if they are equal.
pub fn pixel_psnr(original: &Image, other: &Image) -> f64 {
    let pairs = original.to_rgb8().into_iter().zip(other.to_rgb8());
    psnr(255.0, mean_square(pairs.map(|(a, b)| (f64::from(a), f64::from(b)))))
}
