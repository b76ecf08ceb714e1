//! The PSNR of a recipe on the model at hand, for `palettize --verify`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use mixbit_analysis::analyze::{FittedRecipe, PROMPTS, Point, Setting, measure_recipes};
use mixbit_compress::{Scheme, layers};
use mixbit_diffusion::model::{Defaults, DiffusionModel};
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Component, Request, Session, Text};
use mixbit_mil::constexpr;
use mixbit_packages::package::is_package;
use mixbit_packages::palettize::PlanSource;
use mixbit_packages::recipe::{Details, RecipeFile};
use mixbit_packages::source::OpenOptions;

use super::backends::Machine;
use super::progress::Progress;
use super::{opening, recipe};

/// The most steps of the images that states are taken from.
const MOST_STEPS: usize = 25;

/// The states, as parts of a run in eighths. Two of them are of one image.
const STATES: [usize; 4] = [1, 5, 3, 7];

/// The seed of the first image; analyses measure and verify with others.
const SEED: u64 = 2093;

/// Measures the PSNR of denoised latents with the UNet stored as planned, in a few states, and gives it in
/// words.
///
/// # Errors
/// If the model can't draw, its layers are compressed already, or the work was cancelled.
pub(super) fn verify(
    path: Option<&Path>,
    source: &PlanSource,
    cancel: &Cancel,
    progress: &Progress,
) -> anyhow::Result<String> {
    if let Some(path) = path.filter(|path| is_package(path)) {
        bail!("--verify draws with the whole model, and {} is one package of it", path.display());
    }
    let _verifying = progress.wait("verifying on images of this model");
    let machine = Machine::new(None)?;
    let (model, name) = opening::open(path, &OpenOptions::default(), progress)?;
    let model = Arc::new(model);
    let (schemes, details) = match source {
        PlanSource::Recipe { file, name, .. } => {
            let recipe = file.recipes.get(name).context("the recipe is not in its file")?;
            let schemes =
                recipe.layers.iter().filter_map(|(layer, scheme)| Some((layer.clone(), (*scheme)?)));
            (schemes.collect(), file.details.as_ref())
        }
        PlanSource::Unchanged => (BTreeMap::new(), None),
        PlanSource::Uniform { scheme, min_size, .. } => (of_all(&model, &machine, *scheme, *min_size)?, None),
    };
    let importance = importance(details);
    let recipes = [FittedRecipe { layers: &schemes, importance: &importance }];
    let (setting, points) = states(&model.defaults, details);
    let measured = measure_recipes(&model, &machine.backend, &setting, &points, &recipes, cancel)?;
    let measured = measured.first().context("nothing was measured")?;
    let psnr = measured.iter().sum::<f64>() / measured.len().max(1) as f64;
    Ok(format!("verified on {name}: {psnr:.1} dB in {} states{}", measured.len(), told(source)))
}

/// The PSNR that the recipe file tells, in words.
fn told(source: &PlanSource) -> String {
    let PlanSource::Recipe { file, name, .. } = source else { return String::new() };
    let told = |file: &RecipeFile| {
        let psnr = recipe::psnr(file, name)?;
        Some(format!("; the recipe file tells {psnr:.1} dB, of {}", file.model_version))
    };
    told(file).unwrap_or_default()
}

/// The scheme of every layer of the UNet with more than `min_size` weights.
fn of_all(
    model: &Arc<DiffusionModel>,
    machine: &Machine,
    scheme: Scheme,
    min_size: usize,
) -> anyhow::Result<BTreeMap<String, Scheme>> {
    let mut session = Session::new(model.clone(), machine.backend.clone());
    let request = Request::new(model, Text::new(""))?;
    let mut noise = random_source("torch")?.seeded(SEED)?;
    let stages = session.stages(&request, &[Component::Unet], 1, &mut *noise)?;
    let graph = stages.first().and_then(|stage| stage.graph()).context("the model has no UNet")?;
    let all = layers(&constexpr::decoded(graph)?).into_iter().filter(|layer| layer.count() > min_size);
    Ok(all.map(|layer| (layer.name, scheme)).collect())
}

/// The mean square of each input channel by layer.
fn importance(details: Option<&Details>) -> BTreeMap<String, Vec<f32>> {
    let all = details.iter().flat_map(|details| &details.importance);
    all.map(|(layer, importance)| (layer.clone(), importance.values())).collect()
}

/// The setting of the recipe's own measurements where the file has it, and states of two images.
fn states(defaults: &Defaults, details: Option<&Details>) -> (Setting, [Point; 4]) {
    let steps = defaults.steps.clamp(1, MOST_STEPS);
    let calibration = details.map(|details| &details.calibration);
    let prompts: Vec<&str> = match calibration {
        Some(calibration) if !calibration.prompts.is_empty() => {
            calibration.prompts.iter().map(String::as_str).collect()
        }
        _ => PROMPTS.to_vec(),
    };
    let setting = Setting {
        negative_prompt: calibration.and_then(|calibration| calibration.negative_prompt.clone()),
        size: defaults.size,
        steps,
        guidance_scale: calibration
            .map_or(defaults.guidance_scale, |calibration| calibration.guidance_scale as f32),
    };
    let mut index = 0;
    let points = STATES.map(|eighth| {
        let image = index / 2;
        index += 1;
        Point {
            prompt: prompts[image % prompts.len()].to_string(),
            seed: SEED + image as u64,
            evaluation: (steps * eighth / 8).min(steps - 1),
        }
    });
    (setting, points)
}
