//! Networks with the weights of their layers in fewer bits.
//!
//! - [`mixbit_compress::uniform`], [`by_recipe`] and [`by_structure`] plan the scheme of each layer of a
//!   network;
//! - [`palettize`] makes a model of it that can be written;
//! - [`Palettized::check`] reads a written model and compares every weight with its source;
//! - [`Job`] does all this for the packages of a model.

mod check;
mod job;
mod owner;
mod stale;
mod target;

use std::collections::{HashMap, HashSet};

use mixbit_compress::{Calibration, Encoder, Layer, LayerPlan, Plan, Scheme, layers};
use mixbit_formats::coreml;
use mixbit_mil::{Function, Identity, Opset, Program, Progress, TensorType, ValueId, WeightRef, constexpr};
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

/// The layers of a model: those of its main function, then those that only other functions have.
///
/// # Errors
/// If the model has no function, or one that can't be decoded.
pub fn model_layers(model: &coreml::Model) -> Result<Vec<Layer>, PalettizeError> {
    let main = model.program.main().ok_or(PalettizeError::NoFunction)?;
    let mut found = layers(&constexpr::decoded(main)?);
    let mut names: HashSet<String> = found.iter().map(|layer| layer.name.clone()).collect();
    for function in model.program.functions.iter().filter(|function| function.name != main.name) {
        let others = layers(&constexpr::decoded(function)?).into_iter();
        found.extend(others.filter(|layer| names.insert(layer.name.clone())));
    }
    Ok(found)
}

/// The layers of every function of a package: one after the other, of a pipeline model by model.
fn stored_layers(model: &coreml::Model) -> Result<Vec<Layer>, PalettizeError> {
    let parts = &model.form.models;
    if !parts.is_empty() {
        let layers = parts.iter().map(|part| stored_layers(&part.model));
        return Ok(layers.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
    }
    let functions = model.program.functions.iter();
    let layers = functions.map(|function| Ok(layers(&constexpr::decoded(function)?)));
    Ok(layers.collect::<Result<Vec<_>, mixbit_mil::Error>>()?.into_iter().flatten().collect())
}

/// Refuses a plan that a model's layers can't be stored by. No weight is read. `again` allows to compress
/// what layers that are compressed decode to.
///
/// # Errors
/// [`PalettizeError::Target`], [`PalettizeError::Compressed`], or a graph that can't be used.
fn check_plan(model: &coreml::Model, plan: &Plan, again: bool) -> Result<Vec<Layer>, PalettizeError> {
    let before = stored_layers(model)?;
    let oldest = model.program.main().ok_or(PalettizeError::NoFunction)?.opset;
    let planned = |layer: &Layer| plan.get(&layer.name);
    for scheme in before.iter().filter_map(planned).map(|plan| plan.scheme) {
        if scheme.since() > oldest {
            let (needs, has) = (system(scheme.since()), system(oldest));
            return Err(PalettizeError::Target { scheme, needs, has });
        }
    }
    let compressed: Vec<&Layer> =
        before.iter().filter(|layer| planned(layer).is_some() && layer.weight.encoding().is_some()).collect();
    if let (Some(first), false) = (compressed.first(), again) {
        return Err(PalettizeError::Compressed { count: compressed.len(), first: first.name.clone() });
    }
    Ok(before)
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
    let before = check_plan(model, plan, again)?;
    let mut model = model.clone();
    let mut encoded = SharedEncodings::default();
    let mut after = Vec::new();
    match &mut model.form.models[..] {
        [] => encoded.apply(&mut model.program, plan, progress, &mut after)?,
        parts => {
            for part in parts {
                encoded.apply(&mut part.model.program, plan, progress, &mut after)?;
            }
        }
    }
    Ok(Palettized { model, before, after })
}

/// The encoded weights of a package, by the weights that they were made of. Functions that share a weight
/// share its encoding.
#[derive(Default)]
struct SharedEncodings(HashMap<(Identity, TensorType, String), WeightRef>);

impl SharedEncodings {
    /// Stores the layers of a program as planned, and adds them to `after`.
    fn apply(
        &mut self,
        program: &mut Program,
        plan: &Plan,
        progress: &dyn Progress,
        after: &mut Vec<Layer>,
    ) -> Result<(), PalettizeError> {
        for function in &mut program.functions {
            let graph = constexpr::decoded(function)?;
            let before = layers(&graph);
            let key = |layer: &Layer| {
                let scheme = plan.get(&layer.name)?.scheme.to_string();
                Some((layer.weight.identity(), layer.ty().clone(), scheme))
            };
            let known: HashMap<ValueId, WeightRef> = before
                .iter()
                .filter_map(|layer| Some((layer.value, self.0.get(&key(layer)?)?.clone())))
                .collect();
            let is_new = |layer: &&Layer| !known.contains_key(&layer.value);
            let new: Plan = before
                .iter()
                .filter(is_new)
                .filter_map(|layer| Some((layer.name.clone(), plan.get(&layer.name)?.clone())))
                .collect();
            let graph = Encoder::new().apply(&graph, &new, progress)?.with_weights(&known);
            let stored = layers(&graph);
            for (layer, stored) in before.iter().zip(&stored) {
                if let Some(key) = key(layer) {
                    self.0.insert(key, stored.weight.clone());
                }
            }
            *function = constexpr::encoded(&graph)?;
            after.extend(stored);
        }
        Ok(())
    }
}

/// The system that an opset came with.
fn system(opset: Opset) -> &'static str {
    let targets = crate::package::DEPLOYMENT_TARGETS;
    targets.iter().find(|target| target.opset == opset).map_or(opset.name(), |target| target.names[0])
}

#[cfg(test)]
mod tests;
