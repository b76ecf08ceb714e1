//! The sensitivity of a UNet's layers to compression, and recipes made of it.
//!
//! There are two methods ([`METHODS`]):
//!
//! - `exhaustive` is Apple's. It measures every layer at every width alone, then all layers one after the
//!   other in the order of their harm. Each layer gets the fewest bits that stay above a threshold on the
//!   latter curve.
//! - `estimate` measures each layer alone at few widths and states, and infers the other widths from their
//!   errors in the layer's own output. It chooses by rate and distortion ([`mixbit_compress::allocate`]).
//!   Palettes weigh an error by the mean square of its input channel.
//!
//! Measurements are kept on disk as they are made, so that an analysis continues after a kill, and several
//! machines can share one. Recipes are verified on prompts and states that were not measured on.
//!
//! *Invariant:* the result depends on the model and the options alone, not on how the work was shared or
//! interrupted.

mod calibration;
mod correction;
mod cost;
mod distortion;
mod encoder;
mod error;
mod evaluator;
mod fingerprint;
mod int8;
mod journal;
mod measure;
mod measurements;
mod network;
mod options;
mod outcome;
mod point;
mod recipe_file;
mod states;
mod strategy;
mod subject;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_compress::{Layer, Scheme};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_engine::{Backend, Cancel};
use mixbit_mil::{Progress, Tally, Unit};
use mixbit_packages::recipe::ModelIdentity;

pub use cost::{Cost, expected};
pub use error::{AnalyzeError, JournalError};
pub use journal::count_measurements;
pub use options::{
    AnalysisMethod, EFFORTS, EarlierRecipe, Effort, Goal, METHODS, Options, Shard, schemes_of_recipes,
};
pub(crate) use outcome::mean;
pub use outcome::{Analysis, Candidate, Curve, Int8, Outcome, Verified};
pub use point::{PROMPTS, Point, Setting};

use encoder::CalibratedEncoder;
use evaluator::Evaluator;
use journal::{Journal, MeasuredOptions};
use measurements::{Measurements, Order};
use network::SegmentedNetwork;
use strategy::{Chooser, Strategy};
use subject::Subject;
use verify::{Verification, Verifier};

/// The receivers of an analysis' progress, one for each phase.
#[derive(Clone, Copy)]
pub struct Phases<'p> {
    /// Measures layers.
    pub measuring: &'p dyn Progress,
    /// Runs baselines and recipes.
    pub verifying: &'p dyn Progress,
}

/// Makes the shard's measurements. If none is missing then, makes the recipes and verifies them.
///
/// # Errors
/// If the options can't be used, the network can't be run, measurements can't be kept or belong to another
/// analysis, or the work was cancelled.
pub fn analyze(
    model: &Arc<DiffusionModel>,
    backend: &Arc<dyn Backend>,
    options: &Options,
    cancel: &Cancel,
    progress: Phases<'_>,
) -> Result<Outcome, AnalyzeError> {
    if options.prompts.len() < 2 {
        return Err(AnalyzeError::TooFewPrompts);
    }
    if options.schemes.is_empty() {
        return Err(AnalyzeError::NoSchemes);
    }
    let strategy = strategy::strategy(options);
    Work { model, backend, options, cancel, progress, strategy: &*strategy }.run()
}

/// An analysis at work.
struct Work<'w> {
    model: &'w Arc<DiffusionModel>,
    backend: &'w Arc<dyn Backend>,
    options: &'w Options,
    strategy: &'w dyn Strategy,
    cancel: &'w Cancel,
    progress: Phases<'w>,
}

/// The network under analysis and the states that it is measured on.
struct Prepared<'b> {
    subject: Subject<'b>,
    /// All layers, if they are measured in 8-bit integers.
    quantized: Vec<Layer>,
    points: Vec<point::Point>,
    timesteps: Vec<f64>,
    /// The steps that drawing the states took.
    steps: usize,
    /// Predictions for one evaluation.
    batch: usize,
}

