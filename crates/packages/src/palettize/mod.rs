//! Networks with the weights of their layers in fewer bits.
//!
//! - [`mixbit_compress::uniform`], [`by_recipe`] and [`by_structure`] plan the scheme of each layer of a
//!   network;
//! - [`palettize`] makes a model of it that can be written;
//! - [`Palettized::check`] reads a written model and compares every weight with its source;
//! - [`Job`] does all this for the packages of a model.

mod check;
mod job;
mod target;

use mixbit_compress::{Calibration, Encoder, Layer, LayerPlan, Plan, Scheme, layers};
use mixbit_formats::coreml;
use mixbit_mil::{Function, Opset, Program, Progress, constexpr};
use thiserror::Error;

use crate::recipe::{Assignment, MatchError, RecipeFile, assign, assign_by_structure};

pub use check::{CheckError, LayerReport, Report};
pub use job::{Job, JobError, Outcome, Phase, Phases, PlanSource, Warning};
pub use target::{Target, TargetError, Targets};

/// The most weights of a layer that stays unchanged, as with Apple's `--quantize-nbits`.
pub const MIN_SIZE: usize = 2048;

/// The layers of a UNet, or of both of its chunks, as a recipe says; and whether the model has the layers
/// that the recipe was made on, where that is known.
///
/// # Errors
/// A recipe that the file does not have is no choice; else [`MatchError`].
pub fn by_recipe(
    file: &RecipeFile,
    recipe: &crate::recipe::Recipe,
    layers: &[Layer],
) -> Result<(Plan, Option<bool>), MatchError> {
    Ok(planned(file, assign(file, recipe, layers)?))
}

/// The same for a network that has lost the names of its layers: they are found by what it computes. `named`
/// are graphs of the same configuration with names, as attention may be written.
///
/// # Errors
/// [`MatchError`].
pub fn by_structure(
    file: &RecipeFile,
    recipe: &crate::recipe::Recipe,
    network: &Function,
    named: &[Function],
) -> Result<(Plan, Option<bool>), MatchError> {
    Ok(planned(file, assign_by_structure(file, recipe, network, named)?))
}

/// The assigned schemes, with the mean squares that the file has.
fn planned(file: &RecipeFile, assignment: Assignment) -> (Plan, Option<bool>) {
    let calibration = |layer: &str| {
        Some(Calibration::of_mean_square(file.details.as_ref()?.importance.get(layer)?.values()))
    };
    let plan = assignment.layers.into_iter().filter_map(|(name, (layer, scheme))| {
        Some((name, LayerPlan { scheme: scheme?, calibration: calibration(&layer) }))
    });
    (plan.collect(), assignment.is_same)
}

/// A model that can't be palettized.
#[derive(Debug, Error)]
pub enum PalettizeError {
    /// A scheme that is newer than the model's deployment target.
    #[error(
        "{scheme} needs {needs}, and the package is for {has}: convert the checkpoint again with \
         --min-deployment-target macOS15, or palettize the checkpoint itself"
    )]
    Target {
        /// The scheme.
        scheme: Scheme,
        /// The opset that has it.
        needs: &'static str,
        /// The model's opset.
        has: &'static str,
    },
    /// Layers have fewer bits already.
    #[error(
        "{count} of the layers, `{first}` the first, are compressed already: palettize the original, or compress what they \
         decode to with --force"
    )]
    Compressed {
        /// Their number.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A weight can't be compressed.
    #[error(transparent)]
    Compress(#[from] mixbit_compress::Error),
    /// The model's graph can't be used.
    #[error(transparent)]
    Mil(#[from] mixbit_mil::Error),
    /// The model has no function.
    #[error("it has no function `main`")]
    NoFunction,
}

/// A model whose layers are in fewer bits.
pub struct Palettized {
    /// The model, for a file.
    pub model: coreml::Model,
    /// The layers before, in the order of the graph.
    before: Vec<Layer>,
    /// The same layers after.
    after: Vec<Layer>,
}

/// The layers of a model.
///
/// # Errors
/// If the model has no function, or one that can't be decoded.
pub fn model_layers(model: &coreml::Model) -> Result<Vec<Layer>, PalettizeError> {
    let function = model.program.main().ok_or(PalettizeError::NoFunction)?;
    Ok(layers(&constexpr::decoded(function)?))
}

/// A model with layers stored as planned. Palettes are fitted on all threads; `progress` counts the layers.
/// `again` allows to compress what layers that are compressed decode to.
///
/// # Errors
/// [`PalettizeError`].
pub fn palettize(
    model: &coreml::Model,
    plan: &Plan,
    again: bool,
    progress: &dyn Progress,
) -> Result<Palettized, PalettizeError> {
    let function = constexpr::decoded(model.program.main().ok_or(PalettizeError::NoFunction)?)?;
    let before = layers(&function);
    let planned = |layer: &Layer| plan.get(&layer.name);
    for scheme in before.iter().filter_map(planned).map(|plan| plan.scheme) {
        if scheme.since() > function.opset {
            let (needs, has) = (system(scheme.since()), system(function.opset));
            return Err(PalettizeError::Target { scheme, needs, has });
        }
    }
    let compressed: Vec<&Layer> =
        before.iter().filter(|layer| planned(layer).is_some() && layer.weight.encoding().is_some()).collect();
    if let (Some(first), false) = (compressed.first(), again) {
        return Err(PalettizeError::Compressed { count: compressed.len(), first: first.name.clone() });
    }
    let function = Encoder::new().apply(&function, plan, progress)?;
    let after = layers(&function);
    let program = Program::new(constexpr::encoded(&function)?);
    Ok(Palettized { model: coreml::Model { program, ..model.clone() }, before, after })
}

/// The system that an opset came with.
fn system(opset: Opset) -> &'static str {
    let targets = crate::package::DEPLOYMENT_TARGETS;
    targets.iter().find(|target| target.opset == opset).map_or(opset.name(), |target| target.names[0])
}

#[cfg(test)]
mod tests;
