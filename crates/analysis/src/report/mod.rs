//! What an analysis found, to look at: a page, a plot, and the images that recipes draw.
//!
//! - [`write()`] puts `report.html`, `psnr_vs_size.svg` and `psnr_vs_size.png` into a directory; the page needs no network;
//! - [`Recoded`] is a model whose UNet is stored by one recipe after the other, [`draw`] draws with it, and [`pictures`]
//!   with all recipes of an analysis;
//! - [`Grid`] is images of several models beside each other.

mod drawing;
mod figure;
mod grid;
mod layers;
mod page;
mod plot;
mod raster;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request};
use std::sync::Arc;

use mixbit_engine::Backend;
use mixbit_formats::write_atomically;

pub use drawing::{Choose, Picture, Recoded, draw};
pub use grid::Grid;

use crate::analyze::{Analysis, Verified};
use mixbit_packages::palettize::{Choices, Chosen};
use mixbit_packages::psnr::{mean_square, peak};

/// What is reported.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was found.
    pub analysis: &'a Analysis,
    /// The model's name.
    pub name: &'a str,
    /// Images; there need be none.
    pub pictures: Option<Pictures>,
}

/// Images of one prompt and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    /// What is drawn.
    pub prompt: String,
    /// The seed of the noise.
    pub seed: u64,
    /// As the model is.
    pub original: Picture,
    /// By recipe.
    pub recipes: Vec<(String, Picture)>,
}

/// Writes the files of a report, each whole or not at all, and gives their paths; the page is the first.
///
/// # Errors
/// If one can't be written, with its path.
pub fn write(directory: &Path, report: &Report<'_>) -> Result<Vec<PathBuf>, mixbit_formats::Error> {
    let plot = plot::plot(&plot::series(report.analysis));
    let paths = ["report.html", "psnr_vs_size.svg", "psnr_vs_size.png"].map(|name| directory.join(name));
    let [page, svg, png] = &paths;
    write_atomically(page, |file| file.write_all(page::page(report, &plot)?.as_bytes()))?;
    write_atomically(svg, |file| file.write_all(plot.svg_file().as_bytes()))?;
    write_atomically(png, |file| raster::Bitmap::of(&plot, 2.0).write_png(file))?;
    Ok(paths.into())
}

/// How a recipe of an analysis stores layers.
pub fn choices(verified: &Verified, importance: &BTreeMap<String, Vec<f32>>) -> Choices {
    let chosen = |(layer, scheme): (&String, &mixbit_compress::Scheme)| {
        (layer.clone(), Chosen { scheme: *scheme, importance: importance.get(layer).cloned() })
    };
    verified.layers.iter().map(chosen).collect()
}

/// The images of every recipe of an analysis beside the original's. `progress` is told the evaluations that are done, and
/// all.
///
/// # Errors
/// If the model can't be run with a recipe, or it was stopped.
pub fn pictures(
    model: DiffusionModel,
    backend: &Arc<dyn Backend>,
    analysis: &Analysis,
    request: &Request,
    cancel: &Cancel,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Pictures, GenerateError> {
    let mut recoded = Recoded::new(model);
    let images = 1 + analysis.recipes.len();
    let mut drawn = 0;
    let mut next = |model: &DiffusionModel| {
        let mut told = |done: usize, total: usize| progress(drawn * total + done, images * total);
        let picture = draw(model, backend, request, cancel, seed, &mut told)?;
        drawn += 1;
        Ok::<_, GenerateError>(picture)
    };
    let original = next(recoded.original())?;
    let mut recipes = Vec::new();
    for recipe in &analysis.recipes {
        let choices = choices(recipe, &analysis.importance);
        let picture = next(recoded.with(Box::new(move |_| Ok(choices.clone()))))?;
        recipes.push((recipe.name.clone(), picture));
    }
    Ok(Pictures { prompt: request.text.prompt.clone(), seed, original, recipes })
}

/// The PSNR in dB of latents, with the largest magnitude of the original as the peak; infinite if they are equal.
pub fn psnr(original: &[f32], other: &[f32]) -> f64 {
    let [original, other] = [original, other].map(|values| values.iter().map(|&value| f64::from(value)));
    mixbit_packages::psnr::psnr(peak(original.clone()), mean_square(original.zip(other)))
}

/// The PSNR in dB of the pixels of images of one size; infinite if they are equal.
pub fn pixel_psnr(original: &Image, other: &Image) -> f64 {
    let pairs = original.to_rgb8().into_iter().zip(other.to_rgb8());
    mixbit_packages::psnr::psnr(255.0, mean_square(pairs.map(|(a, b)| (f64::from(a), f64::from(b)))))
}