impl Work<'_> {
    fn run(&self) -> Result<Outcome, AnalyzeError> {
        let mut prepared = self.prepare()?;
        self.check_earlier(&prepared.subject)?;
        let mut measurements = self.measure(&mut prepared)?;
        if !measurements.are_complete() {
            return Ok(Outcome::Partial { done: measurements.done, total: measurements.total });
        }
        let (evaluations, whole_evaluations) = self.cost(&prepared, &measurements);
        let Prepared { mut subject, quantized, points, timesteps, .. } = prepared;
        let verified_points = states::verified_points(self.options, &points);
        let chooser = self.strategy.chooser(&subject, &measurements)?;
        subject.evaluator.set_samples(self.samples(&self.options.setting, &verified_points)?.samples)?;
        let states = format!("{verified_points:?} {:?}", self.options.setting);
        let mut verifier = Verifier { subject: &mut subject, journal: &mut measurements.journal, states };
        let Verification { baselines, recipes, unreached } = self.verify(&mut verifier, &*chooser)?;
        let verifying = self.progress.verifying;
        let int8 = self
            .options
            .int8
            .map(|target| int8::choose(&mut subject.evaluator, &quantized, &measurements, target, verifying));
        let candidate =
            |layer: &Layer| Candidate { name: layer.name.clone(), shape: layer.ty().shape.clone() };
        Ok(Outcome::Done(Box::new(Analysis {
            candidates: subject.layers.iter().map(candidate).collect(),
            identity: ModelIdentity::of("", &subject.layers),
            bytes: subject.evaluator.network.bytes(),
            single_layer: measurements.single_layer(&subject.layers),
            cumulative: measurements.cumulative(&subject.layers),
            importance: subject.encoder.into_mean_squares(),
            baselines,
            recipes,
            unreached,
            int8: int8.transpose()?,
            points,
            timesteps,
            verified_points,
            evaluations,
            whole_evaluations,
        })))
    }

    /// Draws the samples and runs the network on them.
    fn prepare(&self) -> Result<Prepared<'_>, AnalyzeError> {
        let points = self.strategy.points();
        let drawn = self.samples(&self.strategy.setting(), &points)?;
        let batch = drawn.samples.first().map_or(1, calibration::Sample::predictions);
        let timesteps = drawn.samples.iter().map(|sample| sample.timestep).collect();
        let network =
            SegmentedNetwork::new(&drawn.graph, &**self.backend, drawn.samples.len(), self.cancel.clone())?;
        let layers = subject::candidates(network.layers(), self.options.min_size)?;
        let quantized = match self.options.int8 {
            Some(_) => network.layers().cloned().collect(),
            None => Vec::new(),
        };
        let evaluator = Evaluator::new(network, drawn.samples)?;
        let encoder = self.strategy.encoder(&evaluator)?;
        let subject = Subject { evaluator, encoder, layers };
        Ok(Prepared { subject, quantized, points, timesteps, steps: drawn.steps, batch })
    }

    fn samples(&self, setting: &Setting, points: &[Point]) -> Result<calibration::Samples, AnalyzeError> {
        calibration::samples(self.model, self.backend, setting, points, self.cancel)
    }

    fn measure(&self, prepared: &mut Prepared<'_>) -> Result<Measurements, AnalyzeError> {
        let measured = self.description(prepared);
        let journal =
            Journal::open(&self.options.directory, self.options.shard, &measured, self.measured_options())?;
        let measuring = self.progress.measuring;
        let Prepared { subject, quantized, .. } = prepared;
        measure::measure(self.strategy, subject, quantized, journal, self.options.shard, measuring)
    }

    /// A description of the measurements, which tells their files from those of another analysis.
    fn description(&self, prepared: &Prepared<'_>) -> String {
        let Prepared { subject, points, .. } = prepared;
        let schemes: Vec<String> = self.strategy.schemes().iter().map(Scheme::to_string).collect();
        let name = self.options.method.name;
        let hash = fingerprint::fingerprint(subject, &format!("{points:?} {:?}", self.strategy.setting()));
        format!("{name} of {} on {} states, {hash:016x}", schemes.join(" "), points.len())
    }

    /// The options that measurements depend on, by their names on the command line.
    fn measured_options(&self) -> MeasuredOptions {
        let Options { method, effort, schemes, min_size, prompts, seed, .. } = self.options;
        let Setting { negative_prompt, size: [width, height], steps, guidance_scale } = &self.options.setting;
        let schemes: Vec<String> = schemes.iter().map(Scheme::to_string).collect();
        let prompts = fingerprint::of_text(&prompts.join("\n"));
        let all = [
            ("method", method.name.to_string()),
            ("effort", effort.name.to_string()),
            ("schemes", schemes.join(",")),
            ("min-size", min_size.to_string()),
            ("prompts", format!("{prompts:016x}")),
            ("seed", seed.to_string()),
            ("size", format!("{width}x{height}")),
            ("steps", steps.to_string()),
            ("guidance-scale", guidance_scale.to_string()),
        ];
        let negative = negative_prompt.clone().map(|prompt| ("negative-prompt", prompt));
        all.into_iter().chain(negative).map(|(name, value)| (name.to_string(), value)).collect()
    }

    /// Refuses recipes of an earlier analysis that are not of this model.
    fn check_earlier(&self, subject: &Subject<'_>) -> Result<(), AnalyzeError> {
        for recipe in &self.options.earlier {
            let is_known = |name: &&String| subject.layers.iter().any(|layer| layer.name == **name);
            if let Some(layer) = recipe.layers.keys().find(|name| !is_known(name)) {
                return Err(AnalyzeError::Earlier { recipe: recipe.name.clone(), layer: layer.clone() });
            }
        }
        Ok(())
    }

    /// Runs the baselines, and chooses and runs the recipes.
    fn verify(
        &self,
        verifier: &mut Verifier<'_, '_>,
        chooser: &dyn Chooser,
    ) -> Result<Verification, AnalyzeError> {
        let Options { schemes, goals, earlier, .. } = self.options;
        let anchors = self.strategy.anchors().iter();
        let anchors: Vec<_> = anchors.filter_map(|&bits| chooser.choose(Goal::Bits(bits))).collect();
        let total = verify::uniform(schemes).count() + anchors.len() + goals.len() + earlier.len();
        let tally = Tally::new(self.progress.verifying, total as u64, Unit::Measurements);
        tally.add(0)?;
        let baselines = verify::baselines(verifier, schemes, &tally)?;
        let correction = verify::correction(verifier, anchors, &tally)?;
        let (chosen, unreached) = verify::choose(goals, chooser, &correction);
        tally.add(unreached.len() as u64)?;
        let recipes = verify::verify(verifier, earlier, chosen, &tally)?;
        Ok(Verification { baselines, recipes, unreached })
    }

    /// The cost of the measurements in evaluations for one image, whoever made them: as they are made, and
    /// with every one a run of the whole network.
    fn cost(&self, prepared: &Prepared<'_>, measurements: &Measurements) -> (f64, f64) {
        let Prepared { subject, points, steps, batch, .. } = prepared;
        let network = &subject.evaluator.network;
        let alone: f64 = subject.layers.iter().map(|layer| network.share(&layer.name)).sum();
        let together = |order: &Order| -> f64 {
            let mut most = 0.0f64;
            let one = |&index: &usize| {
                most = most.max(network.share(&subject.layers[index].name));
                most
            };
            order.layers.iter().map(one).sum()
        };
        let together: f64 = measurements.orders.iter().map(together).sum();
        let encoder = self.strategy.encoder_evaluations() as f64;
        let anchors = (self.strategy.anchors().len() * states::VERIFIED_STATES) as f64;
        // The unchanged network runs once for every state.
        let each = measurements.schemes.len() as f64 * alone + together + 1.0 + encoder;
        let batch = *batch as f64;
        let evaluations = batch * (points.len() as f64 * each + anchors + *steps as f64);
        (evaluations, batch * (measurements.total * points.len()) as f64)
    }
}

/// A recipe to run, with the mean squares that its palettes are fitted to.
#[derive(Clone, Copy, Debug)]
pub struct FittedRecipe<'a> {
    /// The scheme of each compressed layer.
    pub layers: &'a BTreeMap<String, Scheme>,
    /// The mean square of each input channel by layer.
    pub importance: &'a BTreeMap<String, Vec<f32>>,
}

/// Runs recipes in some states, and returns the PSNR in dB of denoised latents by recipe and by state.
///
/// # Errors
/// If the network can't be run, a layer's weights can't be compressed, or the work was cancelled.
pub fn measure_recipes(
    model: &Arc<DiffusionModel>,
    backend: &Arc<dyn Backend>,
    setting: &Setting,
    points: &[Point],
    recipes: &[FittedRecipe<'_>],
    cancel: &Cancel,
) -> Result<Vec<Vec<f64>>, AnalyzeError> {
    let drawn = calibration::samples(model, backend, setting, points, cancel)?;
    let network = SegmentedNetwork::new(&drawn.graph, &**backend, drawn.samples.len(), cancel.clone())?;
    let layers = subject::candidates(network.layers(), 0)?;
    let evaluator = Evaluator::new(network, drawn.samples)?;
    let mut subject = Subject { evaluator, encoder: CalibratedEncoder::default(), layers };
    let mut all = Vec::new();
    for recipe in recipes {
        subject.encoder.calibrate(recipe.importance);
        all.push(subject.verify(String::new(), recipe.layers.clone(), None)?.measured);
    }
    Ok(all)
}
